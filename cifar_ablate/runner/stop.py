"""The stop signal that trainings check after every step, and the process signals that set it."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from cifar_ablate.process import SIGNALS, handle_signals
from cifar_ablate.record.types import Key

ECHO_SECONDS = 0.5
"""Two signals within this time count as one: it was sent to the process and to its group."""


@dataclass
class StopSignal:
    """What must stop; set by signals and other threads, read after every step."""

    reason: str = ""
    """Why everything stops; empty: it does not."""
    signal: str = ""
    """Name of the process signal that asked for it."""
    taken: dict[Key, str] = field(default_factory=dict)
    """Runs that another process took over, with the reason."""
    pruned: set[Key] = field(default_factory=set)
    """Runs of trials that end early."""

    def __call__(self, key: Key | None) -> bool:
        """Must this run (None: everything) stop?"""
        return bool(self.reason) or key in self.taken or key in self.pruned

    def everything(self, reason: str) -> None:
        """Stop everything; the first reason counts."""
        self.reason = self.reason or reason


@contextmanager
def signals_stop(stop: StopSignal) -> Iterator[None]:
    """In the block, the first signal sets ``stop`` and a second one ends the process at once, with exit code 130.

    A signal that was ignored before (nohup, a background job) stays ignored.
    """

    first = 0.0

    def heed(number: int) -> None:
        nonlocal first
        if not stop.signal:
            first = time.monotonic()
            stop.signal = signal.Signals(number).name
            stop.everything(f"interrupted by {stop.signal}")
        elif time.monotonic() - first > ECHO_SECONDS:
            _leave_at_once()

    with _heard(heed):
        yield


@contextmanager
def _heard(heed: Callable[[int], None]) -> Iterator[None]:
    """Call ``heed`` from another thread.

    Python runs signal handlers between two bytecodes of the main thread, and on a CPU one call of torch can take a
    minute: two signals that arrive meanwhile would count as one.
    """
    if sys.platform == "win32" or threading.current_thread() is not threading.main_thread():
        with handle_signals(lambda number, frame: heed(number)):
            yield
        return
    reader, writer = os.pipe()
    os.set_blocking(writer, False)

    def listen() -> None:
        while number := os.read(reader, 1):
            if signal.Signals(number[0]).name in SIGNALS:
                heed(number[0])
        os.close(reader)

    threading.Thread(target=listen, name="signals", daemon=True).start()
    before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    try:
        with handle_signals(lambda number, frame: None):  # within: no signal finds neither of the two
            yield
    finally:
        signal.set_wakeup_fd(before)
        os.close(writer)


def _leave_at_once() -> None:
    """Worker processes notice that the command is gone, and end too."""
    show_cursor = "\x1b[?25h" if sys.stdout.isatty() else ""
    with suppress(OSError):
        os.write(2, f"{show_cursor}\nleft at once; the same command again does what is left\n".encode())
    os._exit(130)
