"""Tunings that are killed, interrupted, shared by several processes, or kept in other storages."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from cifar_ablate.process import ProcessId, this_process
from cifar_ablate.tuning.storage import open_storage
from cifar_ablate.tuning.trials import is_alive
from tests.comparing import runs_of
from tests.conftest import Tried, Workshop
from tests.disturbing import Begin, gone_within, said, wait_until
from tests.tuning import TUNE, storage_of, studies, told, trials, write

ONE_RATE = ("{low: 0.001, high: 0.5, log: true}", "{low: 0.001, high: 0.05, log: true}")
LONG = ("epochs: 3", "epochs: 12")


@pytest.fixture
def undisturbed(workshop: Workshop) -> Callable[..., list[object]]:
    """Trials of an undisturbed tuning in another folder."""

    def tune(*edits: tuple[str, str], num: int) -> list[object]:
        place = workshop.folder / "undisturbed"
        place.mkdir()
        here = Path.cwd()
        os.chdir(place)
        try:
            shutil.move(write(workshop, *edits), "small.yaml")
            assert workshop(*TUNE, "--trials", str(num)).code == 0
        finally:
            os.chdir(here)
        return list(told(place))

    return tune


@pytest.mark.faults
def test_a_killed_tuning_goes_on_where_it_was_and_ends_as_if_nothing_had_happened(
    workshop: Workshop, begin: Begin, undisturbed: Callable[..., list[object]], tried: Tried
) -> None:
    tried("tuning killed in the middle of a trial")
    expected = undisturbed(ONE_RATE, LONG, num=4)
    write(workshop, ONE_RATE, LONG)
    command = begin(*TUNE, "--trials", "4", "--checkpoint-seconds", "0")
    command.wait_for("baseline trial 2: optimizer")
    wait_until(lambda: len(histories(workshop.folder)) == 3 and max(map(len, histories(workshop.folder)[-1:])) > 5)
    command.send(signal.SIGKILL, to_group=True)
    command.end()
    (cut,) = [one for one in trials(workshop.folder) if one.state == TrialState.RUNNING]
    assert cut.number == 2
    answer = workshop(*TUNE, "--trials", "4")
    assert answer.code == 0, answer.err
    assert re.search(r"baseline trial 3 seed 0: goes on from epoch \d+", answer.out)
    assert told(workshop.folder) == expected
    every = studies(storage_of(workshop.folder))["baseline"].get_trials()
    (lost,) = [one for one in every if "lost" in one.user_attrs]
    assert (lost.number, lost.user_attrs["lost"]) == (2, "its process ended without a word")
    (taken_up,) = [one for one in every if one.user_attrs.get("taken_up_from") == 2]
    assert taken_up.params == lost.params


def histories(folder: Path) -> list[list[str]]:
    """Lines of each trial's history, the oldest folder first."""
    paths = sorted((folder / "mlruns" / "runs").glob("*/history.jsonl"), key=lambda path: path.parent.stat().st_ctime)
    return [path.read_text().splitlines() for path in paths]


@pytest.mark.faults
def test_an_interrupted_tuning_gives_its_trial_back_and_says_how_to_go_on(
    workshop: Workshop, begin: Begin, undisturbed: Callable[..., list[object]], tried: Tried
) -> None:
    tried("tuning interrupted by Ctrl-C")
    expected = undisturbed(ONE_RATE, LONG, num=3)
    write(workshop, ONE_RATE, LONG)
    command = begin(*TUNE, "--trials", "3")
    command.wait_for("baseline trial 1: optimizer")
    wait_until(command.hears_signals)
    command.send(signal.SIGINT, to_group=True)
    assert command.end() == 130
    assert "Stopped: interrupted by SIGINT. The same command again does what is left." in command.said
    states = [one.state for one in trials(workshop.folder)]
    assert TrialState.RUNNING not in states
    assert states[-1] == TrialState.WAITING
    assert workshop(*TUNE, "--trials", "3").code == 0
    assert told(workshop.folder) == expected


@pytest.mark.slow
def test_four_processes_share_a_fresh_database_and_ask_for_no_trial_too_many(workshop: Workshop, begin: Begin) -> None:
    write(workshop)
    (workshop.folder / "mlflow.db").unlink()
    commands = [begin("tune", "small.yaml", "--trials", "12") for _ in range(4)]
    codes = [command.end(seconds=280) for command in commands]
    assert codes == [0] * 4, said(commands)
    ended = trials(workshop.folder)
    assert [one.state for one in ended] == [TrialState.COMPLETE] * 12
    recorded = runs_of("small/tuning")
    assert len([run for run in recorded if "mlflow.parentRunId" not in run.data.tags]) == 1
    nested = [run for run in recorded if run.data.tags.get("ablate.outcome") == "finished"]
    assert sorted(int(run.data.tags["ablate.trial"]) for run in nested) == [one.number for one in ended]
    assert "is_present_recipe" in ended[0].user_attrs
    assert sum("is_present_recipe" in one.user_attrs for one in ended) == 1
    owners = {json.loads(one.user_attrs["owner"])["pid"] for one in ended}
    assert len(owners) > 1
    assert not [command.said for command in commands if "locked" in command.said or "Traceback" in command.said]


