"""Clocks that are set while studies run, and clocks of machines that differ: each run is trained once, and recorded."""

from __future__ import annotations

import re
import shutil
import signal
import textwrap
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest
from optuna.trial import TrialState

from cifar_ablate.folder import RunFolder
from cifar_ablate.tracking.clock import SharedClock
from tests.comparing import bits, runs_of
from tests.conftest import Tried, Workshop
from tests.disturbing import (
    NUM_RUNS,
    RUN,
    STUDY,
    Begin,
    Command,
    Undisturbed,
    assert_undisturbed,
    epochs_kept,
    said,
    starts,
)
from tests.elsewhere import Clock, apart
from tests.test_mlflow_away import Server
from tests.tuning import storage_of, studies, write

pytestmark = pytest.mark.faults

HOUR = 3600
LONG = STUDY.replace("epochs: 4", "epochs: 30")
SEED = ("--seed", "0")


@pytest.fixture
def clock(workshop: Workshop) -> Clock:
    return Clock(workshop.folder / "clock")


@pytest.fixture
def server(tmp_path: Path, empty_database: Path) -> Iterator[Server]:
    """An MLflow server of this test."""
    made = Server(tmp_path / "server")
    shutil.copy(empty_database, made.folder / "mlflow.db")
    made.start()
    yield made
    made.kill()


@pytest.mark.parametrize(("seconds", "jobs"), [(-HOUR, 1), (HOUR, 2)], ids=["back", "forward"])
def test_a_clock_that_is_set_by_an_hour_under_a_study_changes_nothing(
    workshop: Workshop, begin: Begin, undisturbed: Undisturbed, clock: Clock, tried: Tried, seconds: int, jobs: int
) -> None:
    tried("clock set back or forward by an hour under a study")
    command = begin(*RUN, "--jobs", str(jobs), fresh=clock.within)
    command.wait_for(r"\[1/[^z]*epoch 1/")
    clock.set(seconds)
    assert command.end() == 0, command.said
    assert "Training goes on" not in command.said
    assert_undisturbed(workshop.folder, undisturbed)
    spread = [line["time_ms"] / 1000 - time.time() for path in folders(workshop.folder) for line in path.history()]
    assert min(abs(off) for off in spread) < HOUR / 2 < max(abs(off) for off in spread)  # it was really set


def folders(root: Path) -> list[RunFolder]:
    return [RunFolder(path) for path in (root / "mlruns" / "runs").iterdir()]


def test_a_study_that_was_killed_after_its_clock_was_set_back_is_taken_up_where_it_was(
    workshop: Workshop, begin: Begin, undisturbed: Undisturbed, clock: Clock, tried: Tried
) -> None:
    tried("clock set back or forward by an hour under a study")
    command = begin(*RUN, fresh=clock.within)
    command.wait_for(r"\[1/[^z]*epoch 1/")
    clock.set(-HOUR)
    command.wait_for(r"\[2/[^z]*epoch 1/")
    command.send(signal.SIGSTOP, to_group=True)
    assert f"running: process {command.pid}" in workshop("plan", "tiny.yaml").out  # whatever its clock says
    command.send(signal.SIGKILL, to_group=True)
    command.end()
    kept, ids = epochs_kept(workshop.folder), {run.info.run_id for run in runs_of("tiny")}
    assert "running" not in workshop("plan", "tiny.yaml").out.rpartition("runs:")[2]
    for seconds in (-2 * HOUR, HOUR):  # it is set once more, killed once more, and set forward
        clock.set(seconds)
        again = begin(*RUN, fresh=clock.within)
        if seconds < 0:
            again.wait_for(r"\[2/[^z]*epoch \d/")
            again.send(signal.SIGKILL, to_group=True)
            again.end()
        else:
            assert again.end() == 0, again.said
        assert all(kept.get(name, 0) - epochs <= 1 for name, epochs in starts(again.said).items())
        kept = epochs_kept(workshop.folder)
    assert_undisturbed(workshop.folder, undisturbed)
    assert ids <= {run.info.run_id for run in runs_of("tiny")}


def test_commands_of_one_folder_whose_clocks_differ_by_two_hours_divide_a_study(
    workshop: Workshop, begin: Begin, undisturbed: Undisturbed, tried: Tried
) -> None:
    tried("commands whose clocks differ by two hours")
    clocks = [Clock(workshop.folder / f"clock-{ahead}", ahead) for ahead in (-HOUR, HOUR)]
    commands = [begin(*RUN, fresh=clock.within) for clock in clocks]
    for command in commands:
        assert command.end() == 0, command.said
    ended = Counter(name for command in commands for name in re.findall(r"^(.+ seed \d): test", command.said, re.M))
    assert set(ended.values()) == {1}, said(commands)
    assert len(ended) == NUM_RUNS
    assert "Traceback" not in said(commands)
    assert_undisturbed(workshop.folder, undisturbed)


