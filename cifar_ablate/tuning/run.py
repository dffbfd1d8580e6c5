"""The way through a tuning: from a study file to recorded trials. Read it from ``tune_study`` downwards."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from pathlib import Path

from rich.console import Console

from cifar_ablate.analysis.sentences import count
from cifar_ablate.data import DataSet
from cifar_ablate.device import Slot
from cifar_ablate.errors import AblateError, OutputError, RecordError, not_written
from cifar_ablate.plan import DataKey, PlannedRun, data_key
from cifar_ablate.process import this_process
from cifar_ablate.record.folder import RUNS_ROOT, RunFolder
from cifar_ablate.record.mlflow_store import Tracking
from cifar_ablate.record.mlflow_tunings import (
    BEST,
    RecordedTuning,
    UntrainedTrial,
    close_tuning,
    end_lost,
    open_tuning,
    record_untrained,
)
from cifar_ablate.record.mlflow_writer import MlflowWriter
from cifar_ablate.record.types import RunIdentity
from cifar_ablate.runner.artifacts import write_missing_artifacts
from cifar_ablate.runner.executor import Executor
from cifar_ablate.runner.preflight import open_tracking, prepare
from cifar_ablate.runner.run import close, fitting_device, images_by_shape
from cifar_ablate.runner.stop import StopSignal, signals_stop
from cifar_ablate.runner.train_group import GroupTrainer
from cifar_ablate.spec.load import load_study
from cifar_ablate.spec.overlay import Overlay, load_overlay
from cifar_ablate.spec.schema import Study
from cifar_ablate.training.engine import EngineOptions
from cifar_ablate.training.train import CHECKPOINT_SECONDS
from cifar_ablate.tuning.algorithms import can_prune
from cifar_ablate.tuning.display import TuningDisplay
from cifar_ablate.tuning.plan import ArmPlan, plan_tuning
from cifar_ablate.tuning.result import ArmResult, result_of, rows_of, write_files
from cifar_ablate.tuning.session import TuneSession
from cifar_ablate.tuning.storage import open_storage, storage_url
from cifar_ablate.tuning.summary import TuneSummary
from cifar_ablate.tuning.target import check_target
from cifar_ablate.tuning.trials import ArmTrials


@dataclass(frozen=True)
class TuneSelection:
    """What a command line asks to be tuned."""

    profile: str | None
    settings: Sequence[str] | None
    arms: Sequence[str] | None
    all_arms: bool
    trials: int | None
    """Number of trials per arm; None: the study's."""
    write_to: Path | None = None
    """The study file that is written at the end."""
    history: Path | None = None
    """The folder into which all trials are written at the end."""

    @property
    def overlay(self) -> Overlay:
        return load_overlay(self.profile, self.settings or [])

    def arms_of(self, study: Study) -> list[str]:
        """Names of the arms to tune: by default the baseline."""
        if self.all_arms:
            return [arm.name for arm in study.arms]
        return list(self.arms or [study.baseline])


@dataclass(frozen=True)
class TuneOptions:
    """How ``tune`` works; none of it changes what is trained."""

    retry_failed: bool = False
    """Retry trials that could not be trained."""
    checkpoint_seconds: float = CHECKPOINT_SECONDS
    engine: EngineOptions = field(default_factory=EngineOptions)


