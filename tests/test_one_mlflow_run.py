"""One MLflow run for each training: machines that share a server, and deliveries that are cut off in the middle."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import mlflow
import pytest

from cifar_ablate.device import find_device
from cifar_ablate.plan import PlannedRun
from cifar_ablate.process import ProcessId, this_machine
from cifar_ablate.record.mlflow_upload import CLAIM, PROCESS
from tests.comparing import bits, runs_of, snapshot
from tests.conftest import Tried, Workshop
from tests.disturbing import Command as Forked
from tests.disturbing import said
from tests.test_mlflow_away import Command, Server, go_to, recorded

STUDY = """
    study: shared
    question: Do two machines train a study once?
    seeds: 2
    recipe:
      data: digits
      train_size: 200
      model: {name: resnet18-compact, width: 4}
      epochs: 20
      batch_size: 50
      optimizer: {name: sgd, lr: 0.05, momentum: 0.9}
    arms: {baseline: null, flip: {augment: {hflip: {p: 0.5}}}}
"""
pytestmark = pytest.mark.faults

ELSEWHERE = "another-machine"


class Tap:
    """Stands between a command and a server, and kills the command when the server has done a certain request."""

    command: Command
    """Killed when ``at`` (asked with all requests so far) says so, before it gets the answer to the last one."""

    def __init__(self, server: Server, at: Callable[[list[str]], bool]) -> None:
        self.server, self.at = server, at
        self.requests: list[str] = []
        self.is_cut = False
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.uri = f"http://127.0.0.1:{self.listener.getsockname()[1]}"

    def kill(self, folder: Path, *arguments: str) -> int:
        """Run a command until it is killed; gives its exit code."""
        threading.Thread(target=self._accept, daemon=True).start()
        with self.listener:
            self.command = Command(folder, *arguments, MLFLOW_TRACKING_URI=self.uri)
            return self.command.end()

    def _accept(self) -> None:
        with suppress(OSError):  # closed
            while True:
                client, _ = self.listener.accept()
                upstream = socket.create_connection(("127.0.0.1", self.server.port))
                for way in ((client, upstream, True), (upstream, client, False)):
                    threading.Thread(target=self._carry, args=way, daemon=True).start()

    def _carry(self, source: socket.socket, target: socket.socket, is_request: bool) -> None:
        with suppress(OSError), source, target:
            while data := source.recv(65536):
                if is_request and (line := re.match(rb"[A-Z]+ \S+ HTTP", data)):
                    self.requests.append(line[0].decode())
                elif not is_request and not self.is_cut and self.at(self.requests):
                    self.is_cut = True
                    self.command.kill_now()
                if self.is_cut:
                    return
                target.sendall(data)


@pytest.fixture(scope="session")
def alone(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> tuple[Path, Any]:
    """The study trained by one command: its folder, and what MLflow holds of it."""
    folder = tmp_path_factory.mktemp("alone")
    (folder / "shared.yaml").write_text(textwrap.dedent(STUDY), encoding="utf-8")
    shutil.copy(empty_database, folder / "mlflow.db")
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    command = Command(folder, "run", "shared.yaml", MLFLOW_TRACKING_URI=uri)
    assert command.end() == 0, command.text
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", uri)
        return folder, recorded("shared")


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("server"))
    shutil.copy(empty_database, server.folder / "mlflow.db")
    try:
        server.start()
        yield server
    finally:
        server.kill()


def process(host: str, pid: int, started: float = 1.0) -> str:
    """The tag of a process of another machine, or for this host name of another process here."""
    machine = this_machine() if host == socket.gethostname() else host
    return ProcessId(host, machine, pid, started).to_text()


def planned(study: Path, *settings: str) -> tuple[list[PlannedRun], str]:
    """The runs of a study, and the id of its experiment, made as another machine would have done."""
    from rich.console import Console

    from cifar_ablate.record.mlflow_store import Tracking
    from cifar_ablate.runner.preflight import prepare

    console = Console(quiet=True)
    ready = prepare([study], None, list(settings), device=partial(find_device, "cpu"), console=console)
    plan = ready.plans[0]
    return list(plan.runs), Tracking().open_study(plan.study.label, plan.document)


def started_elsewhere(experiment: str, run: PlannedRun, owner: str, tag: str = PROCESS) -> str:
    """The MLflow run of a training that another process began; gives its id."""
    tags = {
        "ablate.study": run.study,
        "ablate.arm": run.arm,
        "ablate.seed": str(run.seed),
        "ablate.fingerprint": run.fingerprint,
        "ablate.recipe": run.recipe_id,
        tag: owner,
    }
    made = mlflow.MlflowClient().create_run(experiment, run_name=f"{run.arm} seed {run.seed}", tags=tags)
    return str(made.info.run_id)


def test_two_machines_that_start_together_train_each_run_into_one_mlflow_run(
    workshop: Workshop, alone: tuple[Path, Any], tried: Tried
) -> None:
    """They share a store and no folder: what MLflow shows as RUNNING keeps them apart."""
    tried("machines that start one study at once")
    uri = os.environ["MLFLOW_TRACKING_URI"]
    study = workshop.write("shared.yaml", STUDY)
    machines = []
    try:
        for name in ("one", "other"):
            (workshop.folder / name).mkdir()
            machines.append(Command(workshop.folder / name, "run", str(study), MLFLOW_TRACKING_URI=uri))
        codes = [machine.end() for machine in machines]
    finally:
        for machine in machines:
            machine.kill()
    text = "\n".join(machine.text for machine in machines)
    assert codes == [0, 0], text
    assert "Traceback" not in text
    assert "failed" not in text
    left = re.findall(r"shared \w+ seed \d: is (?:being trained by process \d+|recorded as)", text)
    assert left, text
    assert recorded("shared") == alone[1]


def test_eight_commands_in_folders_of_their_own_record_each_run_of_a_fresh_study_on_one_server_once(
    workshop: Workshop, alone: tuple[Path, Any], tmp_path: Path, tried: Tried
) -> None:
    """They share the server and nothing else, and its database is fresh, too."""
    study = workshop.write("shared.yaml", STUDY)
    server = Server(tmp_path / "server")
    commands = []
    try:
        server.start()
        workshop.monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
        for number in range(8):
            tried("8 commands at one fresh study on one server")
            (workshop.folder / f"{number}").mkdir()
            commands.append(Forked(workshop.folder / f"{number}", "run", str(study)))
        codes = [command.end(seconds=300) for command in commands]
        text = said(commands)
        assert codes == [0] * 8, text
        assert "Traceback" not in text
        assert recorded("shared") == alone[1], text
    finally:
        for command in commands:
            command.clear_away()
        server.kill()


def test_a_run_of_another_host_is_left_alone_with_the_cure_and_taken_over_where_that_is_asked_for(
    workshop: Workshop, alone: tuple[Path, Any], tried: Tried
) -> None:
    tried("run that MLflow shows as RUNNING on another host")
    study = workshop.write("shared.yaml", STUDY)
    runs, experiment = planned(study)
    ids = [
        started_elsewhere(experiment, runs[0], process(ELSEWHERE, 4711)),
        started_elsewhere(experiment, runs[1], process(ELSEWHERE, 4711), f"{CLAIM}0815"),  # as version 0.1.0 did
    ]
    answer = workshop("run", "shared.yaml")
    assert answer.code == 0, answer
    for run in runs[:2]:
        assert (
            f"{run.name}: MLflow shows it as RUNNING by process 4711 on {ELSEWHERE}; wait for it, share the work with "
            "--executor ray, or give --take-over once that machine is gone" in answer.out
        )
    assert "2 finished" in answer.out
    assert "2 left to another run command" in answer.out
    theirs = {run.info.run_id: run for run in runs_of("shared") if run.info.run_id in ids}
    assert [run.info.status for run in theirs.values()] == ["RUNNING"] * 2
    assert not any(run.data.metrics for run in theirs.values())
    assert f"running: process 4711 on {ELSEWHERE}" in workshop("plan", "shared.yaml").out
    assert workshop("run", "shared.yaml", "--take-over").code == 0
    assert recorded("shared") == alone[1]


def test_a_run_whose_process_here_is_dead_is_trained_and_one_that_lives_is_left(
    workshop: Workshop, alone: tuple[Path, Any], tried: Tried
) -> None:
    study = workshop.write("shared.yaml", STUDY)
    runs, experiment = planned(study)
    here = socket.gethostname()
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    try:
        started = start_of(sleeper.pid)
        owners = {
            "alive": process(here, sleeper.pid, started),
            "dead": process(here, dead.pid, 5.0),
            "its pid is somebody else's": process(here, sleeper.pid, started + 1),
            "damaged": '{"pid": 1',
        }
        for _ in owners:
            tried("run of an owner that lives or is dead")
        ids = [started_elsewhere(experiment, run, text) for run, text in zip(runs, owners.values(), strict=True)]
        answer = workshop("run", "shared.yaml")
    finally:
        sleeper.kill()
        sleeper.wait()
    assert answer.code == 0, answer
    respected, *taken = ids
    assert f"{runs[0].name}: is being trained by process {sleeper.pid}" in answer.out
    assert {run.info.run_id: run.info.status for run in runs_of("shared")} == {
        respected: "RUNNING",
        **dict.fromkeys(taken, "FINISHED"),
    }
    assert workshop("run", "shared.yaml").code == 0  # now that it is dead
    assert recorded("shared") == alone[1]


def start_of(pid: int) -> float:
    """When a process started, in ticks since the machine did."""
    return float(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])


def test_a_run_that_was_trained_in_this_folder_goes_on_whatever_host_it_was_on(workshop: Workshop) -> None:
    """A shared folder: its lock tells that the process of another host is gone."""
    study = workshop.write("shared.yaml", STUDY)
    only = ("--arm", "flip", "--seed", "1")
    runs, experiment = planned(study)
    (run,) = (run for run in runs if (run.arm, run.seed) == ("flip", 1))
    theirs = process(ELSEWHERE, 4711)
    run_id = started_elsewhere(experiment, run, theirs)
    folder = workshop.folder / "mlruns" / "runs" / run.fingerprint
    folder.mkdir(parents=True)
    (folder / ".lock").touch()
    (folder / ".lock.owner").write_text(theirs)
    answer = workshop("run", "shared.yaml", *only)
    assert answer.code == 0, answer
    assert "Runs: 1 finished" in answer.out
    (recorded_run,) = runs_of("shared")
    assert (recorded_run.info.run_id, recorded_run.info.status) == (run_id, "FINISHED")


@pytest.mark.parametrize("how", ["trained", "finished"])
def test_a_run_that_another_process_takes_over_stops_here_with_a_checkpoint(
    how: str, workshop: Workshop, tried: Tried
) -> None:
    """As --take-over on another machine does, while this one is not gone but only cut off."""
    tried("run that is taken over while it is trained")
    workshop.monkeypatch.setattr("cifar_ablate.record.mlflow_writer.UPLOAD_SECONDS", 0.2)
    study = workshop.write("shared.yaml", STUDY)
    only = ("--arm", "flip", "--seed", "1", "--set", "epochs=60")
    (run,) = (run for run in planned(study, "epochs=60")[0] if (run.arm, run.seed) == ("flip", 1))

    def take_over() -> None:
        client = mlflow.MlflowClient()
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            for found in runs_of(run.study):
                if "train_loss" in found.data.metrics:
                    client.set_tag(found.info.run_id, PROCESS, process(ELSEWHERE, 4711))
                    if how == "finished":
                        client.set_terminated(found.info.run_id, "FINISHED")
                    return
            time.sleep(0.05)

    other = threading.Thread(target=take_over)
    other.start()
    answer = workshop("run", "shared.yaml", *only)
    other.join()
    assert answer.code == 0, answer
    said = {"trained": f"is being trained by process 4711 on {ELSEWHERE}", "finished": "is recorded as finished"}
    assert f"{run.name}: {said[how]}" in answer.out
    assert "1 left to another run command" in answer.out
    folder = workshop.folder / "mlruns" / "runs" / run.fingerprint
    assert (folder / "checkpoint.safetensors").exists()
    assert not (folder / "result.json").exists()
    (left,) = runs_of(run.study)
    assert left.data.tags[PROCESS] == process(ELSEWHERE, 4711)


def test_machines_that_make_one_database_together_find_it_whole(
    workshop: Workshop, alone: tuple[Path, Any], tried: Tried
) -> None:
    tried("machines that start one study at once")
    uri = f"sqlite:///{workshop.folder / 'fresh.db'}"
    study = workshop.write("shared.yaml", STUDY)
    machines = []
    try:
        for name in ("one", "other", "third"):
            (workshop.folder / name).mkdir()
            machines.append(Command(workshop.folder / name, "run", str(study), MLFLOW_TRACKING_URI=uri))
        for machine in machines:
            assert machine.end() == 0, machine.text
    finally:
        for machine in machines:
            machine.kill()
    workshop.monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert recorded("shared") == alone[1]


def test_a_delivery_killed_at_any_request_is_taken_up_again_without_doubles(
    workshop: Workshop, alone: tuple[Path, Any], server: Server, tried: Tried
) -> None:
    workshop.write("shared.yaml", STUDY)
    shutil.copytree(alone[0] / "mlruns" / "runs", workshop.folder / "mlruns" / "runs")
    shutil.copytree(alone[0] / "mlruns" / "plans", workshop.folder / "mlruns" / "plans")
    numbers = {5: ["sync"], 13: ["sync"], 31: ["sync"], 22: ["run", "shared.yaml"]}
    for number, arguments in numbers.items():
        tap = Tap(server, lambda seen, number=number: len(seen) == number)
        assert tap.kill(workshop.folder, *arguments) == -signal.SIGKILL
        assert len(tap.requests) == number
        tried("delivery killed before it hears the answer")
    last = go_to(workshop, workshop.folder, server.uri)("sync")
    assert last.code == 0, last
    assert recorded("shared") == alone[1]
    assert bits(workshop.folder) == bits(alone[0])


def test_a_delivery_killed_between_two_pages_of_metrics_loses_no_part_of_an_epoch(
    workshop: Workshop, server: Server, tried: Tried
) -> None:
    """Six metrics an epoch: the thousandth is in the middle of epoch 167."""
    workshop.write("shared.yaml", STUDY)
    many = [*("--set", "epochs=170"), *("--set", "train_size=50"), *("--seed", "0"), *("--arm", "baseline")]
    assert workshop("run", "shared.yaml", "--offline", *many).code == 0
    tap = Tap(server, lambda seen: sum("log-batch" in line for line in seen) == 2)
    tried("delivery killed before it hears the answer")
    assert tap.kill(workshop.folder, "sync") == -signal.SIGKILL
    assert go_to(workshop, workshop.folder, server.uri)("sync").code == 0
    ((_, status, _, _, metrics, _),) = snapshot("shared@epochs=170,train_size=50")
    assert status == "FINISHED"
    for name in ("train_loss", "lr", "test_accuracy", "test_nll"):
        assert [step for step, _ in metrics[name]] == list(range(1, 171)), name
