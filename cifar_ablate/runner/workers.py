"""Worker processes: each trains one group of runs at a time; one that dies loses one run and nothing else.

The command and each worker talk over their own pipe. A shared queue would stay locked for ever if a worker was killed
while it held it.
"""

from __future__ import annotations

import multiprocessing
import os
import queue
import signal
import threading
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from operator import length_hint
from typing import Any

from cifar_ablate.device import Slot
from cifar_ablate.errors import DeviceError
from cifar_ablate.plan import PlannedRun
from cifar_ablate.process import block_signals
from cifar_ablate.record.types import Key
from cifar_ablate.runner.events import Ended, Group, Lost, Noted, RunEvent, RunEvents, ShouldStop, TrainGroup
from cifar_ablate.runner.executor import PendingGroups
from cifar_ablate.training.events import Started

POLL_SECONDS = 0.2
MAX_ATTEMPTS = 3
"""Maximum number of workers in a row that die in one slot before they train; then the slot is given up."""
GONE = (EOFError, OSError)
"""What a pipe raises when the other end is dead."""


def train_in_workers(
    groups: Iterable[Group], train_group: TrainGroup, slots: Sequence[Slot], should_stop: ShouldStop
) -> RunEvents:
    """Train all groups with one worker process for each slot; raises DeviceError if workers cannot live."""
    pending = PendingGroups(groups)
    workers = [_Worker(slot, train_group) for slot in slots[: length_hint(groups, len(slots))]]
    try:
        while workers and (pending.may_have_more or any(worker.left for worker in workers)):
            if should_stop(None):
                pending.clear()
            ready = wait([worker.connection for worker in workers], timeout=POLL_SECONDS)
            for worker in list(workers):
                if worker.connection in ready:
                    try:
                        event = worker.receive()
                    except GONE:
                        lost, rest = worker.bury()
                        yield from lost
                        pending.give_back(rest)
                        workers.remove(worker)
                        if pending.may_have_more:
                            yield from _replace(worker, workers)
                    else:
                        if event is not None:
                            yield event
                elif worker.is_idle and (group := pending.take()):
                    worker.give(group)
                worker.pass_on_stops(should_stop)
    finally:
        for worker in workers:
            worker.dismiss()
        for worker in workers:
            worker.await_end()


def _replace(dead: _Worker, workers: list[_Worker]) -> RunEvents:
    """Start a worker in the place of a dead one, unless too many have died there: then the others go on alone."""
    if dead.has_trained or dead.attempt < MAX_ATTEMPTS:
        workers.append(_Worker(dead.slot, dead.train_group, 1 if dead.has_trained else dead.attempt + 1))
    elif workers:
        text = f"one worker less: {MAX_ATTEMPTS} in its place ended before they trained; the last {dead.end()}"
        yield None, Noted(text)
    else:
        raise DeviceError(f"worker processes end before they train: one {dead.end()}; try --jobs 1")


