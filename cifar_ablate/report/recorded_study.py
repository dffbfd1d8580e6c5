"""A recorded study as its report reads it: runs, tables for the analysis, and what each part needs, computed once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from statistics import fmean, stdev
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pandas as pd
from pydantic import ValidationError

from cifar_ablate.analysis import Contrast
from cifar_ablate.analysis.contrasts import compare, outliers
from cifar_ablate.analysis.looks import LooksTaken, take_looks
from cifar_ablate.errors import RecordError
from cifar_ablate.record.types import Predictions, RecordedRun, StudyRecord, families_of, frame_of
from cifar_ablate.report.types import MeanSd, RunRow
from cifar_ablate.spec.schema import Tuned

T = TypeVar("T")


@dataclass(frozen=True)
class StudyContrasts:
    """The contrasts of a study's families, as of its last look."""

    families: Mapping[str, tuple[Contrast, ...]]
    """By the family's name."""
    looks: LooksTaken | None
    """None in a study without looks."""


@dataclass(frozen=True)
class RecordedStudy:
    """A record, with everything that several parts of its report read from it."""

    record: StudyRecord
    runs: Sequence[RecordedRun] = field(default_factory=list)
    """Current runs only: without those of recipes or seeds that the study no longer has."""

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
        """The search that set the arms' values; None where nothing was searched."""
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
    def compared(self) -> StudyContrasts:
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
            return StudyContrasts(dict(zip(declared, taken.families, strict=True)), taken)
        baseline = self.document["baseline"]
        found = {
            name: compare(self.frame, baseline=baseline, references=pairs, margin=margin)
            for name, pairs in declared.items()
        }
        return StudyContrasts(found, None)

    @cached_property
    def finished(self) -> list[RecordedRun]:
        return [run for run in self.runs if run.outcome == "finished" and "test_accuracy" in run.metrics]

    @cached_property
    def ended(self) -> list[RecordedRun]:
        """Runs with a result, in their order: finished or diverged."""
        done = {run.run_id for run in self.finished}
        return [run for run in self.runs if run.run_id in done or run.outcome == "diverged"]

    @cached_property
    def runs_of(self) -> Mapping[str, Sequence[RecordedRun]]:
        """Current runs by arm."""
        return _by_arm(self.runs)

    @cached_property
    def finished_of(self) -> Mapping[str, Sequence[RecordedRun]]:
        """Finished runs by arm."""
        return _by_arm(self.finished)

    @cached_property
    def frame(self) -> pd.DataFrame:
        """One row per run with a result, as ``analysis.compare`` takes it."""
        return frame_of(self.ended)

    def by_seed(self, arm: str, metric: str) -> dict[int, float]:
        """A metric of an arm's finished runs."""
        runs = self.finished_of.get(arm, ())
        return {run.seed: run.metrics[metric] for run in runs if metric in run.metrics}

    def mean_sd(self, arm: str, metric: str) -> MeanSd | None:
        """The same over seeds; None without a finished run."""
        values = list(self.by_seed(arm, metric).values())
        return MeanSd(fmean(values), stdev(values) if len(values) > 1 else None, len(values)) if values else None

    def accuracies(self, arm: str) -> pd.Series:
        """Test accuracy by seed of an arm's finished runs."""
        return pd.Series(self.by_seed(arm, "test_accuracy"), dtype=float)

    @cached_property
    def outlying(self) -> Mapping[str, list[int]]:
        """For each arm, seeds of runs far from its others."""
        return {arm: outliers(self.accuracies(arm)) for arm in self.arms}

    @cached_property
    def _predictions(self) -> tuple[Predictions | None, str]:
        return _read(lambda: self.record.details.predictions(self.finished))

    @property
    def predictions(self) -> Predictions | None:
        """Predictions of all finished runs, in their order; None where they cannot be read."""
        return self._predictions[0]

    @property
    def why_no_predictions(self) -> str:
        return self._predictions[1]

    @cached_property
    def correct(self) -> Mapping[str, Mapping[int, npt.NDArray[np.bool_]]]:
        """Whether each image is right, [images], for each arm and seed; empty without predictions."""
        found: dict[str, dict[int, npt.NDArray[np.bool_]]] = {}
        if self.predictions is not None:
            right = self.predictions.predicted == self.predictions.labels
            for run, row in zip(self.finished, right, strict=True):
                found.setdefault(run.arm, {})[run.seed] = row
        return found

    @cached_property
    def _environments(self) -> tuple[Mapping[str, Mapping[str, Any]] | None, str]:
        return _read(lambda: self.record.details.environments(self.ended))

    @property
    def environments(self) -> Mapping[str, Mapping[str, Any]]:
        """By fingerprint; empty where they cannot be read."""
        return self._environments[0] or {}

    @property
    def why_no_environments(self) -> str:
        return self._environments[1]

    @cached_property
    def class_names(self) -> tuple[str, ...]:
        """Empty where they were not recorded."""
        return next((tuple(one.get("classes", ())) for one in self.environments.values()), ())

    def class_name(self, label: int) -> str:
        """The class's name, or its number where names were not recorded."""
        return self.class_names[label] if label < len(self.class_names) else f"class {label}"

    @cached_property
    def _curves(self) -> tuple[pd.DataFrame | None, str]:
        return _read(lambda: self.record.details.curves(self.ended))

    @property
    def curves(self) -> pd.DataFrame | None:
        """Columns fingerprint, epoch, test_accuracy and more, of every run with a result; None where unreadable."""
        table = self._curves[0]
        return None if table is None or "test_accuracy" not in table else table

    @property
    def why_no_curves(self) -> str:
        return self._curves[1]


def _read(read: Callable[[], T]) -> tuple[T | None, str]:
    """What was read, or None and why not: a report is made from what is left of a record."""
    try:
        return read(), ""
    except RecordError as error:
        return None, str(error)


def _by_arm(runs: Iterable[RecordedRun]) -> dict[str, list[RecordedRun]]:
    found: dict[str, list[RecordedRun]] = {}
    for run in runs:
        found.setdefault(run.arm, []).append(run)
    return found


def run_row(run: RecordedRun) -> RunRow:
    """A run as the report shows it; metrics of runs that did not finish are left out."""
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
