"""Which process does something, so that another can find out whether it is still there."""

from __future__ import annotations

import json
import math
import os
import socket
import uuid
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

ENDED = "ZX"
"""States of a process in /proc that has ended, and is only not cleared away."""


@dataclass(frozen=True)
class Owner:
    """A process: a pid alone is given again to others, so its start belongs to it."""

    host: str
    """For people: cloned machines and containers may share a name."""
    machine: str
    """What processes that can see each other share (see ``this_machine``)."""
    pid: int
    started: float
    """Start of the process by a clock that nobody sets: on Linux in ticks since the machine started."""

    def __str__(self) -> str:
        here = "" if self.is_here() else f" on {self.host}"
        return f"process {self.pid}{here}"

    def is_here(self) -> bool:
        """Is it a process that this one could see?"""
        return self.machine == this_machine()

    def is_alive(self) -> bool:
        """Is it running? Only to be asked of a process that is here."""
        return _start_of(self.pid) == self.started

    def to_text(self) -> str:
        """One line of JSON."""
        return json.dumps(asdict(self))


def this_process() -> Owner:
    """The process that asks."""
    return Owner(socket.gethostname(), this_machine(), os.getpid(), _start_of(os.getpid()) or 0.0)


@cache
def this_machine() -> str:
    """Another one after each start of the machine, and in each container; elsewhere than on Linux its address."""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot}/{Path('/proc/self/ns/pid').stat().st_ino}"
    return f"{uuid.getnode():x}"


def _start_of(pid: int) -> float | None:
    """When a process started; None where it is not there any more."""
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


NOT_WHAT_WAS_WRITTEN = (ValueError, TypeError, KeyError, OverflowError, RecursionError)
"""What reading a damaged note can raise."""


def owner_from(text: str) -> Owner | None:
    """What ``to_text`` wrote, with or without more; None where it is something else."""
    with suppress(*NOT_WHAT_WAS_WRITTEN):
        values = json.loads(text)
        owner = Owner(str(values["host"]), str(values["machine"]), int(values["pid"]), float(values["started"]))
        return owner if owner.pid > 0 and math.isfinite(owner.started) else None
    return None