@pytest.mark.slow
def test_four_processes_share_a_journal_file(workshop: Workshop, begin: Begin) -> None:
    write(workshop)
    commands = [begin(*TUNE, "--trials", "12", "--storage", "tuning.journal") for _ in range(4)]
    assert [command.end(seconds=280) for command in commands] == [0] * 4, said(commands)
    storage = JournalStorage(JournalFileBackend(str(workshop.folder / "tuning.journal")))
    ended = [one for one in studies(storage)["baseline"].get_trials() if "lost" not in one.user_attrs]
    assert [one.state for one in ended] == [TrialState.COMPLETE] * 12


@pytest.mark.faults
def test_several_trials_at_a_time_come_to_the_same_number_and_a_killed_workers_is_taken_up_again(
    workshop: Workshop, begin: Begin, tried: Tried
) -> None:
    tried("worker process killed in a tuning")
    write(workshop, ONE_RATE, ("epochs: 3", "epochs: 25"))
    command = begin(*TUNE, "--trials", "5", "--jobs", "2")
    command.wait_for("baseline trial 1: optimizer", seconds=120)
    wait_until(lambda: any(len(lines) > 2 for lines in histories(workshop.folder)), seconds=120)
    workers = [one for one in command.workers() if "spawn_main" in " ".join(one.cmdline())]
    assert len(workers) == 2
    workers[0].kill()
    assert command.end(seconds=280) == 0, command.said
    ended = trials(workshop.folder)
    assert len(ended) == 5
    assert [one.state for one in ended] == [TrialState.COMPLETE] * 5
    every = studies(storage_of(workshop.folder))["baseline"].get_trials()
    (lost,) = [one for one in every if "lost" in one.user_attrs]
    assert lost.user_attrs["lost"].startswith("its worker process was killed by SIGKILL")
    (taken_up,) = [one for one in ended if one.user_attrs.get("taken_up_from") == lost.number]
    assert taken_up.params == lost.params
    assert gone_within(workers, 10)


def test_a_trial_of_another_machine_is_taken_for_dead_when_its_heartbeat_stops() -> None:
    def trial(owner: ProcessId | None, silent: float) -> optuna.trial.FrozenTrial:
        attributes = {} if owner is None else {"owner": owner.to_text(), "beat": time.time() - silent}
        made = optuna.trial.create_trial(state=TrialState.RUNNING, user_attrs=attributes)
        made.datetime_start = None
        return made

    here = this_process()
    elsewhere = ProcessId("other", "another-boot/1", here.pid, here.started)
    assert is_alive(trial(here, silent=9999))
    assert not is_alive(trial(ProcessId(here.host, here.machine, here.pid, here.started - 1), silent=0))
    assert is_alive(trial(elsewhere, silent=100))
    assert not is_alive(trial(elsewhere, silent=400))
    assert not is_alive(trial(None, silent=0))


@pytest.mark.slow
def test_of_processes_in_different_folders_none_asks_for_a_trial_too_many(workshop: Workshop, begin: Begin) -> None:
    """They share no lock, only the storage."""
    path = write(workshop)
    url = storage_of(workshop.folder)
    commands = []
    for name in ("one", "two", "three"):
        (workshop.folder / name).mkdir()
        shutil.copy(path, workshop.folder / name)
        study = f"{name}/small.yaml"
        commands.append(begin("tune", study, "--offline", "--trials", "7", "--storage", url))
    assert [command.end(seconds=280) for command in commands] == [0] * 3, said(commands)
    ended = trials(workshop.folder)
    assert [one.state for one in ended] == [TrialState.COMPLETE] * 7
    assert sum("is_present_recipe" in one.user_attrs for one in ended) == 1


# PostgreSQL


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a private PostgreSQL server, which refuses to run as root and then runs as ``postgres``."""
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), reverse=True)
    initdb = programs[0] if programs else Path(shutil.which("initdb") or "")
    if not initdb.is_file():
        pytest.skip("no PostgreSQL server is installed here (Debian: apt-get install postgresql)")
    as_whom = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
    place = Path(subprocess.run([*as_whom, "mktemp", "-d"], capture_output=True, text=True, check=True).stdout.strip())
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    make = [*as_whom, str(initdb), "-D", str(place / "data"), "-A", "trust", "-U", "tester", "--no-sync"]
    subprocess.run(make, check=True, capture_output=True, cwd="/")
    options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={place} -c fsync=off"
    control = [*as_whom, str(initdb.with_name("pg_ctl")), "-D", str(place / "data"), "-w"]
    subprocess.run(
        [*control, "-o", options, "-l", str(place / "log"), "start"], check=True, capture_output=True, cwd="/"
    )
    try:
        yield f"postgresql+psycopg://tester@127.0.0.1:{port}/postgres"
    finally:
        subprocess.run([*control, "-m", "immediate", "stop"], check=False, capture_output=True, cwd="/")
        shutil.rmtree(place, ignore_errors=True)


@pytest.mark.slow
def test_four_processes_share_a_fresh_postgresql_server(workshop: Workshop, begin: Begin, postgres: str) -> None:
    write(workshop)
    commands = [begin(*TUNE, "--trials", "12", "--storage", postgres) for _ in range(4)]
    assert [command.end(seconds=280) for command in commands] == [0] * 4, said(commands)
    with open_storage(postgres) as storage:
        ended = [one for one in studies(storage)["baseline"].get_trials() if "lost" not in one.user_attrs]
    assert [one.state for one in ended] == [TrialState.COMPLETE] * 12
    assert not [one.number for one in ended if one.user_attrs.get("fingerprints") is None]
