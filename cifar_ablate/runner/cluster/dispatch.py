"""The command's side of a cluster: groups become tasks, lost tasks are begun again, stops are passed on."""

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

from cifar_ablate.device import Place
from cifar_ablate.errors import AblateError, DeviceError, not_written
from cifar_ablate.locks import holder, lock
from cifar_ablate.plan import PlannedRun
from cifar_ablate.records import Key
from cifar_ablate.runner.cluster.connection import SHARE_DIGITS, Share, capacity
from cifar_ablate.runner.cluster.mailbox import Mailbox, Placed
from cifar_ablate.runner.cluster.node import Order, Sighting, train_on_node, versions
from cifar_ablate.runner.messages import Channel, Ended, Group, Lost, Message, Noted, Started
from cifar_ablate.runner.pending import Pending
from cifar_ablate.runner.trainer import GroupTrainer

POLL_SECONDS = 0.2
COUNT_SECONDS = 5.0
"""Between two looks at how much room the cluster has: nodes come and go."""
ATTEMPTS = 4
"""So often a run may be under way when its process is lost: then it is the run that ends processes, not the cluster."""
GRACE_SECONDS = 10.0
"""Where an error ends the command, tasks have so long to write their checkpoints."""
SIGHTING = ".sighting-"
"""How files are called that nodes know the folder by."""
PATIENCE_SECONDS = 60.0
"""A folder that is locked in this command's own name is one of a process that is about to end: it is waited for."""


@dataclass(eq=False)
class Task:
    """One group at a time and place that Ray chooses."""

    name: str
    left: list[PlannedRun]
    """Runs that have not ended, in their order."""
    under_way: set[Key] = field(default_factory=set)
    node: str = ""
    """Where it runs; empty until it does."""


class Dispatch:
    """The tasks of one command."""

    def __init__(self, train_group: GroupTrainer, place: Place, share: Share, sighting: Sighting, channel: Channel):
        self.place, self.share, self.channel = place, share, channel
        self.tasks: dict[Any, Task] = {}
        """By Ray's reference."""
        self.num_lost: Counter[Key] = Counter()
        self.numbers = count(1)
        train_group.patience_seconds = PATIENCE_SECONDS
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        actor: Any = ray.remote(Mailbox)
        self.box = actor.options(num_cpus=0, max_restarts=0, scheduling_strategy=here).remote(
            train_group.runs_root, train_group.owner
        )
        self.trainer = ray.put(train_group)
        self.sighting, self.runs_root = sighting, train_group.runs_root
        self.train = as_task(train_on_node, uses_gpu=share.num_gpus > 0)

    def submit(self, group: Group) -> None:
        """Let Ray find a place for a group."""
        task = Task(f"task-{next(self.numbers)}", list(group))
        order = Order(self.box, task.name, self.trainer, self.sighting, self.runs_root, versions())
        in_turn = self.place.side_by_side
        gpus = round(self.share.num_gpus * min(in_turn, len(task.left)) / in_turn, SHARE_DIGITS)
        options = {"num_cpus": self.share.num_cpus, "num_gpus": gpus, "name": f"cifar-ablate {task.left[0].study}"}
        self.tasks[self.train.options(**options).remote(order, task.left, self.place)] = task

    def hear(self) -> None:
        """Pass on what tasks have told, and tell them what shall stop."""
        keys = [run.key for task in self.tasks.values() for run in task.left]
        stops = frozenset(key for key in (None, *keys) if self.channel.should_stop(key))
        by_name = {task.name: task for task in self.tasks.values()}
        for name, message in ray.get(self.box.exchange.remote(stops)):
            if name in by_name:  # another one was given up, and its runs with it
                self._pass_on(by_name[name], message)

    def _pass_on(self, task: Task, message: Message | Placed) -> None:
        if isinstance(message, Placed):
            task.node = message.node
            return
        if isinstance(message, Started):
            task.under_way.add(message.key)
        if isinstance(message, Ended):
            task.under_way.discard(message.key)
            task.left = [run for run in task.left if run.key != message.key]
        self.channel.tell(message)

    def cancel_waiting(self) -> None:
        """Tasks that no node has begun shall not begin."""
        for reference, task in self.tasks.items():
            if not task.node:
                ray.cancel(reference)

    def settle(self) -> list[Group]:
        """See which tasks have ended; gives what lost ones have left to do."""
        if not self.tasks:
            return []
        ended, _ = ray.wait(list(self.tasks), num_returns=len(self.tasks), timeout=0)
        if ended:
            self.hear()  # what a task told before its end
        rest: list[Group] = []
        for reference in ended:
            task = self.tasks.pop(reference)
            ray.get(self.box.take_back.remote(task.name))
            rest += self._end(reference, task)
        return rest

    def dismiss(self) -> None:
        """Nothing is left to do; where an error ends the command, what tasks are at is kept, too."""
        with suppress(RayError):
            if self.tasks:
                ray.get(self.box.exchange.remote(frozenset([None])), timeout=GRACE_SECONDS)
                ray.wait(list(self.tasks), num_returns=len(self.tasks), timeout=GRACE_SECONDS)
            ray.kill(self.box)

    def _end(self, reference: Any, task: Task) -> list[Group]:
        try:
            if why := ray.get(reference):
                raise DeviceError(f"{why}; take that node out of the cluster, or put it right")
        except TaskCancelledError:
            for run in (run for run in task.left if run.key in task.under_way):  # it had just begun
                self.channel.tell(Ended(run.key, "stopped"))
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
        """A process is gone: its runs go on elsewhere, but for those that have met with that too often."""
        lost = [run for run in task.left if run.key in task.under_way] or task.left[:1]
        why = "memory ran out there" if isinstance(error, OutOfMemoryError) else "its process or its node is gone"
        where = f"node {task.node}" if task.node else "a node"
        if self.channel.should_stop():
            for run in lost if task.node else ():
                self.channel.tell(Ended(run.key, "stopped", f"was lost on {where}: {why}"))
            return []
        for run in lost:
            self.num_lost[run.key] += 1
        given_up = [run for run in lost if self.num_lost[run.key] >= ATTEMPTS]
        for run in given_up:
            self.channel.tell(Lost(run.key, f"was lost {ATTEMPTS} times; the last time, on {where}, {why}"))
        rest = self._wanted([run for run in task.left if run not in given_up])
        if rest and any(self.num_lost[run.key] > 1 for run in lost):  # which of them it is shows when each is alone
            rest = [[run] for run in rest[0]]
        names = ", ".join(run.name for run in lost if run not in given_up)
        if names:
            self.channel.tell(Noted(f"{names}: lost on {where} ({why}); begun again from the last checkpoint"))
        return rest

    def _wanted(self, runs: Sequence[PlannedRun]) -> list[Group]:
        """Those that nobody has stopped meanwhile, as a group: of a pruned trial no other seed is begun."""
        left = [run for run in runs if not self.channel.should_stop(run.key)]
        return [left] if left else []


