"""The way through: from study files to recorded runs. Read it from ``run_studies`` downwards."""

from __future__ import annotations

import itertools
from collections.abc import Container, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from rich.console import Console

from cifar_ablate.data import DataSet
from cifar_ablate.device import Device, Slot
from cifar_ablate.errors import OutputError, TrackingError, UsageError
from cifar_ablate.plan import DataKey, Plan, PlannedRun
from cifar_ablate.process import this_process
from cifar_ablate.record.folder import RUNS_ROOT
from cifar_ablate.record.mlflow_store import Tracking
from cifar_ablate.record.mlflow_writer import MlflowWriter, PendingUpload
from cifar_ablate.record.types import Key, RecordedRun
from cifar_ablate.registry import EXECUTORS
from cifar_ablate.runner.display import RunDisplay, TerminalDisplay
from cifar_ablate.runner.estimate import images_of
from cifar_ablate.runner.events import Group
from cifar_ablate.runner.executor import Executor, ExecutorConfig
from cifar_ablate.runner.executors.local import Local
from cifar_ablate.runner.kept_plans import keep_plan, mark_recorded
from cifar_ablate.runner.looks import LookState, look_state, waiting_line
from cifar_ablate.runner.preflight import open_tracking, prepare
from cifar_ablate.runner.selection import RunSelection, select_runs
from cifar_ablate.runner.session import RunSession
from cifar_ablate.runner.status import RunStatus
from cifar_ablate.runner.stop import StopSignal, signals_stop
from cifar_ablate.runner.summary import RunSummary
from cifar_ablate.runner.train_group import GroupTrainer
from cifar_ablate.training.engine import EngineOptions, check_options, choose_mode
from cifar_ablate.training.train import CHECKPOINT_SECONDS

PATIENCE_SECONDS = 30.0
"""How long a command waits at its end for an MLflow that does not answer."""
HURRIED_SECONDS = 5.0
"""The same after a signal: SIGTERM is often followed by SIGKILL after 10 s."""

ELSEWHERE_CURE = "wait for it, share the work with --executor ray, or give --take-over once that machine is gone"


@dataclass(frozen=True)
class RunOptions:
    """How ``run`` works; none of it changes what is trained."""

    retry_failed: bool = False
    fail_fast: bool = False
    """The first run that fails stops the others."""
    take_over: bool = False
    """Also train runs that MLflow shows as RUNNING on other hosts."""
    checkpoint_seconds: float = CHECKPOINT_SECONDS
    engine: EngineOptions = field(default_factory=EngineOptions)


def choose_executor(name: str, config: ExecutorConfig) -> Executor:
    """The executor called ``name``; raises UnknownNameError, or UsageError if it cannot do what is configured."""
    executor = EXECUTORS.get(name)(config)
    if not isinstance(executor, Executor):
        raise UsageError(f"--executor {name}: what is registered under it is no subclass of Executor")
    return executor


def fitting_device(executor: Executor, engine: EngineOptions) -> Device:
    """The executor's device; raises DeviceError if steps cannot be taken on it as the options force it."""
    device = executor.device()
    check_options(engine, device.kind)
    if executor.trains_here:  # others find out where they train: this machine may not have the device
        choose_mode(engine, device)
    return device


def run_studies(
    files: Sequence[Path],
    profile: str | None,
    settings: Sequence[str] | None,
    arms: Sequence[str] | None,
    seeds: Sequence[int] | None,
    *,
    offline: bool,
    executor: Executor,
    options: RunOptions,
    console: Console,
) -> RunSummary:
    """Train what the record lacks of these studies; raises AblateError if nothing can start."""
    device = partial(fitting_device, executor, options.engine)
    ready = prepare(files, profile, settings, device=device, console=console)
    selection = select_runs(ready.plans, arms, seeds)
    slots, said = executor.slots(runs_left(ready.plans, selection), ready.data, options.engine)
    console.print(said, highlight=False, markup=False)
    stop = StopSignal()
    tracking = None if offline else open_tracking()
    with TerminalDisplay(console, lambda run: images_of(run, ready.data[run.data_key])) as display, signals_stop(stop):
        return run_plans(
            ready.plans,
            tracking=tracking,
            data=ready.data,
            executor=executor,
            slots=slots,
            options=options,
            selection=selection,
            display=display,
            stop=stop,
        )


