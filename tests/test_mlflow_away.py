"""MLflow goes away: stopped, frozen, stopped for good, cut off; the folders keep everything, and MLflow gets it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import mlflow
import psutil
import pytest

from tests.comparing import bits, leftovers, runs_of, snapshot, start, without_speed
from tests.conftest import Answer, Tried, Workshop
from tests.disturbing import wait_until

STUDY = """
    study: away
    question: Does it matter that MLflow is away?
    seeds: 2
    recipe:
      data: digits
      train_size: 200
      model: {name: resnet18-compact, width: 4}
      epochs: 80
      batch_size: 50
      optimizer: {name: sgd, lr: 0.05, momentum: 0.9}
    arms:
      baseline:
      flip: {augment: {hflip: {p: 0.5}}}
      wild: {optimizer: {lr: 1.0e+30}}
"""
pytestmark = pytest.mark.faults

OUTAGE_SECONDS = {"stopped": 60.0, "frozen": 20.0}
AWAY, BACK = "Training goes on", "MLflow answers again"
ONE = ("--arm", "baseline", "--seed", "0")


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
        with stream:
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

    def end(self, timeout: float = 400) -> int:
        """Wait for its end; gives its exit code."""
        try:
            return self.process.wait(timeout)
        finally:
            self.kill()

    def kill_now(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)

    def kill(self) -> None:
        if self.process.poll() is None:
            self.kill_now()
        self.process.wait()
        for thread in self.threads:
            thread.join(10)


@dataclass(frozen=True)
class Outage:
    """A study during which MLflow was away, and when."""

    folder: Path
    server: Server
    command: Command
    code: int
    begun: float
    over: float
    """When MLflow was there again; of one that stayed away, when the command ended."""
    ended: float


@dataclass(frozen=True)
class Undisturbed:
    """What the study comes to when nothing happens: in the folders, and in MLflow."""

    folder: Path
    bits: dict[str, Any]
    record: list[Any]

    def holds(self, folder: Path, num_runs: int = 6) -> None:
        """This folder, and what MLflow has of it, are the same as far as they go."""
        assert bits(folder).items() <= self.bits.items()
        assert leftovers(folder) == []
        found = recorded()
        assert [run for run in self.record if run in found] == found
        assert len(found) == num_runs


def recorded(label: str = "away") -> Any:
    """What MLflow holds of a study, comparable to the bit; one run for each training, each step once."""
    found = snapshot(label)
    assert len({(tags["ablate.arm"], tags["ablate.seed"]) for _, _, tags, *_ in found}) == len(found)
    for _, _, tags, _, metrics, _ in found:
        for name, points in metrics.items():
            assert len({step for step, _ in points}) == len(points), (tags["ablate.arm"], name, points)
    names = ("ablate.arm", "ablate.seed", "ablate.fingerprint", "ablate.outcome", "ablate.reason")
    ends = sorted(
        (
            *(tags[name] for name in names),
            [(path, size) for path, size in artifacts if path.endswith((".npy", ".safetensors"))],
        )
        for _, _, tags, _, _, artifacts in found
    )
    return list(zip(without_speed(label), ends, strict=True))  # both are sorted by arm and seed


def go_to(workshop: Workshop, folder: Path, uri: str) -> Workshop:
    """The next commands are run in this folder, and record there."""
    workshop.monkeypatch.chdir(folder)
    workshop.monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    return workshop


def is_one_sentence(answer: Answer) -> bool:
    return answer.code == 1 and len(answer.err.strip().splitlines()) == 1


@pytest.fixture(scope="session")
def places(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Iterator[Callable[[str], Any]]:
    """Makes a folder with the study, and a server beside it that is ended with the session."""
    with ExitStack() as stack:

        def make(name: str) -> tuple[Path, Server]:
            root = tmp_path_factory.mktemp(name)
            folder, server = root / "work", Server(root / "server")
            folder.mkdir()
            (folder / "away.yaml").write_text(textwrap.dedent(STUDY), encoding="utf-8")
            shutil.copy(empty_database, server.folder / "mlflow.db")
            stack.callback(server.kill)
            return folder, server

        yield make


@pytest.fixture(scope="session")
def outages(places: Callable[[str], Any]) -> Iterator[dict[str, Future[Any]]]:
    """The studies that take long, beside each other: most of their time is waiting for an outage to end."""
    made = {name: places(name) for name in ("undisturbed", "gone", "stopped", "frozen", "interrupted")}
    scenes = {"undisturbed": _undisturbed, "interrupted": _interrupted}
    with ThreadPoolExecutor(3) as pool:
        yield {name: pool.submit(scenes.get(name, _outage), name, *made[name]) for name in made}


@pytest.fixture(scope="session")
def undisturbed(outages: dict[str, Future[Any]]) -> Undisturbed:
    folder, uri = outages["undisturbed"].result()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", uri)
        return Undisturbed(folder, bits(folder), recorded())


def _undisturbed(name: str, folder: Path, server: Server) -> tuple[Path, str]:
    uri = f"sqlite:///{server.folder / 'mlflow.db'}"
    command = Command(folder, "run", "away.yaml", MLFLOW_TRACKING_URI=uri)
    assert command.end() == 0, command.text
    return folder, uri


def _outage(name: str, folder: Path, server: Server) -> Outage:
    """MLflow goes in the fifth epoch, and is back after a while, if it comes back at all."""
    server.start()
    # a frozen server is found out by its silence; three seconds of it are enough for a test
    patience = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "3"} if name == "frozen" else {}
    command = Command(folder, "run", "away.yaml", MLFLOW_TRACKING_URI=server.uri, **patience)
    try:
        command.until("epoch 5/80")
        begun = time.monotonic()
        server.signal(signal.SIGSTOP) if name == "frozen" else server.kill()
        if name != "gone":
            time.sleep(OUTAGE_SECONDS[name])
            server.signal(signal.SIGCONT) if name == "frozen" else server.start()
        over = time.monotonic()
        code = command.end()
        return Outage(folder, server, command, code, begun, over, time.monotonic())
    finally:
        command.kill()


def _interrupted(name: str, folder: Path, server: Server) -> Outage:
    """A Ctrl-C while MLflow is away."""
    server.start()
    command = Command(folder, "run", "away.yaml", *ONE, MLFLOW_TRACKING_URI=server.uri)
    try:
        command.until("epoch 5/80")
        server.kill()
        command.until(AWAY)
        begun = time.monotonic()
        command.process.send_signal(signal.SIGINT)
        code = command.end()
        return Outage(folder, server, command, code, begun, begun, time.monotonic())
    finally:
        command.kill()


@pytest.mark.parametrize("how", ["stopped", "frozen"])
def test_a_server_that_comes_back_gets_each_epoch_once_and_no_training_waits_for_it(
    workshop: Workshop, outages: dict[str, Future[Any]], undisturbed: Undisturbed, tried: Tried, how: str
) -> None:
    tried(f"MLflow server {how} for {OUTAGE_SECONDS[how]:.0f} s")
    outage: Outage = outages[how].result()
    text = outage.command.text
    assert outage.code == 0, text
    assert outage.over - outage.begun >= OUTAGE_SECONDS[how]
    assert text.count(AWAY) == 1, text
    assert text.count(BACK) == 1, text
    assert "Traceback" not in text
    epochs = [at for at, line in outage.command.lines if "epoch" in line]
    assert sum(outage.begun < at < outage.over for at in epochs) > 20
    assert max(later - earlier for earlier, later in pairwise(epochs)) < 5
    workshop.monkeypatch.setenv("MLFLOW_TRACKING_URI", outage.server.uri)
    undisturbed.holds(outage.folder)


def test_a_server_that_stays_away_costs_half_a_minute_and_sync_brings_it_everything_later(
    workshop: Workshop, outages: dict[str, Future[Any]], undisturbed: Undisturbed, tried: Tried
) -> None:
    tried("MLflow server stopped for good")
    outage: Outage = outages["gone"].result()
    text = outage.command.text
    assert outage.code == 1, text
    assert bits(outage.folder) == undisturbed.bits
    assert "Traceback" not in text
    assert text.count(AWAY) == 1, text
    assert "not delivered: away flip seed 1" in text
    assert "`cifar-ablate sync` tries again" in text
    trained = max(at for at, line in outage.command.lines if line.startswith("away ") and "test" in line)
    assert 25 < outage.ended - trained < 45

    go_to(workshop, outage.folder, outage.server.uri)
    still_away = workshop("sync")
    assert is_one_sentence(still_away), still_away
    assert "does not answer" in still_away.err
    outage.server.start()
    delivered = workshop("sync")
    assert delivered.code == 0, delivered
    assert "6 delivered" in delivered.out
    undisturbed.holds(outage.folder)
    before = snapshot("away")
    assert "0 delivered" in workshop("sync").out
    assert snapshot("away") == before
    again = workshop("run", "away.yaml")
    assert again.code == 0
    assert "0 to train, 6 done before" in again.out
    assert snapshot("away") == before


def test_ctrl_c_while_mlflow_is_away_ends_soon_and_the_same_command_goes_on(
    workshop: Workshop, outages: dict[str, Future[Any]], undisturbed: Undisturbed, tried: Tried
) -> None:
    tried("MLflow server stopped for good")
    outage: Outage = outages["interrupted"].result()
    assert outage.code == 130, outage.command.text
    assert outage.ended - outage.begun < 12
    assert "The same command again does what is left." in outage.command.text
    outage.server.start()
    answer = go_to(workshop, outage.folder, outage.server.uri)("run", "away.yaml", *ONE)
    assert answer.code == 0, answer
    assert "(from epoch " in answer.out
    undisturbed.holds(outage.folder, 1)


def test_a_server_that_is_away_at_the_start_is_one_sentence_and_nothing_is_trained(workshop: Workshop) -> None:
    workshop.write("away.yaml", STUDY)
    begun = time.monotonic()
    answer = workshop.process("run", "away.yaml", MLFLOW_TRACKING_URI="http://127.0.0.1:9")
    assert time.monotonic() - begun < 15
    assert is_one_sentence(answer), answer
    assert "does not answer" in answer.err
    assert "--offline" in answer.err
    assert not list(workshop.folder.glob("mlruns/runs/*"))


def test_sync_where_nothing_was_trained_says_what_makes_run_folders(workshop: Workshop) -> None:
    answer = workshop("sync")
    assert is_one_sentence(answer), answer
    assert "`cifar-ablate run` makes them" in answer.err


def test_runs_trained_offline_are_delivered_as_what_they_are(
    workshop: Workshop, places: Callable[[str], Any], undisturbed: Undisturbed, tried: Tried
) -> None:
    """Finished, diverged, failed (its worker was killed), interrupted and running, each told from the others."""
    tried("trained with --offline, delivered later")
    folder, server = places("offline")
    go_to(workshop, folder, f"sqlite:///{server.folder / 'mlflow.db'}")
    done = workshop("run", "away.yaml", "--offline", "--arm", "baseline", "--arm", "wild", "--seed", "0")
    assert done.code == 0, done
    assert "2 runs wait in mlruns/runs; `cifar-ablate sync`" in done.out
    assert workshop("report").code == 1  # nothing is in MLflow
    prints = {(run["arm"], run["seed"]): run["fingerprint"] for run in _kept_runs(folder)}
    options = ("--offline", "--jobs", "2", "--seed", "1", "--arm", "baseline", "--arm", "flip")
    command = Command(folder, "run", "away.yaml", *options)
    try:
        baseline = _trainer_of(command, folder, prints["baseline", 1], num_epochs=1)
        baseline.suspend()  # a run takes a few seconds: on a busy machine it would end before all is looked at
        flip = _trainer_of(command, folder, prints["flip", 1], num_epochs=3)
        flip.suspend()
        baseline.kill()
        command.until("away baseline seed 1: failed")
        during = workshop("sync")
        flip.resume()
        assert "3 delivered, 1 running" in during.out, during
        assert "away flip seed 1" not in during.out
        assert command.process.poll() is None
        assert len(runs_of("away")) == 3
        command.process.send_signal(signal.SIGINT)
        assert command.end() == 130, command.text
    finally:
        command.kill()
    assert "memory ran out" in command.text
    after = workshop("sync")
    assert "1 delivered" in after.out, after
    ends = {(run.data.tags["ablate.arm"], run.data.tags["ablate.seed"]): run for run in runs_of("away")}
    assert {key: (run.info.status, run.data.tags["ablate.outcome"]) for key, run in ends.items()} == {
        ("baseline", "0"): ("FINISHED", "finished"),
        ("wild", "0"): ("FINISHED", "diverged"),
        ("baseline", "1"): ("FAILED", "failed"),
        ("flip", "1"): ("KILLED", "killed"),
    }
    history = (folder / "mlruns" / "runs" / prints["flip", 1] / "history.jsonl").read_text().splitlines()
    assert len(history) >= 3
    late = next(metrics for _, _, tags, _, metrics, _ in snapshot("away") if tags["ablate.outcome"] == "killed")
    assert [step for step, _ in late["train_loss"]] == list(range(1, len(history) + 1))

    rest = workshop("run", "away.yaml", "--retry", "failed", "--seed", "1", "--arm", "baseline", "--arm", "flip")
    assert rest.code == 0, rest
    undisturbed.holds(folder, 4)
    assert {run.info.run_id for run in runs_of("away")} == {run.info.run_id for run in ends.values()}


def test_a_run_whose_artifacts_cannot_be_kept_does_not_hold_up_the_others(workshop: Workshop, tried: Tried) -> None:
    """Something else is in the place of its artifacts; MLflow takes everything but those."""
    tried("MLflow cannot keep the artifacts of a run")
    study = STUDY.replace("epochs: 80", "epochs: 3")
    workshop.write("away.yaml", study)
    assert workshop("run", "away.yaml", "--offline", "--seed", "0", "--arm", "baseline", "--arm", "flip").code == 0
    create, blocked = mlflow.MlflowClient.create_run, []

    def create_and_block(*arguments: Any, **options: Any) -> Any:
        run = create(*arguments, **options)
        if not blocked:
            place = Path(run.info.artifact_uri)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text("in the way")
            blocked.append(place)
        return run

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mlflow.MlflowClient, "create_run", create_and_block)
        patch.setattr("cifar_ablate.runner.sync.PATIENCE_SECONDS", 4.0)
        answer = workshop("sync")
    assert answer.code == 1
    assert "Runs: 1 delivered" in answer.out
    assert answer.out.count("not delivered: ") == 1
    assert sorted(run.info.status for run in runs_of("away")) == ["FINISHED", "RUNNING"]
    blocked[0].unlink()
    assert "Runs: 1 delivered" in workshop("sync").out
    assert {run.info.status for run in runs_of("away")} == {"FINISHED"}


def _trainer_of(command: Command, folder: Path, fingerprint: str, *, num_epochs: int) -> psutil.Process:
    """The worker process that holds the lock of this run, once it has trained so many epochs.

    What is printed would not tell: a line says whose it is only where another run has begun, too.
    """
    run = folder / "mlruns" / "runs" / fingerprint
    lock, history = str(run / ".lock"), run / "history.jsonl"
    wait_until(lambda: history.exists() and history.read_text().count("\n") >= num_epochs)
    workers = psutil.Process(command.process.pid).children()
    return next(worker for worker in workers if lock in [file.path for file in worker.open_files()])


def _kept_runs(folder: Path) -> list[dict[str, Any]]:
    return list(json.loads((folder / "mlruns" / "plans" / "away.json").read_text())["runs"])
