"""Tunings while MLflow dies, the disk fills up, and with several seeds to a trial: nothing is lost or tried twice."""

from __future__ import annotations

import re
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from optuna.trial import TrialState

from tests.comparing import runs_of
from tests.conftest import Tried, Workshop
from tests.disturbing import Begin, SmallDisk, wait_until
from tests.test_mlflow_away import AWAY, BACK, Server
from tests.tuning import TUNE, told, trials, write

pytestmark = pytest.mark.faults

FINITE = ("{low: 0.001, high: 0.5, log: true}", "{low: 0.001, high: 0.05, log: true}")
LONG = ("epochs: 3", "epochs: 40")


@pytest.fixture
def server(tmp_path: Path, empty_database: Path) -> Iterator[Server]:
    """An MLflow server of this test."""
    made = Server(tmp_path / "server")
    shutil.copy(empty_database, made.folder / "mlflow.db")
    made.start()
    yield made
    made.kill()


def test_mlflow_dies_in_the_middle_of_a_tuning_and_has_everything_in_the_end(
    workshop: Workshop, begin: Begin, server: Server, tried: Tried
) -> None:
    tried("MLflow killed in a tuning")
    workshop.monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    write(workshop, FINITE, LONG)
    command = begin("tune", "small.yaml", "--trials", "6")
    command.wait_for("baseline trial 0: val")
    server.kill()
    command.wait_for(AWAY, seconds=120)
    command.wait_for(r"baseline trial \d+: val", seconds=120)
    server.start()
    assert command.end(seconds=280) == 0, command.said
    assert BACK in command.said
    ended = trials(workshop.folder)
    assert [one.state for one in ended] == [TrialState.COMPLETE] * 6
    workshop.monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{server.folder / 'mlflow.db'}")
    recorded = runs_of("small/tuning")
    (parent,) = [run for run in recorded if "mlflow.parentRunId" not in run.data.tags]
    assert (parent.info.status, parent.data.tags["ablate.trials"]) == ("FINISHED", "6")
    nested = {int(run.data.tags["ablate.trial"]): run for run in recorded if run is not parent}
    assert {number: run.info.status for number, run in nested.items()} == dict.fromkeys(range(6), "FINISHED")
    for one in ended:
        assert nested[one.number].data.metrics["val_accuracy"] == pytest.approx(one.value)


@pytest.mark.parametrize("seconds_in", [0, 2])
def test_a_full_disk_stops_a_tuning_with_the_cure_and_it_goes_on_when_there_is_room(
    workshop: Workshop, begin: Begin, small_disk: SmallDisk, tried: Tried, seconds_in: int
) -> None:
    tried("disk of 20 MB full in a tuning")
    edits = (FINITE, ("epochs: 3", "epochs: 12"))
    expected = workshop.folder / "undisturbed"
    expected.mkdir()
    workshop.monkeypatch.chdir(expected)
    shutil.move(write(workshop, *edits), "small.yaml")
    assert workshop(*TUNE, "--trials", "3").code == 0
    workshop.folder = small_disk.path
    workshop.monkeypatch.chdir(small_disk.path)
    write(workshop, *edits)
    if seconds_in:
        command = begin(*TUNE, "--trials", "3", "--checkpoint-seconds", "0")
        command.wait_for("baseline trial 1: optimizer")
        small_disk.fill()
        code, said = command.end(), command.log.read_text() if command.log.exists() else ""
    else:
        small_disk.fill(leave_kib=16)
        answer = workshop(*TUNE, "--trials", "3")
        code, said = answer.code, answer.out + answer.err
    assert code == 1, said
    assert "Traceback" not in said
    if said or not seconds_in:  # its own output may have found no room
        assert re.search(r"cannot write .+?: .+?; free space", said), said
    small_disk.clear()
    answer = workshop(*TUNE, "--trials", "3")
    assert answer.code == 0, answer.out + answer.err
    assert told(small_disk.path) == told(expected)


def test_a_trial_of_several_seeds_that_is_killed_in_its_second_goes_on_there(
    workshop: Workshop, begin: Begin, tried: Tried
) -> None:
    tried("tuning killed in the middle of a trial")
    edits = (FINITE, ("epochs: 3", "epochs: 12"), ("trials: 4", "trials: 4\n  seeds: 2"))
    expected = workshop.folder / "undisturbed"
    expected.mkdir()
    here = workshop.folder
    workshop.monkeypatch.chdir(expected)
    shutil.move(write(workshop, *edits), "small.yaml")
    assert workshop(*TUNE, "--trials", "3").code == 0
    workshop.monkeypatch.chdir(here)
    write(workshop, *edits)
    online = ("tune", "small.yaml", "--trials", "3")
    command = begin(*online, "--checkpoint-seconds", "0")
    command.wait_for("baseline trial 1: optimizer")
    wait_until(lambda: epochs_of_fourth(here) > 3)
    command.send(signal.SIGKILL, to_group=True)
    command.end()
    answer = workshop(*online)
    assert answer.code == 0, answer.out + answer.err
    assert re.search(r"baseline trial 2 seed 1: goes on from epoch \d+", answer.out)
    assert told(here) == told(expected)
    assert [one.user_attrs["epochs"] for one in trials(here)] == [24] * 3
    recorded = {run.info.run_name: run for run in runs_of("small/tuning")}
    cut = recorded["baseline trial 1 seed 1"]
    assert (cut.info.status, cut.data.tags["ablate.reason"]) == ("KILLED", "its process ended without a word")
    assert "RUNNING" not in {run.info.status for run in recorded.values()}


def epochs_of_fourth(folder: Path) -> int:
    """Lines in the history of the training that was begun fourth: the second trial's second seed."""
    paths = sorted((folder / "mlruns/runs").glob("*/history.jsonl"), key=lambda path: path.parent.stat().st_ctime)
    return len(paths[3].read_text().splitlines()) if len(paths) > 3 else 0
