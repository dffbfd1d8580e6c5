"""``cifar-ablate preview``: it draws what a training's network gets, and refuses what cannot be drawn."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from cifar_ablate.data import DataSet, load_data
from cifar_ablate.errors import UsageError
from cifar_ablate.plan import data_key
from cifar_ablate.record.folder import RunFolder
from cifar_ablate.registry import AUGMENTATIONS
from cifar_ablate.runner.picture import CELL_PX, GAP_PX, LABEL_PX, MARGIN_PX, Row, draw_rows
from cifar_ablate.runner.preview import first_batch, in_short, rows_of
from cifar_ablate.spec.load import load_study
from cifar_ablate.spec.schema import Arm, Study
from cifar_ablate.training import step as training_step
from cifar_ablate.training.batches import to_device
from cifar_ablate.training.events import finish
from cifar_ablate.training.train import Stopped, train_run
from tests.conftest import Workshop

STUDY = """
    study: looks
    question: What does it look like?
    seeds: [3, 4]
    recipe:
      data: digits
      train_size: 200
      model: {name: resnet18-compact, width: 4}
      epochs: 3
      batch_size: 64
      optimizer: {name: sgd, lr: 0.05}
    arms:
      baseline:
      every one:
        augment: {crop: {}, hflip: {}, affine: {}, cutout: {}, erasing: {}, mixup: {alpha: 1.0}, cutmix: {}}
        loss: {label_smoothing: 0.1}
      short: {epochs: 2, batch_size: 32, augment: {alternating-flip: {}}}
      other images: {train_size: 100, epochs: 4}
