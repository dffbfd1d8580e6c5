"""One picture of what each arm's network sees: the first images of an epoch's first batch, with their targets.

The code of the training prepares the images (``plan_epoch``, ``draw_epoch``, the pipeline on whole batches, because
mixing needs partners); they are only denormalised for display.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor

from cifar_ablate.augment.base import Batch
from cifar_ablate.augment.pipeline import smooth_targets
from cifar_ablate.console import reporting
from cifar_ablate.data import DataSet
from cifar_ablate.data.types import Images
from cifar_ablate.errors import OutputError, UsageError, not_written, suggest
from cifar_ablate.plan import DataKey, check_batch_size, data_key, load_all_data
from cifar_ablate.runner.picture import Row, draw_rows
from cifar_ablate.spec.component import shown
from cifar_ablate.spec.load import load_study
from cifar_ablate.spec.overlay import load_overlay
from cifar_ablate.spec.schema import Arm, Recipe, Study
from cifar_ablate.training.batches import DeviceData, plan_epoch, to_device
from cifar_ablate.training.engine import pipeline_of

FOLDER = Path("reports")
MAX_NAME = 150
"""Maximum number of characters that a file's name takes from the study's label, which ``--set`` can make long."""


@dataclass(frozen=True)
class PreviewOptions:
    """Which part of a study to draw."""

    arms: Sequence[str] | None = None
    """Names of arms; None: all."""
    seed: int | None = None
    """None: the first seed of the study."""
    epoch: int = 1
    """Epoch, from 1."""
    num_images: int = 12
    """Number of images of each arm, from the first batch."""


def draw_preview(
    file: Path,
    profile: str | None,
    settings: Sequence[str] | None,
    options: PreviewOptions,
    output: Path | None,
    out: Console,
) -> Path:
    """Draw the picture and return its path; raises AblateError if that is impossible."""
    study = _selected(load_study(file, load_overlay(profile, settings or [])), options)
    path = output or FOLDER / f"preview-{re.sub(r'[^A-Za-z0-9._@=,+-]+', '-', study.label)[:MAX_NAME]}.png"
    _make_room(path)
    with reporting(out) as report_progress:
        data = load_all_data([study], report_progress)
    seed = study.seeds[0] if options.seed is None else options.seed
    rows = rows_of(study.arms, data, seed, options.epoch, options.num_images)
    draw_rows(rows, study.label, f"what the network sees first in epoch {options.epoch}, seed {seed}", path)
    return path


def rows_of(arms: Sequence[Arm], data: Mapping[DataKey, DataSet], seed: int, epoch: int, num_images: int) -> list[Row]:
    """A row of ``num_images`` images for each arm, and one of the untouched images before each new data set."""
    rows: list[Row] = []
    on_device: dict[DataKey, DeviceData] = {}
    for arm in arms:
        recipe, source = arm.recipe, data[data_key(arm.recipe)]
        check_batch_size(f"arm {arm.name!r}", recipe, source)
        if data_key(recipe) not in on_device:
            on_device[data_key(recipe)] = images = to_device(source, torch.device("cpu"))
            picked = torch.from_numpy(plan_epoch(seed, epoch - 1, images).order[:num_images])
            targets = smooth_targets(images.train_labels[picked], images.num_classes, 0.0)
            untouched = images.train_images[picked].permute(0, 2, 3, 1).contiguous().numpy()
            rows.append(Row("untouched", source.describe(), untouched, _captions(targets, source.classes)))
        images = on_device[data_key(recipe)]
        batch = first_batch(recipe, images, seed, epoch)
        seen = _displayed(batch.images[:num_images], images)
        rows.append(Row(arm.name, in_short(recipe), seen, _captions(batch.targets[:num_images], source.classes)))
    return rows


def first_batch(recipe: Recipe, data: DeviceData, seed: int, epoch: int) -> Batch:
    """The first batch of an epoch (from 1) as the network gets it, drawn and augmented as in ``training/step.py``."""
    pipeline = pipeline_of(recipe, data)
    plan = plan_epoch(seed, epoch - 1, data)
    draws = pipeline.draw_epoch(plan, data.mean.device)
    picked = torch.from_numpy(plan.order[: recipe.batch_size])
    return pipeline(data.train_images[picked], data.train_labels[picked], draws, 0)


def in_short(recipe: Recipe) -> str:
    """The augmentations of a recipe and their options, except defaults, and its label smoothing."""
    parts = []
    for name, component in recipe.augment.items():
        options = {key: value for key, value in component.as_dict(defaults=False).items() if key != "name"}
        listed = ", ".join(
            f"{key} {value if isinstance(value, str) else shown(value)}" for key, value in options.items()
        )
        parts.append(f"{name} ({listed})" if listed else name)
    if recipe.loss.label_smoothing:
        parts.append(f"label smoothing {recipe.loss.label_smoothing:g}")
    return ", ".join(parts) or "no augmentation"


def _selected(study: Study, options: PreviewOptions) -> Study:
    """The study with the selected arms; raises UsageError for an arm, epoch or number of images that it lacks."""
    names = [arm.name for arm in study.arms]
    for name in options.arms or ():
        if name not in names:
            raise UsageError(f"--arm {name}: {study.label} has no such arm{suggest(name, names)}")
    arms = tuple(arm for arm in study.arms if not options.arms or arm.name in options.arms)
    for arm in arms:
        if options.epoch > arm.recipe.epochs:
            last = min(each.recipe.epochs for each in arms)
            raise UsageError(
                f"--epoch {options.epoch}: arm {arm.name!r} ends after {arm.recipe.epochs}; give one from 1 to {last}"
            )
        if options.num_images > arm.recipe.batch_size:
            smallest = min(each.recipe.batch_size for each in arms)
            raise UsageError(
                f"--images {options.num_images}: arm {arm.name!r} has {arm.recipe.batch_size} in a batch; "
                f"give {smallest} or fewer"
            )
    return replace(study, arms=arms)


def _make_room(path: Path) -> None:
    """Make the picture's folder; raises UsageError or OutputError, before any work, for an unsuitable path."""
    if path.suffix.lower() != ".png":
        raise UsageError(f"--output {path}: the picture is a PNG; let its name end with .png")
    if path.is_dir():
        raise OutputError(path, "it is a folder", "name a file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise not_written(path.parent, error) from None


def _displayed(images: Tensor, data: DeviceData) -> Images:
    """Normalised float32 [N, 3, H, W] to uint8 [N, H, W, 3], as the eye sees them."""
    pixels = (images * data.std + data.mean).clamp(0, 1) * 255
    return pixels.round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()


def _captions(targets: Tensor, classes: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """Lines for each image from its target (float32 [N, C]): the class, or the two largest with their weights."""
    return tuple(_caption(weights, classes) for weights in targets.tolist())


def _caption(weights: Sequence[float], classes: Sequence[str]) -> tuple[str, ...]:
    first, second = sorted(range(len(weights)), key=lambda label: -weights[label])[:2]
    if weights[first] > 0.995:
        return (classes[first],)
    listed = [first]
    if weights[second] > min(weights) + 0.005:  # label smoothing alone gives all other classes the same
        listed.append(second)
    return tuple(f"{classes[label]} {weights[label]:.2f}" for label in listed)
