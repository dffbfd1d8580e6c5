"""Runs of a study as rows, tables for the analysis, and spreads over seeds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from statistics import fmean, stdev
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from pydantic import ValidationError

from cifar_ablate.analysis import Contrast, compare
from cifar_ablate.analysis.looks import LooksTaken, take_looks
from cifar_ablate.analysis.outliers import outliers
from cifar_ablate.errors import RecordError
from cifar_ablate.records import Predictions, RecordedRun, StudyRecord, families_of, frame_of
from cifar_ablate.report.types import RunRow, Spread
from cifar_ablate.spec.schema import Tuned


@dataclass(frozen=True)
class Compared:
    """The contrasts of a study's families, as of its last look."""

    families: Mapping[str, tuple[Contrast, ...]]
    """By the family's name."""
    looks: LooksTaken | None
    """None in a study without looks."""


@dataclass(frozen=True)
class Study:
    """A record with what several parts of its report read from it, each computed once."""

    record: StudyRecord
    runs: Sequence[RecordedRun] = field(default_factory=list)
    """Current runs only."""

    @property
    def document(self) -> Mapping[str, Any]:
        return self.record.document

    @cached_property
    def arms(self) -> Mapping[str, Mapping[str, Any]]:
        return {arm["name"]: arm for arm in self.document["arms"]}

    @property
    def looks(self) -> tuple[int, ...]:
        return tuple(self.document.get("looks", ()))

    @cached_property
    def tuned(self) -> Tuned | None:
        """Where the arms' values come from; None where nothing was searched."""
        if (found := self.document.get("tuned")) is None:
            return None
        try:
            return Tuned.model_validate(found)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, ("tuned", *first["loc"])))
            raise RecordError(
                f"the record of {self.record.label} cannot be read ({where}: {first['msg']}); export it again"
            ) from None

    @cached_property
    def compared(self) -> Compared:
        """Every contrast of the study's families."""
        declared, margin = families_of(self.document), self.document["margin"]
        if self.looks:
            taken = take_looks(
                self.frame,
                looks=self.looks,
                seeds=self.document["seeds"],
                families=list(declared.values()),
                margin=margin,
            )
            return Compared(dict(zip(declared, taken.families, strict=True)), taken)
        baseline = self.document["baseline"]
        found = {
            name: compare(self.frame, baseline=baseline, references=pairs, margin=margin)
            for name, pairs in declared.items()
        }
        return Compared(found, None)

    @cached_property
    def finished(self) -> list[RecordedRun]:
        return [run for run in self.runs if run.outcome == "finished" and "test_accuracy" in run.metrics]

    @cached_property
    def ended(self) -> list[RecordedRun]:
        done = {run.run_id for run in self.finished}
        return [run for run in self.runs if run.run_id in done or run.outcome == "diverged"]

    @cached_property
    def frame(self) -> pd.DataFrame:
        """One row per run with a result, as ``analysis.compare`` takes it."""
        return frame_of(self.ended)

    @cached_property
    def _predictions(self) -> tuple[Predictions | None, str]:
        try:
            return self.record.details.predictions(self.finished), ""
        except RecordError as error:
            return None, str(error)

    @property
    def predictions(self) -> Predictions | None:
        """Of all finished runs, in their order; None where they cannot be had."""
        return self._predictions[0]

    @property
    def why_no_predictions(self) -> str:
        return self._predictions[1]

    @cached_property
    def correct(self) -> Mapping[str, Mapping[int, npt.NDArray[np.bool_]]]:
        """For each arm and seed, [images]; empty without predictions."""
        found: dict[str, dict[int, npt.NDArray[np.bool_]]] = {}
        if self.predictions is not None:
            right = self.predictions.predicted == self.predictions.labels
            for run, row in zip(self.finished, right, strict=True):
                found.setdefault(run.arm, {})[run.seed] = row
        return found

    @cached_property
    def class_names(self) -> tuple[str, ...]:
        for environment in self.environments.values():
            return tuple(environment.get("classes", ()))
        return ()

    def class_name(self, label: int) -> str:
        """The class's name, or its number where names were not recorded."""
        return self.class_names[label] if label < len(self.class_names) else f"class {label}"

    @cached_property
    def _environments(self) -> tuple[Mapping[str, Mapping[str, Any]], str]:
        try:
            return self.record.details.environments(self.ended), ""
        except RecordError as error:
            return {}, str(error)

    @property
    def environments(self) -> Mapping[str, Mapping[str, Any]]:
        """By fingerprint; empty where they cannot be read."""
        return self._environments[0]

    @property
    def why_no_environments(self) -> str:
        return self._environments[1]

    @cached_property
    def _curves(self) -> tuple[pd.DataFrame | None, str]:
        try:
            table = self.record.details.curves(self.ended)
        except RecordError as error:
            return None, str(error)
        return (table if "test_accuracy" in table else None), ""

    @property
    def curves(self) -> pd.DataFrame | None:
        """Columns fingerprint, epoch, test_accuracy and more, of every run with a result; None where unreadable."""
        return self._curves[0]

    @property
    def why_no_curves(self) -> str:
        return self._curves[1]

    def accuracies(self, arm: str) -> pd.Series:
        """Test accuracy by seed of an arm's finished runs."""
        return pd.Series(self.by_seed(arm, "test_accuracy"), dtype=float)

    @cached_property
    def outlying(self) -> Mapping[str, list[int]]:
        """For each arm, seeds of runs far from its others."""
        return {arm: outliers(self.accuracies(arm)) for arm in self.arms}

    def by_seed(self, arm: str, metric: str) -> dict[int, float]:
        """A metric of an arm's finished runs."""
        runs = self.finished_of.get(arm, ())
        return {run.seed: run.metrics[metric] for run in runs if metric in run.metrics}

    @cached_property
    def finished_of(self) -> Mapping[str, Sequence[RecordedRun]]:
        """Finished runs by arm: to look through all of them for each arm would take the square of their number."""
        return _by_arm(self.finished)

    @cached_property
    def rows_of(self) -> Mapping[str, Sequence[int]]:
        """Rows of the predictions by arm."""
        found: dict[str, list[int]] = {}
        for index, run in enumerate(self.finished):
            found.setdefault(run.arm, []).append(index)
        return found

    @cached_property
    def runs_of(self) -> Mapping[str, Sequence[RecordedRun]]:
        """Current runs by arm."""
        return _by_arm(self.runs)


def _by_arm(runs: Iterable[RecordedRun]) -> dict[str, list[RecordedRun]]:
    found: dict[str, list[RecordedRun]] = {}
    for run in runs:
        found.setdefault(run.arm, []).append(run)
    return found


def run_row(run: RecordedRun) -> RunRow:
    """A run as the report shows it; figures of runs that did not finish are left out."""
    metrics = run.metrics if run.outcome == "finished" else {}
    return RunRow(
        arm=run.arm,
        seed=run.seed,
        outcome=run.outcome,
        reason=run.reason,
        run_id=run.run_id,
        fingerprint=run.fingerprint,
        test_accuracy=metrics.get("test_accuracy"),
        train_accuracy=metrics.get("train_accuracy"),
        nll=metrics.get("test_nll"),
        ece=metrics.get("test_ece"),
        train_seconds=metrics.get("train_seconds"),
    )


def spread(values: Iterable[float]) -> Spread | None:
    """Mean and standard deviation of some values; None of none."""
    numbers = list(values)
    if not numbers:
        return None
    return Spread(fmean(numbers), stdev(numbers) if len(numbers) > 1 else None, len(numbers))
