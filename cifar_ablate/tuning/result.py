"""What a tuning came to: every trial that counts, the best one, and which fields mattered."""

from __future__ import annotations

import csv
import io
import json
import math
import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from cifar_ablate.spec.schema import TunedArm, label_of
from cifar_ablate.text_safety import escape_csv_formula
from cifar_ablate.tuning.attributes import (
    EPOCHS,
    FINGERPRINTS,
    PRESENT,
    REASON,
    RECIPE_ID,
    SECONDS,
    can_be_retried,
    values_of,
)
from cifar_ablate.tuning.plan import ArmPlan
from cifar_ablate.tuning.trials import ArmTrials

STATES = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "running",
    TrialState.WAITING: "waiting",
}
MIN_FOR_IMPORTANCE = 4
"""Complete trials; fewer say nothing of which field mattered."""


@dataclass(frozen=True, kw_only=True)
class TrialRow:
    """One trial."""

    number: int
    state: str
    """complete, pruned, failed, running or waiting."""
    is_present: bool
    """The recipe as it stands."""
    val_accuracy: float | None
    """Percent, the mean over seeds after the last epoch; None unless complete."""
    values: Mapping[str, Any]
    reason: str
    seconds: float
    """Of training and evaluating."""
    epochs: int
    curve: tuple[tuple[int, float], ...]
    """(epoch, accuracy on the validation part), epochs counted on over seeds."""
    began: datetime | None
    ended: datetime | None
    can_be_retried: bool
    """It could not be trained, for a reason that may be gone."""
    recipe_id: str
    fingerprints: tuple[str, ...]
    """Of its trainings, one for each seed; empty where its values made no recipe."""


@dataclass(frozen=True)
class ArmResult:
    """The tuning of one arm as far as it went."""

    plan: ArmPlan
    trials: tuple[TrialRow, ...]
    importances: Mapping[str, float]
    """Share of the variance of accuracy that each field explains (fANOVA, Hutter et al. 2014); empty where unknown."""

    @property
    def best(self) -> TrialRow | None:
        """The trial of the highest accuracy, of equal ones the earliest: the recipe as it stands before any other."""
        complete = [one for one in self.trials if one.val_accuracy is not None]
        return max(complete, key=lambda one: (one.val_accuracy or 0.0, one.is_present, -one.number), default=None)

    @property
    def present(self) -> TrialRow | None:
        return next((one for one in self.trials if one.is_present), None)

    @property
    def counts(self) -> Counter[str]:
        """Trials by state."""
        return Counter(one.state for one in self.trials)

    @property
    def num_tried(self) -> int:
        return sum(num for state, num in self.counts.items() if state in ("complete", "pruned", "failed"))

    @property
    def is_done(self) -> bool:
        """Has it what was wanted?"""
        limit = self.plan.tune.time_limit_seconds
        spent = sum(one.seconds for one in self.trials)
        return self.num_tried >= self.plan.num_wanted or (limit is not None and self.num_tried > 0 and spent >= limit)

    @property
    def gain(self) -> float | None:
        """Of the best trial over the recipe as it stands, in points on the validation part; never below 0."""
        if self.best is None or self.present is None or self.present.val_accuracy is None:
            return None
        return (self.best.val_accuracy or 0.0) - self.present.val_accuracy

    def best_so_far(self) -> list[tuple[int, float]]:
        """(trial, the best accuracy up to it), for each complete trial."""
        found: list[tuple[int, float]] = []
        for one in self.trials:
            if one.val_accuracy is not None:
                found.append((one.number, max(one.val_accuracy, found[-1][1] if found else -math.inf)))
        return found

    def provenance(self) -> TunedArm:
        """What a study file says of where the arm's values come from."""
        if self.best is None or self.best.val_accuracy is None:
            raise ValueError(f"{self.plan.arm} has no complete trial")
        present = self.present.val_accuracy if self.present is not None else None
        return TunedArm(
            trial=self.best.number,
            is_present=self.best.is_present,
            val_accuracy=round(self.best.val_accuracy, 3),
            present_val_accuracy=None if present is None else round(present, 3),
            trials=self.num_tried,
            pruned=self.counts["pruned"],
            failed=self.counts["failed"],
            epochs=sum(one.epochs for one in self.trials),
            values=dict(self.best.values),
            optuna_study=self.plan.name,
        )


def result_of(arm: ArmTrials) -> ArmResult:
    """The tuning of an arm as its storage has it."""
    rows = rows_of(arm)
    return ArmResult(arm.plan, rows, _importances(arm, rows))


def rows_of(arm: ArmTrials) -> tuple[TrialRow, ...]:
    """Every trial that counts, by number."""
    return tuple(_row(one) for one in arm.all())


def as_csv(result: ArmResult) -> str:
    """One line for each trial, with a column for each tuned field."""
    names = [one.name for one in result.plan.space]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["arm", "trial", "state", "val_accuracy", "epochs", "seconds", *names, "reason", "curve"])
    for one in result.trials:
        values = [one.values.get(name, "") for name in names]
        labels = [value if type(value) in (int, float) else label_of(value) for value in values]
        accuracy = "" if one.val_accuracy is None else f"{one.val_accuracy:.4f}"
        curve = json.dumps([[epoch, round(value, 3)] for epoch, value in one.curve])
        cost = [one.epochs, f"{one.seconds:.1f}"]
        texts = [escape_csv_formula(text) for text in (result.plan.arm, *labels, one.reason)]
        writer.writerow([texts[0], one.number, one.state, accuracy, *cost, *texts[1:], curve])
    return text.getvalue()


def _row(one: FrozenTrial) -> TrialRow:
    is_complete = one.state == TrialState.COMPLETE
    return TrialRow(
        number=one.number,
        state=STATES[one.state],
        is_present=PRESENT in one.user_attrs,
        val_accuracy=one.value if is_complete else None,
        values=values_of(one),
        reason=one.user_attrs.get(REASON, ""),
        seconds=one.user_attrs.get(SECONDS, 0.0),
        epochs=one.user_attrs.get(EPOCHS, 0),
        curve=tuple(sorted(one.intermediate_values.items())),
        began=one.datetime_start,
        ended=one.datetime_complete,
        can_be_retried=can_be_retried(one),
        recipe_id=one.user_attrs.get(RECIPE_ID, ""),
        fingerprints=tuple(one.user_attrs.get(FINGERPRINTS, ())),
    )


def _importances(arm: ArmTrials, rows: tuple[TrialRow, ...]) -> dict[str, float]:
    from optuna.importance import FanovaImportanceEvaluator, get_param_importances

    complete = [one.val_accuracy for one in rows if one.val_accuracy is not None]
    if len(complete) < MIN_FOR_IMPORTANCE or len(set(complete)) < 2:
        return {}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return dict(get_param_importances(arm.study, evaluator=FanovaImportanceEvaluator(seed=0)))
    except (ValueError, RuntimeError):  # no field that all trials have
        return {}
