"""The one order, the one digest and the one subset of a data set, whatever container its images came in.

Canonical order: each split is sorted by the SHA-256 of every image's pixels (uint8 [3, H, W] bytes), then by label. So
the official archive, a folder and a tar of the same images give the same arrays, the same digest and bit-identical
trainings, and images that came sorted by class get mixed. Hashing and sorting 60,000 images of 32x32 takes 0.3 s
(1 s on memory that was never touched before).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from cifar_ablate.data.types import DataSet, Images, Labels, RawImages
from cifar_ablate.errors import DataError

SUBSET_SEED = 1729
"""Every training subset is drawn with this seed, so that it is the same for all arms, seeds and machines."""


def canonical(name: str, raw: RawImages) -> DataSet:
    """Check what a source handed in and bring it to canonical order.

    Raises:
        DataError: a wrong dtype or shape, a label without a class, a class without training images, no test image.
    """
    _check(name, raw)
    train_images, train_labels = _in_order(raw.train_images, raw.train_labels)
    test_images, test_labels = _in_order(raw.test_images, raw.test_labels)
    return DataSet(
        name=name,
        classes=raw.classes,
        train_images=train_images,
        train_labels=train_labels,
        test_images=test_images,
        test_labels=test_labels,
        digest=digest_of(raw.classes, [train_images, train_labels, test_images, test_labels]),
        num_train_full=len(train_labels),
        num_test_full=len(test_labels),
    )


def digest_of(classes: Sequence[str], arrays: Sequence[Images | Labels]) -> str:
    """SHA-256 (first 16 bytes, in hex) over class names, and the dtype, shape and bytes of C-contiguous arrays."""
    header = {"classes": list(classes), "arrays": [[array.dtype.str, list(array.shape)] for array in arrays]}
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for array in arrays:
        digest.update(array.data)
    return digest.hexdigest()[:32]


def subset(data: DataSet, train_size: int) -> DataSet:
    """The first ``train_size`` images of the stratified order, kept in canonical order; a smaller subset lies inside.

    Raises:
        DataError: fewer images than classes, or more than there are.
    """
    if train_size > data.num_train_full:
        raise DataError(
            f"train_size {train_size:,} is more than {data.name} has: set it to at most {data.num_train_full:,}, "
            "or leave it out to train on all images"
        )
    if train_size < data.num_classes:
        raise DataError(
            f"train_size {train_size:,} leaves some of the {data.num_classes:,} classes of {data.name} without an "
            f"image: set it to at least {data.num_classes:,}"
        )
    keep = np.sort(stratified_order(data.train_labels, SUBSET_SEED)[:train_size])
    return replace(data, train_images=data.train_images[keep], train_labels=data.train_labels[keep])


def stratified_order(labels: Labels, seed: int) -> NDArray[np.int64]:
    """An order of indices, int64 [N], whose every prefix gives each class its share.

    The k-th image (from 0, in random order) of a class of n images stands at k/n: each class comes once before any
    comes twice, and prefixes are nested, which shares by largest remainder are not (Balinski and Young, Fair
    Representation, 1982: this is Adams's method). Random numbers are raw PCG64 output, which NumPy never changes.
    """
    random = np.random.PCG64(seed).random_raw(len(labels))
    place = np.empty(len(labels), dtype=np.float64)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        shuffled = members[np.argsort(random[members], kind="stable")]
        place[shuffled] = np.arange(len(members)) / len(members)
    return np.lexsort((labels, place))


def _in_order(images: Images, labels: Labels) -> tuple[Images, Labels]:
    nchw = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
    hashes = b"".join(hashlib.sha256(pixels.data).digest() for pixels in nchw.reshape(len(nchw), -1))
    words = np.frombuffer(hashes, dtype=">u8").reshape(-1, 4)
    order = np.lexsort((labels, words[:, 3], words[:, 2], words[:, 1], words[:, 0]))
    return nchw[order], labels[order]


def _check(name: str, raw: RawImages) -> None:
    sizes = set()
    for split, images, labels in (
        ("training", raw.train_images, raw.train_labels),
        ("test", raw.test_images, raw.test_labels),
    ):
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
            raise DataError(
                f"{name}: {split} images are {images.dtype} {list(images.shape)}; "
                "the source must give uint8 [N, H, W, 3]"
            )
        if labels.dtype != np.int64 or labels.shape != images.shape[:1]:
            raise DataError(
                f"{name}: {split} labels are {labels.dtype} {list(labels.shape)}; "
                f"the source must give int64 [{len(images)}]"
            )
        if not len(images):
            raise DataError(f"{name}: there are no {split} images; provide at least one of each class")
        if labels.min() < 0 or labels.max() >= len(raw.classes):
            raise DataError(
                f"{name}: {split} labels go from {labels.min()} to {labels.max()} but there are "
                f"{len(raw.classes)} classes; the source must name a class for each label"
            )
        sizes.add(images.shape[1:3])
    if len(sizes) > 1 or any(height != width for height, width in sizes):
        listed = ", ".join(f"{height}x{width}" for height, width in sorted(sizes))
        raise DataError(f"{name}: images are {listed}; bring them all to one square size")
    present = set(raw.train_labels.tolist())
    absent = [class_name for label, class_name in enumerate(raw.classes) if label not in present]
    if absent:
        raise DataError(f"{name}: no training image of class {', '.join(absent)}; add some or remove the class")
