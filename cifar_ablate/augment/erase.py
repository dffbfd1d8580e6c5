"""Cutout and random erasing: fill a part of each normalised image with 0, the data set's mean colour."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from cifar_ablate.augment.base import Array, Epoch, Params, Transform, inside
from cifar_ablate.fields import PositiveFloat, PositiveInt, Probability
from cifar_ablate.registry import AUGMENTATIONS

TRIES = 10
"""Boxes that random erasing proposes per image, as in torchvision; if none fits, the image is not changed."""


@AUGMENTATIONS.register("cutout")
@dataclass(frozen=True, kw_only=True)
class Cutout(Transform):
    """Erase a square of ``size_px`` around a random pixel with probability p (arXiv 1708.04552)."""

    stage: ClassVar[Literal["erase"]] = "erase"
    rank: ClassVar[int] = 10
    size_px: PositiveInt = 8
    p: Probability = 1.0

    def draw(self, rng: np.random.Generator, epoch: Epoch) -> dict[str, Array]:
        centre = rng.integers(0, epoch.image_size_px, (epoch.num, 2))
        start = centre - self.size_px // 2
        size = np.where(rng.random(epoch.num) < self.p, self.size_px, 0)
        return {"start": start, "stop": start + size[:, None]}

    def apply(self, images: Tensor, params: Params) -> Tensor:
        return _erase(images, params)


def check_erasing(*, area: tuple[float, float], ratio: tuple[float, float], **_: object) -> None:
    for name, (low, high) in {"area": area, "ratio": ratio}.items():
        if low > high:
            raise ValueError(f"{name} must be [smallest, largest] (got [{low:g}, {high:g}]); swap the two")


@AUGMENTATIONS.register("erasing", check=check_erasing)
@dataclass(frozen=True, kw_only=True)
class RandomErasing(Transform):
    """Erase a box of random area and shape with probability p, as torchvision's RandomErasing (arXiv 1708.04896)."""

    stage: ClassVar[Literal["erase"]] = "erase"
    rank: ClassVar[int] = 20
    p: Probability = 0.5
    area: Annotated[tuple[Probability, Probability], Field(strict=False)] = (0.02, 0.33)
    ratio: Annotated[tuple[PositiveFloat, PositiveFloat], Field(strict=False)] = (0.3, 3.3)

    def draw(self, rng: np.random.Generator, epoch: Epoch) -> dict[str, Array]:
        apply = rng.random(epoch.num) < self.p
        area = rng.uniform(*self.area, (epoch.num, TRIES)) * epoch.image_size_px**2
        ratio = np.exp(rng.uniform(np.log(self.ratio[0]), np.log(self.ratio[1]), (epoch.num, TRIES)))
        height, width = np.round(np.sqrt(area * ratio)), np.round(np.sqrt(area / ratio))
        fits = (height < epoch.image_size_px) & (width < epoch.image_size_px)
        first = fits.argmax(1)[:, None]
        box = np.concatenate([np.take_along_axis(side, first, 1) for side in (height, width)], 1)
        start = np.floor(rng.random((epoch.num, 2)) * (epoch.image_size_px - box + 1))
        box[~(apply & fits.any(1))] = 0
        return {"start": start.astype(np.int64), "stop": (start + box).astype(np.int64)}

    def apply(self, images: Tensor, params: Params) -> Tensor:
        return _erase(images, params)


def _erase(images: Tensor, params: Params) -> Tensor:
    start, stop = params["start"], params["stop"]
    mask = inside(start[:, 0], start[:, 1], stop[:, 0], stop[:, 1], images.shape[-1])
    return torch.where(mask, torch.zeros((), device=images.device, dtype=images.dtype), images)
