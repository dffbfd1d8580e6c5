"""Who can reach what is served: really listening sockets, as the operating system tells them."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from tests.conftest import Workshop
from tests.predicting import run_of
from tests.serving import serve_command, served

pytestmark = pytest.mark.slow

pytest.importorskip("gradio")
LOOPBACK = {"127.0.0.1", "::1"}
DOCS = Path(__file__).parent.parent


def listening(process: psutil.Process) -> set[str]:
    """Addresses on which a process, or one that it started, takes connections."""
    every = [process, *process.children(recursive=True)]
    return {
        str(one.laddr.ip)
        for each in every
        for one in each.net_connections(kind="inet")
        if one.status == psutil.CONN_LISTEN
    }


@contextmanager
def server_of(command: list[str], folder: Path, log: Path, **environment: str) -> Iterator[psutil.Process]:
    before = {process.pid for process in psutil.Process().children(recursive=True)}
    with served(command, folder, log, **environment):
        started = [one for one in psutil.Process().children(recursive=True) if one.pid not in before]
        yield started[0]


def test_a_served_page_is_open_to_this_machine_alone(trained: Workshop, tmp_path: Path) -> None:
    command = serve_command("--run", run_of("larger"))
    with server_of(command, trained.folder, tmp_path / "log") as process:
        assert listening(process) <= LOOPBACK
        assert listening(process)


def test_a_served_page_answers_under_no_foreign_name(trained: Workshop, tmp_path: Path) -> None:
    with served(serve_command("--run", run_of("larger")), trained.folder, tmp_path / "log") as address:
        foreign = urllib.request.Request(address, headers={"Host": "evil.invalid"})
        with pytest.raises(urllib.error.HTTPError, match="400"):
            urllib.request.urlopen(foreign, timeout=30)


@pytest.mark.parametrize(
    ("environment", "addresses"),
    [
        ({}, {"127.0.0.1"}),
        ({"SPACE_ID": "me/frogs"}, {"0.0.0.0"}),
        ({"GRADIO_SERVER_NAME": "127.0.0.1"}, {"127.0.0.1"}),
    ],
)
def test_a_packaged_page_is_open_to_this_machine_alone_unless_it_is_in_a_space(
    environment: dict[str, str], addresses: set[str], trained: Workshop, tmp_path: Path
) -> None:
    """In a Space the machine is a container, whose port 7860 only Hugging Face's own proxy reaches, from outside."""
    folder = trained.folder / "space"
    if not folder.exists():
        assert trained("package", str(folder), "--run", run_of("larger"), "--space").code == 0
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    with (tmp_path / "log").open("w") as log:
        command = [sys.executable, "app.py"]
        values = os.environ | {"GRADIO_SERVER_PORT": port} | environment
        started = subprocess.Popen(command, cwd=folder, env=values, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 120
        while not listening(psutil.Process(started.pid)):
            assert started.poll() is None, (tmp_path / "log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.2)
        assert listening(psutil.Process(started.pid)) == addresses
    finally:
        started.terminate()
        started.wait(timeout=30)


def test_no_page_tells_anybody_to_serve_to_the_whole_network() -> None:
    pages = [DOCS / "README.md", *(DOCS / "docs").glob("*.md"), DOCS / "Makefile", DOCS / "CONTRIBUTING.md"]
    for page in pages:
        for line in page.read_text(encoding="utf-8").splitlines():
            if re.match(r"\s*(\$ |\t)", line) and re.search(r"mlflow (ui|server)|optuna-dashboard|serve", line):
                assert "0.0.0.0" not in line, f"{page.name}: {line}"
