"""What the record takes: run folders of 30 epochs delivered by 1, 4 and 16 processes at once, without training.

    python -m benchmarks.tracking_load

Each process delivers its folders one after the other, as the program does it (found or made, claimed, confirmed,
epochs, artifacts, ended): into SQLite, into ``mlflow server`` on SQLite, and into ``mlflow server`` on a private
PostgreSQL. A delivery that is refused is counted as an error and tried again, as a courier does. Servers have one
worker process.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MAX_TRIES = 20


def worker(root: Path, number: int, num_runs: int, start_at: float) -> None:
    """Deliver folders from ``start_at`` on; prints seconds of each, and the number of errors."""
    import numpy as np

    from benchmarks.scale_record import write_run
    from cifar_ablate.errors import AblateError
    from cifar_ablate.record.mlflow_store import Tracking
    from cifar_ablate.record.types import RunIdentity

    os.chdir(root)
    rng = np.random.default_rng(number)
    tracking = Tracking()
    experiment = tracking.experiment_id("load")
    runs = []
    for seed in range(num_runs):
        name = f"{number:010}{seed:010}"
        run = RunIdentity(
            study="load", arm=f"arm {number}", seed=seed, precision="fp32", recipe_id=name, fingerprint=name
        )
        recipe = {"data": {"name": "digits"}, "epochs": 30, "optimizer": {"name": "sgd", "lr": 0.1}, "batch_size": 128}
        folder, _ = write_run(run, recipe, rng.integers(0, 10, 360), "synthetic", "0" * 32, rng)
        runs.append((run, folder))
    time.sleep(max(0.0, start_at - time.time()))
    seconds, num_errors = [], 0
    begun_at = time.time()
    for run, folder in runs:
        begun = time.perf_counter()
        for _ in range(MAX_TRIES):
            try:
                tracking.upload(experiment, run, folder).update("finished")
                break
            except AblateError:
                num_errors += 1
                time.sleep(1)
        seconds.append(time.perf_counter() - begun)
    print(json.dumps({"seconds": seconds, "errors": num_errors, "begun": begun_at, "ended": time.time()}))


def load(uri: str, root: Path, num_workers: int, num_runs: int) -> str:
    """A row of the table."""
    environment = os.environ | {"MLFLOW_TRACKING_URI": uri, "PYTHONPATH": str(Path(__file__).parent.parent)}
    start_at = time.time() + 20 + 6 * num_workers  # processes import for 5 s each, on two cores
    command = [sys.executable, "-P", "-m", "benchmarks.tracking_load", "--worker"]
    children = [
        subprocess.Popen(
            [*command, str(root), str(number + 100 * num_workers), str(num_runs // num_workers), str(start_at)],
            env=environment,
            stdout=subprocess.PIPE,
        )
        for number in range(num_workers)
    ]
    answers = [json.loads(child.communicate()[0].splitlines()[-1]) for child in children]
    taken = sorted(one for answer in answers for one in answer["seconds"])
    wall = max(answer["ended"] for answer in answers) - min(answer["begun"] for answer in answers)
    last = taken[min(len(taken) - 1, int(0.99 * len(taken)))]
    errors = sum(answer["errors"] for answer in answers)
    times = f"{len(taken) / wall:.1f} | {statistics.median(taken):.2f} | {last:.2f}"
    return f"{num_workers} | {len(taken)} | {times} | {errors}"


@contextmanager
def served(store: str, root: Path) -> Iterator[str]:
    """``mlflow server`` over a store, with one worker process; gives its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    command = [str(Path(sys.executable).parent / "mlflow"), "server", "--backend-store-uri", store, "--port", str(port)]
    with (root / "server.log").open("wb") as log:
        server = subprocess.Popen(
            [*command, "--workers", "1", "--default-artifact-root", str(root / "artifacts")],
            cwd=root,
            env=os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"},
            stdout=log,
            stderr=log,
            start_new_session=True,  # it starts processes of its own: the whole group is ended
        )
    try:
        for _ in range(600):
            try:
                with urllib.request.urlopen(f"{address}/health", timeout=2):
                    break
            except (urllib.error.URLError, OSError):
                time.sleep(0.5)
        yield address
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


@contextmanager
def postgres() -> Iterator[str]:
    """A private PostgreSQL server with its own defaults (each commit reaches the disk); it refuses to run as root."""
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), reverse=True)
    initdb = programs[0] if programs else Path(shutil.which("initdb") or "initdb")
    as_whom = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
    place = Path(subprocess.run([*as_whom, "mktemp", "-d"], capture_output=True, text=True, check=True).stdout.strip())
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    make = [*as_whom, str(initdb), "-D", str(place / "data"), "-A", "trust", "-U", "tester"]
    subprocess.run(make, check=True, capture_output=True, cwd="/")
    options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={place}"
    control = [*as_whom, str(initdb.with_name("pg_ctl")), "-D", str(place / "data"), "-w"]
    start = [*control, "-o", options, "-l", str(place / "log"), "start"]
    subprocess.run(start, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd="/")
    try:
        yield f"postgresql+psycopg://tester@127.0.0.1:{port}/postgres"
    finally:
        subprocess.run([*control, "-m", "immediate", "stop"], check=False, capture_output=True, cwd="/")
        shutil.rmtree(place, ignore_errors=True)


@contextmanager
def store_of(kind: str, root: Path) -> Iterator[str]:
    """A fresh store of one kind; gives the address that a user would set."""
    database = f"sqlite:///{root / 'mlflow.db'}"
    if kind == "SQLite":
        yield database
    elif kind == "server, SQLite":
        with served(database, root) as address:
            yield address
    else:
        with postgres() as behind, served(behind, root) as address:
            yield address


KINDS = ("SQLite", "server, SQLite", "server, PostgreSQL")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--runs", type=int, default=64, help="delivered by all workers together")
    parser.add_argument("--kinds", nargs="+", default=KINDS, choices=KINDS)
    options = parser.parse_args()
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}\n")
    print("| store | workers | runs | runs/s | median s | 99% s | errors |\n|---|---:|---:|---:|---:|---:|---:|")
    for kind in options.kinds:
        root = Path(tempfile.mkdtemp())
        with store_of(kind, root) as uri:
            document = "{'question': 'How fast?'}"
            make = f"from cifar_ablate.record.mlflow_store import Tracking; Tracking().open_study('load', {document})"
            environment = os.environ | {"MLFLOW_TRACKING_URI": uri, "PYTHONPATH": str(Path(__file__).parent.parent)}
            subprocess.run([sys.executable, "-P", "-c", make], cwd=root, env=environment, check=True)
            for num_workers in options.workers:
                print(f"| {kind} | {load(uri, root, num_workers, options.runs)} |", flush=True)
        shutil.rmtree(root)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        worker(Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), float(sys.argv[5]))
    else:
        main()
