"""Which process does something, so that another can find out whether it is still there."""

from __future__ import annotations

import json
import math
import os
import socket
from contextlib import suppress
from dataclasses import asdict, dataclass

SAME_START_SECONDS = 2.0
"""Two readings of one process's start differ by the clock's corrections since."""


@dataclass(frozen=True)
class Owner:
    """A process: a pid alone is given again to others, so its start belongs to it."""

    host: str
    pid: int
    started: float
    """Start of the process, in seconds since 1970."""

    def __str__(self) -> str:
        here = "" if self.is_here() else f" on {self.host}"
        return f"process {self.pid}{here}"

    def is_here(self) -> bool:
        """Is it a process of this machine?"""
        return self.host == socket.gethostname()

    def is_alive(self) -> bool:
        """Is it running? Only to be asked of a process of this machine."""
        import psutil

        try:
            process = psutil.Process(self.pid)
            same = abs(process.create_time() - self.started) < SAME_START_SECONDS
            return same and process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False
        except psutil.AccessDenied:  # it is there, and somebody else's
            return True

    def to_text(self) -> str:
        """One line of JSON."""
        return json.dumps(asdict(self))


def this_process() -> Owner:
    """The process that asks."""
    import psutil

    return Owner(socket.gethostname(), os.getpid(), psutil.Process().create_time())


NOT_WHAT_WAS_WRITTEN = (ValueError, TypeError, KeyError, OverflowError, RecursionError)
"""What reading a damaged note can raise."""


def owner_from(text: str) -> Owner | None:
    """What ``to_text`` wrote, with or without more; None where it is something else."""
    with suppress(*NOT_WHAT_WAS_WRITTEN):
        values = json.loads(text)
        owner = Owner(str(values["host"]), int(values["pid"]), float(values["started"]))
        return owner if owner.pid > 0 and math.isfinite(owner.started) else None
    return None
