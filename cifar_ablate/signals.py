"""The signals that ask a process to end."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

NAMES = ("SIGINT", "SIGTERM", "SIGHUP")
"""The keyboard, a machine that shuts down, a terminal that closes."""


@contextmanager
def held_back() -> Iterator[None]:
    """In the block, these signals do not reach this thread, nor ever a process that is started in it."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {getattr(signal, name) for name in NAMES})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def stopping_on(action: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """In the block, these signals call ``action``; those ignored before (nohup, a background job) stay ignored.

    Signals belong to the main thread; elsewhere nothing is changed.
    """
    before = {}
    if threading.current_thread() is threading.main_thread():
        for name in NAMES:
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
                before[number] = signal.signal(number, action)
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)
