"""Canonical order, digest, subset and validation part of a data set, independent of how its images are stored.

Canonical order sorts each split by the SHA-256 of its images' pixels (uint8 [3, H, W] bytes), then by label. So the
official archive, a folder and a tar archive of the same images give the same arrays, the same digest and bit-identical
trainings, and images that are stored by class are mixed. Hashing and sorting 60,000 images of 32x32 takes 0.3 s (1 s
the first time the memory is used).
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
"""Seed of every training subset, so that it is the same for all arms, seeds and machines."""
VALIDATION_SEED = 4104
"""Seed of every validation part, so that it is the same for all trials, arms and machines."""


def canonical(name: str, raw: RawImages) -> DataSet:
    """Check what a source returned, and bring it to canonical order.

    Raises:
        DataError: A wrong dtype or shape, a label without a class, a class without training images, or no test image.
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
    """First 32 hex digits of a SHA-256 over the class names, and the dtype, shape and bytes of C-contiguous arrays."""
    header = {"classes": list(classes), "arrays": [[array.dtype.str, list(array.shape)] for array in arrays]}
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for array in arrays:
        digest.update(array.data)
    return digest.hexdigest()[:32]


def subset(data: DataSet, train_size: int) -> DataSet:
    """Take the first ``train_size`` training images of the stratified order, and keep them in canonical order.

    Smaller subsets are subsets of larger ones.

    Raises:
        DataError: Fewer images than classes, or more than the data set has.
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


def validation_part(data: DataSet, fraction: float) -> DataSet:
    """Hold out a stratified part of the training images, which replaces the test images.

    Args:
        data: Both splits; a subset of the training images is split as it is.
        fraction: Share of the training images that is held out, in (0, 1).

    Returns:
        A data set with ``split`` "val" that contains none of the test images and shares no memory with ``data``. Its
        digest depends on that of ``data`` and on the sizes of the parts, so trials and runs differ in fingerprint.

    Raises:
        DataError: One of the parts would have no image of some class.
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


def stratified_order(labels: Labels, seed: int) -> NDArray[np.int64]:
    """An order of indices, int64 [N], in which every prefix is stratified by class.

    The images are sorted by k/n, where k counts the images of a class from 0 in random order and n is their number. So
    every class comes once before any comes twice, and larger prefixes contain smaller ones, which shares by largest
    remainder do not ensure. The random numbers are raw PCG64 output, which NumPy keeps stable across versions.

    Source: Adams's method in Balinski and Young, Fair Representation, 1982.
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