def tune_study(
    file: Path,
    selection: TuneSelection,
    *,
    storage: str | None,
    offline: bool,
    executor: Executor,
    options: TuneOptions,
    console: Console,
) -> TuneSummary:
    """Tune the selected arms of a study; raises AblateError if nothing can start."""
    device = partial(fitting_device, executor, options.engine)
    ready = prepare([file], selection.profile, selection.settings, device=device, console=console)
    study = ready.plans[0].study
    tune = study.tune
    if tune is not None and selection.trials is not None:
        tune = tune.model_copy(update={"trials": selection.trials})
    plans = plan_tuning(study, selection.arms_of(study), ready.data, ready.device, tune=tune)
    _check_outputs(file, selection, plans)
    slots, said = executor.slots(_trainings(plans), _data_of(plans), options.engine)
    console.print(said, highlight=False, markup=False)
    for line in _describe(plans):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    stop = StopSignal()
    tracking = None if offline else open_tracking("tune with --offline: the same command delivers later")
    with TuningDisplay(console) as display, signals_stop(stop):
        return tune_arms(
            plans,
            url=storage_url(storage),
            tracking=tracking,
            executor=executor,
            slots=slots,
            display=display,
            stop=stop,
            options=options,
        )


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
    """Bring every arm to the trials that are wanted; raises AblateError if nothing can start.

    ``url``: the Optuna storage. ``tracking`` None: everything stays in the run folders and the storage.
    """
    options = options or TuneOptions()
    with open_storage(url) as storage:
        arms = [ArmTrials(plan, storage, url) for plan in plans]
        for arm in arms:
            _note_earlier_trials(arm, display, retry_failed=options.retry_failed)
            if tracking is not None:
                plan = arm.plan
                arm.recorded = open_tuning(tracking, plan.label, plan.arm, plan.identity, plan.protocol)
        experiments = {arm.plan.label: arm.recorded.experiment_id for arm in arms if arm.recorded is not None}
        writer = MlflowWriter(tracking, experiments, on_note=display.on_note, on_taken=stop.taken.__setitem__)
        undelivered = [one for arm in arms for one in _upload_missed(arm, writer)]
        num_slices = max(slot.num_slices for slot in slots)
        session = TuneSession(arms, RUNS_ROOT, writer, display, stop, num_slices=num_slices)
        try:
            session.train(executor, session.groups(), _trainer(plans, options, display.step_seconds), slots)
        finally:
            session.close()
            left = close(writer, stop)
        results = tuple(result_of(arm) for arm in arms)
        if tracking is not None:
            undelivered += [(one.run.name, one.trouble) for one in left]
            for arm, result in zip(arms, results, strict=True):
                undelivered += _record(tracking, arm, result)
    return TuneSummary(
        results=results,
        stopped_because=stop.reason,
        signal=stop.signal,
        undelivered=tuple(undelivered),
        is_offline=tracking is None,
    )


def _trainings(plans: Sequence[ArmPlan]) -> list[PlannedRun]:
    """Stand-ins for all trainings, each with the recipe as it stands: proposals are not known in advance."""
    return [run for plan in plans for run in plan.runs(plan.recipe, 0) * plan.num_wanted]


def _data_of(plans: Sequence[ArmPlan]) -> dict[DataKey, DataSet]:
    return {data_key(plan.recipe): plan.data for plan in plans}


def _trainer(plans: Sequence[ArmPlan], options: TuneOptions, step_seconds: float | None) -> GroupTrainer:
    data = _data_of(plans)
    return GroupTrainer(
        data,
        RUNS_ROOT.absolute(),
        retry_failed=True,
        checkpoint_seconds=options.checkpoint_seconds,
        step_seconds=step_seconds,
        owner=this_process(),
        options=options.engine,
        num_images=images_by_shape(_trainings(plans), data),
        keep_networks=False,
    )


def _check_outputs(file: Path, selection: TuneSelection, plans: Sequence[ArmPlan]) -> None:
    """Raise the errors of writing the results before the trials, which may take hours."""
    if selection.write_to is not None:
        check_target(selection.write_to, load_study(file), plans, selection.overlay)
    if selection.history is not None:
        try:
            selection.history.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise not_written(selection.history, error) from None
        if not os.access(selection.history, os.W_OK):
            raise OutputError(selection.history, "Permission denied", "run where you may write")


