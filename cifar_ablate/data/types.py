"""The types of this room: what a source returns, what a training gets, and how decoded images are stored."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

Images = NDArray[np.uint8]
Labels = NDArray[np.int64]

ProgressCallback = Callable[[str, int, int | None], None]
"""``report(what, done, total)``: progress in bytes or images; ``total`` is None if it is unknown."""


def silent(what: str, done: int, total: int | None) -> None:
    """A ``ProgressCallback`` that shows nothing."""


@dataclass(frozen=True, eq=False)
class RawImages:
    """What a source returns: both splits, decoded, in any order."""

    train_images: Images
    """uint8 [N, H, W, 3], RGB."""
    train_labels: Labels
    """int64 [N], indices into ``classes``."""
    test_images: Images
    """uint8 [M, H, W, 3], RGB."""
    test_labels: Labels
    """int64 [M], indices into ``classes``."""
    classes: tuple[str, ...]
    """Class names, by label."""


@dataclass(frozen=True, eq=False)
class DataSet:
    """Both splits in canonical order (see ``canonical.py``); the training images may be a stratified subset."""

    name: str
    """The source's name in the study."""
    classes: tuple[str, ...]
    """Class names, by label."""
    train_images: Images
    """uint8 [N, 3, H, W], C-contiguous, RGB, 0 to 255."""
    train_labels: Labels
    """int64 [N]."""
    test_images: Images
    """uint8 [M, 3, H, W], C-contiguous, RGB, 0 to 255."""
    test_labels: Labels
    """int64 [M]."""
    digest: str
    """32 hex digits that identify the full data (pixels, labels, class names), also for a subset."""
    num_train_full: int
    """Number of training images before a subset was taken."""
    num_test_full: int
    """Number of test images before a subset was taken."""
    split: Literal["test", "val"] = "test"
    """What the network is evaluated on. val: ``test_images`` are held-out training images (``validation_part``)."""

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.classes)

    @property
    def image_size_px(self) -> int:
        """Height and width of every image in pixels."""
        return int(self.train_images.shape[-1])

    def describe(self) -> str:
        """The data in words, such as ``cifar10: 5,000 of 50,000 training images, all 10,000 test images``."""
        train = _share(len(self.train_labels), self.num_train_full)
        if self.split == "val":
            return f"{self.name}: {train} training images, and {len(self.test_labels):,} others of them to validate on"
        test = _share(len(self.test_labels), self.num_test_full)
        return f"{self.name}: {train} training images, {test} test images"


def _share(num: int, num_full: int) -> str:
    return f"all {num:,}" if num == num_full else f"{num:,} of {num_full:,}"


@dataclass(frozen=True)
class Storage:
    """How the decoded images of a source are stored on disk."""

    inputs: Callable[..., Iterable[Path]]
    """``inputs(root, **options)``: every file that the source reads; if one changes, the images are decoded again."""
    digest: str | None
    """Digest that the images must have; None: any."""


S = TypeVar("S", bound=Callable[..., RawImages])
_STORAGE: dict[Callable[..., Any], Storage] = {}


def stored(inputs: Callable[..., Iterable[Path]], *, digest: str | None = None) -> Callable[[S], S]:
    """Decorator of a source: store its decoded images. A source without it is decoded at every start.

    Args:
        inputs: ``inputs(root, **options)`` returns every file that the source reads.
        digest: Digest that the images must have; None: any.
    """

    def decorate(source: S) -> S:
        _STORAGE[source] = Storage(inputs, digest)
        return source

    return decorate


def storage_of(source: Callable[..., Any]) -> Storage | None:
    """The arguments of a source's ``stored`` decorator; None: it has none."""
    return _STORAGE.get(source)
