"""Cutout and random erasing: pixels equal to torchvision's erase for the same boxes, and the law of the boxes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torchvision.transforms import RandomErasing as TorchvisionErasing
from torchvision.transforms.v2 import functional as torchvision

from cifar_ablate.augment.erase import Cutout, RandomErasing
from cifar_ablate.registry import AUGMENTATIONS
from tests.augmenting import (
    NUM_DRAWS,
    SIZE_PX,
    SMALLEST_P_VALUE,
    alike,
    drawn,
    independent,
    law_of,
    random_images,
    uniform_counts,
)

BLACK = torch.zeros(1)


@pytest.mark.parametrize("size_px", [5, 8, 40])
def test_cutout_is_torchvision_s_erase_of_a_square_clipped_at_the_borders(size_px: int) -> None:
    cutout, images = Cutout(size_px=size_px), random_images(300) + 1
    params = drawn(cutout, 300)
    out = cutout.apply(images, params)
    clipped = 0
    for i, (top, left) in enumerate(params["start"].tolist()):
        first, last = [max(top, 0), max(left, 0)], [min(top + size_px, SIZE_PX), min(left + size_px, SIZE_PX)]
        height, width = last[0] - first[0], last[1] - first[1]
        assert torch.equal(out[i], torchvision.erase(images[i], *first, height, width, BLACK))
        clipped += height < size_px or width < size_px
    assert clipped > 20, "no square was clipped: the test shows nothing"


def test_cutout_centres_are_uniform_over_the_pixels() -> None:
    row, column = (law_of(Cutout(size_px=8))["start"] + 4).T
    assert uniform_counts(row, 32) > SMALLEST_P_VALUE
    assert uniform_counts(column, 32) > SMALLEST_P_VALUE
    assert uniform_counts(row * 32 + column, 32**2) > SMALLEST_P_VALUE


@pytest.mark.parametrize("size_px", [7, 8])
def test_cutout_takes_a_share_of_p_wherever_its_centre_is(size_px: int) -> None:
    params = law_of(Cutout(size_px=size_px, p=0.3))
    size = params["stop"] - params["start"]
    assert set(np.unique(size).tolist()) == {0, size_px}
    assert np.array_equal(size[:, 0], size[:, 1])
    assert stats.binomtest(int((size[:, 0] > 0).sum()), NUM_DRAWS, 0.3).pvalue > SMALLEST_P_VALUE
    assert independent(size[:, 0] > 0, *params["start"].T) > SMALLEST_P_VALUE


def test_erasing_is_torchvision_s_erase_of_its_boxes() -> None:
    erasing, images = RandomErasing(p=0.8), random_images(300) + 1
    params = drawn(erasing, 300)
    out = erasing.apply(images, params)
    size = params["stop"] - params["start"]
    assert 20 < (size == 0).all(1).sum() < 280
    for i, ((top, left), (height, width)) in enumerate(zip(params["start"].tolist(), size.tolist(), strict=True)):
        assert torch.equal(out[i], torchvision.erase(images[i], top, left, height, width, BLACK))


@pytest.mark.slow
@pytest.mark.parametrize(("area", "ratio"), [((0.02, 0.33), (0.3, 3.3)), ((0.2, 0.9), (0.1, 5.0))])
def test_erasing_has_the_law_of_torchvision(area: Any, ratio: Any) -> None:
    """Of the second ranges many boxes do not fit, and torchvision proposes again."""
    size_px, num_theirs = 32, NUM_DRAWS if area[1] < 0.5 else 20_000
    params = law_of(RandomErasing(p=1.0, area=area, ratio=ratio), size_px=size_px)
    start, size = params["start"], params["stop"] - params["start"]
    erased = size[:, 0] > 0
    assert (start[erased] >= 0).all()
    assert (params["stop"] <= size_px).all()
    image = torch.zeros(3, size_px, size_px)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        drawn_boxes = [TorchvisionErasing.get_params(image, area, ratio, value=[0.0])[:4] for _ in range(num_theirs)]
    boxes = np.array(drawn_boxes)
    boxes[(boxes[:, 2:] == size_px).all(1), 2:] = 0  # none of ten fitted, and the image is left alone
    their_start, their_size = boxes[:, :2], boxes[:, 2:]
    their_erased = their_size[:, 0] > 0
    ours, theirs = size[erased], their_size[their_erased]
    assert stats.ks_2samp(ours.prod(1), theirs.prod(1)).pvalue > SMALLEST_P_VALUE
    assert stats.ks_2samp(ours[:, 0] / ours[:, 1], theirs[:, 0] / theirs[:, 1]).pvalue > SMALLEST_P_VALUE
    assert alike(size, their_size) > SMALLEST_P_VALUE, "height and width together"
    for axis in range(2):  # where the box lies depends on its side and on nothing else
        one = np.stack([size[erased, axis], start[erased, axis]], 1)
        other = np.stack([their_size[their_erased, axis], their_start[their_erased, axis]], 1)
        assert alike(one, other) > SMALLEST_P_VALUE


def test_erasing_places_its_boxes_uniformly_and_on_each_axis_by_itself() -> None:
    params = law_of(RandomErasing(p=1.0, area=(0.25, 0.25), ratio=(1.0, 1.0)))
    assert (params["stop"] - params["start"] == 16).all()
    row, column = params["start"].T
    assert uniform_counts(row * 17 + column, 17**2) > SMALLEST_P_VALUE


def test_erasing_takes_a_share_of_p_whatever_the_box() -> None:
    params = law_of(RandomErasing(p=0.3))
    erased = (params["stop"] > params["start"]).all(1)
    assert stats.binomtest(int(erased.sum()), NUM_DRAWS, 0.3).pvalue > SMALLEST_P_VALUE
    assert independent(erased[:-1], erased[1:]) > SMALLEST_P_VALUE, "of the image before"
    always = law_of(RandomErasing(p=1.0))
    size, all_sizes = (each["stop"] - each["start"] for each in (params, always))
    assert np.array_equal(size[erased], all_sizes[erased]), "p decides whether, not what"


def test_erasing_leaves_an_image_alone_where_no_box_fits() -> None:
    params = law_of(RandomErasing(p=1.0, area=(1.0, 1.0), ratio=(1.0, 1.0)), num=100)
    assert np.array_equal(params["start"] < params["stop"], np.zeros((100, 2), dtype=bool))


@pytest.mark.parametrize("options", [{"area": (0.3, 0.1)}, {"ratio": (2.0, 1.0)}])
def test_a_range_the_wrong_way_round_is_refused_with_the_remedy(options: dict[str, Any]) -> None:
    values = AUGMENTATIONS.options("erasing").model_validate(options).model_dump()
    with pytest.raises(ValueError, match=r"smallest, largest.*swap the two"):
        AUGMENTATIONS.check("erasing", values)
