"""What happens on a node of the cluster: one task trains one group of runs."""

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
from cifar_ablate.device import Device, Place, find_device
from cifar_ablate.errors import AblateError, DeviceError, OutputError
from cifar_ablate.folder import RunFolder
from cifar_ablate.plan import TRAINER_VERSION, PlannedRun
from cifar_ablate.records import Key
from cifar_ablate.runner.cluster.mailbox import Lent, Placed
from cifar_ablate.runner.messages import Channel, Ended, Message, Noted, Stepped
from cifar_ablate.runner.trainer import WAIT_SECONDS, GroupTrainer
from cifar_ablate.temporary import remove_all, temporary_folder

POLL_SECONDS = 0.3
"""Between two questions whether a run shall stop."""
CUT_OFF_SECONDS = 60.0
"""A command that cannot be reached for so long is taken for gone."""
LAST = ("checkpoint.safetensors", "result.json")
"""Files that count on others: a checkpoint on the lines of the history, a result on everything."""


@dataclass(frozen=True)
class NodeInfo:
    """What a node says about itself."""

    host: str
    device: Device
    versions: Mapping[str, str]
    instructions: str
    """Of its processor, as torch uses them: sums are added in another order with others."""


@dataclass(frozen=True)
class Sighting:
    """A file that the command has put beside its folder of runs: who sees it shares that folder."""

    path: Path
    word: str

    def is_seen(self) -> bool:
        try:
            return self.path.read_text(encoding="ascii") == self.word
        except OSError:
            return False


@dataclass(frozen=True)
class Order:
    """What a task needs to know beside its runs."""

    box: Any
    """The command's mailbox."""
    name: str
    """Of the task."""
    trainer: Any
    """Reference to the GroupTrainer, with the data."""
    sighting: Sighting
    runs_root: Path
    """Where the command has it; of use to who sees it."""
    versions: Mapping[str, str]


def versions() -> dict[str, str]:
    """What has to be equal on all nodes, for results depend on it."""
    return {"cifar-ablate": __version__, "trainer": str(TRAINER_VERSION), "torch": str(torch.__version__)}


def describe_node(kind: str) -> NodeInfo | str:
    """What this node has; where it lacks a device of that kind, why."""
    try:
        instructions = torch.backends.cpu.get_cpu_capability()
        return NodeInfo(os.uname().nodename, find_device(kind), versions(), instructions)
    except AblateError as error:
        return f"{os.uname().nodename}: {error}"


def differing(there: Mapping[str, str], here: Mapping[str, str], host: str) -> str:
    """Why a node cannot train for this command; empty where it can."""
    others = [f"{name} {there.get(name)}, here {here[name]}" for name in here if there.get(name) != here[name]]
    return f"node {host} has {'; '.join(others)}: install the same on both" if others else ""


def train_on_node(order: Order, group: Sequence[PlannedRun], place: Place) -> str:
    """Train a group, and tell the command all of it; gives why it could not even be begun, else nothing."""
    warnings.filterwarnings("ignore", message="The given NumPy array is not writable")  # Ray's; nobody writes into it
    host = os.uname().nodename
    if why := differing(versions(), order.versions, host):
        return why
    try:
        here = replace(place, device=find_device(place.device.kind))
    except DeviceError as error:
        return f"node {host}: {error}"
    trainer = _trainer(order.trainer)
    with _line(order) as line:
        line.tell(Placed(host))
        if order.sighting.is_seen():
            trainer.runs_root = order.runs_root
            trainer(group, here, line)
        else:
            with temporary_folder(prefix="cifar-ablate-node-") as scratch:
                trainer.runs_root = scratch
                mirror = Mirror(line, scratch, group)
                if lent := mirror.borrow(waits=not trainer.keep_networks):
                    trainer(lent, here, mirror)
        line.flush()
    return ""


_trainers: dict[str, GroupTrainer] = {}
"""The one that this process has used last: it keeps networks and data on the device."""


def _trainer(reference: Any) -> GroupTrainer:
    if reference.hex() not in _trainers:
        _trainers.clear()
        _trainers[reference.hex()] = ray.get(reference)
    return _trainers[reference.hex()]


class Line(Channel):
    """The command, seen from a task."""

    def __init__(self, box: Any, task: str) -> None:
        self.box, self.task = box, task
        self.stops: frozenset[Key | None] = frozenset()
        self.is_over = threading.Event()

    def tell(self, message: Message | Placed) -> None:
        self.box.tell.remote(self.task, message)

    def should_stop(self, key: Key | None = None) -> bool:
        return None in self.stops or key in self.stops

    def flush(self) -> None:
        """Wait until all that was told has arrived."""
        _answer(self.box.wanted_stops.remote)  # it answers in the order in which it is called

    def ask(self) -> None:
        """Ask again and again what shall stop; a task whose command is gone ends."""
        while not self.is_over.wait(POLL_SECONDS):
            self.stops = _answer(self.box.wanted_stops.remote, self.is_over.is_set)