class Machine:
    """A folder, a clock and a view of processes of its own."""

    def __init__(self, folder: Path, words: tuple[str, ...], clock: Clock) -> None:
        self.folder, self.words, self.clock = folder, words, clock

    def begin(self, *arguments: str) -> Command:
        return Command(self.folder, *arguments, fresh=(*self.words, *self.clock.within))

    def finished(self) -> set[str]:
        """Fingerprints of the runs that were trained to their end here."""
        return {folder.path.name for folder in folders(self.folder) if folder.result()}


def machines(workshop: Workshop, server: Server, study: str, aheads: tuple[int, ...]) -> list[Machine]:
    """Commands at one study that share a server and nothing else."""
    words = apart()
    workshop.monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    made = []
    for number, ahead in enumerate(aheads):
        folder = workshop.folder / f"machine-{number}"
        folder.mkdir()
        (folder / "tiny.yaml").write_text(study)
        made.append(Machine(folder, words, Clock(folder / "clock", ahead)))
    return made


def end_well(*commands: Command) -> None:
    """Wait for the end of commands, which shall be a good one; none is left behind."""
    try:
        for command in commands:
            assert command.end(seconds=240) == 0, said(list(commands))
    finally:
        for command in commands:
            command.clear_away()


@pytest.mark.parametrize("ahead", [-HOUR, HOUR], ids=["an hour behind", "an hour ahead"])
def test_machines_whose_clocks_differ_by_an_hour_train_each_run_once(
    workshop: Workshop, server: Server, tried: Tried, ahead: int
) -> None:
    tried("machines whose clocks differ by an hour")
    one, other = machines(workshop, server, textwrap.dedent(LONG), (0, ahead))
    first = one.begin(*RUN, *SEED)
    first.wait_for(r"\[1/[^z]*epoch 1/", seconds=120)
    second = other.begin(*RUN, *SEED)
    end_well(first, second)
    assert not one.finished() & other.finished(), said([first, second])
    assert len(one.finished() | other.finished()) == 2
    assert "whose claim is older" in second.said, said([first, second])
    recorded = runs_of("tiny")
    assert [run.info.status for run in recorded] == ["FINISHED"] * 2
    client = mlflow.MlflowClient()
    for run in recorded:
        assert not [tag for tag in run.data.tags if tag.startswith("ablate.claim.")]
        steps = [point.step for point in client.get_metric_history(run.info.run_id, "train_loss")]
        assert sorted(steps) == list(range(1, 31))
    alone = workshop.folder / "alone"
    alone.mkdir()
    workshop.monkeypatch.chdir(alone)
    workshop.write("tiny.yaml", LONG)
    assert workshop("run", "../tiny.yaml", *SEED, "--offline").code == 0
    found = {name: of for machine in (one, other) for name, of in whole(machine.folder).items()}
    assert found == bits(alone)


@pytest.mark.parametrize("ahead", [-HOUR, HOUR], ids=["an hour behind", "an hour ahead"])
def test_machines_whose_clocks_differ_by_an_hour_try_each_trial_once(
    workshop: Workshop, server: Server, tried: Tried, ahead: int
) -> None:
    tried("machines whose clocks differ by an hour")
    study = write(workshop, ("epochs: 3", "epochs: 30"), ("startup_trials: 3", "startup_trials: 4")).read_text()
    one, other = machines(workshop, server, study, (0, ahead))
    words = ("tune", "tiny.yaml", "--trials", "4", "--storage", storage_of(workshop.folder))
    first = one.begin(*words)
    first.wait_for(r"baseline trial 0.*: optimizer", seconds=120)
    second = other.begin(*words)
    end_well(first, second)
    assert "baseline trial" in second.said, said([first, second])
    (tuned,) = studies(storage_of(workshop.folder)).values()
    assert [(trial.state, trial.user_attrs.get("lost")) for trial in tuned.trials] == [(TrialState.COMPLETE, None)] * 4
    nested = [run for run in runs_of("small/tuning") if "mlflow.parentRunId" in run.data.tags]
    assert sorted(run.data.tags["ablate.trial"] for run in nested) == ["0", "1", "2", "3"]
    assert {run.info.status for run in nested} == {"FINISHED"}


def whole(root: Path) -> dict[str, object]:
    """Bits of the runs that were trained to their end in this folder."""
    for folder in folders(root):
        if not folder.result():
            shutil.rmtree(folder.path)
    return bits(root)


def test_a_machine_whose_clock_is_wrong_goes_by_the_servers(workshop: Workshop, server: Server) -> None:
    workshop.monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    shared, right = SharedClock(), time.time
    assert abs(shared.now() - right()) < 0.1  # one that is right is believed to the fraction of a second
    for ahead in (HOUR, -HOUR, 0, HOUR):
        workshop.monkeypatch.setattr(time, "time", lambda ahead=ahead: right() + ahead)
        assert abs(shared.now() - right()) < 2
    server.signal(signal.SIGSTOP)  # set once more while the server does not answer
    workshop.monkeypatch.setattr(time, "time", lambda: right() - HOUR)
    assert abs(shared.now() - right()) < 2


def test_without_a_server_the_machines_own_clock_counts(workshop: Workshop) -> None:
    shared, right = SharedClock(), time.time
    workshop.monkeypatch.setattr(time, "time", lambda: right() + HOUR)
    assert abs(shared.now() - right() - HOUR) < 0.1
