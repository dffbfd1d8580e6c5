"""Crop, flips and affine: pixels equal to torchvision's for the same parameters, and the law of each parameter."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torchvision.transforms import InterpolationMode
from torchvision.transforms import RandomAffine as TorchvisionAffine
from torchvision.transforms.v2 import functional as torchvision

from cifar_ablate.augment.base import Epoch
from cifar_ablate.augment.geometry import Affine, AlternatingFlip, Crop, HorizontalFlip, inverse_affine
from cifar_ablate.registry import AUGMENTATIONS
from cifar_ablate.rng import generator
from tests.augmenting import (
    CPU,
    NUM_DRAWS,
    SIZE_PX,
    SMALLEST_P_VALUE,
    alike,
    drawn,
    fits,
    independent,
    law_of,
    pipeline,
    random_images,
    uniform_counts,
)

# Crop


@pytest.mark.parametrize("padding", [1, 4, 16])
def test_crop_offsets_are_uniform_and_independent(padding: int) -> None:
    offset, num_values = law_of(Crop(padding=padding))["offset"], 2 * padding + 1
    for axis in range(2):
        assert uniform_counts(offset[:, axis], num_values) > SMALLEST_P_VALUE
    assert uniform_counts(offset[:, 0] * num_values + offset[:, 1], num_values**2) > SMALLEST_P_VALUE
    top, left = offset[:-1].T
    assert independent(top, left, *offset[1:].T) > SMALLEST_P_VALUE, "of the image before"


@pytest.mark.parametrize(("fill", "mode"), [("zero", "constant"), ("reflect", "reflect")])
def test_crop_equals_padding_and_cropping_by_torchvision(fill: Any, mode: str) -> None:
    crop, images = Crop(padding=3, fill=fill), random_images(100)
    offset = torch.cartesian_prod(torch.arange(7), torch.arange(7)).repeat(3, 1)[:100]
    out = crop.apply(images, {"offset": offset})
    padded = torchvision.pad(images, [3], padding_mode=mode)
    for i, (top, left) in enumerate(offset.tolist()):
        assert torch.equal(out[i], torchvision.crop(padded[i], top, left, SIZE_PX, SIZE_PX))


# Flips


@pytest.mark.parametrize("p", [0.2, 0.5])
def test_hflip_mirrors_a_share_of_p(p: float) -> None:
    chosen = law_of(HorizontalFlip(p=p))["flip"]
    assert stats.binomtest(int(chosen.sum()), NUM_DRAWS, p).pvalue > SMALLEST_P_VALUE
    assert independent(chosen[:-1], chosen[1:]) > SMALLEST_P_VALUE, "of the image before"


@pytest.mark.parametrize("flip", [HorizontalFlip(), AlternatingFlip()], ids=["hflip", "alternating-flip"])
def test_a_mirrored_image_is_torchvision_s_and_the_others_stay(flip: Any) -> None:
    images, chosen = random_images(50), torch.arange(50) % 3 == 0
    out = flip.apply(images, {"flip": chosen})
    assert torch.equal(out[chosen], torchvision.horizontal_flip(images[chosen]))
    assert torch.equal(out[~chosen], images[~chosen])


def alternating(order: np.ndarray, *, seed: int = 0, number: int = 0) -> np.ndarray:
    """Which images an epoch mirrors, by the rule of the pipeline: the generator handed in is keyed by epoch."""
    draws = pipeline({"alternating-flip": {}}).draw_epoch(Epoch(seed, number, order, 32), CPU)
    return draws["alternating-flip"]["flip"].numpy()


def test_alternating_flip_shows_every_image_both_ways_in_two_epochs() -> None:
    for number in range(5):
        orders = [generator(0, "order", epoch).permutation(NUM_DRAWS) for epoch in (number, number + 1)]
        mirrored = np.zeros((2, NUM_DRAWS), dtype=bool)
        for of_epoch, order, epoch in zip(mirrored, orders, (number, number + 1), strict=True):
            of_epoch[order] = alternating(order, number=epoch)
        assert np.array_equal(mirrored[0], ~mirrored[1])


def test_alternating_flip_begins_with_half_of_the_images_whichever_come_before_them() -> None:
    bits = alternating(np.arange(NUM_DRAWS))
    assert stats.binomtest(int(bits.sum()), NUM_DRAWS, 0.5).pvalue > SMALLEST_P_VALUE
    assert independent(bits[:-1], bits[1:]) > SMALLEST_P_VALUE, "of the image before"
    others = [alternating(np.arange(NUM_DRAWS), seed=seed) for seed in (1, 2, 3)]
    assert independent(bits, *others) > SMALLEST_P_VALUE, "of other seeds"


def test_alternating_flip_knows_an_image_in_any_order_and_subset() -> None:
    bits = alternating(np.arange(1_000))
    random = np.random.default_rng(0)
    for num in (1, 10, 1_000):
        order = random.permutation(1_000)[:num]
        assert np.array_equal(alternating(order), bits[order])
        assert np.array_equal(alternating(order, number=7), ~bits[order])


# Affine


@pytest.mark.parametrize("size_px", [15, 32])
@pytest.mark.parametrize("interpolation", ["nearest", "bilinear"])
def test_affine_equals_torchvision_pixel_by_pixel(interpolation: Any, size_px: int) -> None:
    num, random = 100, np.random.default_rng(0)
    angle = random.uniform(-180, 180, num)
    shift = np.round(random.uniform(-6, 6, (num, 2)))
    scale, shear = random.uniform(0.7, 1.4, num), random.uniform(-30, 30, num)
    angle[:4], shift[:4], scale[:4], shear[:4] = [0, 90, 180, -90], 0, 1, 0  # grid points on edges between pixels
    matrix = torch.from_numpy(inverse_affine(angle, shift, scale, shear).astype(np.float32))
    images = random_images(num, size_px)
    params = {"apply": torch.ones(num, dtype=torch.bool), "matrix": matrix}
    out = Affine(interpolation=interpolation).apply(images, params)
    for i in range(num):
        expected = torchvision.affine(
            images[i : i + 1],
            angle=float(angle[i]),
            translate=shift[i].tolist(),
            scale=float(scale[i]),
            shear=[float(shear[i]), 0.0],
            interpolation=InterpolationMode(interpolation),
        )
        torch.testing.assert_close(out[i : i + 1], expected, rtol=0, atol=0 if interpolation == "nearest" else 1e-5)


def decomposed(matrix: np.ndarray) -> tuple[np.ndarray, ...]:
    """Angle and shear (degrees), scale, and shift (px, int [N, 2]) that an affine's matrices were made from."""
    linear, moved = matrix[:, :, :2].astype(np.float64), matrix[:, :, 2].astype(np.float64)
    scale = 1 / np.sqrt(np.linalg.det(linear))
    rotation = np.arctan2(-linear[:, 1, 0], linear[:, 1, 1])
    cos, sin = np.cos(rotation), np.sin(rotation)
    shear = np.arctan(scale * (linear[:, 0, 1] * cos - linear[:, 0, 0] * sin))
    shift = -np.linalg.solve(linear, moved[:, :, None])[:, :, 0]
    assert np.abs(shift - shift.round()).max() < 1e-3, "whole pixels"
    return np.rad2deg(rotation), np.rad2deg(shear), scale, shift.round().astype(int)


