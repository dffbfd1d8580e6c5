"""Carry out a plan: what the record lacks is trained, group by group, and delivered as it grows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from cifar_ablate.data import DataSet
from cifar_ablate.device import Place
from cifar_ablate.owner import this_process
from cifar_ablate.plan import DataKey, Plan, PlannedRun
from cifar_ablate.records import RecordedRun
from cifar_ablate.registry import EXECUTORS
from cifar_ablate.runner.command import Command, Summary
from cifar_ablate.runner.events import Events
from cifar_ablate.runner.kept_plans import keep_plan, mark_recorded
from cifar_ablate.runner.messages import Group
from cifar_ablate.runner.reconcile import reconcile
from cifar_ablate.runner.states import has_ended
from cifar_ablate.runner.stopping import Stops
from cifar_ablate.runner.trainer import GroupTrainer
from cifar_ablate.tracking import Courier, Tracking
from cifar_ablate.training.engine import EngineOptions
from cifar_ablate.training.train import CHECKPOINT_SECONDS

RUNS_ROOT = Path("mlruns") / "runs"
PATIENCE_SECONDS = 30.0
"""At its end a command waits so long for an MLflow that does not answer."""
HURRIED_SECONDS = 5.0
"""The same after a signal: who sends SIGTERM often kills 10 s later."""


@dataclass(frozen=True)
class RunOptions:
    """How a ``run`` command goes about its work; none of it changes what is trained."""

    executor: str = "local"
    retry_failed: bool = False
    fail_fast: bool = False
    """The first run that fails stops the others."""
    checkpoint_seconds: float = CHECKPOINT_SECONDS
    engine: EngineOptions = field(default_factory=EngineOptions)


def runs_left(plans: Sequence[Plan], wanted: Callable[[PlannedRun], bool] = lambda run: True) -> list[PlannedRun]:
    """Runs without a result in their folder; the record is not asked."""
    return [run for plan in plans for run in plan.runs if wanted(run) and not has_ended(run, RUNS_ROOT)]


def run_plans(
    plans: Sequence[Plan],
    *,
    tracking: Tracking | None,
    data: Mapping[DataKey, DataSet],
    places: Sequence[Place],
    options: RunOptions | None = None,
    wanted: Callable[[PlannedRun], bool] = lambda run: True,
    events: Events | None = None,
    stops: Stops | None = None,
) -> Summary:
    """Make the record match the plans; gives what was done. Raises AblateError where nothing could be started.

    ``tracking`` None: everything stays in the run folders. ``wanted`` leaves out runs of the plan from this command
    alone; the plan that is recorded stays whole.
    """
    options, events, stops = options or RunOptions(), events or Events(), stops or Stops()
    todo: list[PlannedRun] = []
    failed: list[tuple[PlannedRun, str]] = []
    num_done = 0
    experiments: dict[str, str] = {}
    for plan in plans:
        recorded = _open(plan, tracking, experiments)
        status = reconcile(
            [run for run in plan.runs if wanted(run)],
            recorded,
            retry_failed=options.retry_failed,
            has_ended=partial(has_ended, runs_root=RUNS_ROOT),
        )
        todo.extend(status.todo)
        failed.extend(status.failed)
        num_done += len(status.done)
    events.on_plan(todo, num_done, len(failed))
    courier = Courier(tracking, experiments, on_note=events.on_note, on_taken=stops.withdrawn.__setitem__)
    command = Command(todo, RUNS_ROOT, courier, events, stops, fail_fast=options.fail_fast)
    train_group = GroupTrainer(
        data,
        RUNS_ROOT.absolute(),
        options.retry_failed,
        options.checkpoint_seconds,
        events.step_seconds,
        this_process(),
        options.engine,
        images_by_shape(todo, data),
    )
    execute = partial(_execute, options.executor, train_group, places, command)
    try:
        execute(todo)
        if not stops.reason:  # what others were at when we came to it may have been left since
            stops.withdrawn.clear()
            execute([run for run in todo if command.kinds.get(run.key) == "elsewhere"])
    finally:
        left = courier.close(
            patience_seconds=HURRIED_SECONDS if stops.signal else PATIENCE_SECONDS,
            hurry=partial(_was_signalled_since, stops, stops.signal),
        )
    return command.summary(num_done, failed, left)


def images_by_shape(runs: Sequence[PlannedRun], data: Mapping[DataKey, DataSet]) -> dict[str, int]:
    """Training images of all runs and epochs, by the shape that they share."""
    totals: dict[str, int] = {}
    for run in runs:
        totals[run.shape] = totals.get(run.shape, 0) + run.recipe.epochs * len(data[run.data_key].train_labels)
    return totals


def grouped(runs: Sequence[PlannedRun], num_places: int = 1, side_by_side: int = 1) -> list[Group]:
    """Runs of one study and shape together, seed by seed, so that a study interrupted early has whole seeds.

    Groups are cut so that each place gets several: the last ones to end should not keep the others waiting. Where runs
    take turns, a group holds all seeds, and is never shorter than a turn.
    """
    groups: dict[tuple[str, str, int], list[PlannedRun]] = {}
    order = {run.study: index for index, run in reversed(list(enumerate(runs)))}
    for run in sorted(runs, key=lambda run: (order[run.study], run.seed)):
        groups.setdefault((run.study, run.shape, run.seed if side_by_side == 1 else 0), []).append(run)
    longest = max(side_by_side, len(runs) // (4 * num_places)) if num_places > 1 else len(runs)
    return [group[start : start + longest] for group in groups.values() for start in range(0, len(group), longest)]


def _execute(
    executor: str, train_group: GroupTrainer, places: Sequence[Place], command: Command, runs: Sequence[PlannedRun]
) -> None:
    if runs:
        side_by_side = max(place.side_by_side for place in places)
        EXECUTORS.get(executor)(grouped(runs, len(places), side_by_side), train_group, places, command)


def _open(plan: Plan, tracking: Tracking | None, experiments: dict[str, str]) -> Sequence[RecordedRun]:
    """Keep the plan, here and in MLflow; gives what is recorded of it."""
    keep_plan(plan)
    if tracking is None:
        return ()
    label = plan.study.label
    experiments[label] = tracking.open_study(label, plan.document)
    mark_recorded(label, plan.document)
    return tracking.runs(experiments[label])


def _was_signalled_since(stops: Stops, before: str) -> bool:
    return stops.signal != before