"""
DOCUMENTED = Path(__file__).parent.parent / "docs" / "augmentations.yaml"


@pytest.fixture(scope="module")
def digits() -> DataSet:
    return load_data("digits", {}, train_size=200)


@pytest.fixture
def study(workshop: Workshop) -> Study:
    return load_study(workshop.write("looks.yaml", STUDY))


def every_one(study: Study) -> Arm:
    return study.arm("every one")


@pytest.mark.parametrize("epoch", [1, 2])
def test_the_first_batch_is_the_one_that_the_network_gets_in_training(
    study: Study, digits: DataSet, epoch: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[Tensor, Tensor]] = []
    step = training_step.optimize

    def watched(network: object, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        seen.append((images.clone(), targets.clone()))
        return step(network, images, targets)  # type: ignore[arg-type]

    monkeypatch.setattr(training_step, "optimize", watched)
    recipe, data, steps_before = every_one(study).recipe, to_device(digits, torch.device("cpu")), 4 * (epoch - 1)
    folder = RunFolder(tmp_path / "run")
    folder.create(recipe.as_dict(), {})
    with pytest.raises(Stopped):
        finish(
            train_run(recipe, 3, data, precision="fp32", folder=folder, should_stop=lambda: len(seen) > steps_before)
        )
    batch = first_batch(recipe, data, 3, epoch)
    assert torch.equal(batch.images, seen[steps_before][0])
    assert torch.equal(batch.targets, seen[steps_before][1])


def test_rows_hold_the_images_as_they_are_and_as_they_are_seen(study: Study, digits: DataSet) -> None:
    rows = rows_of(study.arms[:2], {data_key(study.arms[0].recipe): digits}, 3, 1, 10)
    assert [row.name for row in rows] == ["untouched", "baseline", "every one"]
    untouched, baseline, augmented = rows
    assert len(untouched.images) == 10
    assert np.array_equal(baseline.images, untouched.images)
    assert baseline.captions == untouched.captions
    known = {image.tobytes() for image in digits.train_images.transpose(0, 2, 3, 1)}
    assert all(image.tobytes() in known for image in untouched.images)
    data = to_device(digits, torch.device("cpu"))
    batch = first_batch(every_one(study).recipe, data, 3, 1)
    pixels = (batch.images[:10] * data.std + data.mean) * 255
    shown = torch.from_numpy(augmented.images).permute(0, 3, 1, 2)
    torch.testing.assert_close(shown.float(), pixels.clamp(0, 255), rtol=0, atol=0.5001)
    for caption, target in zip(augmented.captions, batch.targets.tolist(), strict=False):
        largest = sorted(range(10), key=lambda label: -target[label])
        assert caption[0] == f"{largest[0]} {target[largest[0]]:.2f}"
        if len(caption) == 2:
            assert caption[1] == f"{largest[1]} {target[largest[1]]:.2f}"
        else:
            assert target[largest[1]] < 0.02, "a second class that the caption leaves out"
    assert {len(caption) for caption in augmented.captions} == {1, 2}


def test_arms_on_other_images_have_their_own_untouched_row(study: Study, digits: DataSet) -> None:
    fewer = load_data("digits", {}, train_size=100)
    data = {data_key(study.arm("baseline").recipe): digits, data_key(study.arm("other images").recipe): fewer}
    rows = rows_of(study.arms, data, 3, 1, 5)
    assert [row.name for row in rows] == ["untouched", "baseline", "every one", "short", "untouched", "other images"]
    assert rows[0].note == "digits: 200 of 1,437 training images, all 360 test images"
    assert rows[4].note == "digits: 100 of 1,437 training images, all 360 test images"
    assert np.array_equal(rows[4].images, rows[5].images)


def test_each_row_says_what_is_done_to_its_images(study: Study) -> None:
    assert in_short(study.arm("baseline").recipe) == "no augmentation"
    said = "affine, crop, cutmix, cutout, erasing, hflip, mixup (alpha 1.0), label smoothing 0.1"
    assert in_short(every_one(study).recipe) == said


def test_one_command_draws_every_arm_into_the_reports(workshop: Workshop, study: Study) -> None:
    answer = workshop("preview", "looks.yaml", "--images", "5")
    assert answer.code == 0, answer.err
    assert answer.out.splitlines()[-1] == "reports/preview-looks.png"
    with Image.open("reports/preview-looks.png") as picture:
        assert picture.width == 40 + 190 + 5 * CELL_PX + 4 * 8


def test_pixels_of_an_image_are_whole_squares_and_names_are_taken_as_they_are(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), np.uint8)
    captions = (("a",), ("b 0.70", "a very long name of a class 0.30"), ("$x_{1}$",), ("日本",))
    draw_rows([Row("100% of $5$ " * 5, "note " * 50, images, captions)], "a title", "a subtitle", tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as picture:
        pixels = np.asarray(picture.convert("RGB"))
    large = images[0].repeat(3, 0).repeat(3, 1)
    places = [top for top in range(pixels.shape[0] - 96) if np.array_equal(pixels[top : top + 96, 210:306], large)]
    assert len(places) == 1


def test_a_picture_beyond_all_screens_is_refused(tmp_path: Path) -> None:
    row = Row("arm", "note", np.zeros((1, 32, 32, 3), np.uint8), (("cat",),))
    with pytest.raises(UsageError, match="name fewer arms with --arm"):
        draw_rows([row] * 300, "a title", "a subtitle", tmp_path / "a.png")
    assert not list(tmp_path.iterdir())


def test_arms_seed_epoch_and_overlay_choose_what_is_drawn(workshop: Workshop, study: Study) -> None:
    def picture(*arguments: str) -> bytes:
        answer = workshop("preview", "looks.yaml", "--images", "4", "--output", "out/one.png", *arguments)
        assert answer.code == 0, answer.err
        return Path("out/one.png").read_bytes()

    arm = ("--arm", "every one")
    first = picture(*arm)
    assert picture(*arm, "--seed", "3", "--epoch", "1") == first, "the study's first seed, and the first epoch"
    others = [picture(*arm, "--seed", "4"), picture(*arm, "--epoch", "2"), picture(*arm, "--arm", "baseline")]
    others.append(picture(*arm, "--set", "augment.mixup.alpha=0.1"))
    assert len({first, *others}) == 5
    assert workshop("preview", "looks.yaml", *arm, "--set", "model.width=8").out.splitlines()[-1] == (
        "reports/preview-looks@model.width=8.png"
    )


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("--arm", "every on"), 2, "--arm every on: looks has no such arm; did you mean 'every one'?"),
        (("--epoch", "3"), 2, "--epoch 3: arm 'short' ends after 2; give one from 1 to 2"),
        (("--epoch", "0"), 2, "Invalid value for '--epoch'"),
        (("--images", "33"), 2, "--images 33: arm 'short' has 32 in a batch; give 32 or fewer"),
        (("--images", "0"), 2, "Invalid value for '--images'"),
        (("--output", "a.pdf"), 2, "--output a.pdf: the picture is a PNG; let its name end with .png"),
        (("--output", "folder.png"), 1, "cannot write folder.png: it is a folder; name a file"),
        (("--output", "looks.yaml/a.png"), 1, "cannot write looks.yaml: File exists"),
        (("--set", "train_size=40"), 2, "more than train_size 40"),
        (("--set", "train_size=null", "--set", "batch_size=2000"), 1, "more than the 1,437 training images"),
    ],
)
def test_what_cannot_be_drawn_is_told_in_one_sentence(
    workshop: Workshop, study: Study, arguments: tuple[str, ...], code: int, says: str
) -> None:
    Path("folder.png").mkdir()
    answer = workshop("preview", "looks.yaml", *arguments)
    assert answer.code == code
    assert says in answer.err
    assert "Traceback" not in answer.err
    assert not list(Path().rglob("*preview*"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written_is_told(workshop: Workshop, study: Study) -> None:
    Path("locked").mkdir(mode=0o500)
    answer = workshop("preview", "looks.yaml", "--output", "locked/a.png")
    assert answer.code == 1
    assert "Permission denied; run where you may write" in answer.err


def test_a_full_disk_is_told_and_leaves_the_picture_before_as_it_was(workshop: Workshop, study: Study) -> None:
    Path("a.png").write_bytes(b"before")

    def full(_: Figure, path: Path, **__: object) -> None:
        path.write_bytes(b"half a picture")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    workshop.monkeypatch.setattr(Figure, "savefig", full)
    answer = workshop("preview", "looks.yaml", "--output", "a.png")
    assert answer.code == 1
    assert answer.err == "cannot write a.png: No space left on device; free space, or run where there is more\n"
    assert [path.read_bytes() for path in Path().glob("*a.png*")] == [b"before"]


def test_the_documented_study_shows_every_augmentation() -> None:
    arms = load_study(DOCUMENTED).arms
    assert {name for arm in arms for name in arm.recipe.augment} == set(AUGMENTATIONS.names())
    text = DOCUMENTED.with_suffix(".md").read_text(encoding="utf-8")
    for name in AUGMENTATIONS.names():
        assert f"`{name}`" in text
    pictures = sorted(DOCUMENTED.parent.glob("images/augmentation-*.png"))
    assert all(f"(images/{picture.name})" in text for picture in pictures)
    assert sum(picture.stat().st_size for picture in pictures) < 600_000


def test_every_test_that_the_document_names_exists() -> None:
    text = DOCUMENTED.with_suffix(".md").read_text(encoding="utf-8")
    code = "".join(path.read_text(encoding="utf-8") for path in Path(__file__).parent.glob("test_augment*.py"))
    named = [name.rstrip(".") for name in re.findall(r"`(?:\.\.\.)?(_?[a-z0-9_]+(?:\.\.\.)?)`", text) if "_" in name]
    named = [name for name in named if name.startswith(("test_", "_"))]
    assert len(named) > 20
    for name in named:
        assert re.search(rf"def test_\w*{name.removeprefix('test_')}", code), name


DRAWN = {
    "crop": ("crop", "crop, reflect"),
    "flips": ("hflip", "alternating-flip"),
    "affine": ("affine",),
    "erasing": ("cutout", "erasing"),
    "mixing": ("mixup", "cutmix", "mixup and cutmix"),
    "all": ("all together",),
}


@pytest.mark.slow
@pytest.mark.real
def test_the_documented_pictures_are_of_today_s_draws(cifar_root: Path) -> None:
    """A page that shows what the program does no longer do is worse than none; fonts and compression may differ."""
    study = load_study(DOCUMENTED)
    cifar10 = load_data("cifar10", {}, root=cifar_root)
    for name, arms in DRAWN.items():
        with Image.open(DOCUMENTED.parent / "images" / f"augmentation-{name}.png") as picture:
            pixels = np.asarray(picture.convert("RGB")).astype(int)
        chosen = [study.arm(arm) for arm in arms]
        for row in rows_of(chosen, {data_key(chosen[0].recipe): cifar10}, 0, 1, 7):
            large = row.images.repeat(row.factor, 1).repeat(row.factor, 2).astype(int)
            lefts = [MARGIN_PX + LABEL_PX + i * (row.cell_px + GAP_PX) for i in range(7)]
            drawn = np.stack([pixels[:, left : left + row.cell_px] for left in lefts])  # [7, height, cell, 3]
            tops = range(drawn.shape[1] - row.cell_px + 1)
            # one step of 255 is a rounding at a half
            assert any(np.abs(drawn[:, top : top + row.cell_px] - large).max() <= 1 for top in tops), (name, row.name)
