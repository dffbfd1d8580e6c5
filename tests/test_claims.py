"""One MLflow run for each training: machines that share a server, and deliveries that are cut off in the middle."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import mlflow
import pytest

from cifar_ablate.device import find_device
from cifar_ablate.errors import TakenError
from cifar_ablate.folder import RunFolder
from cifar_ablate.owner import this_machine, this_process
from cifar_ablate.plan import PlannedRun
from cifar_ablate.tracking.claims import PREFIX, claims_of, winner_of
from tests.comparing import bits, leftovers, runs_of, snapshot
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


def claim(host: str, pid: int, started: float, *, claimed: float, beat: float, delivers: bool = False) -> str:
    """A claim as another machine, or for this host name another process here, writes it."""
    machine = this_machine() if host == socket.gethostname() else host
    times = {"claimed": claimed, "beat": beat, "delivers": delivers}
    return json.dumps({"host": host, "machine": machine, "pid": pid, "started": started, **times})


def planned(study: Path, *settings: str) -> tuple[list[PlannedRun], str]:
    """The runs of a study, and the id of its experiment, made as another machine would have done."""
    from rich.console import Console

    from cifar_ablate.runner.preflight import prepare
    from cifar_ablate.tracking import Tracking

    console = Console(quiet=True)
    ready = prepare([study], None, list(settings), device=partial(find_device, "cpu"), console=console)
    plan = ready.plans[0]
    return list(plan.runs), Tracking().open_study(plan.study.label, plan.document)


def started_elsewhere(experiment: str, run: PlannedRun, claim_text: str) -> str:
    """The MLflow run of a training that another machine began; gives its id."""
    tags = {
        "ablate.study": run.study,
        "ablate.arm": run.arm,
        "ablate.seed": str(run.seed),
        "ablate.fingerprint": run.fingerprint,
        "ablate.recipe": run.recipe_id,
        f"{PREFIX}theirs": claim_text,
    }
    made = mlflow.MlflowClient().create_run(experiment, run_name=f"{run.arm} seed {run.seed}", tags=tags)
    return str(made.info.run_id)


def test_two_machines_that_start_together_train_each_run_into_one_mlflow_run(
    workshop: Workshop, alone: tuple[Path, Any], tried: Tried
) -> None:
    """They share a store and no folder, so nothing but their claims keeps them apart."""
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
    left = re.findall(
        r"shared \w+ seed \d: is (?:being trained by process \d+, whose claim is older|recorded as)", text
    )
    assert left, text
    assert recorded("shared") == alone[1]


def test_eight_commands_in_folders_of_their_own_train_a_fresh_study_on_one_server_once(
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
        ended = [path.parent.name for path in workshop.folder.glob("*/mlruns/runs/*/result.json")]
        assert sorted(ended) == sorted(bits(alone[0])), text
        assert recorded("shared") == alone[1]
    finally:
        for command in commands:
            command.clear_away()
        server.kill()


def test_a_claim_is_respected_while_its_process_lives_and_taken_over_after(
    workshop: Workshop, alone: tuple[Path, Any], tried: Tried
) -> None:
    study = workshop.write("shared.yaml", STUDY)
    runs, experiment = planned(study)
    here, now = socket.gethostname(), time.time()
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    try:
        claims = {
            "alive elsewhere": claim(ELSEWHERE, 4711, now - 900, claimed=now - 800, beat=now),
            "silent for long": claim(ELSEWHERE, 4711, now - 900, claimed=now - 800, beat=now - 301),
            "dead": claim(here, dead.pid, now - 900, claimed=now - 800, beat=now),
            "its pid is somebody else's": claim(here, sleeper.pid, 1.0, claimed=now - 800, beat=now),
        }
        for _ in claims:
            tried("run of an owner that lives, is silent or is dead")
        ids = [started_elsewhere(experiment, run, text) for run, text in zip(runs, claims.values(), strict=True)]
        answer = workshop("run", "shared.yaml")
    finally:
        sleeper.kill()
        sleeper.wait()
    assert answer.code == 0, answer
    respected, *taken = ids
    name = f"{runs[0].name}: is being trained by process 4711 on {ELSEWHERE}, whose claim is older"
    assert name in answer.out
    assert answer.out.count("whose claim is older") == 1
    assert {run.info.run_id: run.info.status for run in runs_of("shared")} == {
        respected: "RUNNING",
        **dict.fromkeys(taken, "FINISHED"),
    }
    theirs = next(run for run in runs_of("shared") if run.info.run_id == respected)
    assert {tag: text for tag, text in theirs.data.tags.items() if tag.startswith(PREFIX)} == {
        f"{PREFIX}theirs": claims["alive elsewhere"]
    }
    assert not theirs.data.metrics
    plan = workshop("plan", "shared.yaml").out
    assert f"running: process 4711 on {ELSEWHERE}" in plan
    mlflow.MlflowClient().set_tag(respected, f"{PREFIX}theirs", claims["silent for long"])
    assert workshop("run", "shared.yaml").code == 0
    assert recorded("shared") == alone[1]


def test_a_claim_that_could_not_be_taken_back_at_first_is_taken_back_later(workshop: Workshop, tried: Tried) -> None:
    """Of two processes that write at one moment SQLite lets one fail at once: its database is locked."""
    tried("database locked while a claim is taken back")
    study = workshop.write("shared.yaml", STUDY)
    only = ("--arm", "flip", "--seed", "1", "--set", "epochs=2000")  # more than there is time for
    runs, experiment = planned(study, "epochs=2000")
    (run,) = (run for run in runs if (run.arm, run.seed) == ("flip", 1))
    now = time.time()
    theirs = claim(ELSEWHERE, 4711, now - 900, claimed=now - 800, beat=now)
    run_id = started_elsewhere(experiment, run, theirs)
    delete, num_locked = mlflow.MlflowClient.delete_tag, 0

    def delete_while_locked(client: mlflow.MlflowClient, run_id: str, key: str) -> None:
        nonlocal num_locked
        num_locked += 1
        if num_locked > 1:
            return delete(client, run_id, key)
        with closing(sqlite3.connect(workshop.folder / "mlflow.db", isolation_level=None)) as database:
            database.execute("BEGIN EXCLUSIVE")
            return delete(client, run_id, key)

    workshop.monkeypatch.setattr(mlflow.MlflowClient, "delete_tag", delete_while_locked)
    answer = workshop("run", "shared.yaml", *only)
    assert answer.code == 0, answer
    assert f"{run.name}: is being trained by process 4711 on {ELSEWHERE}, whose claim is older" in answer.out
    assert num_locked > 1
    (left,) = runs_of(run.study)
    assert left.info.run_id == run_id
    assert [claim.to_text() for claim in claims_of(left.data.tags)] == [theirs]


def test_an_older_claim_that_turns_up_later_stops_the_younger_one_with_a_checkpoint(
    workshop: Workshop, tried: Tried
) -> None:
    """Clocks differ, and claims cross on their way: each heartbeat reads them again."""
    tried("older claim that turns up while a run is trained")
    workshop.monkeypatch.setattr("cifar_ablate.tracking.courier.HEARTBEAT_SECONDS", 0.2)
    study = workshop.write("shared.yaml", STUDY)
    only = ("--arm", "flip", "--seed", "1", "--set", "epochs=60")
    (run,) = (run for run in planned(study, "epochs=60")[0] if (run.arm, run.seed) == ("flip", 1))
    texts: list[str] = []

    def turn_up() -> None:
        client = mlflow.MlflowClient()
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            for found in runs_of(run.study):
                if "train_loss" in found.data.metrics:
                    now = time.time()
                    texts.append(claim(ELSEWHERE, 4711, now - 900, claimed=now - 800, beat=now))
                    client.set_tag(found.info.run_id, f"{PREFIX}theirs", texts[0])
                    return
            time.sleep(0.05)

    other = threading.Thread(target=turn_up)
    other.start()
    answer = workshop("run", "shared.yaml", *only)
    other.join()
    assert answer.code == 0, answer
    assert f"{run.name}: is being trained by process 4711 on {ELSEWHERE}, whose claim is older" in answer.out
    assert "1 left to another run command" in answer.out
    folder = workshop.folder / "mlruns" / "runs" / run.fingerprint
    assert (folder / "checkpoint.safetensors").exists()
    assert not (folder / "result.json").exists()
    (left,) = runs_of(run.study)
    assert left.info.status == "RUNNING"
    assert [claim.to_text() for claim in claims_of(left.data.tags)] == texts

    now = time.time()  # the winner falls silent, so what it left is taken up
    silent = claim(ELSEWHERE, 4711, now - 900, claimed=now - 800, beat=now - 301)
    mlflow.MlflowClient().set_tag(left.info.run_id, f"{PREFIX}theirs", silent)
    again = workshop("run", "shared.yaml", *only)
    assert again.code == 0, again
    assert "(from epoch " in again.out
    interrupted, record = bits(workshop.folder), recorded(run.study)
    assert leftovers(workshop.folder) == []
    (workshop.folder / "undisturbed").mkdir()
    workshop.monkeypatch.chdir("undisturbed")
    workshop.monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{workshop.folder / 'undisturbed.db'}")
    assert workshop("run", "../shared.yaml", *only).code == 0
    assert bits(workshop.folder / "undisturbed") == interrupted
    assert recorded(run.study) == record


def test_a_run_that_is_only_being_delivered_is_trained_and_recorded_when_that_is_done(workshop: Workshop) -> None:
    """A command that was interrupted, or sync, still has the run in MLflow when the next command comes."""
    study = workshop.write("shared.yaml", STUDY)
    only = ("--arm", "flip", "--seed", "1")
    runs, experiment = planned(study)
    (run,) = (run for run in runs if (run.arm, run.seed) == ("flip", 1))
    now = time.time()
    theirs = claim(ELSEWHERE, 4711, now - 900, claimed=now - 800, beat=now, delivers=True)
    run_id = started_elsewhere(experiment, run, theirs)
    ended = threading.Timer(6.0, mlflow.MlflowClient().delete_tag, (run_id, f"{PREFIX}theirs"))
    ended.start()
    answer = workshop("run", "shared.yaml", *only)
    ended.join()
    assert answer.code == 0, answer
    assert "Runs: 1 finished" in answer.out
    (recorded_run,) = runs_of("shared")
    assert (recorded_run.info.run_id, recorded_run.info.status) == (run_id, "FINISHED")


def test_a_run_that_another_command_has_just_delivered_is_not_told_as_undelivered(workshop: Workshop) -> None:
    experiment, run, _ = trained_offline(workshop)
    now = time.time()
    run_id = started_elsewhere(
        experiment, run, claim(ELSEWHERE, 4711, now - 900, claimed=now - 800, beat=now, delivers=True)
    )
    ended = threading.Timer(6.0, mlflow.MlflowClient().set_terminated, (run_id, "FINISHED"))
    ended.start()
    answer = workshop("run", "shared.yaml", "--arm", "flip", "--seed", "1")
    ended.join()
    assert "trained before" in answer.out
    assert "not delivered" not in answer.out
    assert answer.code == 0, answer


def trained_offline(workshop: Workshop) -> tuple[str, PlannedRun, RunFolder]:
    """A run that is in its folder, with the experiment in MLflow that lacks it."""
    study = workshop.write("shared.yaml", STUDY)
    assert workshop("run", "shared.yaml", "--arm", "flip", "--seed", "1", "--offline").code == 0
    runs, experiment = planned(study)
    (run,) = (run for run in runs if (run.arm, run.seed) == ("flip", 1))
    return experiment, run, RunFolder(workshop.folder / "mlruns" / "runs" / run.fingerprint)


def test_who_was_silent_for_long_looks_again_before_it_delivers(workshop: Workshop, tried: Tried) -> None:
    """A machine slept, or lost its network: another one has taken its run over, and has delivered more of it."""
    tried("owner that comes back after a silence")
    from cifar_ablate.tracking import Tracking

    experiment, run, folder = trained_offline(workshop)
    sleeper = Tracking().deliver(experiment, run, folder, is_training=True)
    sleeper.confirm(is_training=True)
    sleeper.push(folder.history()[:5])
    sleeper.claim = replace(sleeper.claim, beat=time.time() - 301)
    client = mlflow.MlflowClient()
    client.delete_tag(sleeper.run_id, sleeper.claim.tag)  # what a machine does that finds it dead
    now = time.time()
    client.set_tag(sleeper.run_id, f"{PREFIX}theirs", claim(ELSEWHERE, 4711, 1.0, claimed=now - 60, beat=now))
    for step in (6, 7):
        client.log_metric(sleeper.run_id, "train_loss", 1.0, step=step)
    for is_training in (True, False):
        with pytest.raises(TakenError, match=f"process 4711 on {ELSEWHERE}, whose claim is older"):
            sleeper.confirm(is_training=is_training)

    client.delete_tag(sleeper.run_id, f"{PREFIX}theirs")  # the other one has stopped after its seventh epoch
    sleeper.claim = replace(sleeper.claim, beat=time.time() - 301)
    sleeper.confirm(is_training=True)
    sleeper.push(folder.history()[:9])
    steps = sorted(point.step for point in client.get_metric_history(sleeper.run_id, "train_loss"))
    assert steps == list(range(1, 10))


def test_a_process_believes_its_own_claim_whatever_the_clocks_say(workshop: Workshop) -> None:
    from cifar_ablate.tracking import Tracking

    experiment, run, folder = trained_offline(workshop)
    delivery = Tracking().deliver(experiment, run, folder, is_training=True)
    clock = time.time
    for step_seconds in (5.0, -5.0, 3600.0, -3600.0):
        workshop.monkeypatch.setattr(time, "time", lambda step_seconds=step_seconds: clock() + step_seconds)
        delivery.beat()
        (held,) = claims_of(mlflow.MlflowClient().get_run(delivery.run_id).data.tags)
        assert held.tag == delivery.claim.tag
        assert held.owner == this_process()
        assert held.is_alive()


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


GOOD = {"host": ELSEWHERE, "machine": ELSEWHERE, "pid": 1, "started": 1.0, "claimed": 1.0, "beat": 1.0}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "hello",
        "null",
        "[]",
        "5",
        "{}",
        "[" * 100_000,
        json.dumps(GOOD)[:-5],
        *(json.dumps({name: value for name, value in GOOD.items() if name != missing}) for missing in GOOD),
        *(json.dumps(GOOD | {name: None}) for name in ("pid", "started", "claimed", "beat")),
        *(json.dumps(GOOD | {name: "soon"}) for name in ("pid", "started", "claimed", "beat")),
        *(json.dumps(GOOD | {name: float("inf")}) for name in ("pid", "started", "claimed", "beat")),
        *(json.dumps(GOOD | {name: float("nan")}) for name in ("pid", "started", "claimed", "beat")),
        *(json.dumps(GOOD | {"machine": this_machine(), "pid": pid}) for pid in (-1, 0, 2**31, 2**70)),
        '{"host": "x", "pid": ' + "9" * 5000 + "}",
    ],
    ids=lambda text: text[:60],
)
def test_a_damaged_claim_is_ignored(text: str) -> None:
    now = time.time()
    whole = claim(ELSEWHERE, 7, now - 9, claimed=now - 5, beat=now)
    tags = {f"{PREFIX}damaged": text, f"{PREFIX}whole": whole, "ablate.arm": "flip"}
    winner = winner_of(tags)
    assert winner is not None
    assert winner.tag == f"{PREFIX}whole"
    assert winner_of({f"{PREFIX}damaged": text}) is None


def test_the_oldest_living_claim_wins_whatever_the_order_of_the_tags() -> None:
    now = time.time()
    ages = {"b": (50, 0), "oldest but silent": (900, 400), "a": (70, 20), "c": (60, 299)}
    tags = {
        PREFIX + name: claim(ELSEWHERE, index + 1, 1.0, claimed=now - age, beat=now - silence)
        for index, (name, (age, silence)) in enumerate(ages.items())
    }
    for names in (sorted(tags), sorted(tags, reverse=True)):
        turned = {name: tags[name] for name in names}
        assert [found.tag.removeprefix(PREFIX) for found in claims_of(turned)] == ["oldest but silent", "a", "c", "b"]
        winner = winner_of(turned)
        assert winner is not None
        assert winner.tag == f"{PREFIX}a"


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
