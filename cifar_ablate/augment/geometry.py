"""Crop, flips and affine maps of images in [0, 1], drawn for each image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from cifar_ablate.augment.base import Array, Epoch, Params, Transform, per_image
from cifar_ablate.fields import NonNegativeFloat, PositiveFloat, Probability
from cifar_ablate.registry import AUGMENTATIONS
from cifar_ablate.rng import generator


@AUGMENTATIONS.register("crop")
@dataclass(frozen=True, kw_only=True)
class Crop(Transform):
    """Pad by ``padding`` px on each side, then crop to the original size at an offset uniform on {0..2 padding}."""

    stage: ClassVar[Literal["geometry"]] = "geometry"
    rank: ClassVar[int] = 10
    padding: Annotated[int, Field(ge=1, le=16)] = 4
    fill: Literal["zero", "reflect"] = "zero"

    def draw(self, rng: np.random.Generator, epoch: Epoch) -> dict[str, Array]:
        return {"offset": rng.integers(0, 2 * self.padding + 1, (epoch.num, 2))}

    def apply(self, images: Tensor, params: Params) -> Tensor:
        size = images.shape[-1]
        mode = "constant" if self.fill == "zero" else "reflect"
        padded = functional.pad(images, [self.padding] * 4, mode=mode)
        line = torch.arange(size, device=images.device)
        rows = params["offset"][:, 0, None] + line
        columns = params["offset"][:, 1, None] + line
        image = torch.arange(len(images), device=images.device)[:, None, None]
        # indices around a full axis move it last: [B, H, W, 3], which is channels_last already
        return padded[image, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


@AUGMENTATIONS.register("hflip")
@dataclass(frozen=True, kw_only=True)
class HorizontalFlip(Transform):
    """Mirror left and right with probability p."""

    stage: ClassVar[Literal["geometry"]] = "geometry"
    rank: ClassVar[int] = 20
    p: Probability = 0.5

    def draw(self, rng: np.random.Generator, epoch: Epoch) -> dict[str, Array]:
        return {"flip": rng.random(epoch.num) < self.p}

    def apply(self, images: Tensor, params: Params) -> Tensor:
        return _mirror(images, params["flip"])


@AUGMENTATIONS.register("alternating-flip")
@dataclass(frozen=True, kw_only=True)
class AlternatingFlip(Transform):
    """Mirror each image in every other epoch, starting with the first or the second at random (arXiv 2404.00498).

    An image is mirrored iff its random bit plus the epoch's number is odd. So two successive epochs show it both ways,
    while ``hflip`` shows half of the images the same way twice. The bit is fixed for a seed and a training image.
    """

    stage: ClassVar[Literal["geometry"]] = "geometry"
    rank: ClassVar[int] = 20

    def draw(self, rng: np.random.Generator, epoch: Epoch) -> dict[str, Array]:
        # rng differs in each epoch; an image's bit must not, and must not depend on the number of images
        bits = generator(epoch.seed, "augment/alternating-flip/bit").random(epoch.order.max() + 1) < 0.5
        return {"flip": bits[epoch.order] ^ (epoch.number % 2 == 1)}

    def apply(self, images: Tensor, params: Params) -> Tensor:
        return _mirror(images, params["flip"])


def _mirror(images: Tensor, chosen: Tensor) -> Tensor:
    return torch.where(per_image(chosen), images.flip(3), images)


def check_affine(*, scale: tuple[float, float], **_: object) -> None:
    if scale[0] > scale[1]:
        raise ValueError(f"scale must be [smallest, largest] (got [{scale[0]:g}, {scale[1]:g}]); swap the two")


@AUGMENTATIONS.register("affine", check=check_affine)
@dataclass(frozen=True, kw_only=True)
class Affine(Transform):
    """Rotate, shift, scale and shear with probability p, with the distributions of torchvision's RandomAffine.

    Pixels outside of the image are black. All parameters are uniform: angle in +-degrees, scale in its range, shear
    along x in +-shear degrees, shift round(U(-translate * size, translate * size)) px on each axis.
    """

    stage: ClassVar[Literal["geometry"]] = "geometry"
    rank: ClassVar[int] = 30
    p: Probability = 0.5
    degrees: Annotated[float, Field(ge=0, le=180)] = 15.0
    translate: Probability = 0.1
    scale: Annotated[tuple[PositiveFloat, PositiveFloat], Field(strict=False)] = (0.9, 1.1)
    shear: Annotated[NonNegativeFloat, Field(lt=90)] = 0.0
    interpolation: Literal["nearest", "bilinear"] = "bilinear"

    def draw(self, rng: np.random.Generator, epoch: Epoch) -> dict[str, Array]:
        reach = self.translate * epoch.image_size_px
        apply = rng.random(epoch.num) < self.p
        angle = rng.uniform(-self.degrees, self.degrees, epoch.num)
        shift = np.round(rng.uniform(-reach, reach, (epoch.num, 2)))
        scale = rng.uniform(self.scale[0], self.scale[1], epoch.num)
        shear = rng.uniform(-self.shear, self.shear, epoch.num)
        return {"apply": apply, "matrix": inverse_affine(angle, shift, scale, shear).astype(np.float32)}

    def apply(self, images: Tensor, params: Params) -> Tensor:
        chosen = params["apply"]
        if images.device.type == "cpu":  # warps the chosen images only; on a GPU this would wait for their number
            rows = chosen.nonzero().squeeze(1)
            return images.index_copy(0, rows, self._warp(images[rows], params["matrix"][rows])) if len(rows) else images
        return torch.where(per_image(chosen), self._warp(images, params["matrix"]), images)

    def _warp(self, images: Tensor, matrix: Tensor) -> Tensor:
        size = images.shape[-1]
        line = torch.arange(size, device=images.device, dtype=torch.float32) - (size - 1) / 2
        y, x = torch.meshgrid(line, line, indexing="ij")
        pixels = torch.stack([x, y, torch.ones_like(x)], dim=-1).view(1, -1, 3)
        grid = pixels.expand(len(images), -1, -1).bmm(matrix.transpose(1, 2) / (0.5 * size))
        grid = grid.view(-1, size, size, 2)
        return functional.grid_sample(images, grid, mode=self.interpolation, padding_mode="zeros", align_corners=False)


def inverse_affine(angle: Array, shift: Array, scale: Array, shear: Array) -> Array:
    """Matrices that map output to input pixels, relative to the centre: float64 [N, 2, 3].

    Args:
        angle: float [N], degrees.
        shift: float [N, 2], px along x and y.
        scale: float [N].
        shear: float [N], degrees along x.

    The forward map is shift . rotation . shear . scale, as in torchvision's ``_get_inverse_affine_matrix``.
    """
    rotation, tan = np.deg2rad(angle), np.tan(np.deg2rad(shear))
    cos, sin = np.cos(rotation), np.sin(rotation)
    # rotation . shear = [[cos, -cos tan - sin], [sin, -sin tan + cos]], determinant 1; its inverse over the scale:
    inverse = np.stack([np.stack([-sin * tan + cos, cos * tan + sin], -1), np.stack([-sin, cos], -1)], -2)
    inverse = inverse / scale[:, None, None]
    return np.concatenate([inverse, -inverse @ shift[:, :, None]], axis=2)
