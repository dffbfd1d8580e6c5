"""The command's side of a cluster: groups become tasks, lost tasks restart, stops are passed on."""

from __future__ import annotations

import os
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import OutOfMemoryError, RayError, RayTaskError, TaskCancelledError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cifar_ablate.device import Slot
from cifar_ablate.errors import AblateError, DeviceError, not_written
from cifar_ablate.locks import holder, lock
from cifar_ablate.plan import PlannedRun
from cifar_ablate.record.types import Key
from cifar_ablate.runner.cluster.actor import Placed, RunActor
from cifar_ablate.runner.cluster.connection import SHARE_DIGITS, Share, capacity
from cifar_ablate.runner.cluster.node import SharedFsProbe, TaskSpec, train_on_node, versions
from cifar_ablate.runner.events import Ended, Group, Lost, Noted, RunEvent, RunEvents, ShouldStop
from cifar_ablate.runner.executor import PendingGroups
from cifar_ablate.runner.train_group import GroupTrainer
from cifar_ablate.training.events import Started

POLL_SECONDS = 0.2
COUNT_SECONDS = 5.0
"""Interval at which the cluster's room is counted: nodes come and go."""
MAX_LOST = 4
"""Maximum number of times that a run is lost with its process; after that the run is at fault, not the cluster."""
GRACE_SECONDS = 10.0
"""Time that tasks get to write their checkpoints if an error ends the command."""
PROBE = ".sighting-"
"""Prefix of the files by which nodes recognise the shared folder."""
PATIENCE_SECONDS = 60.0
"""Maximum wait for a folder that is locked by this command: the process that holds it is about to end."""


@dataclass(eq=False)
class Task:
    """One group, trained when and where Ray chooses."""

    name: str
    left: list[PlannedRun]
    """Runs that have not ended, in order."""
    under_way: set[Key] = field(default_factory=set)
    node: str = ""
    """Node that it runs on; empty until it runs."""


class Dispatch:
    """The tasks of one command."""

    def __init__(
        self, train_group: GroupTrainer, slot: Slot, share: Share, probe: SharedFsProbe, should_stop: ShouldStop
    ):
        self.slot, self.share, self.should_stop = slot, share, should_stop
        self.events: list[RunEvent] = []
        """Events that were not yielded yet."""
        self.tasks: dict[Any, Task] = {}
        """Tasks by Ray's reference."""
        self.num_lost: Counter[Key] = Counter()
        self.numbers = count(1)
        train_group.patience_seconds = PATIENCE_SECONDS
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        actor: Any = ray.remote(RunActor)
        self.actor = actor.options(num_cpus=0, max_restarts=0, scheduling_strategy=here).remote(
            train_group.runs_root, train_group.owner
        )
        self.trainer = ray.put(train_group)
        self.probe, self.runs_root = probe, train_group.runs_root
        self.train = as_task(train_on_node, uses_gpu=share.num_gpus > 0)

    def submit(self, group: Group) -> None:
        """Submit a group as a task."""
        task = Task(f"task-{next(self.numbers)}", list(group))
        spec = TaskSpec(self.actor, task.name, self.trainer, self.probe, self.runs_root, versions())
        in_turn = self.slot.num_slices
        gpus = round(self.share.num_gpus * min(in_turn, len(task.left)) / in_turn, SHARE_DIGITS)
        options = {"num_cpus": self.share.num_cpus, "num_gpus": gpus, "name": f"cifar-ablate {task.left[0].study}"}
        self.tasks[self.train.options(**options).remote(spec, task.left, self.slot)] = task

    def hear(self) -> None:
        """Collect the events of tasks, and tell the tasks what must stop."""
        keys = [run.key for task in self.tasks.values() for run in task.left]
        stops = frozenset(key for key in (None, *keys) if self.should_stop(key))
        by_name = {task.name: task for task in self.tasks.values()}
        for name, told in ray.get(self.actor.exchange.remote(stops)):
            if name in by_name:  # others were given up, with their runs
                self._take(by_name[name], told)

    def _take(self, task: Task, told: RunEvent | Placed) -> None:
        if isinstance(told, Placed):
            task.node = told.node
            return
        key, event = told
        if isinstance(event, Started) and key is not None:
            task.under_way.add(key)
        if isinstance(event, Ended) and key is not None:
            task.under_way.discard(key)
            task.left = [run for run in task.left if run.key != key]
        self.events.append(told)

    def drain(self) -> RunEvents:
        """The events since the last call."""
        while self.events:
            yield self.events.pop(0)

    def cancel_waiting(self) -> None:
        """Cancel the tasks that no node has started."""
        for reference, task in self.tasks.items():
            if not task.node:
                ray.cancel(reference)

    def ended(self) -> list[Any]:
        """References of the tasks that ended; their last events are collected."""
        if not self.tasks:
            return []
        ended, _ = ray.wait(list(self.tasks), num_returns=len(self.tasks), timeout=0)
        if ended:
            self.hear()
        return list(ended)

    def settle(self, ended: Sequence[Any]) -> list[Group]:
        """Remove ended tasks; return the groups that lost tasks have left to do."""
        rest: list[Group] = []
        for reference in ended:
            task = self.tasks.pop(reference)
            ray.get(self.actor.take_back.remote(task.name))
            rest += self._end(reference, task)
        return rest

    def dismiss(self) -> None:
        """There is nothing left to do; if an error ends the command, the runs under way are kept too."""
        with suppress(RayError):
            if self.tasks:
                ray.get(self.actor.exchange.remote(frozenset([None])), timeout=GRACE_SECONDS)
                ray.wait(list(self.tasks), num_returns=len(self.tasks), timeout=GRACE_SECONDS)
            ray.kill(self.actor)

    def _end(self, reference: Any, task: Task) -> list[Group]:
        try:
            if why := ray.get(reference):
                raise DeviceError(f"{why}; take that node out of the cluster, or put it right")
        except TaskCancelledError:
            for run in (run for run in task.left if run.key in task.under_way):  # it had just begun
                self.events.append((run.key, Ended("stopped")))
            return []
        except RayTaskError as error:
            if isinstance(error.cause, AblateError):
                raise error.cause from None
            said = str(error.cause or error).strip().rsplit("\n", 1)[-1][:300]
            where = f"node {task.node}" if task.node else "a node"
            raise DeviceError(f"{where} cannot train ({said}); its logs are in /tmp/ray/session_latest/logs") from None
        except RayError as error:
            return self._lost(task, error)
        return self._wanted(task.left)

    def _lost(self, task: Task, error: RayError) -> list[Group]:
        """A process died: its runs go on elsewhere, except those that were lost too often."""
        lost = [run for run in task.left if run.key in task.under_way] or task.left[:1]
        why = "memory ran out there" if isinstance(error, OutOfMemoryError) else "its process or its node is gone"
        where = f"node {task.node}" if task.node else "a node"
        if self.should_stop(None):
            for run in lost if task.node else ():
                self.events.append((run.key, Ended("stopped", f"was lost on {where}: {why}")))
            return []
        for run in lost:
            self.num_lost[run.key] += 1
        given_up = [run for run in lost if self.num_lost[run.key] >= MAX_LOST]
        for run in given_up:
            self.events.append((run.key, Lost(f"was lost {MAX_LOST} times; the last time, on {where}, {why}")))
        rest = self._wanted([run for run in task.left if run not in given_up])
        if rest and any(self.num_lost[run.key] > 1 for run in lost):  # which run is at fault shows when each is alone
            rest = [[run] for run in rest[0]]
        names = ", ".join(run.name for run in lost if run not in given_up)
        if names:
            text = f"{names}: lost on {where} ({why}); begun again from the last checkpoint"
            self.events.append((None, Noted(text)))
        return rest

    def _wanted(self, runs: Sequence[PlannedRun]) -> list[Group]:
        """The runs that must not stop, as a group: no other seed of a pruned trial starts."""
        left = [run for run in runs if not self.should_stop(run.key)]
        return [left] if left else []


