"""MixUp and CutMix, with one lambda per image. If a recipe has both, each image gets one of them (timm's ``elem``)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cifar_ablate.augment.base import Array, Batch, Epoch, Mixer, Params, inside, per_image
from cifar_ablate.fields import PositiveFloat, Probability
from cifar_ablate.registry import AUGMENTATIONS


@AUGMENTATIONS.register("mixup")
@dataclass(frozen=True, kw_only=True)
class MixUp(Mixer):
    """Blend image and target with a partner's: lambda ~ Beta(alpha, alpha), with probability p (arXiv 1710.09412)."""

    alpha: PositiveFloat = 0.2
    p: Probability = 1.0

    def draw(self, rng: np.random.Generator, epoch: Epoch) -> dict[str, Array]:
        kept = rng.beta(self.alpha, self.alpha, epoch.num)
        return {"kept": np.where(rng.random(epoch.num) < self.p, kept, 1.0).astype(np.float32)}

    def apply(self, batch: Batch, partner: Batch, params: Params) -> Batch:
        kept = torch.where(params["chosen"], params["kept"], 1.0)
        images = torch.lerp(partner.images, batch.images, per_image(kept))
        return Batch(images, _mixed(batch.targets, partner.targets, kept))


@AUGMENTATIONS.register("cutmix")
@dataclass(frozen=True, kw_only=True)
class CutMix(Mixer):
    """Paste a box of a partner and weight its target by the box's area, with probability p (arXiv 1905.04899).

    lambda ~ Beta(alpha, alpha). The box has half sides floor(size sqrt(1 - lambda) / 2) around a uniform pixel and is
    clipped at the borders; the clipped area gives the weight. Boxes are torchvision's; if the whole side
    floor(size sqrt(1 - lambda)) is odd, timm's extend one pixel further down and right.
    """

    alpha: PositiveFloat = 1.0
    p: Probability = 1.0

    def draw(self, rng: np.random.Generator, epoch: Epoch) -> dict[str, Array]:
        kept = rng.beta(self.alpha, self.alpha, epoch.num)
        kept = np.where(rng.random(epoch.num) < self.p, kept, 1.0)
        centre = rng.integers(0, epoch.image_size_px, (epoch.num, 2))
        return {"box": cutmix_box(kept, centre, epoch.image_size_px)}

    def apply(self, batch: Batch, partner: Batch, params: Params) -> Batch:
        size = batch.images.shape[-1]
        top, left, bottom, right = (params["box"] * params["chosen"][:, None]).unbind(1)
        mask = inside(top, left, bottom, right, size)
        kept = 1 - ((bottom - top) * (right - left)).float() / size**2
        return Batch(torch.where(mask, partner.images, batch.images), _mixed(batch.targets, partner.targets, kept))


def cutmix_box(kept: Array, centre: Array, image_size_px: int) -> Array:
    """Boxes for lambda [N] and centres [N, 2]: int64 [N, 4] (top, left, bottom, right; the last two exclusive)."""
    half = (0.5 * np.sqrt(1 - kept) * image_size_px).astype(np.int64)[:, None]
    return np.concatenate([centre - half, centre + half], axis=1).clip(0, image_size_px)


def _mixed(targets: Tensor, partner: Tensor, kept: Tensor) -> Tensor:
    return torch.lerp(partner, targets, kept[:, None])
