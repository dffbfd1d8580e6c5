"""What is to be stopped, and the signals that ask for it."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from types import FrameType

from cifar_ablate.records import Key
from cifar_ablate.signals import stopping_on

ECHO_SECONDS = 0.5


@dataclass
class Stops:
    """What shall stop; written by signals and by other threads, read after every step."""

    reason: str = ""
    """Why everything stops; empty: it does not."""
    signal: str = ""
    """The signal that asked for it."""
    withdrawn: dict[Key, str] = field(default_factory=dict)
    """Runs that are left to another machine, and why."""

    def should_stop(self, key: Key | None = None) -> bool:
        return bool(self.reason) or key in self.withdrawn

    def everything(self, reason: str) -> None:
        """Stop everything; the first reason counts."""
        self.reason = self.reason or reason


@contextmanager
def signals_stop(stops: Stops) -> Iterator[None]:
    """In the block, a first signal sets ``stops`` and a second one ends the process at once, with exit code 130.

    Signals close upon each other are one: ``timeout``, shells and service managers send theirs to a process and again
    to its group. A signal that was ignored before (nohup, a background job) stays ignored.
    """

    first = 0.0

    def heed(number: int, frame: FrameType | None) -> None:
        nonlocal first
        if not stops.signal:
            first = time.monotonic()
            stops.signal = signal.Signals(number).name
            stops.everything(f"interrupted by {stops.signal}")
        elif time.monotonic() - first > ECHO_SECONDS:
            _leave_at_once()

    with stopping_on(heed):
        yield


def _leave_at_once() -> None:
    """Worker processes see that the command is gone, and end, too."""
    show_cursor = "\x1b[?25h" if sys.stdout.isatty() else ""
    with suppress(OSError):
        os.write(2, f"{show_cursor}\nleft at once; the same command again does what is left\n".encode())
    os._exit(130)