@dataclass(eq=False)
class _Worker:
    """One worker process, seen from the command."""

    slot: Slot
    train_group: TrainGroup
    attempt: int = 1
    """Number of workers started in this slot since one of them trained."""
    left: list[PlannedRun] = field(default_factory=list, init=False)
    """Runs of its group that have not ended, in order."""
    under_way: set[Key] = field(default_factory=set, init=False)
    """Runs that it is training: several if they take turns."""
    is_ready: bool = field(default=False, init=False)
    """It has the data."""
    is_idle: bool = field(default=False, init=False)
    has_trained: bool = field(default=False, init=False)
    stops_sent: set[Key | None] = field(default_factory=set, init=False)

    def __post_init__(self) -> None:
        context = multiprocessing.get_context("spawn")  # a forked process cannot use CUDA
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(theirs, self.slot), daemon=True)
        # Ctrl-C and a shutdown reach every process, but the command alone decides what follows
        resource_tracker.ensure_running()  # starting it lets signals through again
        with block_signals():
            self.process.start()
        theirs.close()  # or its death would not be seen
        # sending the data takes a while; other workers need not wait for it
        threading.Thread(target=self._send_data, daemon=True).start()

    def receive(self) -> RunEvent | None:
        """The next event of the worker; None if it is idle. Raises EOFError or OSError if it is dead."""
        told: RunEvent | None = self.connection.recv()
        if told is None:
            self.is_ready, self.is_idle, self.left = True, True, []
            return None
        key, event = told
        self.has_trained = True
        if isinstance(event, Started) and key is not None:
            self.under_way.add(key)
        if isinstance(event, Ended) and key is not None:
            self.under_way.discard(key)
            self.left = [run for run in self.left if run.key != key]
        return told

    def give(self, group: Group) -> None:
        self.is_idle, self.left, self.stops_sent = False, list(group), set()
        self._send(list(group))

    def pass_on_stops(self, should_stop: ShouldStop) -> None:
        for key in (None, *(run.key for run in self.left)) if self.left else ():
            if key not in self.stops_sent and should_stop(key):
                self.stops_sent.add(key)
                self._send(_Stop(key))

    def bury(self) -> tuple[list[RunEvent], list[Group]]:
        """The worker is dead: its run is lost, and the rest of its group is still to be trained."""
        self.process.join()
        if not self.left:
            return [], []
        lost = [run for run in self.left if run.key in self.under_way] or self.left[:1]
        rest = [run for run in self.left if run not in lost]
        return [(run.key, Lost(f"its worker process {self.end()}")) for run in lost], [rest] if rest else []

    def end(self) -> str:
        """How the process ended, in words."""
        code = self.process.exitcode
        if code is not None and code < 0:
            name = signal.Signals(-code).name
            why = ", most often because memory ran out: give fewer --jobs or a smaller batch_size" if code == -9 else ""
            return f"was killed by {name}{why}"
        return f"ended with exit code {code}"

    def dismiss(self) -> None:
        """There is nothing left to do."""
        if self.is_ready:
            self._send(_Stop(None))  # if an error ends the command, the run under way is kept too
            self._send(None)
        else:  # another thread is sending it the data
            self.process.kill()

    def await_end(self) -> None:
        self.process.join(5)
        if self.process.is_alive():
            self.process.kill()

    def _send_data(self) -> None:
        try:
            self._send(self.train_group)
        except Exception:  # not picklable, or out of memory: a worker without data would wait for ever
            self.process.kill()

    def _send(self, what: Any) -> None:
        with suppress(*GONE):  # ``receive`` notices a dead worker
            self.connection.send(what)


@dataclass(frozen=True)
class _Stop:
    """Sent to a worker: stop this run, or (None) everything."""

    key: Key | None


def _work(connection: Connection, slot: Slot) -> None:
    """What a worker process does: take a group, train it, ask for the next."""
    try:
        train_group: TrainGroup = connection.recv()
    except GONE:
        os._exit(1)
    inbox: queue.SimpleQueue[Group | None] = queue.SimpleQueue()
    stops: set[Key | None] = set()
    threading.Thread(target=_listen, args=(connection, inbox, stops), daemon=True).start()
    _tell(connection, None)
    while (group := inbox.get()) is not None:
        for event in train_group(group, slot, lambda key: None in stops or key in stops):
            _tell(connection, event)
        _tell(connection, None)
    os._exit(0)  # shutting down an interpreter with torch in it takes 1.3 s


def _listen(connection: Connection, inbox: queue.SimpleQueue[Group | None], stops: set[Key | None]) -> None:
    while True:
        try:
            what = connection.recv()
        except GONE:  # the command is dead; the next one resumes from what is in the folder
            os._exit(1)
        if isinstance(what, _Stop):
            stops.add(what.key)
        else:
            inbox.put(what)


def _tell(connection: Connection, event: RunEvent | None) -> None:
    try:
        connection.send(event)
    except GONE:
        os._exit(1)
