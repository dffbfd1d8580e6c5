"""Augmentations: a contract for every registered one, and the law of each against an independent implementation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from scipy import stats
from torch import Tensor
from torch.nn import functional
from torchvision.transforms import InterpolationMode
from torchvision.transforms import RandomErasing as TorchvisionErasing
from torchvision.transforms.v2 import CutMix as TorchvisionCutMix
from torchvision.transforms.v2.functional import affine as torchvision_affine

from cifar_ablate.augment.base import Batch, Epoch, Mixer, Params, Transform
from cifar_ablate.augment.erase import Cutout, RandomErasing
from cifar_ablate.augment.geometry import Affine, Crop, HorizontalFlip, inverse_affine
from cifar_ablate.augment.mix import CutMix, MixUp, cutmix_box
from cifar_ablate.augment.pipeline import Draws, Pipeline, build_pipeline, smooth_targets
from cifar_ablate.keys import generator, key
from cifar_ablate.registry import AUGMENTATIONS

NAMES = AUGMENTATIONS.names()
WITH_P = [name for name in NAMES if "p" in AUGMENTATIONS.options(name).model_fields]
CPU = torch.device("cpu")
SIZE_PX = 16
NUM_CLASSES = 10
SMALLEST_P_VALUE = 1e-3  # of a test with a fixed seed: it fails for a wrong law, never by chance


def epoch_of(num: int, size_px: int = 32, seed: int = 0, number: int = 0) -> Epoch:
    return Epoch(seed, number, np.arange(num), size_px)


def built(name: str, **options: Any) -> Transform | Mixer:
    augmentation: Transform | Mixer = AUGMENTATIONS.bind(name, options)()
    return augmentation


def at_half(name: str) -> Transform | Mixer:
    """The augmentation by its defaults, with p strictly between 0 and 1 where it has one."""
    return built(name, **({"p": 0.5} if name in WITH_P else {}))


def pipeline(augment: Mapping[str, Mapping[str, Any]], *, label_smoothing: float = 0.0) -> Pipeline:
    mean, std = torch.tensor([0.4, 0.5, 0.6]).view(1, 3, 1, 1), torch.tensor([0.2, 0.25, 0.3]).view(1, 3, 1, 1)
    return build_pipeline(augment, mean=mean, std=std, num_classes=NUM_CLASSES, label_smoothing=label_smoothing)


def random_images(num: int, size_px: int = SIZE_PX, seed: int = 0) -> Tensor:
    return torch.rand(num, 3, size_px, size_px, generator=torch.Generator().manual_seed(seed))


def uint8_images(num: int, seed: int = 0) -> Tensor:
    shape = (num, 3, SIZE_PX, SIZE_PX)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def labels_of(num: int) -> Tensor:
    return torch.arange(num) % NUM_CLASSES


def drawn(
    augmentation: Transform | Mixer, num: int, size_px: int = SIZE_PX, seed: int = 0, **more: Tensor
) -> dict[str, Tensor]:
    arrays = augmentation.draw(generator(seed, "test"), epoch_of(num, size_px))
    params = {name: torch.from_numpy(values) for name, values in arrays.items()}
    if isinstance(augmentation, Mixer):
        params["chosen"] = torch.ones(num, dtype=torch.bool)
    return params | more


def applied(augmentation: Transform | Mixer, images: Tensor, params: Params) -> Batch:
    """One batch through an augmentation; the partner of each image is its mirror image in the batch."""
    targets = functional.one_hot(labels_of(len(images)), NUM_CLASSES).float()
    if isinstance(augmentation, Transform):
        return Batch(augmentation.apply(images, params), targets)
    return augmentation.apply(Batch(images, targets), Batch(images.flip(0), targets.flip(0)), params)


def same_draws(one: Draws, other: Draws, names: list[str], *, but: tuple[str, ...] = ()) -> bool:
    return all(
        torch.equal(one[name][part], other[name][part]) for name in names for part in one[name] if part not in but
    )


def uniform_counts(values: np.ndarray, num_values: int) -> float:
    """p-value that integers in {0..num_values - 1} are uniform."""
    assert values.min() >= 0
    assert values.max() < num_values
    return float(stats.chisquare(np.bincount(values.ravel(), minlength=num_values)).pvalue)


# Contract: every registered augmentation, those to come included


@pytest.mark.parametrize("name", NAMES)
def test_options_have_defaults_and_unknown_ones_are_refused(name: str) -> None:
    model = AUGMENTATIONS.options(name)
    assert built(name) == built(name, **model().model_dump())
    assert AUGMENTATIONS.summary(name)
    with pytest.raises(ValidationError, match="no_such_option"):
        model.model_validate({"no_such_option": 1})


@pytest.mark.parametrize("name", NAMES)
def test_equal_keys_give_equal_draws_and_others_do_not(name: str) -> None:
    pipe = pipeline({name: {"p": 0.5} if name in WITH_P else {}})
    first = pipe.draw_epoch(epoch_of(200, SIZE_PX, 3, 7), CPU)
    assert same_draws(first, pipe.draw_epoch(epoch_of(200, SIZE_PX, 3, 7), CPU), [name])
    for seed, epoch in ((4, 7), (3, 8)):
        other = pipe.draw_epoch(epoch_of(200, SIZE_PX, seed, epoch), CPU)
        assert not same_draws(first, other, [name], but=("chosen",))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("num", [1, 7, 256])
def test_there_is_one_draw_for_each_image(name: str, num: int) -> None:
    params = at_half(name).draw(generator(0, "test"), epoch_of(num, SIZE_PX))
    assert params
    assert all(len(values) == num for values in params.values())


@pytest.mark.parametrize("name", NAMES)
def test_equal_images_of_one_batch_come_out_different(name: str) -> None:
    augmentation = at_half(name)
    images = random_images(1).expand(256, -1, -1, -1).clone()
    if isinstance(augmentation, Mixer):
        images[128:] = random_images(1, seed=1)  # mixing an image with its like would change nothing
    out = applied(augmentation, images, drawn(augmentation, 256)).images
    num_distinct = len(torch.unique(out.reshape(256, -1), dim=0))
    assert num_distinct >= 2
    if name in ("crop", "affine", "mixup", "cutmix", "cutout", "erasing"):
        assert num_distinct > 20


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size_px", [16, 32])
def test_shape_and_dtype_are_kept_and_all_is_finite(name: str, size_px: int) -> None:
    augmentation = at_half(name)
    images = random_images(64, size_px)
    before = images.clone()
    batch = applied(augmentation, images, drawn(augmentation, 64, size_px))
    assert batch.images.shape == images.shape
    assert batch.targets.shape == (64, NUM_CLASSES)
    for values in batch:
        assert values.dtype == torch.float32
        assert values.isfinite().all()
    assert torch.equal(images, before), "its input was changed in place"


@pytest.mark.parametrize("name", NAMES)
def test_an_image_depends_on_no_other_but_its_partner(name: str) -> None:
    augmentation = at_half(name)
    images, params = random_images(32), drawn(augmentation, 32)
    whole = applied(augmentation, images, params)
    targets = functional.one_hot(labels_of(32), NUM_CLASSES).float()
    for i in range(32):
        alone = {part: values[i : i + 1] for part, values in params.items()}
        own = Batch(images[i : i + 1], targets[i : i + 1])
        if isinstance(augmentation, Transform):
            one = Batch(augmentation.apply(own.images, alone), own.targets)
        else:
            j = 31 - i
            one = augmentation.apply(own, Batch(images[j : j + 1], targets[j : j + 1]), alone)
        torch.testing.assert_close(one.images[0], whole.images[i], rtol=0, atol=1e-5)
        torch.testing.assert_close(one.targets[0], whole.targets[i], rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_adding_an_augmentation_leaves_the_draws_of_all_others_alone(name: str) -> None:
    others = [other for other in NAMES if other != name]
    every = pipeline({other: {} for other in NAMES}).draw_epoch(epoch_of(50, SIZE_PX, 0, 1), CPU)
    without = pipeline({other: {} for other in others}).draw_epoch(epoch_of(50, SIZE_PX, 0, 1), CPU)
    # a second mixer takes its share of the images; where both apply, they are the same
    assert same_draws(without, every, others, but=("chosen",) if isinstance(built(name), Mixer) else ())


@pytest.mark.parametrize("name", WITH_P)
def test_p_0_gives_the_clean_image_to_the_bit(name: str) -> None:
    pipe, images, labels = pipeline({name: {"p": 0.0}}), uint8_images(40), labels_of(40)
    batch = pipe(images, labels, pipe.draw_epoch(epoch_of(40, SIZE_PX, 0, 0), CPU), 0)
    assert torch.equal(batch.images, pipe.clean(images))
    assert torch.equal(batch.targets, functional.one_hot(labels, NUM_CLASSES).float())


# The pipeline


def test_the_order_in_yaml_does_not_matter() -> None:
    images, labels = uint8_images(50), labels_of(50)
    batches = []
    for names in (NAMES, NAMES[::-1]):
        pipe = pipeline({name: {} for name in names}, label_smoothing=0.1)
        batches.append(pipe(images, labels, pipe.draw_epoch(epoch_of(50, SIZE_PX, 0, 0), CPU), 0))
    assert torch.equal(batches[0].images, batches[1].images)
    assert torch.equal(batches[0].targets, batches[1].targets)


def test_steps_of_an_epoch_take_their_own_rows_of_the_draws() -> None:
    names = [name for name in NAMES if isinstance(built(name), Transform)]
    pipe, images, labels = pipeline({name: {} for name in names}), uint8_images(50), labels_of(50)
    draws = pipe.draw_epoch(epoch_of(50, SIZE_PX, 0, 0), CPU)
    whole = pipe(images, labels, draws, 0).images
    steps = [pipe(images[start : start + 16], labels[start : start + 16], draws, start) for start in (0, 16, 32, 48)]
    torch.testing.assert_close(torch.cat([step.images for step in steps]), whole, rtol=0, atol=1e-4)


def test_without_augmentation_a_batch_is_normalised_and_nothing_else() -> None:
    pipe, images, labels = pipeline({}), uint8_images(8), labels_of(8)
    batch = pipe(images, labels, pipe.draw_epoch(epoch_of(8, SIZE_PX, 0, 0), CPU), 0)
    expected = (images.double() / 255 - pipe.mean.double()) / pipe.std.double()
    torch.testing.assert_close(batch.images.double(), expected, rtol=0, atol=1e-6)
    assert torch.equal(batch.images, pipe.clean(images))


def test_geometry_fills_with_black_and_erasing_with_the_mean_colour() -> None:
    white = torch.full((16, 3, SIZE_PX, SIZE_PX), 255, dtype=torch.uint8)
    for augment, expected in (
        ({"crop": {"padding": 4}}, lambda pipe: -pipe.mean / pipe.std),
        ({"cutout": {"size_px": 8}}, lambda pipe: torch.zeros_like(pipe.mean)),
    ):
        pipe = pipeline(augment)
        out = pipe(white, labels_of(16), pipe.draw_epoch(epoch_of(16, SIZE_PX, 0, 0), CPU), 0).images
        changed = (out != pipe.clean(white)).any(1, keepdim=True)
        assert changed.any()
        filled = torch.where(changed, out, expected(pipe))
        torch.testing.assert_close(filled, expected(pipe).expand_as(out), rtol=0, atol=1e-6)


# Geometry


def test_crop_offsets_are_uniform_and_independent() -> None:
    offset = Crop(padding=4).draw(generator(0, "test"), epoch_of(50_000, 32))["offset"]
    assert uniform_counts(offset[:, 0], 9) > SMALLEST_P_VALUE
    assert uniform_counts(offset[:, 0] * 9 + offset[:, 1], 81) > SMALLEST_P_VALUE


@pytest.mark.parametrize(("fill", "mode"), [("zero", "constant"), ("reflect", "reflect")])
def test_crop_equals_padding_and_slicing(fill: Any, mode: str) -> None:
    crop = Crop(padding=3, fill=fill)
    images = random_images(100)
    offset = torch.cartesian_prod(torch.arange(7), torch.arange(7)).repeat(3, 1)[:100]
    out = crop.apply(images, {"offset": offset})
    padded = np.pad(images.numpy(), ((0, 0), (0, 0), (3, 3), (3, 3)), mode=mode)  # type: ignore[call-overload]
    for i, (top, left) in enumerate(offset.tolist()):
        expected = padded[i, :, top : top + SIZE_PX, left : left + SIZE_PX]
        assert np.array_equal(out[i].numpy(), expected)


@pytest.mark.parametrize("p", [0.2, 0.5])
def test_hflip_mirrors_a_share_of_p(p: float) -> None:
    flip = HorizontalFlip(p=p)
    chosen = flip.draw(generator(0, "test"), epoch_of(50_000, 32))["flip"]
    assert stats.binomtest(int(chosen.sum()), 50_000, p).pvalue > SMALLEST_P_VALUE
    images = random_images(2)
    out = flip.apply(images, {"flip": torch.tensor([True, False])})
    assert np.array_equal(out[0].numpy(), images[0].numpy()[:, :, ::-1])
    assert torch.equal(out[1], images[1])


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
        expected = torchvision_affine(
            images[i : i + 1],
            angle=float(angle[i]),
            translate=shift[i].tolist(),
            scale=float(scale[i]),
            shear=[float(shear[i]), 0.0],
            interpolation=InterpolationMode(interpolation),
        )
        torch.testing.assert_close(out[i : i + 1], expected, rtol=0, atol=0 if interpolation == "nearest" else 1e-5)


def test_affine_parameters_are_uniform_in_their_ranges() -> None:
    num, affine = 20_000, Affine(p=0.3, degrees=15, translate=0.1, scale=(0.9, 1.1), shear=10)
    params = affine.draw(generator(0, "test"), epoch_of(num, 32))
    assert stats.binomtest(int(params["apply"].sum()), num, 0.3).pvalue > SMALLEST_P_VALUE
    linear, moved = params["matrix"][:, :, :2].astype(np.float64), params["matrix"][:, :, 2].astype(np.float64)
    scale = 1 / np.sqrt(np.linalg.det(linear))
    rotation = np.arctan2(-linear[:, 1, 0], linear[:, 1, 1])
    cos, sin = np.cos(rotation), np.sin(rotation)
    shear = np.arctan(scale * (linear[:, 0, 1] * cos - linear[:, 0, 0] * sin))
    for values, low, high in ((np.rad2deg(rotation), -15, 15), (scale, 0.9, 1.1), (np.rad2deg(shear), -10, 10)):
        assert stats.kstest(values, stats.uniform(low, high - low).cdf).pvalue > SMALLEST_P_VALUE
        assert values.min() >= low - 1e-4
        assert values.max() <= high + 1e-4
    shift = -np.linalg.solve(linear, moved[:, :, None])[:, :, 0]
    assert np.abs(shift - shift.round()).max() < 1e-3
    counts = np.bincount((shift.round() + 3).astype(int).ravel(), minlength=7)
    share = np.array([0.7, 1, 1, 1, 1, 1, 0.7]) / 6.4  # of round(U(-3.2, 3.2))
    assert stats.chisquare(counts, share * counts.sum()).pvalue > SMALLEST_P_VALUE


def test_affine_leaves_images_that_are_not_chosen_to_the_bit() -> None:
    affine, images = Affine(p=0.5), random_images(64)
    params = drawn(affine, 64)
    out, spared = affine.apply(images, params), ~params["apply"]
    assert 0 < spared.sum() < 64
    assert torch.equal(out[spared], images[spared])
    assert not torch.equal(out[~spared], images[~spared])


# Mixing


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_mixup_lambda_is_beta(alpha: float) -> None:
    kept = MixUp(alpha=alpha).draw(generator(0, "test"), epoch_of(100_000, 32))["kept"]
    law = stats.beta(alpha, alpha)
    lower = kept[kept < 0.5].astype(np.float64)
    assert stats.kstest(lower, lambda x: 2 * law.cdf(x)).pvalue > SMALLEST_P_VALUE
    theirs = law.rvs(100_000, random_state=1).astype(np.float32)  # 1.6% of Beta(0.2, 0.2) round to exactly 1
    assert stats.ks_2samp(kept, theirs).pvalue > SMALLEST_P_VALUE


def test_mixup_mixes_a_share_of_p() -> None:
    kept = MixUp(alpha=1.0, p=0.3).draw(generator(0, "test"), epoch_of(50_000, 32))["kept"]
    assert stats.binomtest(int((kept != 1).sum()), 50_000, 0.3).pvalue > SMALLEST_P_VALUE


def test_mixup_blends_image_and_target_with_one_weight() -> None:
    mixup, images = MixUp(alpha=1.0), random_images(20)
    params = drawn(mixup, 20)
    batch = applied(mixup, images, params)
    kept = params["kept"].view(-1, 1, 1, 1).double()
    expected = kept * images.double() + (1 - kept) * images.flip(0).double()
    torch.testing.assert_close(batch.images.double(), expected, rtol=0, atol=1e-6)
    one_hot = functional.one_hot(labels_of(20), NUM_CLASSES).double()
    kept = kept.view(-1, 1)
    torch.testing.assert_close(batch.targets.double(), kept * one_hot + (1 - kept) * one_hot.flip(0), rtol=0, atol=1e-6)


@pytest.mark.parametrize("size_px", [15, 32])
def test_cutmix_boxes_are_torchvision_s_for_the_same_draws(size_px: int, monkeypatch: pytest.MonkeyPatch) -> None:
    num, random = 2_000, np.random.default_rng(0)
    kept, centre = random.beta(1.0, 1.0, num), random.integers(0, size_px, (num, 2))
    boxes = cutmix_box(kept, centre, size_px)
    theirs, image = TorchvisionCutMix(num_classes=NUM_CLASSES), torch.zeros(1, 3, size_px, size_px)
    for i in range(num):
        left_then_top = iter([centre[i, 1:], centre[i, :1]])
        with monkeypatch.context() as patch:
            patch.setattr(theirs, "_dist", torch.distributions.Distribution(validate_args=False))
            patch.setattr(theirs._dist, "sample", lambda _, i=i: kept[i])
            patch.setattr(torch, "randint", lambda *_, draws=left_then_top, **__: torch.from_numpy(next(draws)))
            params = theirs.make_params([image])
        left, top, right, bottom = params["box"]
        assert boxes[i].tolist() == [top, left, bottom, right]


@pytest.mark.parametrize("size_px", [15, 32])
def test_cutmix_boxes_are_timm_s_for_the_same_draws(size_px: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from timm.data.mixup import rand_bbox

    random = np.random.default_rng(0)
    for kept in random.beta(1.0, 1.0, 200):
        centre = random.integers(0, size_px, (50, 2))
        draws = iter(centre.T)
        with monkeypatch.context() as patch:
            patch.setattr(np.random, "randint", lambda *_, draws=draws, **__: next(draws))
            top, bottom, left, right = rand_bbox((3, size_px, size_px), kept, count=50)
        boxes = cutmix_box(np.full(50, kept), centre, size_px)
        assert np.array_equal(boxes[:, :2], np.stack([top, left], 1))
        # timm gives a box of an odd side its odd pixel; torchvision and we give it the next smaller even side
        odd = int(size_px * math.sqrt(1 - kept)) % 2
        assert np.array_equal((boxes[:, 2:] + odd).clip(max=size_px), np.stack([bottom, right], 1))


def test_cutmix_pastes_its_box_and_weighs_the_target_by_the_clipped_area() -> None:
    cutmix, images = CutMix(alpha=1.0), random_images(200)
    params = drawn(cutmix, 200)
    batch = applied(cutmix, images, params)
    one_hot = functional.one_hot(labels_of(200), NUM_CLASSES).double()
    num_clipped = 0
    for i, (top, left, bottom, right) in enumerate(params["box"].tolist()):
        expected = images[i].clone()
        expected[:, top:bottom, left:right] = images[199 - i][:, top:bottom, left:right]
        assert torch.equal(batch.images[i], expected)
        kept = 1 - (bottom - top) * (right - left) / SIZE_PX**2
        target = kept * one_hot[i] + (1 - kept) * one_hot[199 - i]
        torch.testing.assert_close(batch.targets[i].double(), target, rtol=0, atol=1e-6)
        num_clipped += SIZE_PX in (bottom, right) or 0 in (top, left)
    assert num_clipped > 20, "no box was clipped: the test shows nothing"


def test_cutmix_box_centres_are_uniform_and_lambda_is_beta() -> None:
    num, size_px = 20_000, 64
    box = CutMix(alpha=1.0).draw(generator(0, "test"), epoch_of(num, size_px))["box"]
    whole = ((box > 0) & (box < size_px)).all(1)  # boxes that no border has clipped
    height = (box[:, 2] - box[:, 0])[whole]
    assert np.array_equal(height, (box[:, 3] - box[:, 1])[whole])
    kept = np.random.default_rng(1).beta(1.0, 1.0, num)
    centre = np.random.default_rng(2).integers(0, size_px, (num, 2))
    other = cutmix_box(kept, centre, size_px)
    for column in range(4):
        assert stats.ks_2samp(box[:, column], other[:, column]).pvalue > SMALLEST_P_VALUE


def test_mixup_and_cutmix_share_the_images_half_and_half() -> None:
    num, pipe = 20_000, pipeline({"mixup": {"alpha": 1.0}, "cutmix": {"alpha": 1.0}})
    draws = pipe.draw_epoch(epoch_of(num, SIZE_PX, 0, 0), CPU)
    mixup, cutmix = draws["mixup"]["chosen"], draws["cutmix"]["chosen"]
    assert torch.equal(mixup, ~cutmix), "each image gets exactly one of the two"
    assert stats.binomtest(int(mixup.sum()), num, 0.5).pvalue > SMALLEST_P_VALUE


def test_each_image_is_mixed_as_its_mixer_alone_would() -> None:
    images, labels = uint8_images(64), labels_of(64)
    both, batches = pipeline({"mixup": {}, "cutmix": {}}), {}
    draws = both.draw_epoch(epoch_of(64, SIZE_PX, 0, 0), CPU)
    for name in ("mixup", "cutmix"):
        alone = pipeline({name: {}})
        batches[name] = alone(images, labels, alone.draw_epoch(epoch_of(64, SIZE_PX, 0, 0), CPU), 0)
    mixed = both(images, labels, draws, 0)
    for name in ("mixup", "cutmix"):
        rows = draws[name]["chosen"]
        assert torch.equal(mixed.images[rows], batches[name].images[rows])
        assert torch.equal(mixed.targets[rows], batches[name].targets[rows])


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("names", [("mixup",), ("cutmix",), ("mixup", "cutmix")])
def test_mixed_targets_sum_to_1(names: tuple[str, ...], label_smoothing: float) -> None:
    pipe = pipeline({name: {"alpha": 1.0} for name in names}, label_smoothing=label_smoothing)
    targets = pipe(uint8_images(101), labels_of(101), pipe.draw_epoch(epoch_of(101, SIZE_PX, 0, 0), CPU), 0).targets
    torch.testing.assert_close(targets.sum(1), torch.ones(101))
    assert targets.min() >= 0


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.3])
def test_label_smoothing_is_timm_s(smoothing: float) -> None:
    from timm.data.mixup import mixup_target

    labels = labels_of(30)
    theirs = mixup_target(labels, NUM_CLASSES, lam=1.0, smoothing=smoothing)
    torch.testing.assert_close(smooth_targets(labels, NUM_CLASSES, smoothing), theirs, rtol=0, atol=1e-7)


def test_labels_are_smoothed_before_they_are_mixed() -> None:
    from timm.data.mixup import mixup_target

    pipe, labels = pipeline({"mixup": {"alpha": 1.0}}, label_smoothing=0.1), labels_of(30)
    draws = pipe.draw_epoch(epoch_of(30, SIZE_PX, 0, 0), CPU)
    theirs = mixup_target(labels, NUM_CLASSES, lam=draws["mixup"]["kept"][:, None], smoothing=0.1)
    ours = pipe(uint8_images(30), labels, draws, 0).targets
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


# Erasing


@pytest.mark.parametrize("size_px", [5, 8, 40])
def test_cutout_is_a_square_clipped_at_the_borders(size_px: int) -> None:
    cutout, images = Cutout(size_px=size_px), random_images(300) + 1
    params = drawn(cutout, 300)
    out = cutout.apply(images, params)
    for i, (top, left) in enumerate(params["start"].tolist()):
        expected = images[i].clone()
        expected[:, max(top, 0) : top + size_px, max(left, 0) : left + size_px] = 0
        assert torch.equal(out[i], expected)


def test_cutout_centres_are_uniform_over_the_pixels() -> None:
    start = Cutout(size_px=8).draw(generator(0, "test"), epoch_of(50_000, 32))["start"]
    assert uniform_counts(start + 4, 32) > SMALLEST_P_VALUE


def test_erasing_has_the_law_of_torchvision() -> None:
    num, size_px, area, ratio = 3_000, 32, (0.02, 0.33), (0.3, 3.3)
    params = RandomErasing(p=1.0, area=area, ratio=ratio).draw(generator(0, "test"), epoch_of(num, size_px))
    top_left, size = params["start"], params["stop"] - params["start"]
    assert (params["start"] >= 0).all()
    assert (params["stop"] <= size_px).all()
    image = torch.zeros(3, size_px, size_px)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        boxes = [TorchvisionErasing.get_params(image, area, ratio, value=[0.0])[:4] for _ in range(num)]
    top, left, height, width = np.array(boxes).T
    for ours, theirs in (
        (size.prod(1), height * width),
        (size[:, 0] / size[:, 1], height / width),
        (top_left[:, 0] / (size_px - size[:, 0] + 1), top / (size_px - height + 1)),
        (top_left[:, 1] / (size_px - size[:, 1] + 1), left / (size_px - width + 1)),
    ):
        assert stats.ks_2samp(ours, theirs).pvalue > SMALLEST_P_VALUE


def test_erasing_takes_a_share_of_p_and_leaves_an_image_alone_where_no_box_fits() -> None:
    params = RandomErasing(p=0.3).draw(generator(0, "test"), epoch_of(50_000, 32))
    erased = (params["stop"] > params["start"]).all(1)
    assert stats.binomtest(int(erased.sum()), 50_000, 0.3).pvalue > SMALLEST_P_VALUE
    params = RandomErasing(p=1.0, area=(1.0, 1.0), ratio=(1.0, 1.0)).draw(generator(0, "test"), epoch_of(100, 32))
    assert np.array_equal(params["start"] < params["stop"], np.zeros((100, 2), dtype=bool))


@pytest.mark.parametrize(
    ("name", "options"),
    [("affine", {"scale": (1.1, 0.9)}), ("erasing", {"area": (0.3, 0.1)}), ("erasing", {"ratio": (2.0, 1.0)})],
)
def test_a_range_the_wrong_way_round_is_refused_with_the_remedy(name: str, options: dict[str, Any]) -> None:
    values = AUGMENTATIONS.options(name).model_validate(options).model_dump()
    with pytest.raises(ValueError, match=r"smallest, largest.*swap the two"):
        AUGMENTATIONS.check(name, values)


# Keys


def test_a_key_depends_on_seed_purpose_and_epoch() -> None:
    keys = {key(seed, purpose, epoch) for seed in range(4) for purpose in ("init", "order") for epoch in range(4)}
    assert len(keys) == 32
    assert all(0 <= one < 2**63 for one in keys)
    assert key(1, "a", 23) != key(12, "a", 3)


def test_keys_never_change() -> None:
    assert key(0, "init") == 900553517829159482
    assert key(7, "augment/mixup", 29) == 7109403676260093253
    assert int(generator(0, "order", 1).bit_generator.random_raw()) == 10372287070018500065


def test_draws_never_change() -> None:
    """NumPy may change its distributions between versions; fingerprints do not know, so the trainer's version must."""
    random = generator(0, "golden")
    assert random.permutation(8).tolist() == [5, 6, 4, 2, 7, 1, 3, 0]
    assert random.integers(0, 9, 6).tolist() == [7, 4, 7, 7, 0, 2]
    assert random.random(2) == pytest.approx([0.6861369872863141, 0.5489212758545653], rel=1e-12)
    assert random.beta(0.2, 0.2, 2) == pytest.approx([0.36377847742029534, 0.9999562921921197], rel=1e-12)
    assert random.uniform(-15, 15, 2) == pytest.approx([0.03488163252665366, 1.5416934227501926], rel=1e-12)
