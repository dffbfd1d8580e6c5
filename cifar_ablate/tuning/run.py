"""Carry out a tuning: trials are proposed, trained by an executor as runs are, and recorded as they end."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from cifar_ablate.analysis.sentences import count
from cifar_ablate.device import Slot
from cifar_ablate.errors import AblateError, OutputError, RecordError
from cifar_ablate.folder import RunFolder
from cifar_ablate.plan import data_key
from cifar_ablate.process import this_process
from cifar_ablate.records import RunIdentity
from cifar_ablate.runner.artifacts import write_missing_artifacts
from cifar_ablate.runner.executor import Executor
from cifar_ablate.runner.run import RUNS_ROOT, close
from cifar_ablate.runner.stop import StopSignal
from cifar_ablate.runner.train_group import GroupTrainer
from cifar_ablate.tracking import MlflowWriter, Tracking
from cifar_ablate.tracking.tunings import (
    BEST,
    OpenedTuning,
    Untrained,
    close_tuning,
    end_lost,
    open_tuning,
    record_untrained,
)
from cifar_ablate.training.engine import EngineOptions
from cifar_ablate.training.train import CHECKPOINT_SECONDS
from cifar_ablate.tuning.display import TuningDisplay
from cifar_ablate.tuning.history import write_files
from cifar_ablate.tuning.plan import ArmPlan
from cifar_ablate.tuning.result import ArmResult, result_of, rows_of
from cifar_ablate.tuning.session import TuneSession
from cifar_ablate.tuning.storage import opened as opened_storage
from cifar_ablate.tuning.trials import ArmTrials


@dataclass(frozen=True)
class TuneOptions:
    """How a ``tune`` command goes about its work."""

    retry_failed: bool = False
    """Trials that could not be trained are tried again."""
    checkpoint_seconds: float = CHECKPOINT_SECONDS
    engine: EngineOptions = field(default_factory=EngineOptions)


@dataclass(frozen=True)
class TuneSummary:
    """How a ``tune`` command ended."""

    results: tuple[ArmResult, ...]
    stopped_because: str
    signal: str
    undelivered: tuple[tuple[str, str], ...]
    """Trials, and parents of them, that MLflow has not got, with what it said."""
    is_offline: bool = False


def tune_arms(
    plans: Sequence[ArmPlan],
    *,
    url: str,
    tracking: Tracking | None,
    executor: Executor,
    slots: Sequence[Slot],
    display: TuningDisplay,
    stop: StopSignal,
    options: TuneOptions | None = None,
) -> TuneSummary:
    """Bring every arm to the trials that are wanted of it; raises AblateError where nothing could be started."""
    with opened_storage(url) as storage:
        arms = [ArmTrials(plan, storage, url) for plan in plans]
        return _tune(arms, tracking, executor, slots, display, stop, options or TuneOptions())


def _tune(
    arms: Sequence[ArmTrials],
    tracking: Tracking | None,
    executor: Executor,
    slots: Sequence[Slot],
    display: TuningDisplay,
    stop: StopSignal,
    options: TuneOptions,
) -> TuneSummary:
    plans = [arm.plan for arm in arms]
    _tell_of_before(arms, display, retry_failed=options.retry_failed)
    opened = {arm.plan.identity: _opened(tracking, arm.plan) for arm in arms} if tracking is not None else {}
    experiments = {arm.plan.label: opened[arm.plan.identity].experiment_id for arm in arms if opened}
    writer = MlflowWriter(tracking, experiments, on_note=display.on_note, on_taken=stop.taken.__setitem__)
    damaged = [one for arm in arms if opened for one in _upload_missed(arm, opened[arm.plan.identity], writer)]
    parents = {identity: each.run_id for identity, each in opened.items()}
    at_a_time = max(slot.num_slices for slot in slots)
    session = TuneSession(arms, RUNS_ROOT, writer, display, stop, parents=parents, at_a_time=at_a_time)
    train_group = GroupTrainer(
        {data_key(plan.recipe): plan.data for plan in plans},
        RUNS_ROOT.absolute(),
        retry_failed=True,
        checkpoint_seconds=options.checkpoint_seconds,
        step_seconds=display.step_seconds,
        owner=this_process(),
        options=options.engine,
        num_images=_images_by_shape(plans),
        keep_networks=False,
    )
    try:
        session.train(executor, session.groups(), train_group, slots)
    finally:
        session.close()
        left = close(writer, stop)
    results = tuple(result_of(arm) for arm in arms)
    undelivered = [*damaged, *((one.run.name, one.trouble) for one in left if tracking is not None)]
    if tracking is not None:
        for arm, result in zip(arms, results, strict=True):
            try:
                _record(tracking, result, opened[result.plan.identity])
                end_lost(tracking, opened[result.plan.identity], result.plan.identity, arm.lost())
            except AblateError as error:  # the trials are in the storage: the next command records them
                undelivered.append((f"{result.plan.label} {result.plan.arm}", str(error)))
    return TuneSummary(results, stop.reason, stop.signal, tuple(undelivered), is_offline=tracking is None)


def _opened(tracking: Tracking, plan: ArmPlan) -> OpenedTuning:
    return open_tuning(tracking, plan.label, plan.arm, plan.identity, plan.protocol)


def _tell_of_before(arms: Sequence[ArmTrials], display: TuningDisplay, *, retry_failed: bool) -> None:
    for arm in arms:
        if retry_failed:
            display.on_note(f"{arm.plan.arm}: {count(arm.retry_failed(), 'failed trial')} to be tried again")
        for one in rows_of(arm):
            if one.val_accuracy is not None:
                display.knows(arm.plan, one.val_accuracy, one.number)


def _images_by_shape(plans: Sequence[ArmPlan]) -> dict[str, int]:
    """Training images of all trials at most, by the shape of the recipes as they stand: does compiling pay?"""
    totals: dict[str, int] = {}
    for plan in plans:
        shape = plan.runs(plan.recipe, 0)[0].shape
        num = plan.num_wanted * plan.tune.seeds * plan.recipe.epochs * len(plan.data.train_labels)
        totals[shape] = totals.get(shape, 0) + num
    return totals


def _upload_missed(arm: ArmTrials, opened: OpenedTuning, writer: MlflowWriter) -> list[tuple[str, str]]:
    """Trials that ended while MLflow was away, or offline, are brought to it from their folders; gives damaged ones."""
    plan = arm.plan
    damaged: list[tuple[str, str]] = []
    outcomes = {"complete": "finished", "pruned": "pruned"}
    for row in rows_of(arm):
        name = plan.trial_name(row.number)
        if row.state not in ("complete", "pruned", "failed"):
            continue
        for seed, fingerprint in zip(plan.seeds, row.fingerprints, strict=False):
            folder = RunFolder(RUNS_ROOT / fingerprint)
            if (name, fingerprint) in opened.recorded or not folder.is_begun():
                continue
            try:
                result = folder.result()
                write_missing_artifacts(folder)
            except (RecordError, OutputError) as error:  # of this one alone
                damaged.append((f"{name} seed {seed}", str(error)))
                continue
            outcome = result.status if result is not None else outcomes.get(row.state, "failed")
            run = RunIdentity(
                study=plan.label,
                arm=name,
                seed=seed,
                precision=plan.device.resolve(plan.recipe.precision),
                recipe_id=row.recipe_id,
                fingerprint=fingerprint,
                tags=plan.tags(row.number, opened.run_id),
            )
            writer.end(run, folder, outcome, row.reason)
    return damaged


def _record(tracking: Tracking, result: ArmResult, opened: OpenedTuning) -> None:
    """What the parent run shows: accuracy by trial, the best one, the counts, and the figures."""
    plan, best, counts = result.plan, result.best, result.counts
    untrained = [
        Untrained(plan.trial_name(one.number), dict(plan.tags(one.number, opened.run_id)), one.values, one.reason)
        for one in result.trials
        if one.state == "failed" and not one.fingerprints
    ]
    record_untrained(tracking, opened, plan.identity, untrained)
    tags = {f"ablate.{state}": str(counts[state]) for state in ("complete", "pruned", "failed")}
    tags |= {"ablate.trials": str(result.num_tried), "ablate.wanted": str(plan.num_wanted)}
    if best is not None:
        tags |= {"ablate.best_trial": str(best.number), "ablate.best_val_accuracy": f"{best.val_accuracy:.4f}"}
        tags |= {f"{BEST}{name}": str(value) for name, value in best.values.items()}
    times = {one.number: _milliseconds(one.ended) for one in result.trials}
    points = [
        ("val_accuracy", one.val_accuracy, times[one.number], one.number)
        for one in result.trials
        if one.val_accuracy is not None
    ]
    points += [("best_val_accuracy", value, times[number], number) for number, value in result.best_so_far()]
    with tempfile.TemporaryDirectory() as place:
        files = write_files(result, Path(place))
        close_tuning(
            tracking, opened.run_id, plan.identity, is_done=result.is_done, tags=tags, points=points, files=files
        )


def _milliseconds(when: datetime | None) -> int:
    return 0 if when is None else int(when.timestamp() * 1000)
