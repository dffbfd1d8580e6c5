"""Folders that are gone with the command, also where a signal ends it at once."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_there: set[Path] = set()


@contextmanager
def temporary_folder(*, within: Path | None = None, prefix: str = "cifar-ablate-") -> Iterator[Path]:
    """A fresh folder for the block, below ``within`` or where the system keeps such."""
    path = Path(tempfile.mkdtemp(dir=within, prefix=prefix))
    _there.add(path)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        _there.discard(path)


def remove_all() -> None:
    """For a process that ends without leaving its blocks."""
    for path in list(_there):
        shutil.rmtree(path, ignore_errors=True)
