"""Worker processes: each trains one group of runs at a time; one that dies takes one run with it, and nothing else.

The command and each worker talk over a pipe of their own. A queue shared by all would be left locked for ever by a
worker that is killed while it holds it.
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

from cifar_ablate.device import Place
from cifar_ablate.errors import DeviceError
from cifar_ablate.plan import PlannedRun
from cifar_ablate.records import Key
from cifar_ablate.runner.messages import Channel, Ended, Group, Lost, Message, Noted, Started, TrainGroup
from cifar_ablate.runner.pending import Pending
from cifar_ablate.signals import held_back

POLL_SECONDS = 0.2
ATTEMPTS = 3
"""So many workers that die at one place before they train anything: it is given up."""
GONE = (EOFError, OSError)
"""What a pipe raises when the other end is dead."""


def train_in_workers(
    groups: Iterable[Group], train_group: TrainGroup, places: Sequence[Place], channel: Channel
) -> None:
    """Train all groups with one worker process for each place; raises DeviceError where workers cannot live."""
    pending = Pending(groups)
    crew = [_Worker(place, train_group) for place in places[: length_hint(groups, len(places))]]
    try:
        while crew and (pending.may_have_more or any(worker.left for worker in crew)):
            if channel.should_stop():
                pending.clear()
            ready = wait([worker.connection for worker in crew], timeout=POLL_SECONDS)
            for worker in list(crew):
                if worker.connection in ready and not worker.hear(channel):
                    pending.give_back(worker.bury(channel))
                    crew.remove(worker)
                    crew += _in_place_of(worker, channel) if pending.may_have_more else []
                    if pending.may_have_more and not crew:
                        raise DeviceError(f"worker processes end before they train: one {worker.end()}; try --jobs 1")
                elif worker.is_idle and (group := pending.take()):
                    worker.give(group)
                worker.pass_on_stops(channel)
    finally:
        for worker in crew:
            worker.dismiss()
        for worker in crew:
            worker.await_end()


def _in_place_of(worker: _Worker, channel: Channel) -> list[_Worker]:
    """A new worker where one has died, unless that has come to nothing too often there: then the others go on alone."""
    if worker.has_trained:
        return [_Worker(worker.place, worker.train_group)]
    if worker.attempt < ATTEMPTS:
        return [_Worker(worker.place, worker.train_group, worker.attempt + 1)]
    channel.tell(Noted(f"one worker less: {ATTEMPTS} in its place ended before they trained; the last {worker.end()}"))
    return []


@dataclass(eq=False)
class _Worker:
    """One worker process, seen from the command."""

    place: Place
    train_group: TrainGroup
    attempt: int = 1
    """So many workers were started at this place since one of them has trained."""
    left: list[PlannedRun] = field(default_factory=list, init=False)
    """Runs of its group that have not ended, in their order."""
    under_way: set[Key] = field(default_factory=set, init=False)
    """Those that it is at: several where they take turns."""
    is_ready: bool = field(default=False, init=False)
    """It has the data."""
    is_idle: bool = field(default=False, init=False)
    has_trained: bool = field(default=False, init=False)
    stops_told: set[Key | None] = field(default_factory=set, init=False)

    def __post_init__(self) -> None:
        context = multiprocessing.get_context("spawn")  # a forked process cannot use CUDA
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(theirs, self.place), daemon=True)
        # a terminal's Ctrl-C and a machine's shutdown reach every process, but the command alone decides what follows
        resource_tracker.ensure_running()  # starting it lets signals through again
        with held_back():
            self.process.start()
        theirs.close()  # or its death would not be seen
        # the data take a while, which other workers need not wait for
        threading.Thread(target=self._send_data, daemon=True).start()

    def hear(self, channel: Channel) -> bool:
        """Pass on one message of the worker's; False: it is dead."""
        try:
            message = self.connection.recv()
        except GONE:
            return False
        if message is None:
            self.is_ready, self.is_idle, self.left = True, True, []
            return True
        self.has_trained = True
        if isinstance(message, Started):
            self.under_way.add(message.key)
        if isinstance(message, Ended):
            self.under_way.discard(message.key)
            self.left = [run for run in self.left if run.key != message.key]
        channel.tell(message)
        return True

    def give(self, group: Group) -> None:
        self.is_idle, self.left, self.stops_told = False, list(group), set()
        self._send(list(group))

    def pass_on_stops(self, channel: Channel) -> None:
        for key in (None, *(run.key for run in self.left)) if self.left else ():
            if key not in self.stops_told and channel.should_stop(key):
                self.stops_told.add(key)
                self._send(_Stop(key))

    def bury(self, channel: Channel) -> list[Group]:
        """The worker is dead: its run is lost, and the rest of its group is still to be trained."""
        self.process.join()
        if not self.left:
            return []
        lost = [run for run in self.left if run.key in self.under_way] or self.left[:1]
        for run in lost:
            channel.tell(Lost(run.key, f"its worker process {self.end()}"))
        rest = [run for run in self.left if run not in lost]
        return [rest] if rest else []

    def end(self) -> str:
        """How the process ended, in words."""
        code = self.process.exitcode
        if code is not None and code < 0:
            name = signal.Signals(-code).name
            why = ", most often because memory ran out: give fewer --jobs or a smaller batch_size" if code == -9 else ""
            return f"was killed by {name}{why}"
        return f"ended with exit code {code}"

    def dismiss(self) -> None:
        """Nothing is left for it to do."""
        if self.is_ready:
            self._send(_Stop(None))  # where an error ends the command, what it is at is kept, too
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
        except Exception:  # it cannot be pickled, or memory is short: a worker without data would wait for ever
            self.process.kill()

    def _send(self, what: Any) -> None:
        with suppress(*GONE):  # a dead worker is noticed where it is listened to
            self.connection.send(what)


@dataclass(frozen=True)
class _Stop:
    """Sent to a worker: stop this run, or (None) everything."""

    key: Key | None


def _work(connection: Connection, place: Place) -> None:
    """What a worker process does: take a group, train it, ask for the next."""
    try:
        train_group = connection.recv()
    except GONE:
        os._exit(1)
    inbox: queue.SimpleQueue[Group | None] = queue.SimpleQueue()
    there = _Command(connection)
    threading.Thread(target=_listen, args=(connection, inbox, there), daemon=True).start()
    there.send(None)
    while (group := inbox.get()) is not None:
        train_group(group, place, there)
        there.send(None)
    os._exit(0)  # taking down an interpreter with torch in it takes 1.3 s


def _listen(connection: Connection, inbox: queue.SimpleQueue[Group | None], there: _Command) -> None:
    while True:
        try:
            what = connection.recv()
        except GONE:  # the command is dead: what is in the folder is taken up by the next one
            os._exit(1)
        if isinstance(what, _Stop):
            there.stops.add(what.key)
        else:
            inbox.put(what)


class _Command(Channel):
    """The command, seen from a worker."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.stops: set[Key | None] = set()

    def tell(self, message: Message) -> None:
        self.send(message)

    def should_stop(self, key: Key | None = None) -> bool:
        return None in self.stops or key in self.stops

    def send(self, what: Any) -> None:
        try:
            self.connection.send(what)
        except GONE:
            os._exit(1)
