"""What is to be stopped, and the signals that ask for it."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from cifar_ablate.records import Key
from cifar_ablate.signals import NAMES, stopping_on

ECHO_SECONDS = 0.5
"""A signal so soon after another one is the same one, sent to the process and to its group."""


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

    A signal that was ignored before (nohup, a background job) stays ignored.
    """

    first = 0.0

    def heed(number: int) -> None:
        nonlocal first
        if not stops.signal:
            first = time.monotonic()
            stops.signal = signal.Signals(number).name
            stops.everything(f"interrupted by {stops.signal}")
        elif time.monotonic() - first > ECHO_SECONDS:
            _leave_at_once()

    with _heard(heed):
        yield


@contextmanager
def _heard(heed: Callable[[int], None]) -> Iterator[None]:
    """Call ``heed`` from a thread of its own.

    Python runs its handlers between two steps of the main thread, and on a CPU one call of torch can take a minute: two
    signals that arrive meanwhile would be one.
    """
    if sys.platform == "win32" or threading.current_thread() is not threading.main_thread():
        with stopping_on(lambda number, frame: heed(number)):
            yield
        return
    reader, writer = os.pipe()
    os.set_blocking(writer, False)

    def listen() -> None:
        while number := os.read(reader, 1):
            if signal.Signals(number[0]).name in NAMES:
                heed(number[0])
        os.close(reader)

    threading.Thread(target=listen, name="signals", daemon=True).start()
    before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    try:
        with stopping_on(lambda number, frame: None):  # within: no signal finds neither of the two
            yield
    finally:
        signal.set_wakeup_fd(before)
        os.close(writer)


def _leave_at_once() -> None:
    """Worker processes see that the command is gone, and end, too."""
    show_cursor = "\x1b[?25h" if sys.stdout.isatty() else ""
    with suppress(OSError):
        os.write(2, f"{show_cursor}\nleft at once; the same command again does what is left\n".encode())
    os._exit(130)
