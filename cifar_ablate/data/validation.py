"""A validation part of the training images, for everything that is chosen before the test images are looked at."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np

from cifar_ablate.data.canonical import stratified_order
from cifar_ablate.data.types import DataSet
from cifar_ablate.errors import DataError

VALIDATION_SEED = 4104
"""Every validation part is drawn with this seed, so that it is the same for all trials, arms and machines."""


def validation_part(data: DataSet, fraction: float) -> DataSet:
    """Training images divided in two: the larger part to train on, and a stratified part in place of the test images.

    Args:
        data: Both splits; a subset of the training images is divided as it is.
        fraction: Share of the training images that is held out, in (0, 1).

    Returns:
        A data set of ``split`` "val", which shares no memory with ``data`` and holds none of its test images. Its
        digest follows from that of ``data`` and from the parts, so no training on it has the fingerprint of a run.

    Raises:
        DataError: a part would be without an image of some class.
    """
    num = len(data.train_labels)
    num_held_out = round(fraction * num)
    order = stratified_order(data.train_labels, VALIDATION_SEED)
    held_out, kept = np.sort(order[:num_held_out]), np.sort(order[num_held_out:])
    for part, what in ((held_out, "validation"), (kept, "training")):
        missing = data.num_classes - len(np.unique(data.train_labels[part]))
        if missing:
            cure = "raise" if what == "validation" else "lower"
            raise DataError(
                f"val_fraction {fraction:g} of {num:,} training images leaves {missing} of {data.num_classes} classes "
                f"without a {what} image; {cure} it, or take more training images"
            )
    identity = f"{data.digest}/{num}/{num_held_out}/{VALIDATION_SEED}"
    return replace(
        data,
        train_images=data.train_images[kept],
        train_labels=data.train_labels[kept],
        test_images=data.train_images[held_out],
        test_labels=data.train_labels[held_out],
        num_test_full=num,
        split="val",
        digest=hashlib.sha256(identity.encode()).hexdigest()[:32],
    )
