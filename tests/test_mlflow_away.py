"""MLflow goes away: stopped, frozen, stopped for good, cut off in the middle; folders keep everything, MLflow gets it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from tests.comparing import start

STUDY = """
    study: away
    question: Does it matter that MLflow is away?
    seeds: 2
    recipe:
      data: digits
      train_size: 200
      model: {name: resnet18-compact, width: 4}
      epochs: 60
      batch_size: 50
      optimizer: {name: sgd, lr: 0.05, momentum: 0.9}
    arms: {baseline: null, flip: {augment: {hflip: {p: 0.5}}}}
"""
OUTAGE_SECONDS = 20.0


class Server:
    """A real ``mlflow ui`` with a database and artifacts of its own, always on the same port."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it answers."""
        environment = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
        with (self.folder / "ui.log").open("ab") as log:
            self.process = subprocess.Popen(
                [str(Path(sys.executable).parent / "mlflow"), "ui", "--port", str(self.port), "--workers", "1"],
                cwd=self.folder,
                env=environment | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"},
                stdout=log,
                stderr=log,
                start_new_session=True,  # it starts processes of its own: signals go to the whole group
            )
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            assert self.process.poll() is None, "mlflow ui ended by itself; see ui.log"
            try:
                with urllib.request.urlopen(f"{self.uri}/health", timeout=2):
                    return
            except (urllib.error.URLError, OSError):
                time.sleep(0.3)
        raise TimeoutError("mlflow ui did not answer within two minutes")

    def signal(self, number: int) -> None:
        assert self.process is not None
        os.killpg(self.process.pid, number)

    def kill(self) -> None:
        if self.process is not None:
            self.signal(signal.SIGKILL)
            self.process.wait()
            self.process = None


class Command:
    """``cifar-ablate`` as a process of its own; each line it prints is kept with the time it came."""

    def __init__(self, folder: Path, *arguments: str, **environment: str) -> None:
        self.process = start(folder, *arguments, **environment)
        self.lines: list[tuple[float, str]] = []
        self.threads = [
            threading.Thread(target=self._read, args=(stream,)) for stream in (self.process.stdout, self.process.stderr)
        ]
        for thread in self.threads:
            thread.start()

    def _read(self, stream: Any) -> None:
        for line in stream:
            self.lines.append((time.monotonic(), line.rstrip("\n")))

    @property
    def text(self) -> str:
        return "\n".join(line for _, line in self.lines)

    def until(self, text: str, timeout: float = 120) -> None:
        """Wait until it has printed this."""
        deadline = time.monotonic() + timeout
        while text not in self.text:
            assert self.process.poll() is None, f"it ended without {text!r}:\n{self.text}"
            assert time.monotonic() < deadline, f"no {text!r} in {timeout} s:\n{self.text}"
            time.sleep(0.02)

    def end(self, timeout: float = 180) -> int:
        """Wait for its end; gives its exit code."""
        try:
            return self.process.wait(timeout)
        finally:
            self.kill()

    def kill(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        for thread in self.threads:
            thread.join(10)
