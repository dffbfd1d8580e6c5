"""A private PostgreSQL, and the commands of docs/deploy.md run as they stand there."""

from __future__ import annotations

import os
import re
import shutil
import signal
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

PAGE = Path(__file__).parent.parent / "docs" / "deploy.md"


def block(name: str) -> str:
    """The commands of the page under a name, as they stand there."""
    found = re.findall(rf"^```bash\n# {name}\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert len(found) == 1, f"{PAGE.name} has {len(found)} blocks of bash that begin with '# {name}'"
    return str(found[0])


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextmanager
def private_postgresql() -> Iterator[tuple[Path, int]]:
    """A fresh cluster that asks for passwords over TCP: the folder of its socket (superuser ``postgres``), its port.

    The server refuses to run as root, and then runs as the system's ``postgres``; skips where there is none.
    """
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), reverse=True)
    initdb = programs[0] if programs else Path(shutil.which("initdb") or "")
    if not initdb.is_file():
        pytest.skip("no PostgreSQL server is installed here (Debian: apt-get install postgresql)")
    as_whom = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
    place = Path(subprocess.run([*as_whom, "mktemp", "-d"], capture_output=True, text=True, check=True).stdout.strip())
    place.chmod(0o755)
    port, control = free_port(), [*as_whom, str(initdb.with_name("pg_ctl")), "-D", str(place / "data"), "-w"]
    rights = ["--auth-local=trust", "--auth-host=scram-sha-256", "--username=postgres", "--no-sync"]
    options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={place} -c fsync=off"
    make = [*as_whom, str(initdb), "-D", str(place / "data"), *rights]
    subprocess.run(make, check=True, capture_output=True, cwd="/")
    start = [*control, "-o", options, "-l", str(place / "log"), "start"]
    subprocess.run(start, check=True, capture_output=True, cwd="/")
    try:
        yield place, port
    finally:
        subprocess.run([*control, "-m", "immediate", "stop"], check=False, capture_output=True, cwd="/")
        shutil.rmtree(place, ignore_errors=True)


class Deployment:
    """The page's commands, with settings that keep everything in one folder of this machine."""

    def __init__(self, home: Path, socket_folder: Path, port: int) -> None:
        self.home, self.server_port = home, free_port()
        password = "correct horse battery staple"
        (home / "pgpass").write_text(f"*:*:*:ablate:{password}\n")
        (home / "pgpass").chmod(0o600)
        names = f"127.0.0.1:{self.server_port},localhost:{self.server_port}"
        self.settings = {
            "ABLATE_HOME": str(home),
            "ABLATE_HOST": "127.0.0.1",
            "ABLATE_PORT": str(self.server_port),
            "ABLATE_NAMES": names,
            "PGHOST": "127.0.0.1",
            "PGPORT": str(port),
            "PGPASSFILE": str(home / "pgpass"),
        }
        self.superuser = {"PGHOST": str(socket_folder), "PGUSER": "postgres", "ABLATE_PASSWORD": password}
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def environment(self) -> dict[str, str]:
        programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW", "OPTUNA", "PG"))}
        return kept | self.settings | {"PATH": programs}

    def do(self, name: str, **more: str) -> str:
        """Run a block to its end; gives what it printed."""
        words = ["bash", "-eu", "-o", "pipefail", "-c", block(name)]
        done = subprocess.run(
            words, env=self.environment | more, cwd=self.home, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{name}: {done.stdout}{done.stderr}"
        return done.stdout

    def variables(self) -> dict[str, str]:
        """What the page has a worker export."""
        shown = subprocess.run(
            ["bash", "-eu", "-c", f"{block('worker')}\nenv"],
            env=self.environment,
            capture_output=True,
            text=True,
            check=True,
        )
        lines = dict(line.partition("=")[::2] for line in shown.stdout.splitlines())
        return {name: lines[name] for name in ("MLFLOW_TRACKING_URI", "OPTUNA_STORAGE", "PGPASSFILE")}

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def start(self) -> float:
        """Start the server; gives the seconds until it answered."""
        begun = time.monotonic()
        with (self.home / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                ["bash", "-eu", "-c", block("server")],
                env=self.environment,
                cwd=self.home,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        while time.monotonic() - begun < 180:
            assert self.process.poll() is None, (self.home / "server.log").read_text()
            try:
                with urllib.request.urlopen(f"{self.uri}/health", timeout=2):
                    return time.monotonic() - begun
            except (urllib.error.URLError, OSError):
                time.sleep(0.2)
        raise TimeoutError((self.home / "server.log").read_text())

    def megabytes(self) -> float:
        """Memory of the server's processes; pages that they share are counted once (PSS)."""
        assert self.process is not None
        leader = psutil.Process(self.process.pid)
        return sum(one.memory_full_info().pss for one in [leader, *leader.children(recursive=True)]) / 2**20

    def stop(self) -> None:
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None

    def sql(self, query: str, database: str = "postgres") -> str:
        """What the superuser is answered."""
        words = ["psql", "--dbname", database, "--no-align", "--tuples-only", "--command", query]
        done = subprocess.run(
            words, env=self.environment | self.superuser, capture_output=True, text=True, check=True, cwd="/"
        )
        return done.stdout.strip()
