"""Carry out a plan: what the record lacks is trained, group by group, and delivered as it grows."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from cifar_ablate.data import DataSet
from cifar_ablate.device import Place
from cifar_ablate.errors import OutputError
from cifar_ablate.owner import this_process
from cifar_ablate.plan import DataKey, Plan, PlannedRun
from cifar_ablate.records import Key
from cifar_ablate.runner.chosen import Chosen
from cifar_ablate.runner.command import Command, Summary
from cifar_ablate.runner.events import Events
from cifar_ablate.runner.executor import Executor, Wish
from cifar_ablate.runner.executors.local import Local
from cifar_ablate.runner.looks import stand, waiting_line
from cifar_ablate.runner.messages import Group
from cifar_ablate.runner.opened import Opened
from cifar_ablate.runner.reconcile import Reconciled, reconcile
from cifar_ablate.runner.states import has_ended
from cifar_ablate.runner.stopping import Stops
from cifar_ablate.runner.trainer import GroupTrainer
from cifar_ablate.tracking import Courier, Parcel, Tracking
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

    retry_failed: bool = False
    fail_fast: bool = False
    """The first run that fails stops the others."""
    checkpoint_seconds: float = CHECKPOINT_SECONDS
    engine: EngineOptions = field(default_factory=EngineOptions)
    keep_checkpoints: bool = False
    """Also in MLflow, until a run has its result: any machine can then go on with it."""


def runs_left(plans: Sequence[Plan], wanted: Chosen | None = None) -> list[PlannedRun]:
    """Runs without a result in their folder that are asked for by what the folders hold; the record is not asked."""
    wanted = wanted or Chosen()
    standings = [stand(plan, (), RUNS_ROOT) for plan in plans]
    asked = [run for one in standings for run in one.plan.runs if one.asks_for(run)]
    return [run for run in asked if wanted(run) and not has_ended(run, RUNS_ROOT)]


def run_plans(
    plans: Sequence[Plan],
    *,
    tracking: Tracking | None,
    data: Mapping[DataKey, DataSet],
    places: Sequence[Place],
    executor: Executor | None = None,
    options: RunOptions | None = None,
    wanted: Chosen | None = None,
    events: Events | None = None,
    stops: Stops | None = None,
) -> Summary:
    """Make the record match the plans; gives what was done. Raises AblateError where nothing could be started.

    ``tracking`` None: everything stays in the run folders. ``wanted`` leaves out runs of the plan from this command
    alone; the plan that is recorded stays whole. Studies with looks are trained in stages: what a look asks for, then
    what the next one does, until all is decided or a look waits for runs that are not trained here.
    """
    options, events, stops = options or RunOptions(), events or Events(), stops or Stops()
    wanted = wanted or Chosen()
    opened = Opened(plans, tracking, RUNS_ROOT)
    standings = opened.standings()
    wanted.check(standings)
    opened.note_margins(standings)
    courier = Courier(
        tracking,
        opened.experiments,
        on_note=events.on_note,
        on_taken=stops.withdrawn.__setitem__,
        keeps_checkpoints=options.keep_checkpoints,
    )
    command = Command(RUNS_ROOT, courier, events, stops, fail_fast=options.fail_fast)
    begun: set[Key] = set()
    hurry = partial(_was_signalled_since, stops, stops.signal)
    try:
        for number in itertools.count():
            for text in opened.new_looks(standings):
                events.on_look(text)
            asked = [run for one in standings for run in one.plan.runs if one.asks_for(run) and wanted(run)]
            stage = [run for run in asked if run.key not in begun]
            if number and not stage:
                break
            begun |= {run.key for run in stage}
            todo = _reconciled(opened, stage, command, options)
            _train(todo, data, executor or Local(Wish()), places, options, command, opened)
            if stops.reason or not todo or not any(plan.study.looks for plan in plans):
                break
            courier.settle(patience_seconds=PATIENCE_SECONDS, hurry=hurry)
            opened.read_again({plan.study.label for plan in plans if plan.study.looks})
            standings = opened.standings()
    finally:
        left = close(courier, stops)
    standings = opened.standings() if stops.reason else standings
    waiting = [waiting_line(one, command.why_missing) for one in standings]
    return command.summary(left, [line for line in waiting if line])


def _reconciled(
    opened: Opened, stage: Sequence[PlannedRun], command: Command, options: RunOptions
) -> Sequence[PlannedRun]:
    """What is to be trained of the runs of a stage; the command takes note of the others."""
    of_study: dict[str, list[PlannedRun]] = {}
    for run in stage:
        of_study.setdefault(run.study, []).append(run)
    found = [
        reconcile(
            of_study.get(plan.study.label, []),
            opened.of(plan),
            retry_failed=options.retry_failed,
            has_ended=partial(has_ended, runs_root=RUNS_ROOT),
        )
        for plan in opened.plans
    ]
    todo = tuple(run for one in found for run in one.todo)
    opened.bring_checkpoints(todo, command.events.on_note, command.should_stop)
    done = tuple(run for one in found for run in one.done)
    command.take(Reconciled(done, tuple(each for one in found for each in one.failed), todo))
    return todo


def _train(
    runs: Sequence[PlannedRun],
    data: Mapping[DataKey, DataSet],
    executor: Executor,
    places: Sequence[Place],
    options: RunOptions,
    command: Command,
    opened: Opened,
) -> None:
    """Train runs, group by group; those that others were at are tried once more at the end."""
    train_group = GroupTrainer(
        data,
        RUNS_ROOT.absolute(),
        options.retry_failed,
        options.checkpoint_seconds,
        command.events.step_seconds,
        this_process(),
        options.engine,
        images_by_shape(runs, data),
    )
    execute = partial(_execute, executor, train_group, places, command)
    execute(runs)
    if not command.stops.reason:  # what others were at when we came to it may have been left since
        command.stops.withdrawn.clear()
        execute(_left_by_others([run for run in runs if command.kinds.get(run.key) == "elsewhere"], command, opened))


def _left_by_others(runs: Sequence[PlannedRun], command: Command, opened: Opened) -> Sequence[PlannedRun]:
    """These runs, with what a machine that died since has left of them in MLflow."""
    try:
        if runs:
            opened.read_again({run.study for run in runs})
            opened.bring_checkpoints(runs, command.events.on_note, command.should_stop)
    except OutputError as error:  # it will not do better in the training
        command.stops.everything(str(error))
        return ()
    return runs


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
    executor: Executor, train_group: GroupTrainer, places: Sequence[Place], command: Command, runs: Sequence[PlannedRun]
) -> None:
    if runs:
        side_by_side = max(place.side_by_side for place in places)
        executor.train(grouped(runs, len(places) * executor.growth, side_by_side), train_group, places, command)


def close(courier: Courier, stops: Stops) -> list[Parcel]:
    """Deliver what is left, in a hurry after a signal; gives what could not be delivered."""
    patience = HURRIED_SECONDS if stops.signal else PATIENCE_SECONDS
    return courier.close(patience_seconds=patience, hurry=partial(_was_signalled_since, stops, stops.signal))


def _was_signalled_since(stops: Stops, before: str) -> bool:
    return stops.signal != before
