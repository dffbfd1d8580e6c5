"""The data set on the device: uint8 images, decoded once; a batch is an index into them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cifar_ablate.augment.base import Epoch
from cifar_ablate.data import DataSet
from cifar_ablate.rng import generator


@dataclass(frozen=True)
class DeviceData:
    """A data set as tensors of one device."""

    train_images: Tensor
    """uint8 [N, 3, H, W]."""
    train_labels: Tensor
    """int64 [N]."""
    test_images: Tensor
    """uint8 [M, 3, H, W], to evaluate on: test images, or held-out training images where ``split`` is val."""
    test_labels: Tensor
    """int64 [M]."""
    mean: Tensor
    """Mean of each channel of the training images in [0, 1], float32 [1, 3, 1, 1]."""
    std: Tensor
    """Standard deviation of the same, float32 [1, 3, 1, 1]."""
    num_classes: int
    image_size_px: int
    split: str = "test"
    """Prefix of the metrics: test or val."""


def to_device(data: DataSet, device: torch.device) -> DeviceData:
    """Copy a data set to the device, with the mean and standard deviation of its training images."""
    images = data.train_images
    histogram = np.stack([np.bincount(images[:, c].reshape(-1), minlength=256) for c in range(images.shape[1])])
    values = np.arange(256) / 255.0  # the histogram is exact, and 100 times faster than a float copy of the images
    share = histogram / histogram.sum(1, keepdims=True)
    mean = share @ values
    std = np.sqrt(np.maximum(share @ values**2 - mean**2, 1e-6))  # a constant channel must not divide by 0

    def tensor(array: npt.NDArray[Any]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(device)

    return DeviceData(
        tensor(images),
        tensor(data.train_labels),
        tensor(data.test_images),
        tensor(data.test_labels),
        mean=tensor(mean.astype(np.float32)).view(1, -1, 1, 1),
        std=tensor(std.astype(np.float32)).view(1, -1, 1, 1),
        num_classes=data.num_classes,
        image_size_px=data.image_size_px,
        split=data.split,
    )


def plan_epoch(seed: int, number: int, data: DeviceData) -> Epoch:
    """Epoch ``number`` (from 0) with its order of the training images: a permutation, equal for all arms of a seed."""
    order = generator(seed, "order", number).permutation(len(data.train_labels))
    return Epoch(seed, number, order, data.image_size_px)


def slices(num: int, batch_size: int) -> Iterator[slice]:
    """Slices of ``batch_size`` over ``num`` items; the last may be shorter, none is empty."""
    for start in range(0, num, batch_size):
        yield slice(start, min(start + batch_size, num))
