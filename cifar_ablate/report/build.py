"""From records to the numbers of a report, before any format. Formats do no arithmetic.

Accuracies are of the last epoch, in percent; differences are in points, over the seeds that both arms have.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from cifar_ablate.records import RecordedRun, StudyRecord
from cifar_ablate.spec.schema import Published


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation (ddof 1; None for one value) over seeds."""

    mean: float
    sd: float | None
    num: int


@dataclass(frozen=True)
class Paired:
    """Mean difference in points over the seeds that both arms have."""

    points: float
    num: int


@dataclass(frozen=True)
class ArmRow:
    """One arm of a study's table."""

    name: str
    parent: str | None
    differs: tuple[str, ...]
    """From its parent, in words."""
    epochs: int
    num_planned: int
    outcomes: Mapping[str, int]
    """Runs by outcome: finished, diverged, failed, killed, running."""
    test_accuracy: Spread | None
    train_accuracy: Spread | None
    is_flip_averaged: bool
    """Both accuracies are of the mean of an image and its mirror image: test-time augmentation."""
    is_weight_averaged: bool
    """They are of an exponential moving average of the weights."""
    vs_baseline: Paired | None
    vs_parent: Paired | None
    """None also where the parent is the baseline."""
    published: Published | None
    train_seconds: float | None
    """Mean over the finished runs."""

    @property
    def num_finished(self) -> int:
        return self.outcomes.get("finished", 0)


@dataclass(frozen=True)
class StudyReport:
    """One study's variant."""

    label: str
    is_variant: bool
    """Recorded under an overlay, so published figures are not about these recipes."""
    question: str
    data: tuple[str, ...]
    """What the arms were trained and tested on, each described once."""
    baseline: str
    seeds: tuple[int, ...]
    precision: tuple[str, ...]
    rows: tuple[ArmRow, ...]
    failures: tuple[str, ...]
    """Runs that failed or diverged, each with its reason."""
    num_superseded: int
    """Runs left out because the study no longer has their recipe or seed."""


@dataclass(frozen=True)
class Report:
    """Everything a format needs."""

    studies: tuple[StudyReport, ...]


def build_report(records: Sequence[StudyRecord]) -> Report:
    """Numbers of all studies, in the given order."""
    return Report(tuple(_study(record) for record in records))


def _study(record: StudyRecord) -> StudyReport:
    document, runs = record.document, record.current()
    by_arm: dict[str, list[RecordedRun]] = {arm["name"]: [] for arm in document["arms"]}
    for run in runs:
        by_arm[run.arm].append(run)
    accuracy = {name: _by_seed(of_arm, "test_accuracy") for name, of_arm in by_arm.items()}
    rows = tuple(_row(arm, document, by_arm[arm["name"]], accuracy) for arm in document["arms"])
    return StudyReport(
        label=record.label,
        is_variant=bool(document["variant"]),
        question=document["question"],
        data=tuple(dict.fromkeys(arm["data"] for arm in document["arms"])),
        baseline=document["baseline"],
        seeds=tuple(document["seeds"]),
        precision=tuple(dict.fromkeys(arm["precision"] for arm in document["arms"])),
        rows=rows,
        failures=tuple(
            f"{run.arm} seed {run.seed} {run.outcome}: {run.reason or 'no reason recorded'}"
            for run in runs
            if run.outcome in ("failed", "diverged")
        ),
        num_superseded=record.num_superseded(),
    )


def _row(
    arm: Mapping[str, Any],
    document: Mapping[str, Any],
    runs: Sequence[RecordedRun],
    accuracy: Mapping[str, Mapping[int, float]],
) -> ArmRow:
    name, parent = arm["name"], arm["parent"]
    published = document["published"].get(name)
    seconds = _by_seed(runs, "train_seconds").values()
    return ArmRow(
        name=name,
        parent=parent,
        differs=tuple(arm["differs"]),
        epochs=arm["recipe"]["epochs"],
        num_planned=len(arm["seeds"]),
        outcomes=Counter(run.outcome for run in runs),
        test_accuracy=spread(accuracy[name].values()),
        train_accuracy=spread(_by_seed(runs, "train_accuracy").values()),
        is_flip_averaged=bool(arm["recipe"].get("flip_averaging")),
        is_weight_averaged=bool(arm["recipe"].get("ema")),
        vs_baseline=None if parent is None else paired(accuracy[name], accuracy[document["baseline"]]),
        vs_parent=None if parent in (None, document["baseline"]) else paired(accuracy[name], accuracy[parent]),
        published=None if published is None else Published(**published),
        train_seconds=fmean(seconds) if seconds else None,
    )


def _by_seed(runs: Sequence[RecordedRun], metric: str) -> dict[int, float]:
    return {run.seed: run.metrics[metric] for run in runs if run.outcome == "finished" and metric in run.metrics}


def spread(values: Any) -> Spread | None:
    """Mean and standard deviation of some values; None of none."""
    numbers = list(values)
    if not numbers:
        return None
    return Spread(fmean(numbers), stdev(numbers) if len(numbers) > 1 else None, len(numbers))


def paired(arm: Mapping[int, float], reference: Mapping[int, float]) -> Paired | None:
    """Mean difference over the seeds that both have; None where they share none."""
    shared = sorted(arm.keys() & reference.keys())
    return Paired(fmean(arm[seed] - reference[seed] for seed in shared), len(shared)) if shared else None
