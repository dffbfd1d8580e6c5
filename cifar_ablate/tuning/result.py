"""The result of a tuning: its trials, the best one, the importance of the fields, and all of it as files."""

from __future__ import annotations

import csv
import io
import json
import math
import re
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optuna.trial import FrozenTrial, TrialState

from cifar_ablate.errors import not_written
from cifar_ablate.record.folder import atomic, write_atomically
from cifar_ablate.spec.schema import TunedArm, label_of
from cifar_ablate.text_safety import escape_csv_formula
from cifar_ablate.tuning.plan import ArmPlan
from cifar_ablate.tuning.trials import (
    EPOCHS,
    FINGERPRINTS,
    REASON,
    RECIPE_ID,
    SECONDS,
    UNTUNED,
    ArmTrials,
    can_be_retried,
    values_of,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STATES = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "running",
    TrialState.WAITING: "waiting",
}
MIN_FOR_IMPORTANCE = 4
"""Minimum number of complete trials for the importance of fields; fewer say nothing of it."""
INK, BEST, GREY = "#3b6ea5", "#c2571a", "#9aa3ad"
NUM_COLOURS = 64
"""Colours of a figure's PNG, which has a third of the bytes that matplotlib writes, and looks the same."""


@dataclass(frozen=True, kw_only=True)
class TrialRow:
    """A trial that counts, as its storage has it."""

    number: int
    state: str
    """complete, pruned, failed, running or waiting."""
    is_untuned: bool
    """Whether it is the recipe as it stands."""
    val_accuracy: float | None
    """In percent, the mean over seeds after the last epoch; None unless complete."""
    values: Mapping[str, Any]
    """The tuned fields, as trained."""
    reason: str
    """Why it failed; empty otherwise."""
    seconds: float
    """Time of training and evaluation."""
    epochs: int
    curve: tuple[tuple[int, float], ...]
    """(epoch, validation accuracy in percent); epochs are numbered through all seeds."""
    began: datetime | None
    ended: datetime | None
    can_be_retried: bool
    """Whether it could not be trained, for a reason that may be gone."""
    recipe_id: str
    fingerprints: tuple[str, ...]
    """Fingerprints of its trainings, one per seed; empty if its values were no valid recipe."""


@dataclass(frozen=True)
class ArmResult:
    """The tuning of an arm so far."""

    plan: ArmPlan
    trials: tuple[TrialRow, ...]
    importances: Mapping[str, float]
    """Share of the variance of accuracy that each field explains (fANOVA, Hutter et al. 2014); empty if unknown."""

    @property
    def best(self) -> TrialRow | None:
        """The complete trial with the highest accuracy; of equal ones the recipe as it stands, then the earliest."""
        complete = [one for one in self.trials if one.val_accuracy is not None]
        return max(complete, key=lambda one: (one.val_accuracy or 0.0, one.is_untuned, -one.number), default=None)

    @property
    def untuned(self) -> TrialRow | None:
        """The trial of the recipe as it stands."""
        return next((one for one in self.trials if one.is_untuned), None)

    @property
    def counts(self) -> Counter[str]:
        """Trials by state."""
        return Counter(one.state for one in self.trials)

    @property
    def num_tried(self) -> int:
        """Number of trials that have ended."""
        return sum(num for state, num in self.counts.items() if state in ("complete", "pruned", "failed"))

    @property
    def is_done(self) -> bool:
        """Whether it has all trials that are wanted, or its time is used up."""
        limit = self.plan.tune.time_limit_seconds
        spent = sum(one.seconds for one in self.trials)
        return self.num_tried >= self.plan.num_wanted or (limit is not None and self.num_tried > 0 and spent >= limit)

    @property
    def gain(self) -> float | None:
        """Points of validation accuracy by which the best trial exceeds the recipe as it stands; never below 0."""
        if self.best is None or self.untuned is None or self.untuned.val_accuracy is None:
            return None
        return (self.best.val_accuracy or 0.0) - self.untuned.val_accuracy

    def best_so_far(self) -> list[tuple[int, float]]:
        """(number, best accuracy up to it) of each complete trial."""
        found: list[tuple[int, float]] = []
        for one in self.trials:
            if one.val_accuracy is not None:
                found.append((one.number, max(one.val_accuracy, found[-1][1] if found else -math.inf)))
        return found

    def provenance(self) -> TunedArm:
        """Where the arm's values come from, for the study of the best values; raises ValueError if there are none."""
        if self.best is None or self.best.val_accuracy is None:
            raise ValueError(f"{self.plan.arm} has no complete trial")
        untuned = self.untuned.val_accuracy if self.untuned is not None else None
        return TunedArm(
            trial=self.best.number,
            is_present=self.best.is_untuned,
            val_accuracy=round(self.best.val_accuracy, 3),
            present_val_accuracy=None if untuned is None else round(untuned, 3),
            trials=self.num_tried,
            pruned=self.counts["pruned"],
            failed=self.counts["failed"],
            epochs=sum(one.epochs for one in self.trials),
            values=dict(self.best.values),
            optuna_study=self.plan.name,
        )


