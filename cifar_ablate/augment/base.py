"""Base classes of augmentations: ``draw`` parameters for an epoch, ``apply`` them to the batch of each step.

CONTRIBUTING.md has an example.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Array = npt.NDArray[Any]
Params = Mapping[str, Tensor]


@dataclass(frozen=True)
class Epoch:
    """What an augmentation may know about a pass over the training images."""

    seed: int
    number: int
    """From 0."""
    order: Array
    """int64 [num]: which training image comes at each position."""
    image_size_px: int

    @property
    def num(self) -> int:
        """Number of images."""
        return len(self.order)


class Batch(NamedTuple):
    """Images float32 [B, 3, H, W] and soft targets float32 [B, C]."""

    images: Tensor
    targets: Tensor


@dataclass(frozen=True, kw_only=True)
class Transform(ABC):
    """An augmentation of images alone, applied to each with its own draw."""

    stage: ClassVar[Literal["geometry", "erase"]]
    """geometry: images in [0, 1], black is 0. erase: normalised images, the data set's mean is 0."""
    rank: ClassVar[int] = 50
    """Order within the stage, low first; ties are broken by name. The order in YAML does not matter."""

    @abstractmethod
    def draw(self, rng: np.random.Generator, epoch: Epoch) -> dict[str, Array]:
        """Parameters for all images of an epoch, in its order: arrays whose first axis has length ``epoch.num``.

        Draw from ``rng`` only, so that equal seeds give equal trainings. ``apply`` gets float64 as float32.
        """

    @abstractmethod
    def apply(self, images: Tensor, params: Params) -> Tensor:
        """float32 [B, 3, H, W] to the same; ``params`` has these B images' rows of what ``draw`` returned."""


@dataclass(frozen=True, kw_only=True)
class Mixer(ABC):
    """An augmentation that mixes each image and its target with a partner's (of the same batch, before any mixing).

    If a recipe has several mixers, each image is mixed by one of them, chosen uniformly: ``params["chosen"]``.
    """

    stage: ClassVar[Literal["mix"]] = "mix"
    rank: ClassVar[int] = 50

    @abstractmethod
    def draw(self, rng: np.random.Generator, epoch: Epoch) -> dict[str, Array]:
        """Parameters for all images of an epoch, in its order: arrays whose first axis has length ``epoch.num``.

        Draw from ``rng`` only, so that equal seeds give equal trainings. ``apply`` gets float64 as float32.
        """

    @abstractmethod
    def apply(self, batch: Batch, partner: Batch, params: Params) -> Batch:
        """Mix the images for which ``params["chosen"]`` (bool [B]) is true; return the others unchanged."""


def to_tensors(drawn: Mapping[str, Array], device: torch.device) -> dict[str, Tensor]:
    """Move drawn parameters to a device; float64 becomes float32, the precision of images."""
    narrow = {key: values.astype(np.float32) if values.dtype == np.float64 else values for key, values in drawn.items()}
    return {key: torch.from_numpy(values).to(device, non_blocking=True) for key, values in narrow.items()}


def per_image(values: Tensor) -> Tensor:
    """[B] to [B, 1, 1, 1], so that it broadcasts over images."""
    return values.view(-1, 1, 1, 1)


def inside(top: Tensor, left: Tensor, bottom: Tensor, right: Tensor, size_px: int) -> Tensor:
    """Boxes (each int [B], bottom and right exclusive) as masks: bool [B, 1, H, W], true inside."""
    line = torch.arange(size_px, device=top.device)
    rows = (line >= top[:, None]) & (line < bottom[:, None])
    columns = (line >= left[:, None]) & (line < right[:, None])
    return (rows[:, :, None] & columns[:, None, :])[:, None]
