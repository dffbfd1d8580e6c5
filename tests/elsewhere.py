"""Other machines and other clocks on this one, for tests: processes that see only themselves, or another time."""

from __future__ import annotations

import os
import subprocess
from functools import cache
from pathlib import Path

import pytest

APART = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child=KILL")
"""Before a command: it and its children see no other process, as on a machine of their own."""


@cache
def _why_not_apart() -> str:
    try:
        done = subprocess.run([*APART, "true"], capture_output=True, text=True, check=False)
    except OSError as error:
        return str(error)
    return done.stderr.strip() if done.returncode else ""


def apart() -> tuple[str, ...]:
    """The words that put a command on a machine of its own; skips the test where that may not be done."""
    if why := _why_not_apart():
        pytest.skip(f"a second machine is played by `unshare --pid`, which cannot be used here ({why})")
    return APART


class Clock:
    """The clock on the wall of the commands that are started under it; the monotonic one goes on as it is."""

    def __init__(self, file: Path, seconds: int = 0) -> None:
        """``seconds``: so much ahead of this machine's clock."""
        found = sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))
        if not found:
            pytest.skip("no libfaketime here (Debian: apt-get install faketime)")
        self.library, self.file = found[0], file
        self.set(seconds)

    def set(self, seconds: int) -> None:
        """Set it, also under those that run; they see it within a second."""
        fresh = self.file.with_suffix(".new")
        fresh.write_text(f"{seconds:+d}s\n")
        fresh.replace(self.file)

    @property
    def within(self) -> tuple[str, ...]:
        """The words before a command that put it under this clock."""
        return (
            "env",
            f"LD_PRELOAD={self.library}",
            f"PYTHONPATH={Path(__file__).parent / 'clocks'}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
            f"FAKETIME_TIMESTAMP_FILE={self.file}",
            "FAKETIME_CACHE_DURATION=1",
            "FAKETIME_DONT_FAKE_MONOTONIC=1",
            "NO_FAKE_STAT=1",
        )
