"""Apply a recipe's augmentations: from the uint8 images of a step to the float batch that the network gets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cifar_ablate.augment.base import Batch, Epoch, Mixer, Params, Transform, to_tensors
from cifar_ablate.registry import AUGMENTATIONS
from cifar_ablate.rng import generator

Draws = Mapping[str, Params]


@dataclass(frozen=True)
class Pipeline:
    """The augmentations of one recipe, in their fixed order: geometry, normalisation, erasing, mixing."""

    geometry: tuple[tuple[str, Transform], ...]
    erase: tuple[tuple[str, Transform], ...]
    mix: tuple[tuple[str, Mixer], ...]
    mean: Tensor
    """float32 [1, 3, 1, 1] of images in [0, 1]."""
    std: Tensor
    num_classes: int
    label_smoothing: float

    def draw_epoch(self, epoch: Epoch, device: torch.device) -> Draws:
        """Parameters of every augmentation for all images of an epoch, in the epoch's order.

        The generator of each augmentation is keyed by (seed, its name, epoch).
        """
        draws: dict[str, dict[str, Any]] = {}
        augmentations: tuple[tuple[str, Transform | Mixer], ...] = (*self.geometry, *self.erase, *self.mix)
        for name, augmentation in augmentations:
            draws[name] = dict(augmentation.draw(generator(epoch.seed, f"augment/{name}", epoch.number), epoch))
        share = generator(epoch.seed, "augment/mix", epoch.number).random(epoch.num) * len(self.mix)
        for index, (name, _) in enumerate(self.mix):
            draws[name]["chosen"] = share.astype(int) == index
        return {name: to_tensors(params, device) for name, params in draws.items()}

    def __call__(self, images: Tensor, labels: Tensor, draws: Draws, start: int) -> Batch:
        """Augment one step of an epoch.

        Args:
            images: uint8 [B, 3, H, W].
            labels: int64 [B].
            draws: Result of ``draw_epoch``.
            start: Position of the first of these images in the epoch's order.
        """
        rows = slice(start, start + len(images))
        mine = {name: {key: values[rows] for key, values in params.items()} for name, params in draws.items()}
        return self.augment(images, labels, mine)

    def augment(self, images: Tensor, labels: Tensor, params: Draws) -> Batch:
        """Augment uint8 images [B, 3, H, W] with labels int64 [B]; ``params`` has their rows of the draws."""
        pixels = images.float().div_(255)
        for name, transform in self.geometry:
            pixels = transform.apply(pixels, params[name])
        pixels = (pixels - self.mean) / self.std
        for name, transform in self.erase:
            pixels = transform.apply(pixels, params[name])
        batch = Batch(pixels, smooth_targets(labels, self.num_classes, self.label_smoothing))
        if self.mix:
            # the batch is shuffled, so the reversed batch gives random partners, as in timm
            partner = Batch(batch.images.flip(0), batch.targets.flip(0))
            for name, mixer in self.mix:
                batch = mixer.apply(batch, partner, params[name])
        return batch

    def clean(self, images: Tensor) -> Tensor:
        """Normalised images without augmentation: uint8 [B, 3, H, W] to float32."""
        return (images.float().div_(255) - self.mean) / self.std


def build_pipeline(
    augment: Mapping[str, Mapping[str, Any]], *, mean: Tensor, std: Tensor, num_classes: int, label_smoothing: float
) -> Pipeline:
    """Pipeline of a recipe's ``augment`` mapping (name to options); mean and std are float32 [1, 3, 1, 1]."""
    built = [(name, AUGMENTATIONS.bind(name, options)()) for name, options in sorted(augment.items())]
    built.sort(key=lambda item: item[1].rank)  # stable: names break ties
    stages = {stage: tuple(item for item in built if item[1].stage == stage) for stage in ("geometry", "erase", "mix")}
    return Pipeline(**stages, mean=mean, std=std, num_classes=num_classes, label_smoothing=label_smoothing)


def smooth_targets(labels: Tensor, num_classes: int, smoothing: float) -> Tensor:
    """Soft targets float32 [B, C] of labels int64 [B]: e/C, and 1 - e + e/C for the true class (as timm)."""
    # torch's one_hot reads the labels on the host to check them, on every device but CUDA
    targets = (labels[:, None] == torch.arange(num_classes, device=labels.device)).float()
    return targets if smoothing == 0 else targets * (1 - smoothing) + smoothing / num_classes