def result_of(arm: ArmTrials) -> ArmResult:
    """Read the tuning of an arm from its storage."""
    rows = rows_of(arm)
    return ArmResult(arm.plan, rows, _importances(arm, rows))


def rows_of(arm: ArmTrials) -> tuple[TrialRow, ...]:
    """Read every trial that counts, by number."""
    return tuple(_row(one) for one in arm.all())


def _row(one: FrozenTrial) -> TrialRow:
    is_complete = one.state == TrialState.COMPLETE
    return TrialRow(
        number=one.number,
        state=STATES[one.state],
        is_untuned=UNTUNED in one.user_attrs,
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
    except (ValueError, RuntimeError):  # no field is in all trials
        return {}


def write_history(results: Sequence[ArmResult], folder: Path) -> Path:
    """Write each arm's trials and figures into a subfolder of ``folder``, which is returned; raises OutputError."""
    names: set[str] = set()
    for number, result in enumerate(results):
        name = re.sub(r"[^A-Za-z0-9]+", "-", result.plan.arm).strip("-").lower() or "arm"
        name = f"{name}-{number}" if name in names else name
        names.add(name)
        try:
            (folder / name).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise not_written(folder / name, error) from None
        write_files(result, folder / name)
    return folder


def write_files(result: ArmResult, folder: Path) -> list[Path]:
    """Write trials.csv, history.png and, if importances are known, importances.png; returns their paths."""
    written = [folder / "trials.csv"]
    write_atomically(written[0], as_csv(result))
    if result.num_tried:
        written.append(folder / "history.png")
        _save(draw_history(result), written[-1])
    if result.importances:
        written.append(folder / "importances.png")
        _save(draw_importances(result), written[-1])
    return written


def as_csv(result: ArmResult) -> str:
    """The trials as CSV: a line per trial, with a column per tuned field."""
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


def draw_history(result: ArmResult) -> Figure:
    """Validation accuracy of each trial, and the best so far.

    Optuna's own figures (``optuna.visualization.matplotlib``) show neither pruned and failed trials nor the recipe as
    it stands, cut long names of fields, and change pyplot's style for the whole process; they are experimental.
    """
    from matplotlib.figure import Figure  # not pyplot: no global state, no display

    figure = Figure(figsize=(7.2, 4.0), layout="constrained")
    axes = figure.add_subplot()
    complete = [(one.number, one.val_accuracy) for one in result.trials if one.val_accuracy is not None]
    pruned = [(one.number, one.curve[-1][1]) for one in result.trials if one.state == "pruned" and one.curve]
    if pruned:
        axes.scatter(*zip(*pruned, strict=True), color=GREY, marker="x", label="pruned (at its last epoch)")
    if complete:
        axes.scatter(*zip(*complete, strict=True), color=INK, label="complete", zorder=3)
        axes.step(*zip(*result.best_so_far(), strict=True), where="post", color=BEST, label="best so far")
    untuned = result.untuned
    if untuned is not None and untuned.val_accuracy is not None:
        axes.axhline(untuned.val_accuracy, color=GREY, linestyle=":", label="the recipe as it stands")
    failed = [one.number for one in result.trials if one.state == "failed"]
    for number in failed:
        axes.axvline(number, color=GREY, linewidth=0.8, alpha=0.6)
    # the name of an arm may contain $
    axes.set_title(f"{result.plan.study.label}, {result.plan.arm}: {result.num_tried} trials", parse_math=False)
    axes.set(
        xlabel="trial" + (" (lines: failed)" if failed else ""),
        ylabel=f"accuracy on {len(result.plan.data.test_labels):,} validation images, %",
    )
    axes.legend(loc="best", fontsize=8)
    return figure


def draw_importances(result: ArmResult) -> Figure:
    """Share of the variance of accuracy that each tuned field explains."""
    from matplotlib.figure import Figure

    shares = sorted(result.importances.items(), key=lambda item: item[1])
    figure = Figure(figsize=(7.2, 1.4 + 0.4 * len(shares)), layout="constrained")
    axes = figure.add_subplot()
    bars = axes.barh([name for name, _ in shares], [share for _, share in shares], color=INK)
    axes.bar_label(bars, fmt="%.2f", padding=3)
    axes.set(xlim=(0, 1.1), xlabel="share of the variance of accuracy (fANOVA)")
    title = f"{result.plan.study.label}, {result.plan.arm}: what mattered, of {result.counts['complete']} trials"
    axes.set_title(title, parse_math=False)
    return figure


def _save(figure: Figure, path: Path) -> None:
    from PIL import Image

    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=110, format="png")
    colours = Image.open(drawn).convert("RGB").quantize(NUM_COLOURS, dither=Image.Dither.NONE)
    with atomic(path) as temporary:
        colours.save(temporary, "png", optimize=True)