def _describe(plans: Sequence[ArmPlan]) -> list[str]:
    """The first lines of ``tune``: budget, data, space, algorithms, and arms whose trials are too short to prune."""
    first, pruner = plans[0], plans[0].tune.pruner
    space = "; ".join(f"{name}: {words}" for name, words in first.protocol["space"].items())
    each = f", {first.tune.seeds} seeds each" if first.tune.seeds > 1 else ""
    lines = [
        f"Tuning {', '.join(plan.arm for plan in plans)}: {first.num_wanted} trials each{each}",
        f"On {first.data.describe()}",
        f"Space: {space}",
        f"Sampler {first.protocol['sampler']}; pruner {first.protocol['pruner']}",
    ]
    num_epochs = {plan.arm: plan.recipe.epochs * plan.tune.seeds for plan in plans}
    never = [arm for arm, num in num_epochs.items() if not can_prune(pruner.name, pruner.kwargs(), num)]
    if never:
        most = max(num_epochs[arm] for arm in never)
        lines.append(f"Not pruned, with at most {most} epochs a trial: {', '.join(never)}")
    return lines


def _note_earlier_trials(arm: ArmTrials, display: TuningDisplay, *, retry_failed: bool) -> None:
    if retry_failed:
        display.on_note(f"{arm.plan.arm}: {count(arm.retry_failed(), 'failed trial')} to be tried again")
    for one in rows_of(arm):
        if one.val_accuracy is not None:
            display.note_best(arm.plan, one.val_accuracy, one.number)


def _upload_missed(arm: ArmTrials, writer: MlflowWriter) -> list[tuple[str, str]]:
    """Upload trials that ended offline, or while MLflow did not answer; returns damaged ones with the reason."""
    if arm.recorded is None:
        return []
    plan, unusable = arm.plan, []
    outcomes = {"complete": "finished", "pruned": "pruned", "failed": "failed"}
    for row in rows_of(arm):
        name = plan.trial_name(row.number)
        for seed, fingerprint in zip(plan.seeds, row.fingerprints, strict=False):
            folder = RunFolder(RUNS_ROOT / fingerprint)
            is_missed = row.state in outcomes and (name, fingerprint) not in arm.recorded.ended
            if not is_missed or not folder.is_begun():
                continue
            try:
                result = folder.result()
                write_missing_artifacts(folder)
            except (RecordError, OutputError) as error:  # the other trials are uploaded
                unusable.append((f"{name} seed {seed}", str(error)))
                continue
            run = RunIdentity(
                study=plan.label,
                arm=name,
                seed=seed,
                precision=plan.device.resolve(plan.recipe.precision),
                recipe_id=row.recipe_id,
                fingerprint=fingerprint,
                tags=plan.tags(row.number, arm.parent_run_id),
            )
            writer.end(run, folder, result.status if result is not None else outcomes[row.state], row.reason)
    return unusable


def _record(tracking: Tracking, arm: ArmTrials, result: ArmResult) -> list[tuple[str, str]]:
    """Bring the tuning's runs in MLflow up to date; returns what MLflow did not take, with the reason."""
    try:
        if arm.recorded is not None:
            _record_result(tracking, arm.recorded, result)
            end_lost(tracking, arm.recorded, arm.lost())
    except AblateError as error:  # the trials are in the storage: the next command records them
        return [(f"{result.plan.label} {result.plan.arm}", str(error))]
    return []


def _record_result(tracking: Tracking, recorded: RecordedTuning, result: ArmResult) -> None:
    """The parent run shows accuracy by trial, the best trial, the counts, and the figures."""
    plan, best, counts = result.plan, result.best, result.counts
    untrained = [
        UntrainedTrial(
            plan.trial_name(one.number), dict(plan.tags(one.number, recorded.run_id)), one.values, one.reason
        )
        for one in result.trials
        if one.state == "failed" and not one.fingerprints
    ]
    record_untrained(tracking, recorded, untrained)
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
        close_tuning(tracking, recorded, is_done=result.is_done, tags=tags, points=points, files=files)


def _milliseconds(when: datetime | None) -> int:
    return 0 if when is None else int(when.timestamp() * 1000)
