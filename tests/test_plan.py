"""Fingerprints and plans: what makes two trainings the same, and what is left to do."""

from __future__ import annotations

import hashlib
import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cifar_ablate.data import DataSet
from cifar_ablate.data.cifar import CIFAR10_DIGEST
from cifar_ablate.device import Device
from cifar_ablate.errors import DataError, UsageError
from cifar_ablate.plan import TRAINER_VERSION, Plan, data_key, fingerprint, make_plan
from cifar_ablate.record.folder import RunFolder
from cifar_ablate.record.types import RecordedRun
from cifar_ablate.registry import AUGMENTATIONS, MODELS, OPTIMIZERS, SCHEDULES
from cifar_ablate.runner.run import grouped
from cifar_ablate.runner.status import by_training, status
from cifar_ablate.spec.load import load_study
from cifar_ablate.spec.schema import Arm, Recipe, Study

EXPERIMENTS = sorted((Path(__file__).parent.parent / "experiments").glob("*.yaml"))
BF16 = Device("cpu", "a CPU with bf16", fast_bf16=True)
RECIPE: dict[str, Any] = {
    "data": "digits",
    "model": {"name": "resnet18-compact", "width": 4},
    "epochs": 2,
    "optimizer": {"name": "sgd", "lr": 0.1},
}


def recipe(**changes: Any) -> Recipe:
    return Recipe.model_validate(RECIPE | changes)


def mark(chosen: Recipe, *, seed: int = 0, precision: Any = "bf16", digest: str = "d") -> str:
    return fingerprint(chosen, seed, precision, digest)


def images(num: int = 200) -> DataSet:
    pixels, labels = np.zeros((num, 3, 32, 32), np.uint8), np.arange(num) % 10
    names = tuple(str(digit) for digit in range(10))
    return DataSet("digits", names, pixels, labels, pixels, labels, "d", num, num)


def plan_of(*, num_seeds: int = 2, **arms: Recipe) -> Plan:
    study = Study(
        "s", "?", tuple(range(num_seeds)), 0.2, "baseline", tuple(Arm(name, None, each) for name, each in arms.items())
    )
    return make_plan(study, {data_key(each): images() for each in arms.values()}, BF16)


