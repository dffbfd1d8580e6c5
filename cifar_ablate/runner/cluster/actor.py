"""The Ray actor between a command and its tasks; it runs on the command's machine, beside the run folders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

from cifar_ablate.errors import OutputError, not_written
from cifar_ablate.locks import holder, lock
from cifar_ablate.process import ProcessId, process_from_text
from cifar_ablate.record.folder import RunFolder, atomic
from cifar_ablate.record.types import Key
from cifar_ablate.runner.events import RunEvent

NETWORKS = "weights*.safetensors"
"""Files of a run folder that no training reads."""


@dataclass(frozen=True)
class Placed:
    """A task runs, on this node."""

    node: str


@dataclass(frozen=True)
class Lent:
    """A run's folder for a node that does not see it, or the process that holds it."""

    files: Mapping[str, bytes]
    held_by: str = ""


class RunActor:
    """Keeps events until the command asks for them, and the command's stops until tasks ask for them.

    For nodes that do not see the run folders it lends the folders, holds their locks, and writes what comes back. A
    task that Ray wrongly took for lost finds its folder lent to another task, and stops.
    """

    def __init__(self, runs_root: Path, owner: ProcessId) -> None:
        """``owner``: the command, which holds the locks of the folders."""
        self.runs_root, self.owner = runs_root, owner
        self.events: list[tuple[str, RunEvent | Placed]] = []
        self.stops: frozenset[Key | None] = frozenset()
        self.lent: dict[str, tuple[str, ExitStack]] = {}
        """The task that has the folder, and the lock, by fingerprint."""

    def tell(self, task: str, event: RunEvent | Placed) -> None:
        """From a task."""
        self.events.append((task, event))

    def exchange(self, stops: frozenset[Key | None]) -> list[tuple[str, RunEvent | Placed]]:
        """From the command: these runs (None: everything) must stop; returns the events since its last call."""
        self.stops = stops
        events, self.events = self.events, []
        return events

    def wanted_stops(self) -> frozenset[Key | None]:
        """To a task."""
        return self.stops

    def lend(self, task: str, fingerprint: str) -> Lent:
        """Lock a run's folder for a task, and return the files that a training reads."""
        folder = RunFolder(self.runs_root / fingerprint)
        if self.lent.get(fingerprint, ("",))[0] != task:  # else the answer was lost on its way
            with ExitStack() as stack:
                if fingerprint in self.lent or not stack.enter_context(lock(folder.lock, owner=self.owner.to_text())):
                    return Lent({}, str(process_from_text(holder(folder.lock) or "") or "another run command"))
                self.lent[fingerprint] = (task, stack.pop_all())
        if not folder.path.exists():  # the first write tells why it cannot be made
            return Lent({})
        folder.tidy()
        unread = {*folder.path.glob(NETWORKS), folder.lock}
        files = (path for path in folder.path.iterdir() if path.is_file() and path not in unread)
        return Lent({path.name: path.read_bytes() for path in files if not path.name.startswith(".")})

    def keep(
        self, task: str, fingerprint: str, files: Mapping[str, bytes], removed: Sequence[str]
    ) -> OutputError | None:
        """Write files of a task's folder in this order and delete removed ones; returns the error, if any."""
        if self.lent.get(fingerprint, ("",))[0] != task:
            return OutputError(self.runs_root / fingerprint, "it was given to another node", "look there")
        folder = RunFolder(self.runs_root / fingerprint)
        try:
            for name, content in files.items():
                path = folder.path / Path(name).name
                with atomic(path, before=folder.checkpoint_before if path == folder.checkpoint else None) as temporary:
                    temporary.write_bytes(content)
            for name in removed:
                (folder.path / Path(name).name).unlink(missing_ok=True)
            if folder.checkpoint.name in removed and (folder.path / "result.json").exists():  # else it was damaged
                folder.drop_checkpoints()
        except OutputError as error:
            return error
        except OSError as error:
            return not_written(folder.path, error)
        return None

    def take_back(self, task: str, fingerprint: str | None = None) -> None:
        """A task is done with a folder (None: with all its folders)."""
        for name in [fingerprint] if fingerprint is not None else list(self.lent):
            if self.lent.get(name, ("",))[0] == task:
                with suppress(OSError):
                    self.lent.pop(name)[1].close()