def test_affine_parameters_are_uniform_in_their_ranges_and_independent() -> None:
    params = law_of(Affine(p=0.3, degrees=15, translate=0.1, scale=(0.9, 1.1), shear=10))
    assert stats.binomtest(int(params["apply"].sum()), NUM_DRAWS, 0.3).pvalue > SMALLEST_P_VALUE
    angle, shear, scale, shift = decomposed(params["matrix"])
    for values, low, high in ((angle, -15, 15), (scale, 0.9, 1.1), (shear, -10, 10)):
        assert stats.kstest(values, stats.uniform(low, high - low).cdf).pvalue > SMALLEST_P_VALUE
        assert values.min() >= low - 1e-4
        assert values.max() <= high + 1e-4
    share = {pixels: (0.7 if abs(pixels) == 3 else 1) / 6.4 for pixels in range(-3, 4)}  # of round(U(-3.2, 3.2))
    for axis in range(2):
        assert fits(shift[:, axis], share) > SMALLEST_P_VALUE
    assert independent(params["apply"], angle, scale, shear, *shift.T) > SMALLEST_P_VALUE


def test_affine_draws_have_the_law_of_torchvision_s_random_affine() -> None:
    """Torchvision draws in its own way; 20,000 of its draws (of its own stream) beside 100,000 of ours."""
    angle, shear, scale, shift = decomposed(
        law_of(Affine(degrees=20, translate=0.12, scale=(0.8, 1.3), shear=8))["matrix"]
    )
    theirs = TorchvisionAffine(degrees=20, translate=(0.12, 0.12), scale=(0.8, 1.3), shear=8)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        draws = [
            theirs.get_params(theirs.degrees, theirs.translate, theirs.scale, theirs.shear, [32, 32])
            for _ in range(20_000)
        ]
    for ours, other in (
        (angle, [draw[0] for draw in draws]),
        (scale, [draw[2] for draw in draws]),
        (shear, [draw[3][0] for draw in draws]),
    ):
        assert stats.ks_2samp(ours, other).pvalue > SMALLEST_P_VALUE
    assert alike(shift, np.array([draw[1] for draw in draws])) > SMALLEST_P_VALUE


def test_affine_leaves_images_that_are_not_chosen_to_the_bit() -> None:
    affine, images = Affine(p=0.5), random_images(64)
    params = drawn(affine, 64)
    out, spared = affine.apply(images, params), ~params["apply"]
    assert 0 < spared.sum() < 64
    assert torch.equal(out[spared], images[spared])
    assert not torch.equal(out[~spared], images[~spared])


def test_a_scale_the_wrong_way_round_is_refused_with_the_remedy() -> None:
    values = AUGMENTATIONS.options("affine").model_validate({"scale": (1.1, 0.9)}).model_dump()
    with pytest.raises(ValueError, match=r"smallest, largest.*swap the two"):
        AUGMENTATIONS.check("affine", values)