def _answer(ask: Callable[[], Any], is_needless: Callable[[], bool] = lambda: False) -> Any:
    """What the mailbox answers. Where it cannot be reached this process ends, and the task is begun again elsewhere.

    No exception tells that: the training would take it for the run's own failure.
    """
    until = time.monotonic() + CUT_OFF_SECONDS
    while True:
        try:
            return ray.get(ask())
        except RayTaskError:  # it was reached, and could not
            raise
        except RayError as error:
            if isinstance(error, ActorUnavailableError) and time.monotonic() < until:  # the network is cut for a moment
                time.sleep(POLL_SECONDS)
            elif is_needless():
                return frozenset()
            else:
                remove_all()
                os._exit(1)


@contextmanager
def _line(order: Order) -> Iterator[Line]:
    line = Line(order.box, order.name)
    line.stops = _answer(order.box.wanted_stops.remote)
    threading.Thread(target=line.ask, daemon=True).start()
    try:
        yield line
    finally:
        line.is_over.set()


class Mirror(Channel):
    """The command, seen from a task whose node does not see the run folders: files go there before words do."""

    def __init__(self, line: Line, scratch: Path, group: Sequence[PlannedRun]) -> None:
        self.line, self.scratch, self.group = line, scratch, group
        self.folders = {run.key: RunFolder(scratch / run.fingerprint) for run in group}
        self.sent: dict[str, dict[str, tuple[int, int]]] = {}
        """Size and time of each file as the command has it, by fingerprint."""
        self.users: Counter[str] = Counter()
        """Runs that have not ended, by fingerprint: trials of one turn may be twins."""

    def borrow(self, *, waits: bool) -> list[PlannedRun]:
        """Fetch what there is of the runs; gives those that nobody else trains.

        ``waits``: a trial waits for its twin elsewhere, and has its result then.
        """
        for fingerprint in sorted({run.fingerprint for run in self.group}):  # in one order: no two wait for each other
            runs = [run for run in self.group if run.fingerprint == fingerprint]
            lent = self._lent(runs, waits=waits)
            if lent is None:
                continue
            if lent.held_by:
                for run in runs:
                    self.line.tell(Ended(run.key, "elsewhere", f"is being trained by {lent.held_by}"))
                continue
            folder = self.folders[runs[0].key]
            folder.path.mkdir(parents=True)
            for name, content in lent.files.items():
                (folder.path / Path(name).name).write_bytes(content)
            self.sent[fingerprint] = _files(folder)
            self.users[fingerprint] = len(runs)
        return [run for run in self.group if self.users[run.fingerprint]]

    def _lent(self, twins: Sequence[PlannedRun], *, waits: bool) -> Lent | None:
        """The folder of runs of one fingerprint, or who has it; None where none of them shall begin."""
        while not all(self.should_stop(run.key) for run in twins):
            lend = partial(self.line.box.lend.remote, self.line.task, twins[0].fingerprint)
            lent: Lent = _answer(lend)
            if not (lent.held_by and waits):
                return lent
            time.sleep(WAIT_SECONDS)
        return None

    def tell(self, message: Message) -> None:
        """Bring the files that are new, then pass on the message. Raises OutputError where they cannot be kept."""
        if isinstance(message, Noted | Stepped):
            self.line.tell(message)
            return
        if isinstance(message, Ended):
            try:
                self._send(message.key)
            except OutputError as error:
                message = Ended(message.key, "stopped", str(error), halts=True)
            fingerprint = self.folders[message.key].fingerprint
            self.users[fingerprint] -= 1
            if not self.users[fingerprint]:
                _answer(partial(self.line.box.take_back.remote, self.line.task, fingerprint))
        else:
            self._send(message.key)
        self.line.tell(message)

    def should_stop(self, key: Key | None = None) -> bool:
        return self.line.should_stop(key)

    def _send(self, key: Key) -> None:
        folder = self.folders[key]
        before = self.sent[folder.fingerprint]
        now = _files(folder)
        new = sorted((name for name in now if before.get(name) != now[name]), key=lambda name: (name in LAST, name))
        content = {name: (folder.path / name).read_bytes() for name in new}
        removed = [name for name in before if name not in now]
        if new or removed:
            box, task = self.line.box, self.line.task
            error = _answer(partial(box.keep.remote, task, folder.fingerprint, content, removed))
            if error is not None:
                raise error
        self.sent[folder.fingerprint] = now


def _files(folder: RunFolder) -> dict[str, tuple[int, int]]:
    """The files of a run, each with size and time; the checkpoint before the last is made where they are kept."""
    left_out = {folder.checkpoint_before, folder.lock}
    paths = (path for path in folder.path.iterdir() if path not in left_out and not path.name.startswith("."))
    return {path.name: (path.stat().st_size, path.stat().st_mtime_ns) for path in paths if path.is_file()}
