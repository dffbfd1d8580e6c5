"""A page as a process, and who opens it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def served(command: Sequence[str], folder: Path, log: Path, **environment: str) -> Iterator[str]:
    """Start a page and give its address, as it says it; ended with the block."""
    with log.open("w") as file:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=os.environ | environment,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield _address(process, log)
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=30)


def _address(process: subprocess.Popen[bytes], log: Path) -> str:
    for _ in range(1200):
        if found := re.search(r"http://127\.0\.0\.1:\d+", log.read_text()):
            return found[0]
        assert process.poll() is None, log.read_text()
        time.sleep(0.1)
    raise AssertionError(log.read_text())


def serve_command(*arguments: str) -> list[str]:
    """``cifar-ablate serve`` on any free port."""
    return [sys.executable, "-m", "cifar_ablate.cli", "serve", "--port", "0", *arguments]
