"""Commands that are killed, interrupted and hung up on: real processes, real MLflow storage, digits.

Whatever happens to a command, the same command again leads to what an undisturbed one leaves, to the bit.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path

import psutil
import pytest

from cifar_ablate.record.folder import RunFolder, read_progress
from tests.comparing import runs_of
from tests.conftest import Tried, Workshop
from tests.disturbing import (
    NUM_EPOCHS,
    NUM_RUNS,
    NUM_STEPS,
    ONE_RUN,
    RUN,
    STUDY,
    Begin,
    Undisturbed,
    assert_readable,
    assert_undisturbed,
    epochs_kept,
    gone_within,
    starts,
    statuses,
    steps_done,
    wait_until,
)

pytestmark = pytest.mark.faults

SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")
ALONE = (("0", "baseline"), ("0", "flip"), ("1", "baseline"))
SECONDS_BETWEEN_LINES = 0.2
RETRY = ("--retry", "failed")
"""A run whose worker was killed is FAILED until it is asked for again."""


# ---------------------------------------------------------------------------------------------------- kill -9


@pytest.mark.parametrize(
    ("jobs", "whom", "num"),
    [(1, "all", 12), (1, "command", 12), (2, "all", 10), (2, "command", 10), (2, "worker", 6)],
    ids=["jobs 1, all processes", "jobs 1", "jobs 2, all processes", "jobs 2, the command alone", "jobs 2, a worker"],
)
def test_kills_at_random_moments_lose_an_epoch_each_at_most_and_change_no_bit(
    workshop: Workshop,
    begin: Begin,
    undisturbed: Undisturbed,
    empty_database: Path,
    tried: Tried,
    chance: random.Random,
    jobs: int,
    whom: str,
    num: int,
) -> None:
    """The same study is killed again and again; where it was quicker, another one is begun."""
    kills = 0
    kept: dict[str, int] = {}
    while kills < num:
        left = 1 - sum(kept.values()) / (NUM_RUNS * NUM_EPOCHS)
        num_lines = chance.randrange(2 + round(left * NUM_RUNS * (NUM_EPOCHS + 2)))
        command = begin(*RUN, "--jobs", str(jobs), *RETRY)
        wait_until(lambda: command.said.count("\n") >= num_lines or command.code is not None, seconds=300)  # noqa: B023
        command.process.join(chance.uniform(0, SECONDS_BETWEEN_LINES))
        workers = command.workers()
        victims = [one for one in workers if "spawn_main" in " ".join(cmdline(one))] if whom == "worker" else []
        if command.code is not None or (whom == "worker" and not victims):  # it was quicker: made up for on another
            assert command.end() == 0, command.said
            assert_undisturbed(workshop.folder, undisturbed)
            move_on(workshop, empty_database)
            kept = {}
            continue
        if whom == "worker":
            chance.choice(victims).kill()
            assert command.end() in (0, 1), command.said  # 1: a run was in it
        else:
            command.send(signal.SIGKILL, to_group=whom == "all")
            assert command.end() == -signal.SIGKILL
            assert gone_within(workers, 30)  # one that still imports hears of it afterwards
        tried(f"kill -9 of {'a worker' if whom == 'worker' else 'the command'} at a random moment")
        kills += 1
        assert_loses_little(command.said, kept)
        assert_readable(workshop.folder)
        assert workshop("plan", "tiny.yaml").code == 0
        kept = epochs_kept(workshop.folder)
    last = workshop(*RUN, *RETRY)
    assert last.code == 0, last.err
    assert_loses_little(last.out, kept)
    assert_undisturbed(workshop.folder, undisturbed)


def cmdline(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:  # it has just ended
        return []


def move_on(workshop: Workshop, database: Path) -> None:
    """To a folder of its own, where nothing is trained yet."""
    workshop.folder /= "next"
    workshop.folder.mkdir()
    shutil.copy(database, workshop.folder / "mlflow.db")
    workshop.monkeypatch.chdir(workshop.folder)
    workshop.monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{workshop.folder / 'mlflow.db'}")
    workshop.write("tiny.yaml", STUDY)


def assert_loses_little(said: str, kept: dict[str, int]) -> None:
    for name, epochs in starts(said).items():
        assert kept.get(name, 0) - epochs <= 1, said


FATES = (
    *("mlflow create_experiment", "mlflow create_run", "mlflow log_batch"),
    *("os.rename .history.jsonl.", "os.rename .checkpoint.", "os.rename /checkpoint.", "os.rename .checkpoint."),
    *("os.rename .test_logits.npy.", "os.rename .weights.", "os.rename .result.json.", "os.remove /checkpoint."),
    *("os.rename .history.csv.", "os.rename .confusion_matrix.png.", "os.rename .artifact.uploading."),
    *("mlflow log_artifact", "mlflow set_terminated"),
)
"""Places between writes that belong together, in an order in which one run can die at each of them."""


def test_a_run_that_is_killed_between_any_two_writes_goes_on_and_changes_no_bit(
    workshop: Workshop, begin: Begin, undisturbed: Undisturbed, tried: Tried
) -> None:
    kept: dict[str, int] = {}
    for fate in FATES:
        command = begin(*RUN, *ONE_RUN, fate=fate)
        assert command.end() == -signal.SIGKILL, f"{fate}: {command.said}"
        tried("kill -9 between two writes of one run")
        assert_loses_little(command.said, kept)
        assert_readable(workshop.folder)
        kept = epochs_kept(workshop.folder)
    assert workshop("plan", "tiny.yaml").code == 0
    last = workshop(*RUN, *ONE_RUN)
    assert last.code == 0, last.err
    assert_undisturbed(workshop.folder, undisturbed, only=["flip 0"])


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def alter(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [truncate, alter], ids=["cut short", "altered in one byte"])
def test_a_damaged_checkpoint_is_told_and_the_one_before_it_is_taken(
    workshop: Workshop, begin: Begin, undisturbed: Undisturbed, tried: Tried, damage: Callable[[Path], None]
) -> None:
    command = begin(*RUN, *ONE_RUN)
    command.wait_for("epoch 3/")
    command.send(signal.SIGKILL, to_group=True)
    command.end()
    (folder,) = (RunFolder(path) for path in (workshop.folder / "mlruns" / "runs").iterdir())
    damage(folder.checkpoint)
    tried("checkpoint cut short or altered")
    before = read_progress(folder.checkpoint_before)
    assert before is not None
    answer = workshop(*RUN, *ONE_RUN)
    assert answer.code == 0, answer.err
    assert "checkpoint.safetensors damaged, or ahead of the history; it goes on from what was before" in answer.out
    assert list(starts(answer.out).values()) == [before["epochs"]]
    assert_undisturbed(workshop.folder, undisturbed, only=["flip 0"])


# ----------------------------------------------------------------------------------------------------- signals


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_signal_stops_a_study_between_two_steps_and_the_same_command_goes_on_with_the_next_one(
    workshop: Workshop, begin: Begin, undisturbed: Undisturbed, tried: Tried, jobs: int
) -> None:
    inside = []
    # other runs for each signal: a run that was stopped before is nearer to its end than a signal may be late
    seeds = [("--seed", seed) for seed in "010"] if jobs == 2 else [("--seed", s, "--arm", a) for s, a in ALONE]
    for name, to_group, only in zip(SIGNALS, (True, jobs == 2, False), seeds, strict=True):
        command = begin(*RUN[:2], *only, "--jobs", str(jobs))
        command.wait_for(r"epoch \d/")
        time.sleep(0.04)  # some steps into the next epoch
        num_before = steps_done(workshop.folder)
        command.send(getattr(signal, name), to_group=to_group)
        tried("Ctrl-C, SIGTERM or SIGHUP in the middle of an epoch")
        assert command.end(seconds=30) == 130
        stopped = re.findall(
            rf"^tiny (.+) seed (\d): stopped, .*\(interrupted by {name}\)$", command.said, re.MULTILINE
        )
        assert f"Stopped: interrupted by {name}\nThe same command again does what is left.\n" in command.said
        assert "Traceback" not in command.said
        recorded = statuses()
        assert "RUNNING" not in {status for status, _ in recorded.values()}
        assert 1 <= len(stopped) <= jobs
        for arm, seed in stopped:
            assert recorded[f"{arm} {seed}"] == ("KILLED", f"interrupted by {name}")
        checkpoints = (workshop.folder / "mlruns" / "runs").glob("*/checkpoint.safetensors")
        progress = [found for path in checkpoints if (found := read_progress(path))]
        assert len(progress) >= len(stopped)
        inside += [0 < found["steps"] < NUM_STEPS for found in progress]
        assert steps_done(workshop.folder) > num_before
    assert any(inside)
    steps = count_steps(workshop)
    num_left = NUM_RUNS * NUM_EPOCHS * NUM_STEPS - steps_done(workshop.folder)
    assert workshop(*RUN).code == 0
    assert len(steps) == num_left
    assert_undisturbed(workshop.folder, undisturbed)


def count_steps(workshop: Workshop) -> list[None]:
    """Grows with every step that is taken in this process."""
    from cifar_ablate.training.step import TrainStep

    steps: list[None] = []
    take = TrainStep.__call__

    def counted(train_step: TrainStep, step: int) -> int:
        steps.append(None)
        return take(train_step, step)

    workshop.monkeypatch.setattr(TrainStep, "__call__", counted)
    return steps


@pytest.mark.parametrize(("name", "seconds"), [("SIGINT", 0.0), ("SIGTERM", 0.2), ("SIGHUP", 0.4)])
def test_a_signal_while_a_command_starts_ends_it_with_one_sentence(
    workshop: Workshop, begin: Begin, undisturbed: Undisturbed, tried: Tried, name: str, seconds: float
) -> None:
    tried("Ctrl-C, SIGTERM or SIGHUP while the command starts")
    command = begin(*RUN, *ONE_RUN, fresh=[])
    wait_until(command.hears_signals)
    time.sleep(seconds)  # in the middle of imports, which take seconds
    command.send(getattr(signal, name), to_group=True)
    assert command.end(seconds=5) == 130
    assert command.said == "interrupted; the same command again does what is left\n"
    assert workshop(*RUN, *ONE_RUN).code == 0
    assert_undisturbed(workshop.folder, undisturbed, only=["flip 0"])


def test_a_ctrl_c_while_workers_start_shows_no_traceback(
    workshop: Workshop, begin: Begin, undisturbed: Undisturbed, tried: Tried
) -> None:
    tried("Ctrl-C, SIGTERM or SIGHUP while the command starts")
    command = begin(*RUN, "--jobs", "2")
    command.wait_for("Runs: 4 to train")
    wait_until(lambda: len(command.workers()) >= 2)
    workers = command.workers()
    command.send(signal.SIGINT, to_group=True)
    assert command.end(seconds=10) == 130
    assert "Runs: 4 not tried" in command.said
    assert "Traceback" not in command.said
    assert gone_within(workers, 2)
    assert workshop(*RUN).code == 0
    assert_undisturbed(workshop.folder, undisturbed)


def test_a_second_ctrl_c_while_mlflow_hangs_leaves_at_once_and_the_same_command_heals_everything(
    workshop: Workshop, begin: Begin, undisturbed: Undisturbed, tried: Tried
) -> None:
    tried("second Ctrl-C")
    command = begin(*RUN, "--jobs", "2")
    command.wait_for(r"\[2/[^z]*epoch \d/")
    workers = command.workers()
    with closing(sqlite3.connect(workshop.folder / "mlflow.db", timeout=30, isolation_level=None)) as database:
        database.execute("BEGIN EXCLUSIVE")
        command.send(signal.SIGINT, to_group=True)
        time.sleep(1)
        assert command.code is None  # it waits for MLflow
        command.send(signal.SIGINT, to_group=True)
        assert command.end(seconds=1) == 130
        assert gone_within(workers, 2)
        database.rollback()
    assert "left at once; the same command again does what is left" in command.said
    assert workshop(*RUN).code == 0
    assert_undisturbed(workshop.folder, undisturbed)


def test_a_second_ctrl_c_leaves_at_once_in_the_middle_of_a_long_step(
    workshop: Workshop, begin: Begin, tried: Tried
) -> None:
    tried("second Ctrl-C")
    # a step of many seconds, most of them in calls of torch, during which Python calls no signal handler
    workshop.write("tiny.yaml", STUDY.replace("width: 4", "width: 64").replace("batch_size: 25", "batch_size: 400"))
    command = begin(*RUN, *ONE_RUN)
    command.wait_for(r"\[1/1\]")
    time.sleep(1)
    command.send(signal.SIGINT, to_group=True)
    time.sleep(0.8)
    assert command.code is None  # it takes its step to the end
    command.send(signal.SIGINT, to_group=True)
    assert command.end(seconds=1) == 130
    assert "left at once" in command.said


def test_a_command_under_nohup_survives_its_terminal(
    workshop: Workshop, begin: Begin, undisturbed: Undisturbed, tried: Tried
) -> None:
    tried("terminal or reader of the output gone")
    command = begin(*RUN, *ONE_RUN, fresh=["nohup"])
    command.wait_for("epoch 1/")
    command.send(signal.SIGHUP, to_group=True)
    assert command.end() == 0, command.said
    assert_undisturbed(workshop.folder, undisturbed, only=["flip 0"])


@pytest.mark.parametrize(("what", "jobs"), [("pipe", 2), ("terminal", 1)])
def test_a_command_whose_reader_is_gone_stops_as_it_should(
    workshop: Workshop, begin: Begin, undisturbed: Undisturbed, tried: Tried, what: str, jobs: int
) -> None:
    """Ctrl-C in ``cifar-ablate run | tee log`` ends tee first; a terminal that closes sends SIGHUP, too."""
    if what == "pipe":
        place = workshop.folder / "pipe"
        os.mkfifo(place)
        reader = os.open(place, os.O_RDONLY | os.O_NONBLOCK)
    else:
        reader, writer = os.openpty()
        place = Path(os.ttyname(writer))
        os.set_blocking(reader, False)
    command = begin(*RUN, "--jobs", str(jobs), onto=place)

    def is_under_way() -> bool:
        with suppress(BlockingIOError, OSError):
            os.read(reader, 1 << 16)  # what nobody reads would hold the command up
        return sum(epochs > 0 for epochs in epochs_kept(workshop.folder).values()) >= jobs

    wait_until(is_under_way)
    tried("terminal or reader of the output gone")
    os.close(reader)
    if what == "pipe":
        command.send(signal.SIGINT, to_group=True)
    assert command.end(seconds=30) == 130
    recorded = statuses()
    name = "SIGINT" if what == "pipe" else "SIGHUP"
    assert ("KILLED", f"interrupted by {name}") in recorded.values()
    assert "RUNNING" not in {status for status, _ in recorded.values()}
    assert workshop(*RUN).code == 0
    assert_undisturbed(workshop.folder, undisturbed)


def test_sync_marks_a_run_that_was_killed_in_its_first_epoch(workshop: Workshop, begin: Begin) -> None:
    assert begin(*RUN, *ONE_RUN, fate="mlflow log_batch").end() == -signal.SIGKILL
    assert [run.info.status for run in runs_of("tiny")] == ["RUNNING"]
    assert workshop("sync").code == 0
    assert statuses() == {"flip 0": ("KILLED", "interrupted; `cifar-ablate run` goes on")}


# ------------------------------------------------------------------------------------------------------- edits


def test_an_edit_of_the_file_while_its_study_runs_does_not_reach_it(
    workshop: Workshop, begin: Begin, undisturbed: Undisturbed, tried: Tried
) -> None:
    tried("study file edited under its study")
    command = begin(*RUN, "--seed", "0")
    command.wait_for(r"\[1/2\]")
    workshop.write("tiny.yaml", STUDY.replace("lr: 0.05", "lr: 0.5"))
    assert command.end() == 0, command.said
    assert_undisturbed(workshop.folder, undisturbed, only=["baseline 0", "flip 0"])
    for run in runs_of("tiny"):
        assert run.data.params["optimizer.lr"] == "0.05"


def test_an_interrupted_run_whose_recording_was_edited_goes_on(workshop: Workshop, begin: Begin) -> None:
    command = begin(*RUN, *ONE_RUN)
    command.wait_for("epoch 2/")
    command.send(signal.SIGINT, to_group=False)
    assert command.end() == 130
    workshop.write("tiny.yaml", STUDY.replace("batch_size: 25", "batch_size: 25\n      eval_every: 0"))
    answer = workshop(*RUN, *ONE_RUN)
    assert answer.code == 0, answer.err
    assert list(starts(answer.out).values()) >= [2]
    (run,) = runs_of("tiny")
    assert run.info.status == "FINISHED"
