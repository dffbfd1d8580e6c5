"""What a source hands in, what a training gets, and what a source says about itself."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

Images = NDArray[np.uint8]
Labels = NDArray[np.int64]

Report = Callable[[str, int, int | None], None]
"""``report(what, done, total)``: progress in bytes or images; ``total`` is None where it is not known."""


def silent(what: str, done: int, total: int | None) -> None:
    """The report of a caller that shows no progress."""


@dataclass(frozen=True, eq=False)
class RawImages:
    """What a source hands in: both splits as decoded, in any order."""

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
    """Both splits in canonical order (see ``canonical.py``); the training split may be a stratified subset."""

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
    """32 hex digits that stand for the full data (pixels, labels, class names), whatever subset this is."""
    num_train_full: int
    """Training images before any subset."""
    num_test_full: int
    """Test images before any subset."""
    split: Literal["test", "val"] = "test"
    """What the network is evaluated on. val: ``test_images`` are held-out training images, see ``validation.py``."""

    @property
    def num_classes(self) -> int:
        """How many classes there are."""
        return len(self.classes)

    @property
    def image_size_px(self) -> int:
        """Height and width of every image."""
        return int(self.train_images.shape[-1])

    def describe(self) -> str:
        """The data, named for what it is: ``cifar10: 5,000 of 50,000 training images, all 10,000 test images``."""
        train = _share(len(self.train_labels), self.num_train_full)
        if self.split == "val":
            return f"{self.name}: {train} training images, and {len(self.test_labels):,} others of them to validate on"
        test = _share(len(self.test_labels), self.num_test_full)
        return f"{self.name}: {train} training images, {test} test images"


def _share(num: int, num_full: int) -> str:
    return f"all {num:,}" if num == num_full else f"{num:,} of {num_full:,}"


@dataclass(frozen=True)
class Storage:
    """How a source's decoded images may be kept on disk."""

    inputs: Callable[..., Iterable[Path]]
    """``inputs(root, **options)``: every file that is read; one that changes makes the images be decoded again."""
    digest: str | None
    """The digest that the images must have, for data that everybody knows."""


S = TypeVar("S", bound=Callable[..., RawImages])
_STORAGE: dict[Callable[..., Any], Storage] = {}


def stored(inputs: Callable[..., Iterable[Path]], *, digest: str | None = None) -> Callable[[S], S]:
    """Let the decoded images of a source be kept; a source without this decorator is decoded at every start."""

    def decorate(source: S) -> S:
        _STORAGE[source] = Storage(inputs, digest)
        return source

    return decorate


def storage_of(source: Callable[..., Any]) -> Storage | None:
    """What ``stored`` said about a source; None: nothing is kept."""
    return _STORAGE.get(source)
