"""Locks between processes of one machine, as files; a lock ends with the process that holds it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path


@contextmanager
def lock(path: Path, *, on_wait: Callable[[], None] | None = None) -> Iterator[bool]:
    """Hold the lock file ``path`` for the block; gives whether it is held.

    Where another process holds it: with ``on_wait``, call that and wait; without, give False at once. Where there can
    be no lock (a read-only folder, a file system without locks), each process works as if it were alone.
    """
    with ExitStack() as stack:
        if sys.platform != "win32":
            import fcntl

            with suppress(OSError):
                path.parent.mkdir(parents=True, exist_ok=True)
                file = stack.enter_context(path.open("a"))
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    if on_wait is None:
                        yield False
                        return
                    on_wait()
                    fcntl.flock(file, fcntl.LOCK_EX)
        yield True