def runs_left(plans: Sequence[Plan], selection: RunSelection | None = None) -> list[PlannedRun]:
    """Runs that are wanted and have no result in their folder; the record is not read."""
    selection = selection or RunSelection()
    states = [look_state(plan, (), RUNS_ROOT) for plan in plans]
    wanted = [(run, one.statuses[run.key]) for one in states for run in one.plan.runs if one.asks_for(run)]
    return [run for run, status in wanted if selection(run) and status.kind != "trained"]


def run_plans(
    plans: Sequence[Plan],
    *,
    tracking: Tracking | None,
    data: Mapping[DataKey, DataSet],
    slots: Sequence[Slot],
    executor: Executor | None = None,
    options: RunOptions | None = None,
    selection: RunSelection | None = None,
    display: RunDisplay | None = None,
    stop: StopSignal | None = None,
) -> RunSummary:
    """Make the record match the plans; raises AblateError if nothing can start.

    ``tracking`` None: everything stays in the run folders. ``selection`` leaves out runs for this command alone; the
    recorded plan stays whole. Studies with looks are trained in stages: what one look asks for, then the next, until
    everything is decided or a look waits for runs that are not trained here.
    """
    options, selection = options or RunOptions(), selection or RunSelection()
    display, stop = display or RunDisplay(), stop or StopSignal()
    records = StudyRecords(plans, tracking, RUNS_ROOT)
    states = records.look_states()
    selection.check(states)
    records.note_margins(states)
    writer = MlflowWriter(tracking, records.experiments, on_note=display.on_note, on_taken=stop.taken.__setitem__)
    session = RunSession(RUNS_ROOT, writer, display, stop, fail_fast=options.fail_fast)
    begun: set[Key] = set()
    hurry = partial(_was_signalled_since, stop, stop.signal)
    try:
        for number in itertools.count():
            for text in records.new_looks(states):
                display.on_look(text)
            stage = [
                (run, one.statuses[run.key])
                for one in states
                for run in one.plan.runs
                if one.asks_for(run) and selection(run) and run.key not in begun
            ]
            if number and not stage:
                break
            begun |= {run.key for run, _ in stage}
            todo = _plan_stage(stage, session, options)
            _train(todo, data, executor or Local(ExecutorConfig()), slots, options, session, records)
            if stop.reason or not todo or not any(plan.study.looks for plan in plans):
                break
            writer.settle(patience_seconds=PATIENCE_SECONDS, hurry=hurry)
            records.read_again({plan.study.label for plan in plans if plan.study.looks})
            states = records.look_states()
    finally:
        left = close(writer, stop)
    states = records.look_states() if stop.reason else states
    waiting = [waiting_line(one, session.why_missing) for one in states]
    return session.summary(left, [line for line in waiting if line])


def _plan_stage(
    stage: Sequence[tuple[PlannedRun, RunStatus]], session: RunSession, options: RunOptions
) -> list[PlannedRun]:
    """The runs of a stage that are to be trained; the session takes note of the others."""
    todo: list[PlannedRun] = []
    failed: list[tuple[PlannedRun, str]] = []
    left_alone: list[tuple[PlannedRun, str]] = []
    for run, status in stage:
        was_recorded = status.record is not None and status.record.outcome == "failed"
        if status.kind == "recorded":
            continue
        if status.kind == "failed" and was_recorded and not options.retry_failed:
            failed.append((run, status.reason))
        elif status.kind == "elsewhere" and not options.take_over:
            left_alone.append((run, f"MLflow shows it as RUNNING by {status.owner}; {ELSEWHERE_CURE}"))
        else:
            todo.append(run)
            if status.owner is not None and status.kind != "running":
                session.writer.replaces[run.key] = status.owner
    num_done = len(stage) - len(todo) - len(failed) - len(left_alone)
    session.plan_stage(todo, num_done=num_done, failed=failed, left_alone=left_alone)
    return todo


def _train(
    runs: Sequence[PlannedRun],
    data: Mapping[DataKey, DataSet],
    executor: Executor,
    slots: Sequence[Slot],
    options: RunOptions,
    session: RunSession,
    records: StudyRecords,
) -> None:
    """Train runs, group by group; runs that another process was training are tried once more at the end."""
    train_group = GroupTrainer(
        data,
        RUNS_ROOT.absolute(),
        options.retry_failed,
        options.checkpoint_seconds,
        session.display.step_seconds,
        this_process(),
        options.engine,
        images_by_shape(runs, data),
    )
    num_slots, num_slices = len(slots) * executor.growth, max(slot.num_slices for slot in slots)
    if runs:
        session.train(executor, grouped(runs, num_slots, num_slices), train_group, slots)
    again = [run for run in runs if session.kinds.get(run.key) == "elsewhere"]
    if again and not session.stop.reason:
        session.stop.taken.clear()
        records.read_again({run.study for run in again})
        statuses: dict[Key, RunStatus] = {}
        for state in records.look_states():
            statuses |= state.statuses
        again = [run for run in again if statuses[run.key].kind not in ("recorded", "running", "elsewhere")]
        session.writer.replaces |= {run.key: owner for run in again if (owner := statuses[run.key].owner) is not None}
        session.train(executor, grouped(again, num_slots, num_slices), train_group, slots)