def as_task(function: Callable[..., Any], *, uses_gpu: bool) -> Any:
    """Ray's remote function. Torch stays on the first GPU that a process has seen, and Ray would give it others."""
    return ray.remote(max_retries=0, max_calls=1 if uses_gpu else 0)(function)


def train_on_cluster(
    groups: Iterable[Group],
    train_group: GroupTrainer,
    places: Sequence[Place],
    share: Share,
    channel: Channel,
    *,
    is_fixed: bool,
) -> None:
    """Train all groups, as many at a time as there are places; unless ``is_fixed``, as the cluster has room for."""
    pending, at_a_time, had_room, counted = Pending(groups), len(places), True, time.monotonic()
    with _sighted(train_group.runs_root) as sighting:
        dispatch: Dispatch | None = None
        try:
            dispatch = Dispatch(train_group, places[0], share, sighting, channel)
            while dispatch.tasks or pending.may_have_more:
                if channel.should_stop():
                    pending.clear()
                    dispatch.cancel_waiting()
                if time.monotonic() - counted > COUNT_SECONDS:
                    room, counted = capacity(share), time.monotonic()
                    if had_room and not room:
                        channel.tell(Noted("no node of the cluster has room for a run; it goes on when there is one"))
                    had_room = bool(room)
                    at_a_time = at_a_time if is_fixed else max(1, room)  # one that waits lets a cluster grow
                while len(dispatch.tasks) < at_a_time and (group := pending.take()):
                    dispatch.submit(group)
                dispatch.hear()
                pending.give_back(dispatch.settle())
                if dispatch.tasks:
                    ray.wait(list(dispatch.tasks), timeout=POLL_SECONDS)
        except RayError as error:
            first = str(error).strip().split("\n", 1)[0][:200]
            raise DeviceError(f"Ray cannot go on ({first}); the same command again does what is left") from None
        finally:
            if dispatch is not None:
                dispatch.dismiss()


@contextmanager
def _sighted(runs_root: Path) -> Iterator[Sighting]:
    """A file that nodes know the folder of runs by, for the block; those of commands that were killed are removed."""
    word, place = uuid.uuid4().hex, runs_root.parent
    path = place / f"{SIGHTING}{word}"
    with lock(path, note=word):
        try:
            for other in place.glob(f"{SIGHTING}*"):
                if other != path and holder(other) is None:
                    other.unlink(missing_ok=True)
            if path.read_text(encoding="ascii") != word:
                path.write_text(word, encoding="ascii")
            with path.open("rb") as file:  # other machines see what a network file system was given
                os.fsync(file.fileno())
        except OSError as error:
            raise not_written(path, error) from None
        try:
            yield Sighting(path, word)
        finally:
            path.unlink(missing_ok=True)
