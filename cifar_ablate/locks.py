"""Locks between processes, as files (filelock). A lock ends with the process that holds it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from filelock import BaseFileLock, FileLock, Timeout

PATIENCE_SECONDS, POLL_SECONDS = 0.05, 0.01
"""How long, and how often, to retry a lock that is taken: ``holder`` takes it for an instant to look."""


@contextmanager
def lock(path: Path, *, owner: str = "", on_wait: Callable[[], None] | None = None) -> Iterator[bool]:
    """Hold the lock file ``path`` for the block and record its ``owner``; yield whether it is held.

    If another process holds it, call ``on_wait`` and wait; without ``on_wait``, yield False at once. Where no lock is
    possible (a read-only folder, a file system without locks), yield True: each process works as if it were alone.
    """
    file_lock = FileLock(path, fallback_to_soft=False)
    try:
        is_held = _acquire(file_lock, path, on_wait)
        if is_held and owner:
            with suppress(OSError), open(_note(path), "w", encoding="utf-8", opener=_no_link) as file:
                file.write(owner)
    except (OSError, NotImplementedError):
        is_held = True
    try:
        yield is_held
    finally:
        file_lock.release()


def _acquire(file_lock: BaseFileLock, path: Path, on_wait: Callable[[], None] | None) -> bool:
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        file_lock.acquire(timeout=PATIENCE_SECONDS, poll_interval=POLL_SECONDS)
    except Timeout:
        if on_wait is None:
            return False
        on_wait()
        file_lock.acquire()
    return True


def holder(path: Path) -> str | None:
    """The owner of the lock ``path``; empty if unknown, None if the lock is free."""
    if not path.exists():
        return None
    file_lock = FileLock(path, fallback_to_soft=False)
    try:
        file_lock.acquire(blocking=False)
    except Timeout:
        return last_owner(path)
    except (OSError, NotImplementedError):
        return None
    file_lock.release()
    return None


def last_owner(path: Path) -> str:
    """The owner that holds or last held the lock ``path``, even if it has ended; empty if unknown."""
    for note in (_note(path), path):  # version 0.1.0 wrote it into the lock file
        with suppress(OSError, UnicodeDecodeError):
            if text := note.read_text(encoding="utf-8"):
                return text
    return ""


def open_to_append(path: Path) -> IO[str]:
    """Open a file to append to; raises OSError if it is a symbolic link, which could lead to any file."""
    return open(path, "a", encoding="utf-8", opener=_no_link)


def _no_link(name: str, flags: int) -> int:
    return os.open(name, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)


def _note(path: Path) -> Path:
    return path.with_name(f"{path.name}.owner")