@pytest.mark.parametrize(
    "changes",
    [
        {"epochs": 3},
        {"batch_size": 64},
        {"train_size": 150},
        {"optimizer": {"name": "sgd", "lr": 0.2}},
        {"optimizer": {"name": "adamw", "lr": 0.1}},
        {"schedule": "cosine"},
        {"augment": {"hflip": {}}},
        {"loss": {"label_smoothing": 0.1}},
        {"model": {"name": "resnet18-compact", "width": 4, "dropout": 0.1}},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_whatever_decides_a_training_changes_its_fingerprint(changes: dict[str, Any]) -> None:
    assert mark(recipe(**changes)) != mark(recipe())


def test_seed_precision_and_data_change_the_fingerprint() -> None:
    marks = {mark(recipe()), mark(recipe(), seed=1), mark(recipe(), precision="fp32"), mark(recipe(), digest="e")}
    assert len(marks) == 4


@pytest.mark.parametrize(
    "changes",
    [
        {"eval_every": 0},
        {"checkpoint_every": 1},
        {"batch_size": 128},
        {"schedule": "constant"},
        {"augment": {}},
        {"precision": "bf16"},
        {"data": {"name": "image_folder", "path": "somewhere"}},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_defaults_paths_and_what_is_only_recorded_do_not(changes: dict[str, Any]) -> None:
    assert mark(recipe(**changes)) == mark(recipe())


def test_the_order_of_augmentations_in_yaml_does_not_matter() -> None:
    one, other = recipe(augment={"hflip": {}, "crop": {}}), recipe(augment={"crop": {}, "hflip": {}})
    assert mark(one) == mark(other)


GOLDEN = {
    "augmentation": "ede99e5b078cb717ae860328fed75f9996a3aac64a535f9c",
    "dropout": "80c5d8b2",
    "onecycle": "4b4843389d63",
    "readme-augmentation": "26f80e9e2159bc344af0",
    "readme-augmentation-tuned": "5ce2e2035cfb5fc9d1dc",
}


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_fingerprints_of_the_shipped_studies_never_change_unnoticed(path: Path) -> None:
    """A changed default, or a new field without one, would make every recorded run stale: if that is meant, say so
    here and raise TRAINER_VERSION where results change."""
    arms = load_study(path).arms
    assert "".join(fingerprint(arm.recipe, 0, "bf16", CIFAR10_DIGEST)[:4] for arm in arms) == GOLDEN[path.stem]


def test_defaults_never_change_unnoticed() -> None:
    """Fingerprints leave defaults out, so a changed one would give old runs a new meaning: raise TRAINER_VERSION."""
    registries = (AUGMENTATIONS, MODELS, OPTIMIZERS, SCHEDULES)
    defaults = {
        f"{registry.kind} {name}": {
            key: str(field.default) for key, field in registry.options(name).model_fields.items()
        }
        for registry in registries
        for name in registry.names()
    }
    defaults["recipe"] = {key: str(field.default) for key, field in Recipe.model_fields.items()}
    digest = hashlib.sha256(json.dumps(defaults, sort_keys=True).encode()).hexdigest()[:12]
    assert (digest, TRAINER_VERSION) == ("e99122d72ac0", 2), defaults


def test_a_recipe_survives_a_trip_to_another_process() -> None:
    for path in EXPERIMENTS:
        for arm in load_study(path).arms:
            assert pickle.loads(pickle.dumps(arm.recipe)) == arm.recipe


def test_two_arms_that_are_one_training_on_this_device_are_refused() -> None:
    with pytest.raises(UsageError, match="'baseline' and 'same' are the same training on a CPU with bf16"):
        plan_of(baseline=recipe(), same=recipe(precision="bf16"))


def test_a_batch_larger_than_the_data_is_refused() -> None:
    with pytest.raises(DataError, match="batch_size 500 is more than the 200 training images"):
        plan_of(baseline=recipe(batch_size=500))


def test_a_network_that_does_not_fit_the_images_is_told_before_any_training() -> None:
    with pytest.raises(UsageError, match="inception_v3"):
        plan_of(baseline=recipe(), inception=recipe(model="inception_v3"))


def recorded(plan: Plan, index: int, outcome: str, run_id: str = "r") -> RecordedRun:
    run = plan.runs[index]
    return RecordedRun(run_id, run.arm, run.seed, run.fingerprint, run.recipe_id, outcome, "why", {})


def kind(folder: Path, *records: RecordedRun) -> str:
    return status(records, RunFolder(folder / "no-folder")).kind


def test_finished_and_diverged_runs_are_done_and_killed_ones_are_left(tmp_path: Path) -> None:
    plan = plan_of(baseline=recipe(), flip=recipe(augment={"hflip": {}}))
    expected = {"finished": "recorded", "diverged": "recorded", "failed": "failed", "killed": "interrupted"}
    for index, (outcome, found) in enumerate(expected.items()):
        assert kind(tmp_path, recorded(plan, index, outcome)) == found
    assert status([recorded(plan, 0, "failed")], RunFolder(tmp_path / "no-folder")).reason == "why"
    assert kind(tmp_path) == "to do"


def test_of_several_records_of_one_training_a_result_counts(tmp_path: Path) -> None:
    plan = plan_of(baseline=recipe())
    attempts = [recorded(plan, 0, outcome) for outcome in ("killed", "finished", "failed")]
    for order in ([0, 1, 2], [2, 1, 0]):
        assert kind(tmp_path, *(attempts[index] for index in order)) == "recorded"


def test_a_result_of_another_arm_with_the_same_training_is_not_this_arms_record() -> None:
    run = plan_of(baseline=recipe()).runs[0]
    other = replace(recorded(plan_of(baseline=recipe()), 0, "finished"), arm="renamed")
    assert (run.arm, run.fingerprint) not in by_training([other])


@pytest.mark.parametrize(
    ("num_slots", "num_slices", "sizes"), [(1, 1, [2] * 6), (2, 1, [1] * 12), (1, 4, [12]), (2, 4, [4, 4, 4])]
)
def test_groups_keep_every_place_and_every_turn_busy(num_slots: int, num_slices: int, sizes: list[int]) -> None:
    plan = plan_of(num_seeds=6, baseline=recipe(), flip=recipe(augment={"hflip": {}}))
    groups = grouped(plan.runs, num_slots, num_slices)
    assert [len(group) for group in groups] == sizes
    assert [run.seed for group in groups for run in group] == sorted([*range(6)] * 2)


def test_whole_seeds_come_first() -> None:
    plan = plan_of(baseline=recipe(), wide=recipe(model={"name": "resnet18-compact", "width": 8}))
    assert [[(run.arm, run.seed) for run in group] for group in grouped(plan.runs)] == [
        [("baseline", 0)],
        [("wide", 0)],
        [("baseline", 1)],
        [("wide", 1)],
    ]
