"""Study to runs: every arm with every seed, each with the fingerprint that says whether it was trained before."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cifar_ablate.data import DataSet, load_data
from cifar_ablate.data.types import ProgressCallback
from cifar_ablate.device import Device, Precision
from cifar_ablate.errors import DataError, UsageError
from cifar_ablate.models.build import build_model
from cifar_ablate.record.types import RunIdentity
from cifar_ablate.spec.delta import differences
from cifar_ablate.spec.schema import RECORDING_FIELDS, Recipe, Study

TRAINER_VERSION = 2
"""Raised only when the same recipe and seed train to another result; runs of an older trainer are then stale."""

DataKey = str


@dataclass(frozen=True, kw_only=True)
class PlannedRun(RunIdentity):
    """One training that a study wants: an arm with a seed."""

    recipe: Recipe

    @property
    def data_key(self) -> DataKey:
        return data_key(self.recipe)

    @property
    def shape(self) -> str:
        """Runs of one shape can share a compiled step: same network, data, batch size and precision."""
        return json.dumps([self.recipe.model.as_dict(), self.data_key, self.recipe.batch_size, self.precision])


@dataclass(frozen=True)
class Plan:
    """All runs of one study's variant, and the study as it was when the plan was made."""

    study: Study
    runs: tuple[PlannedRun, ...]
    document: Mapping[str, Any]
    """The frozen study, as the record keeps it (JSON values)."""


def data_key(recipe: Recipe) -> DataKey:
    """Recipes with one key train on the same images."""
    return json.dumps([recipe.data.as_dict(), recipe.train_size], sort_keys=True)


def load_all_data(studies: Sequence[Study], report: ProgressCallback) -> dict[DataKey, DataSet]:
    """Every data set that the studies need, each loaded once; raises DataError where one cannot be had."""
    loaded: dict[DataKey, DataSet] = {}
    for recipe in (arm.recipe for study in studies for arm in study.arms):
        if data_key(recipe) not in loaded:
            loaded[data_key(recipe)] = load_data(
                recipe.data.name, recipe.data.kwargs(), train_size=recipe.train_size, report=report
            )
    return loaded


def make_plan(
    study: Study,
    data: Mapping[DataKey, DataSet],
    device: Device,
    was_trained: Callable[[str], bool] = lambda fingerprint: False,
) -> Plan:
    """Freeze a study into runs; raises DataError or UsageError where one cannot be trained.

    ``was_trained`` says whether a run with this fingerprint has been trained: its network needs no check.
    """
    runs: list[PlannedRun] = []
    arms: list[dict[str, Any]] = []
    built: set[str] = set()
    twins: dict[str, str] = {}
    for arm in study.arms:
        recipe, images = arm.recipe, data[data_key(arm.recipe)]
        precision = device.resolve(recipe.precision)
        of_seed = {seed: fingerprint(recipe, seed, precision, images.digest) for seed in study.seeds}
        network = json.dumps([recipe.model.as_dict(), images.num_classes, images.image_size_px])
        # report a network that does not fit these images now, not once per seed
        if network not in built and not any(map(was_trained, of_seed.values())):
            _check_network(recipe, images)
            built.add(network)
        check_batch_size(f"{study.label}, arm {arm.name!r}", recipe, images)
        recipe_id = fingerprint(recipe, None, precision, images.digest)
        twin = twins.setdefault(recipe_id, arm.name)
        if twin != arm.name:
            raise UsageError(
                f"{study.label}: arms {twin!r} and {arm.name!r} are the same training on {device.name} "
                f"(precision {precision}); remove one, or let them differ"
            )
        arms.append(_arm_document(study, arm.name, recipe_id, precision, images))
        runs.extend(
            PlannedRun(
                study=study.label,
                arm=arm.name,
                seed=seed,
                recipe=recipe,
                precision=precision,
                recipe_id=recipe_id,
                fingerprint=of_run,
            )
            for seed, of_run in of_seed.items()
        )
    document = {
        "study": study.name,
        "file": study.file,
        "variant": study.variant,
        "question": study.question,
        "seeds": list(study.seeds),
        "looks": list(study.looks),
        "margin": study.margin,
        "baseline": study.baseline,
        "arms": arms,
        "published": {name: published.model_dump() for name, published in study.published.items()},
    }
    if study.tuned is not None:
        document["tuned"] = study.tuned.model_dump(mode="json")
    return Plan(study, tuple(runs), document)


def _check_network(recipe: Recipe, images: DataSet) -> None:
    """Build the recipe's network; raises UsageError if it does not fit the images."""
    name, options = recipe.model.name, recipe.model.kwargs()
    num_classes, image_size_px = images.num_classes, images.image_size_px
    build_model(name, options, num_classes=num_classes, image_size_px=image_size_px, init_seed=0)


def check_batch_size(where: str, recipe: Recipe, images: DataSet) -> None:
    """Raise DataError where there are fewer training images than one step takes."""
    if recipe.batch_size > len(images.train_labels):
        raise DataError(
            f"{where}: batch_size {recipe.batch_size} is more than the "
            f"{len(images.train_labels):,} training images; make the batch smaller"
        )


def fingerprint(recipe: Recipe, seed: int | None, precision: Precision, data_digest: str) -> str:
    """What decides a training, as 20 hex digits: non-default recipe fields, resolved precision, seed, data, trainer.

    The data enter by their digest and ``train_size`` alone, so neither a path nor the name of the source matters; new
    recipe fields with defaults leave old fingerprints as they were.
    """
    fields = recipe.as_dict(defaults=False)
    decisive = {name: value for name, value in fields.items() if name not in RECORDING_FIELDS | {"data", "precision"}}
    content = {
        "recipe": decisive,
        "precision": precision,
        "data": data_digest,
        "trainer": TRAINER_VERSION,
        **({} if seed is None else {"seed": seed}),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:20]


def _arm_document(study: Study, name: str, recipe_id: str, precision: Precision, images: DataSet) -> dict[str, Any]:
    arm = study.arm(name)
    parent = None if name == study.baseline else arm.parent or study.baseline
    return {
        "name": name,
        "parent": parent,
        "recipe_id": recipe_id,
        "seeds": list(study.seeds),
        "precision": precision,
        "recipe": arm.recipe.as_dict(),
        "differs": [] if parent is None else [str(one) for one in differences(study.arm(parent).recipe, arm.recipe)],
        "data": images.describe(),
        "data_digest": images.digest,
    }
