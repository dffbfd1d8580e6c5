"""Augmentations: a contract for every registered one, how they work together, and keyed random numbers.

The law of each is held by test_augment_geometry.py, test_augment_erasing.py and test_augment_mixing.py.
"""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from torch.nn import functional
from torchvision.transforms.v2 import functional as torchvision

from cifar_ablate.augment.base import Batch, Mixer, Transform
from cifar_ablate.augment.pipeline import Draws
from cifar_ablate.registry import AUGMENTATIONS
from cifar_ablate.rng import derive_seed, generator
from tests.augmenting import (
    CPU,
    NUM_CLASSES,
    NUM_DRAWS,
    SIZE_PX,
    SMALLEST_P_VALUE,
    applied,
    built,
    drawn,
    epoch_of,
    independent,
    labels_of,
    pipeline,
    random_images,
    uint8_images,
)

NAMES = AUGMENTATIONS.names()
WITH_P = [name for name in NAMES if "p" in AUGMENTATIONS.options(name).model_fields]


def at_half(name: str) -> Transform | Mixer:
    """The augmentation by its defaults, with p strictly between 0 and 1 where it has one."""
    return built(name, **({"p": 0.5} if name in WITH_P else {}))


def same_draws(one: Draws, other: Draws, names: list[str], *, but: tuple[str, ...] = ()) -> bool:
    return all(
        torch.equal(one[name][part], other[name][part]) for name in names for part in one[name] if part not in but
    )


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


def test_without_augmentation_a_batch_is_normalised_as_by_torchvision_and_nothing_else() -> None:
    pipe, images, labels = pipeline({}), uint8_images(8), labels_of(8)
    batch = pipe(images, labels, pipe.draw_epoch(epoch_of(8, SIZE_PX, 0, 0), CPU), 0)
    pixels = torchvision.to_dtype(images, torch.float32, scale=True)
    expected = torchvision.normalize(pixels, pipe.mean.flatten().tolist(), pipe.std.flatten().tolist())
    torch.testing.assert_close(batch.images, expected, rtol=0, atol=1e-6)
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


# Keys


def test_a_key_depends_on_seed_purpose_and_epoch() -> None:
    keys = {
        derive_seed(seed, purpose, epoch) for seed in range(4) for purpose in ("init", "order") for epoch in range(4)
    }
    assert len(keys) == 32
    assert all(0 <= one < 2**63 for one in keys)
    assert derive_seed(1, "a", 23) != derive_seed(12, "a", 3)


def test_streams_of_neighbouring_keys_are_independent() -> None:
    """Two purposes, seeds or epochs whose draws were correlated would make the laws of each worth nothing together."""
    keys = ((0, "augment/crop", 0), (1, "augment/crop", 0), (0, "augment/crop", 1), (0, "augment/hflip", 0))
    assert independent(*(generator(*each).random(NUM_DRAWS) for each in keys)) > SMALLEST_P_VALUE


def test_keys_never_change() -> None:
    assert derive_seed(0, "init") == 900553517829159482
    assert derive_seed(7, "augment/mixup", 29) == 7109403676260093253
    assert int(generator(0, "order", 1).bit_generator.random_raw()) == 10372287070018500065


def test_draws_never_change() -> None:
    """NumPy may change its distributions between versions; fingerprints do not know, so the trainer's version must."""
    random = generator(0, "golden")
    assert random.permutation(8).tolist() == [5, 6, 4, 2, 7, 1, 3, 0]
    assert random.integers(0, 9, 6).tolist() == [7, 4, 7, 7, 0, 2]
    assert random.random(2) == pytest.approx([0.6861369872863141, 0.5489212758545653], rel=1e-12)
    assert random.beta(0.2, 0.2, 2) == pytest.approx([0.36377847742029534, 0.9999562921921197], rel=1e-12)
    assert random.uniform(-15, 15, 2) == pytest.approx([0.03488163252665366, 1.5416934227501926], rel=1e-12)