def as_task(function: Callable[..., Any], *, uses_gpu: bool) -> Any:
    """Ray's remote function. A GPU task gets a fresh process: torch stays on the first GPU that a process sees."""
    return ray.remote(max_retries=0, max_calls=1 if uses_gpu else 0)(function)


def train_on_cluster(
    groups: Iterable[Group],
    train_group: GroupTrainer,
    slots: Sequence[Slot],
    share: Share,
    should_stop: ShouldStop,
    *,
    is_fixed: bool,
) -> RunEvents:
    """Train all groups, as many at a time as there are slots; unless ``is_fixed``, as the cluster has room for."""
    pending, at_a_time, had_room, counted = PendingGroups(groups), len(slots), True, time.monotonic()
    with _probe_file(train_group.runs_root) as probe:
        dispatch: Dispatch | None = None
        try:
            dispatch = Dispatch(train_group, slots[0], share, probe, should_stop)
            while dispatch.tasks or pending.may_have_more:
                if should_stop(None):
                    pending.clear()
                    dispatch.cancel_waiting()
                if time.monotonic() - counted > COUNT_SECONDS:
                    room, counted = capacity(share), time.monotonic()
                    if had_room and not room:
                        yield None, Noted("no node of the cluster has room for a run; it goes on when there is one")
                    had_room = bool(room)
                    at_a_time = at_a_time if is_fixed else max(1, room)  # a waiting task lets a cluster grow
                while len(dispatch.tasks) < at_a_time and (group := pending.take()):
                    dispatch.submit(group)
                dispatch.hear()
                yield from dispatch.drain()
                ended = dispatch.ended()
                yield from dispatch.drain()  # what an event decides, such as a pruned trial, counts below
                pending.give_back(dispatch.settle(ended))
                yield from dispatch.drain()
                if dispatch.tasks:
                    ray.wait(list(dispatch.tasks), timeout=POLL_SECONDS)
        except RayError as error:
            first = str(error).strip().split("\n", 1)[0][:200]
            raise DeviceError(f"Ray cannot go on ({first}); the same command again does what is left") from None
        finally:
            if dispatch is not None:
                dispatch.dismiss()


@contextmanager
def _probe_file(runs_root: Path) -> Iterator[SharedFsProbe]:
    """A file by which nodes recognise the folder of runs, for the block; removes those of killed commands."""
    word, place = uuid.uuid4().hex, runs_root.parent
    path = place / f"{PROBE}{word}"
    with lock(path):
        try:
            for other in place.glob(f"{PROBE}*"):
                if other != path and holder(other) is None:
                    other.unlink(missing_ok=True)
            if path.read_text(encoding="ascii") != word:
                path.write_text(word, encoding="ascii")
            with path.open("rb") as file:  # so that other machines see it on a network file system
                os.fsync(file.fileno())
        except OSError as error:
            raise not_written(path, error) from None
        try:
            yield SharedFsProbe(path, word)
        finally:
            path.unlink(missing_ok=True)
