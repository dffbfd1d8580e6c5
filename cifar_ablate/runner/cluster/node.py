"""The node's side of a cluster: one task trains one group of runs."""

from __future__ import annotations

import os
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import ray
import torch
from ray.exceptions import ActorUnavailableError, RayError, RayTaskError

from cifar_ablate import __version__
from cifar_ablate.device import Device, Slot, find_device
from cifar_ablate.errors import AblateError, DeviceError, OutputError
from cifar_ablate.plan import TRAINER_VERSION, PlannedRun
from cifar_ablate.process import remove_temporary_folders, temporary_folder
from cifar_ablate.record.folder import RunFolder
from cifar_ablate.record.types import Key
from cifar_ablate.runner.cluster.actor import Lent, Placed
from cifar_ablate.runner.events import Ended, RunEvent
from cifar_ablate.runner.train_group import WAIT_SECONDS, GroupTrainer
from cifar_ablate.training.events import Stepped

POLL_SECONDS = 0.3
"""Interval at which a task asks what must stop."""
CUT_OFF_SECONDS = 60.0
"""A command that cannot be reached for this long is taken for dead."""
LAST = ("checkpoint.safetensors", "result.json")
"""Files that are sent last: a checkpoint needs the history, a result needs everything."""


@dataclass(frozen=True)
class NodeInfo:
    """A node's description."""

    host: str
    device: Device
    versions: Mapping[str, str]
    instructions: str
    """Vector instructions that torch uses; others add up sums in another order."""


@dataclass(frozen=True)
class SharedFsProbe:
    """A file that the command put beside its run folders: a node that sees it shares the folders."""

    path: Path
    word: str

    def is_seen(self) -> bool:
        try:
            return self.path.read_text(encoding="ascii") == self.word
        except OSError:
            return False


@dataclass(frozen=True)
class TaskSpec:
    """What a task needs besides its runs."""

    actor: Any
    """The command's RunActor."""
    name: str
    """Name of the task."""
    trainer: Any
    """Reference to the GroupTrainer, with the data."""
    probe: SharedFsProbe
    runs_root: Path
    """The command's run folders."""
    versions: Mapping[str, str]


def versions() -> dict[str, str]:
    """Versions that must be equal on all nodes, because results depend on them."""
    return {"cifar-ablate": __version__, "trainer": str(TRAINER_VERSION), "torch": str(torch.__version__)}


def describe_node(kind: str) -> NodeInfo | str:
    """This node's description; if it lacks a device of that kind, why."""
    try:
        instructions = torch.backends.cpu.get_cpu_capability()
        return NodeInfo(os.uname().nodename, find_device(kind), versions(), instructions)
    except AblateError as error:
        return f"{os.uname().nodename}: {error}"


def differing(there: Mapping[str, str], here: Mapping[str, str], host: str) -> str:
    """Why a node cannot train for this command; empty if it can."""
    others = [f"{name} {there.get(name)}, here {here[name]}" for name in here if there.get(name) != here[name]]
    return f"node {host} has {'; '.join(others)}: install the same on both" if others else ""


def train_on_node(task: TaskSpec, group: Sequence[PlannedRun], slot: Slot) -> str:
    """Train a group and send its events to the command; return why it could not start, or an empty string."""
    warnings.filterwarnings("ignore", message="The given NumPy array is not writable")  # Ray's; it is only read
    host = os.uname().nodename
    if why := differing(versions(), task.versions, host):
        return why
    try:
        here = replace(slot, device=find_device(slot.device.kind))
    except DeviceError as error:
        return f"node {host}: {error}"
    trainer = _trainer(task.trainer)
    with _connected(task) as command:
        command.tell(Placed(host))
        if task.probe.is_seen():
            trainer.runs_root = task.runs_root
            for event in trainer(group, here, command.should_stop):
                command.tell(event)
        else:
            with temporary_folder(prefix="cifar-ablate-node-") as scratch:
                trainer.runs_root = scratch
                sync = FolderSync(command, scratch, group)
                if lent := sync.borrow(waits=not trainer.keep_networks):
                    for event in trainer(lent, here, sync.should_stop):
                        sync.tell(event)
        command.flush()
    return ""


_trainers: dict[str, GroupTrainer] = {}
"""The trainer that this process used last: it keeps networks and data on the device."""


def _trainer(reference: Any) -> GroupTrainer:
    if reference.hex() not in _trainers:
        _trainers.clear()
        _trainers[reference.hex()] = ray.get(reference)
    return _trainers[reference.hex()]


class CommandLink:
    """The command, seen from a task."""

    def __init__(self, actor: Any, task: str) -> None:
        self.actor, self.task = actor, task
        self.stops: frozenset[Key | None] = frozenset()
        self.is_over = threading.Event()

    def tell(self, event: RunEvent | Placed) -> None:
        self.actor.tell.remote(self.task, event)

    def should_stop(self, key: Key | None = None) -> bool:
        return None in self.stops or key in self.stops

    def flush(self) -> None:
        """Wait until everything has arrived."""
        call_actor(self.actor.wanted_stops.remote)  # an actor answers in the order of the calls

    def poll_stops(self) -> None:
        """Keep asking what must stop; a task whose command is gone ends."""
        while not self.is_over.wait(POLL_SECONDS):
            self.stops = call_actor(self.actor.wanted_stops.remote, self.is_over.is_set)


