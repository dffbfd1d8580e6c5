"""A study whose tuning takes seconds, and helpers that read its trials."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from cifar_ablate.spec.load import load_study
from cifar_ablate.spec.schema import Study
from tests.conftest import Workshop

STUDY = """
    study: small
    question: Does smoothing help a tiny network on digits?
    seeds: 2
    recipe:
      data: digits
      train_size: 200
      model: {name: resnet18-compact, width: 4}
      epochs: 3
      batch_size: 20
      eval_every: 0
      optimizer: {name: sgd, lr: 0.02, momentum: 0.9}
    arms:
      baseline:
      smooth: {loss: {label_smoothing: 0.1}}
    tune:
      space:
        optimizer.lr: {low: 0.001, high: 0.5, log: true}
        schedule: [constant, cosine]
        schedule.warmup: {low: 0.0, high: 0.5, when: {schedule: cosine}}
      sampler: {name: tpe, startup_trials: 3}
      pruner: none
      trials: 4
      val_fraction: 0.2
"""
TUNE = ("tune", "small.yaml", "--offline")


def write(workshop: Workshop, *edits: tuple[str, str], name: str = "small.yaml") -> Path:
    """Write the study, with edits (old, new), into the folder of the test."""
    text = textwrap.dedent(STUDY)
    for old, new in edits:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    return workshop.write(name, text)


def load(path: Path) -> Study:
    return load_study(path)


def storage_of(folder: Path) -> str:
    return f"sqlite:///{folder / 'optuna.db'}"


def studies(url: str | optuna.storages.BaseStorage) -> dict[str, optuna.Study]:
    """Optuna studies by arm."""
    found = {}
    for name in optuna.get_all_study_names(url):
        study = optuna.load_study(study_name=name, storage=url)
        found[study.user_attrs["arm"]] = study
    return found


def trials(folder: Path, arm: str = "baseline") -> list[FrozenTrial]:
    """Trials of an arm that count: neither lost nor retried under another number."""
    study = studies(storage_of(folder))[arm]
    gone = study.user_attrs.get("retried", [])
    return [one for one in study.get_trials() if "lost" not in one.user_attrs and one.number not in gone]


def told(
    folder: Path, arm: str = "baseline"
) -> list[tuple[TrialState, dict[str, Any], float | None, dict[int, float]]]:
    """State, values, accuracy and curve of each trial: what equal tunings share."""
    return [
        (one.state, one.user_attrs.get("values", {}), one.value, one.intermediate_values) for one in trials(folder, arm)
    ]
