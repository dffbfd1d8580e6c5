"""Processes: which one holds something and whether it runs, the signals that end one, and its temporary folders."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import socket
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from types import FrameType

ENDED = "ZX"
"""States in /proc/PID/stat of a process that has ended but still has an entry: zombie, dead."""
PARSE_ERRORS = (ValueError, TypeError, KeyError, OverflowError, RecursionError)
"""What parsing the text of a process can raise."""
SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")
"""Signals that ask a process to end: from the keyboard, from a machine that shuts down, from a terminal that closes."""

_temporary_folders: set[Path] = set()


@dataclass(frozen=True)
class ProcessId:
    """A process. Systems reuse the pid of a process that has ended, so its start time is part of the identity."""

    host: str
    """Name of the host, for messages only: cloned machines and containers may share it."""
    machine: str
    """Equal for processes that can see each other; see ``this_machine``."""
    pid: int
    started: float
    """Start time. On Linux in clock ticks since the machine started, a clock that no one can set; else Unix seconds."""

    def __str__(self) -> str:
        here = "" if self.is_here() else f" on {self.host}"
        return f"process {self.pid}{here}"

    def is_here(self) -> bool:
        """Is it on this machine, where this process can see it?"""
        return self.machine == this_machine()

    def is_alive(self) -> bool:
        """Is it running? Valid only if ``is_here``."""
        return _start_of(self.pid) == self.started

    def to_text(self) -> str:
        """One line of JSON; ``process_from_text`` reads it."""
        return json.dumps(asdict(self))


def this_process() -> ProcessId:
    """The process that calls this."""
    return ProcessId(socket.gethostname(), this_machine(), os.getpid(), _start_of(os.getpid()) or 0.0)


@cache
def this_machine() -> str:
    """Identifies the machine: on Linux, each boot and each container; elsewhere, its network address."""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot}/{Path('/proc/self/ns/pid').stat().st_ino}"
    return f"{uuid.getnode():x}"


def _start_of(pid: int) -> float | None:
    """Start time of a process; None if it has ended."""
    stat = Path(f"/proc/{pid}/stat")
    if Path("/proc/self/stat").exists():
        try:
            fields = stat.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        except OSError:
            return None
        return None if fields[0] in ENDED else float(fields[19])
    import psutil

    with suppress(psutil.Error):
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else round(process.create_time())
    return None


def process_from_text(text: str) -> ProcessId | None:
    """Parse the JSON of ``ProcessId.to_text``, which may have more keys; None for any other text."""
    with suppress(*PARSE_ERRORS):
        values = json.loads(text)
        process = ProcessId(str(values["host"]), str(values["machine"]), int(values["pid"]), float(values["started"]))
        return process if process.pid > 0 and math.isfinite(process.started) else None
    return None


@contextmanager
def block_signals() -> Iterator[None]:
    """In the block, SIGNALS do not reach this thread; a process that is started in it never receives them."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {getattr(signal, name) for name in SIGNALS})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def handle_signals(action: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """In the block, SIGNALS call ``action``; those ignored before (nohup, a background job) stay ignored.

    Only the main thread can handle signals; in another thread this changes nothing.
    """
    before = {}
    if threading.current_thread() is threading.main_thread():
        for name in SIGNALS:
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
                before[number] = signal.signal(number, action)
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


@contextmanager
def temporary_folder(*, within: Path | None = None, prefix: str = "cifar-ablate-") -> Iterator[Path]:
    """A new folder that is removed after the block; in ``within``, or in the system's folder for temporary files.

    A process that ends inside the block calls ``remove_temporary_folders``.
    """
    path = Path(tempfile.mkdtemp(dir=within, prefix=prefix))
    _temporary_folders.add(path)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        _temporary_folders.discard(path)


def remove_temporary_folders() -> None:
    """Remove the temporary folders of all blocks that this process is in."""
    for path in list(_temporary_folders):
        shutil.rmtree(path, ignore_errors=True)