def images_by_shape(runs: Sequence[PlannedRun], data: Mapping[DataKey, DataSet]) -> dict[str, int]:
    """Training images of all runs and epochs, by the shape that they share."""
    totals: dict[str, int] = {}
    for run in runs:
        totals[run.shape] = totals.get(run.shape, 0) + run.recipe.epochs * len(data[run.data_key].train_labels)
    return totals


def grouped(runs: Sequence[PlannedRun], num_slots: int = 1, num_slices: int = 1) -> list[Group]:
    """Runs of one study and shape together, seed by seed, so that a study interrupted early has whole seeds.

    Groups are cut so that each slot gets several: no slot must wait long for the last one. Where runs take turns, a
    group holds all seeds, and at least ``num_slices`` runs.
    """
    groups: dict[tuple[str, str, int], list[PlannedRun]] = {}
    order = {run.study: index for index, run in reversed(list(enumerate(runs)))}
    for run in sorted(runs, key=lambda run: (order[run.study], run.seed)):
        groups.setdefault((run.study, run.shape, run.seed if num_slices == 1 else 0), []).append(run)
    longest = max(num_slices, len(runs) // (4 * num_slots)) if num_slots > 1 else len(runs)
    return [group[start : start + longest] for group in groups.values() for start in range(0, len(group), longest)]


def close(writer: MlflowWriter, stop: StopSignal) -> list[PendingUpload]:
    """Upload what is left, quickly after a signal; returns what could not be uploaded."""
    patience = HURRIED_SECONDS if stop.signal else PATIENCE_SECONDS
    return writer.close(patience_seconds=patience, hurry=partial(_was_signalled_since, stop, stop.signal))


def _was_signalled_since(stop: StopSignal, before: str) -> bool:
    return stop.signal != before


class StudyRecords:
    """What is recorded of plans, which are kept here and in MLflow. ``tracking`` None: only the folders are read."""

    def __init__(self, plans: Sequence[Plan], tracking: Tracking | None, runs_root: Path) -> None:
        """Raises AblateError if a plan can be kept neither here nor there."""
        self.plans, self.tracking, self.runs_root = plans, tracking, runs_root
        self.experiments: dict[str, str] = {}
        """MLflow's experiment id by study label."""
        self.recorded: dict[str, Sequence[RecordedRun]] = {}
        self.looks_told: set[tuple[str, int]] = set()
        for plan in plans:
            label = plan.study.label
            keep_plan(plan)
            if tracking is not None:
                self.experiments[label] = tracking.open_study(label, plan.document)
                mark_recorded(label, plan.document)
                self.recorded[label] = tracking.runs(self.experiments[label])

    def look_states(self) -> list[LookState]:
        """What each study wants, as far as is known here."""
        return [look_state(plan, self.recorded.get(plan.study.label, ()), self.runs_root) for plan in self.plans]

    def read_again(self, labels: Container[str]) -> None:
        """Read what other commands have uploaded; if MLflow does not answer, the folders have to do."""
        for plan in self.plans:
            if self.tracking is not None and plan.study.label in labels:
                with suppress(TrackingError, OutputError):
                    self.recorded[plan.study.label] = self.tracking.runs(self.experiments[plan.study.label])

    def note_margins(self, states: Sequence[LookState]) -> None:
        """Enter the margin into the ledgers, with how much was known by then."""
        for one in states:
            if self.tracking is not None:
                self.tracking.note(one.plan.study.label, "margin", f"{one.plan.study.margin:g}", one.results)

    def new_looks(self, states: Sequence[LookState]) -> list[str]:
        """What looks say that this command has not told yet; they are entered into the ledgers."""
        said = []
        for one in states:
            label = one.plan.study.label
            for look in one.taken():
                if (label, look) in self.looks_told:
                    continue
                self.looks_told.add((label, look))
                said += one.said_at(look)
                if self.tracking is not None:
                    with suppress(TrackingError, OutputError):  # the next command enters it
                        self.tracking.note(label, "look", str(look), one.runs_of_look(look))
        return said
