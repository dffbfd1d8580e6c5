"""Ray clusters on one machine, whose nodes do not see each other's files, and can be killed whole like machines."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from tests.disturbing import wait_until

RAY = Path(sys.executable).parent / "ray"
START_SECONDS = 240.0


class Node:
    """One node, in a session of its own; with ``hidden``, that folder is an empty one of its own there."""

    def __init__(self, cluster: RayCluster, *options: str, hidden: Path | None = None) -> None:
        self.log = cluster.folder / f"node-{secrets.token_hex(4)}.log"
        words = [str(RAY), "start", *options, "--disable-usage-stats", "--block"]
        if hidden is not None:
            script = f"mount -t tmpfs tmpfs '{hidden}' && exec \"$@\""
            words = ["unshare", "--mount", "bash", "-c", script, "-", *words]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                words, stdout=log, stderr=log, env=cluster.environment(), start_new_session=True
            )

    def wait(self) -> None:
        """Until it can be used; skips where the system does not let a test hide folders."""
        wait_until(
            lambda: "Ray runtime started" in self.log.read_text() or self.process.poll() is not None,
            seconds=START_SECONDS,
        )
        said = self.log.read_text()
        if "Operation not permitted" in said or "must be superuser" in said:
            pytest.skip(f"a node with folders of its own takes the right to mount ({said.strip()})")
        assert "Ray runtime started" in said, said

    def kill(self) -> None:
        """All its processes at once, as when a machine loses its power."""
        with suppress(psutil.NoSuchProcess):
            first = psutil.Process(self.process.pid)
            for one in (first, *first.children(recursive=True)):
                with suppress(psutil.NoSuchProcess):
                    one.kill()
        self.process.wait(30)


class RayCluster:
    """A head without room for tasks, and nodes with one CPU each."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.token = secrets.token_hex(32)
        with socket.socket() as free:
            free.bind(("", 0))
            self.port = free.getsockname()[1]
        self.head = Node(
            self, "--head", f"--port={self.port}", "--num-cpus=0", "--include-dashboard=false", f"--temp-dir={folder}"
        )
        self.head.wait()
        address = next(line for line in self.head.log.read_text().splitlines() if "Local node IP" in line)
        self.address = f"{address.rpartition(' ')[2].strip()}:{self.port}"
        self.nodes: list[Node] = []

    def environment(self) -> dict[str, str]:
        """For whoever may use it."""
        ours = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.token, "RAY_raylet_start_wait_time_s": "200"}
        quick = {"RAY_worker_niceness": "0", "OMP_NUM_THREADS": "1"}  # Ray lets everything else on a machine go first
        return os.environ | ours | quick | {"RAY_USAGE_STATS_ENABLED": "0"}

    def add(self, number: int = 1, *, hidden: Path | None = None) -> list[Node]:
        """Start nodes; with ``hidden``, they do not see that folder.

        One by one: of two that start on one machine at a moment, one comes to nothing (they choose the same sockets).
        """
        for _ in range(number):
            self.nodes.append(Node(self, f"--address={self.address}", "--num-cpus=1", hidden=hidden))
            self.nodes[-1].wait()
        return self.nodes[-number:]

    def end(self) -> None:
        for node in (*self.nodes, self.head):
            node.kill()
        subprocess.run(["pkill", "-9", "-f", str(self.folder)], check=False)  # what left its session


@contextmanager
def ray_cluster() -> Iterator[RayCluster]:
    """A cluster for the block; its folder has a short name, for sockets in it may have no long one."""
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))
    cluster = RayCluster(folder)
    try:
        yield cluster
    finally:
        cluster.end()
        shutil.rmtree(folder, ignore_errors=True)