def call_actor(ask: Callable[[], Any], is_needless: Callable[[], bool] = lambda: False) -> Any:
    """The answer of the actor. If it cannot be reached, this process ends, and the task starts again elsewhere.

    Raising would not do: the training would take the error for the run's own failure.
    """
    until = time.monotonic() + CUT_OFF_SECONDS
    while True:
        try:
            return ray.get(ask())
        except RayTaskError:  # it was reached, and failed
            raise
        except RayError as error:
            if isinstance(error, ActorUnavailableError) and time.monotonic() < until:  # a short network failure
                time.sleep(POLL_SECONDS)
            elif is_needless():
                return frozenset()
            else:
                remove_temporary_folders()
                os._exit(1)


@contextmanager
def _connected(task: TaskSpec) -> Iterator[CommandLink]:
    command = CommandLink(task.actor, task.name)
    command.stops = call_actor(task.actor.wanted_stops.remote)
    threading.Thread(target=command.poll_stops, daemon=True).start()
    try:
        yield command
    finally:
        command.is_over.set()


class FolderSync:
    """Sends the files of runs to a command whose run folders this node does not see, before the events about them."""

    def __init__(self, command: CommandLink, scratch: Path, group: Sequence[PlannedRun]) -> None:
        self.command, self.scratch, self.group = command, scratch, group
        self.folders = {run.key: RunFolder(scratch / run.fingerprint) for run in group}
        self.sent: dict[str, dict[str, tuple[int, int]]] = {}
        """Size and time of each file that the command has, by fingerprint."""
        self.users: Counter[str] = Counter()
        """Number of runs that have not ended, by fingerprint: trials that take turns may be twins."""
        self.trouble = ""
        """Why the command cannot keep the files; then every run stops."""

    def borrow(self, *, waits: bool) -> list[PlannedRun]:
        """Fetch the folders of the runs; return the runs that no other process trains.

        ``waits``: a trial waits for its twin elsewhere and then takes its result.
        """
        for fingerprint in sorted({run.fingerprint for run in self.group}):  # one order: no two wait for each other
            runs = [run for run in self.group if run.fingerprint == fingerprint]
            lent = self._lent(runs, waits=waits)
            if lent is None:
                continue
            if lent.held_by:
                for run in runs:
                    self.command.tell((run.key, Ended("elsewhere", f"is being trained by {lent.held_by}")))
                continue
            folder = self.folders[runs[0].key]
            folder.path.mkdir(parents=True)
            for name, content in lent.files.items():
                (folder.path / Path(name).name).write_bytes(content)
            self.sent[fingerprint] = _files(folder)
            self.users[fingerprint] = len(runs)
        return [run for run in self.group if self.users[run.fingerprint]]

    def _lent(self, twins: Sequence[PlannedRun], *, waits: bool) -> Lent | None:
        """The folder of runs with one fingerprint, or who holds it; None if all of them must stop."""
        while not all(self.should_stop(run.key) for run in twins):
            lend = partial(self.command.actor.lend.remote, self.command.task, twins[0].fingerprint)
            lent: Lent = call_actor(lend)
            if not (lent.held_by and waits):
                return lent
            time.sleep(WAIT_SECONDS)
        return None

    def tell(self, told: RunEvent) -> None:
        """Send the files that are new, then the event."""
        key, event = told
        if key is None or isinstance(event, Stepped):
            self.command.tell(told)
            return
        folder = self.folders[key]
        try:
            self._send(folder)
        except OutputError as error:
            self.trouble = str(error)
        if isinstance(event, Ended):
            event = Ended("stopped", self.trouble, halts=True) if self.trouble else event
            self.users[folder.fingerprint] -= 1
            if not self.users[folder.fingerprint]:
                call_actor(partial(self.command.actor.take_back.remote, self.command.task, folder.fingerprint))
        elif self.trouble:  # the command lacks the files that the event is about
            return
        self.command.tell((key, event))

    def should_stop(self, key: Key | None = None) -> bool:
        return bool(self.trouble) or self.command.should_stop(key)

    def _send(self, folder: RunFolder) -> None:
        before, now = self.sent[folder.fingerprint], _files(folder)
        new = sorted((name for name in now if before.get(name) != now[name]), key=lambda name: (name in LAST, name))
        content = {name: (folder.path / name).read_bytes() for name in new}
        removed = [name for name in before if name not in now]
        if new or removed:
            actor, task = self.command.actor, self.command.task
            error = call_actor(partial(actor.keep.remote, task, folder.fingerprint, content, removed))
            if error is not None:
                raise error
        self.sent[folder.fingerprint] = now


def _files(folder: RunFolder) -> dict[str, tuple[int, int]]:
    """Size and time of each file of a run; the command keeps the checkpoint before the last one."""
    left_out = {folder.checkpoint_before, folder.lock}
    paths = (path for path in folder.path.iterdir() if path not in left_out and not path.name.startswith("."))
    return {path.name: (path.stat().st_size, path.stat().st_mtime_ns) for path in paths if path.is_file()}
