"""Handwritten digits that come with scikit-learn: real images without a download."""

from __future__ import annotations

import gzip
from importlib.metadata import distribution
from pathlib import Path

import numpy as np

from cifar_ablate.data.canonical import stratified_order
from cifar_ablate.data.types import ProgressCallback, RawImages
from cifar_ablate.registry import DATA

SPLIT_SEED = 360
"""Seed of the split into training and test images, which scikit-learn does not provide. It must never change."""
NUM_TEST = 360
SCALE = 4
"""Each pixel becomes a block of SCALE x SCALE pixels."""


@DATA.register("digits")
def digits(root: Path, report: ProgressCallback) -> RawImages:
    """Real handwritten digits, 8x8 grey enlarged to 32x32: 1,437 training and 360 test images, no download.

    Each pixel becomes a block of 4x4, values 0 to 16 become 0 to 255, and all three channels are equal. The test images
    are a stratified fifth, drawn with ``SPLIT_SEED``.

    Source: Alpaydin and Kaynak, Optical Recognition of Handwritten Digits, UCI, 1998; in scikit-learn.
    """
    # read without importing scikit-learn, which takes a second
    with gzip.open(str(distribution("scikit-learn").locate_file("sklearn/datasets/data/digits.csv.gz")), "rt") as file:
        table = np.loadtxt(file, delimiter=",", dtype=np.int64)
    grey = (table[:, :-1].reshape(-1, 8, 8) * 255 + 8) // 16
    large = grey.astype(np.uint8).repeat(SCALE, axis=1).repeat(SCALE, axis=2)
    images = np.repeat(large[..., None], 3, axis=3)
    labels = table[:, -1]
    order = stratified_order(labels, SPLIT_SEED)
    test, train = order[:NUM_TEST], order[NUM_TEST:]
    report("reading digits", len(labels), len(labels))
    return RawImages(images[train], labels[train], images[test], labels[test], tuple(str(digit) for digit in range(10)))
