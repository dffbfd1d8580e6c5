"""Locks between processes of one machine, as files; a lock ends with the process that holds it."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO

ATTEMPTS, PAUSE_SECONDS = 3, 0.02
"""A look at a lock (``holder``) holds it for an instant; nobody shall be turned away by that."""


@contextmanager
def lock(path: Path, *, note: str = "", on_wait: Callable[[], None] | None = None) -> Iterator[bool]:
    """Hold the lock file ``path`` for the block, with ``note`` in it; gives whether it is held.

    Where another process holds it: with ``on_wait``, call that and wait; without, give False at once. Where there can
    be no lock (a read-only folder, a file system without locks), each process works as if it were alone.
    """
    with ExitStack() as stack:
        held = True
        if sys.platform != "win32":
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                file = stack.enter_context(open_to_append(path))
                held = _take(file, on_wait)
                if held and note:
                    _write(file, note)
            except OSError:
                held = True
        yield held


def open_to_append(path: Path) -> IO[str]:
    """A file to write at the end of; where a link lies in its place, OSError: it may lead to anybody's file."""
    return open(path, "a", encoding="utf-8", opener=_no_link)


def _no_link(name: str, flags: int) -> int:
    return os.open(name, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)


def holder(path: Path) -> str | None:
    """The note of the process that holds the lock ``path``; None where nobody does."""
    if sys.platform == "win32":
        return None
    import fcntl

    try:
        with path.open("r") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return file.read()
    except OSError:
        pass
    return None


def _take(file: IO[str], on_wait: Callable[[], None] | None) -> bool:
    import fcntl

    for attempt in range(ATTEMPTS):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if attempt < ATTEMPTS - 1:
                time.sleep(PAUSE_SECONDS)
        else:
            return True
    if on_wait is None:
        return False
    on_wait()
    fcntl.flock(file, fcntl.LOCK_EX)
    return True


def _write(file: IO[str], note: str) -> None:
    with suppress(OSError):  # a full disk: the lock holds without its note
        os.ftruncate(file.fileno(), 0)
        os.write(file.fileno(), note.encode())  # not into the buffer, which would be written again at the end
