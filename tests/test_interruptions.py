"""Commands that are killed, interrupted and hung up on: real processes, real MLflow storage, digits.

Whatever happens to a command, the same command again leads to what an undisturbed one leaves, to the bit.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import psutil
import pytest

from cifar_ablate.folder import RunFolder
from cifar_ablate.records import RunIdentity
from cifar_ablate.runner.kept_plans import kept_plans
from cifar_ablate.training.checkpoint import read_progress
from tests import comparing
from tests.comparing import bits, leftovers, runs_of, snapshot, without_speed
from tests.conftest import Workshop

NUM_EPOCHS, NUM_STEPS, NUM_RUNS = 5, 20, 4
STUDY = f"""
    study: tiny
    question: Does mirroring help a tiny network on digits?
    seeds: 2
    recipe:
      data: digits
      train_size: {25 * NUM_STEPS}
      model: {{name: resnet18-compact, width: 4}}
      epochs: {NUM_EPOCHS}
      batch_size: 25
      optimizer: {{name: sgd, lr: 0.05, momentum: 0.9}}
    arms:
      baseline:
      flip: {{augment: {{hflip: {{p: 0.5}}}}}}
"""
RUN = ("run", "tiny.yaml", "--checkpoint-seconds", "0")
ONE_RUN = ("--arm", "flip", "--seed", "0")
SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")

# Processes of this kind are forked from one that has imported everything: they start in 0.1 s, a fresh one in 4 s.
forked = multiprocessing.get_context("forkserver")
forked.set_forkserver_preload(
    ["cifar_ablate.cli", "cifar_ablate.terminal", "cifar_ablate.runner.show_plan", "cifar_ablate.runner.closing"]
    + ["cifar_ablate.runner.executors.local", "cifar_ablate.training.train", "cifar_ablate.tracking.store", "pytest"]
    + ["mlflow.store.tracking.sqlalchemy_store", "sklearn.datasets", "timm", "matplotlib.figure"]
)


class Command:
    """A ``cifar-ablate`` command beside the test, in a session and process group of its own."""

    def __init__(
        self,
        folder: Path,
        *arguments: str,
        fate: str = "",
        onto: Path | None = None,
        fresh: Sequence[str] | None = None,
    ) -> None:
        """``fate``: where it kills itself (see ``_die_at``); ``onto``: where its output goes, if not into a file.

        ``fresh``: not forked but started as a user does, with these words before it.
        """
        self.log = folder / f"output-{time.monotonic_ns()}.txt"
        place = self.log if onto is None else onto
        keep = {name: value for name, value in os.environ.items() if name.startswith(("MLFLOW", "OMP", "CIFAR"))}
        self.process: Any
        if fresh is None:
            self.process = forked.Process(target=_command, args=(folder, arguments, place, keep, fate))
            self.process.start()
        else:
            with place.open("w") as log:
                start = [*fresh, *comparing.command(*arguments)]
                self.process = subprocess.Popen(start, cwd=folder, stdout=log, stderr=log, start_new_session=True)
        self.pid: int = self.process.pid

    @property
    def code(self) -> int | None:
        """Its exit code; None while it runs."""
        return self.process.poll() if isinstance(self.process, subprocess.Popen) else self.process.exitcode

    @property
    def said(self) -> str:
        return self.log.read_text(encoding="utf-8") if self.log.exists() else ""

    def wait_for(self, pattern: str, *, seconds: float = 60) -> None:
        """Wait until a regular expression is found in what it said."""
        wait_until(lambda: bool(re.search(pattern, self.said)) or self.code is not None, seconds=seconds)
        assert re.search(pattern, self.said), f"{self.code}: {self.said}"

    def end(self, *, seconds: float = 120) -> int:
        """Wait for its end; gives its exit code."""
        wait_until(lambda: self.code is not None, seconds=seconds)
        return int(self.code or 0)

    def send(self, number: int, *, to_group: bool) -> None:
        with suppress(ProcessLookupError):  # it has just ended
            (os.killpg if to_group else os.kill)(self.pid, number)

    def workers(self) -> list[psutil.Process]:
        return psutil.Process(self.pid).children(recursive=True)

    def clear_away(self) -> None:
        if self.code is None:
            self.send(signal.SIGKILL, to_group=True)


def _command(folder: Path, arguments: Sequence[str], onto: Path, environment: dict[str, str], fate: str) -> None:
    """What a forked process does."""
    os.setsid()
    os.chdir(folder)
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    os.environ.update(environment)
    # the first terminal that the leader of a session opens becomes its own
    output = os.open(onto, os.O_RDWR if onto.is_char_device() else os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1), os.dup2(output, 2)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    sys.argv = ["cifar-ablate", *arguments]
    if fate:
        _die_at(fate)
    from cifar_ablate.cli import main

    main()


def _die_at(fate: str) -> None:
    """Kill this process before an operation on a file ("os.rename .result.json"), or after "mlflow create_run"."""
    kind, name = fate.split(" ")

    def die(event: str, arguments: Any) -> None:
        if event == kind and name in str(arguments[0]):
            os.killpg(0, signal.SIGKILL)

    if kind != "mlflow":
        sys.addaudithook(die)
        return
    from mlflow import MlflowClient

    call = getattr(MlflowClient, name)

    def last_call(*arguments: Any, **options: Any) -> None:
        call(*arguments, **options)
        die("mlflow", (name,))

    setattr(MlflowClient, name, last_call)


def wait_until(condition: Callable[[], bool], *, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.005)


def gone_within(processes: Sequence[psutil.Process], seconds: float) -> bool:
    """Have all of them ended in this time?"""
    return not psutil.wait_procs(processes, timeout=seconds)[1]


Begin = Callable[..., Command]


def commands_in(workshop: Workshop) -> Iterator[Begin]:
    """For a fixture: gives a function that starts commands in the folder of a test, and ends what is left of them."""
    begun: list[Command] = []

    def begin(*arguments: str, **options: Any) -> Command:
        begun.append(Command(workshop.folder, *arguments, **options))
        return begun[-1]

    yield begin
    for command in begun:
        command.clear_away()


@dataclass(frozen=True)
class Undisturbed:
    """What the study leaves behind where nothing happens."""

    bits: dict[str, Any]
    record: Any
    seconds: dict[int, tuple[float, float]]
    """By --jobs: time to the first run, and to the end."""


@cache
def train_undisturbed(root: Path, database: Path) -> Undisturbed:
    """Two studies in processes of their own, with --jobs 1 and 2; once in a session."""
    seconds, left = {}, []
    for jobs in (1, 2):
        folder = root / f"undisturbed-{jobs}"
        folder.mkdir()
        shutil.copy(database, folder / "mlflow.db")
        (folder / "tiny.yaml").write_text(textwrap.dedent(STUDY), encoding="utf-8")
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'mlflow.db'}")
            begun = time.monotonic()
            command = Command(folder, *RUN, "--jobs", str(jobs))
            try:
                command.wait_for(r"\[1/")
                to_first = time.monotonic() - begun
                assert command.end() == 0, command.said
            finally:
                command.clear_away()
            seconds[jobs] = (to_first, time.monotonic() - begun)
            left.append((bits(folder), without_speed("tiny")))
    assert left[0] == left[1]
    return Undisturbed(*left[0], seconds)


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Undisturbed:
    return train_undisturbed(tmp_path_factory.getbasetemp(), empty_database)


@pytest.fixture
def begin(workshop: Workshop) -> Iterator[Begin]:
    workshop.write("tiny.yaml", STUDY)
    yield from commands_in(workshop)


def statuses() -> dict[str, tuple[str, str]]:
    """Status and reason of each recorded run, by arm and seed."""
    tags = [(run.data.tags, run.info.status) for run in runs_of("tiny")]
    return {f"{of['ablate.arm']} {of['ablate.seed']}": (status, of.get("ablate.reason", "")) for of, status in tags}


def assert_undisturbed(folder: Path, undisturbed: Undisturbed, *, only: Sequence[str] = ()) -> None:
    """The study (or these of its runs: "flip 0") is what it would be if nothing had happened."""
    found = bits(folder)
    wanted = {run.fingerprint for run in planned() if not only or f"{run.arm} {run.seed}" in only}
    assert found == {name: undisturbed.bits[name] for name in wanted}
    assert leftovers(folder) == []
    assert without_speed("tiny") == [run for run in undisturbed.record if not only or " ".join(run[:2]) in only]
    for _, status, tags, _, metrics, _ in snapshot("tiny"):
        assert status == "FINISHED"
        assert not [tag for tag in tags if tag.startswith("ablate.claim.")]
        for points in metrics.values():
            assert len({step for step, _ in points}) == len(points)


def assert_readable(folder: Path) -> None:
    """No file that a command left is cut short or damaged."""
    for run in (RunFolder(path) for path in (folder / "mlruns" / "runs").glob("*")):
        lines = (run.path / "history.jsonl").read_text() if (run.path / "history.jsonl").exists() else ""
        assert len(run.history()) == lines.count("\n")
        run.result()
        for name, read in (("environment.json", run.environment), ("recipe.yaml", run.recipe)):
            assert not (run.path / name).exists() or read()
        for path in run.path.glob("checkpoint*.safetensors"):
            assert read_progress(path)
    with closing(sqlite3.connect(folder / "mlflow.db")) as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def planned() -> Sequence[RunIdentity]:
    return kept_plans()[0].runs if kept_plans() else ()


def epochs_kept(folder: Path) -> dict[str, int]:
    """Epochs in the history of each run, by name."""
    return {run.name: len(RunFolder(folder / "mlruns/runs" / run.fingerprint).history()) for run in planned()}


def starts(said: str) -> dict[str, int]:
    """Epochs that each run had when a command took it up, from what the command said."""
    found = re.findall(r"^\[\d+/\d+\] (.+? seed \d+)(?: \(from epoch (\d+)\))?$", said, re.MULTILINE)
    return {name: int(epoch or 1) - 1 for name, epoch in found}


def steps_done(folder: Path) -> int:
    """Steps that need not be taken again, over all runs."""
    num = 0
    for run in (RunFolder(path) for path in (folder / "mlruns" / "runs").glob("*")):
        progress = read_progress(run.checkpoint) or {"epochs": 0, "steps": 0}
        num += NUM_EPOCHS * NUM_STEPS if run.result() else progress["epochs"] * NUM_STEPS + progress["steps"]
    return num


# ---------------------------------------------------------------------------------------------------- kill -9


@pytest.mark.parametrize(
    ("seed", "jobs", "to_group"),
    [(1, 1, True), (2, 1, False), (3, 2, True), (4, 2, False)],
    ids=["jobs 1, all processes", "jobs 1, the command", "jobs 2, all processes", "jobs 2, the command alone"],
)
def test_five_kills_at_random_moments_lose_an_epoch_each_at_most_and_change_no_bit(
    workshop: Workshop,
    begin: Begin,
    undisturbed: Undisturbed,
    empty_database: Path,
    seed: int,
    jobs: int,
    to_group: bool,
) -> None:
    rng, kills = random.Random(seed), 0
    to_first, to_end = undisturbed.seconds[jobs]
    kept: dict[str, int] = {}
    while kills < 5:
        done = sum(kept.values()) / (NUM_RUNS * NUM_EPOCHS)
        moment = rng.uniform(0, to_first + (1 - done) * (to_end - to_first))
        command = begin(*RUN, "--jobs", str(jobs))
        with suppress(subprocess.TimeoutExpired):
            command.process.join(moment)
        if command.code is not None:  # it was quicker: the kill is made up for on a study of its own
            assert command.code == 0, command.said
            assert_undisturbed(workshop.folder, undisturbed)
            move_on(workshop, empty_database)
            kept = {}
            continue
        workers = command.workers()
        command.send(signal.SIGKILL, to_group=to_group)
        assert command.end() == -signal.SIGKILL
        assert gone_within(workers, 5)
        kills += 1
        assert_loses_little(command.said, kept)
        assert_readable(workshop.folder)
        assert workshop("plan", "tiny.yaml").code == 0
        kept = epochs_kept(workshop.folder)
    last = workshop(*RUN)
    assert last.code == 0, last.err
    assert_loses_little(last.out, kept)
    assert_undisturbed(workshop.folder, undisturbed)


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
    *("mlflow create_experiment", "mlflow create_run", "mlflow set_tag", "mlflow delete_tag", "mlflow log_batch"),
    *("os.rename .history.jsonl.", "os.rename .checkpoint.", "os.rename /checkpoint.", "os.rename .checkpoint."),
    *("os.rename .test_logits.npy.", "os.rename .weights.", "os.rename .result.json.", "os.remove /checkpoint."),
    *("os.rename .history.csv.", "os.rename .confusion_matrix.png.", "os.rename .artifact.uploading."),
    *("mlflow log_artifact", "mlflow set_terminated"),
)
"""Places between writes that belong together, in an order in which one run can die at each of them."""


def test_a_run_that_is_killed_between_any_two_writes_goes_on_and_changes_no_bit(
    workshop: Workshop, begin: Begin, undisturbed: Undisturbed
) -> None:
    kept: dict[str, int] = {}
    for fate in FATES:
        command = begin(*RUN, *ONE_RUN, fate=fate)
        assert command.end() == -signal.SIGKILL, f"{fate}: {command.said}"
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
    workshop: Workshop, begin: Begin, undisturbed: Undisturbed, damage: Callable[[Path], None]
) -> None:
    command = begin(*RUN, *ONE_RUN)
    command.wait_for("epoch 3/")
    command.send(signal.SIGKILL, to_group=True)
    command.end()
    (folder,) = (RunFolder(path) for path in (workshop.folder / "mlruns" / "runs").iterdir())
    damage(folder.checkpoint)
    before = read_progress(folder.checkpoint_before)
    assert before is not None
    answer = workshop(*RUN, *ONE_RUN)
    assert answer.code == 0, answer.err
    assert "checkpoint.safetensors damaged; it goes on from what was before" in answer.out
    assert list(starts(answer.out).values()) == [before["epochs"]]
    assert_undisturbed(workshop.folder, undisturbed, only=["flip 0"])


# ----------------------------------------------------------------------------------------------------- signals


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_signal_stops_a_study_between_two_steps_and_the_same_command_goes_on_with_the_next_one(
    workshop: Workshop, begin: Begin, undisturbed: Undisturbed, jobs: int
) -> None:
    inside = []
    for name, to_group in zip(SIGNALS, (True, jobs == 2, False), strict=True):
        command = begin(*RUN[:2], "--jobs", str(jobs))
        command.wait_for(rf"\[{jobs}/[^z]*epoch \d/")
        time.sleep(0.04)  # some steps into the next epoch
        num_before = steps_done(workshop.folder)
        command.send(getattr(signal, name), to_group=to_group)
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
    from cifar_ablate.training import epoch

    steps: list[None] = []
    take = epoch.train_step

    def counted(*arguments: Any) -> Any:
        steps.append(None)
        return take(*arguments)

    workshop.monkeypatch.setattr(epoch, "train_step", counted)
    return steps


@pytest.mark.parametrize(("name", "moment"), [("SIGINT", 0.8), ("SIGTERM", 1.5), ("SIGHUP", 2.2)])
def test_a_signal_while_a_command_starts_ends_it_with_one_sentence(begin: Begin, name: str, moment: float) -> None:
    command = begin(*RUN, fresh=[])
    time.sleep(moment)
    command.send(getattr(signal, name), to_group=True)
    assert command.end(seconds=5) == 130
    assert command.said == "interrupted; the same command again does what is left\n"


def test_a_ctrl_c_while_workers_start_shows_no_traceback(workshop: Workshop, begin: Begin) -> None:
    command = begin(*RUN, "--jobs", "2")
    command.wait_for("Runs: 4 to train")
    wait_until(lambda: len(command.workers()) >= 2)
    time.sleep(0.5)
    workers = command.workers()
    command.send(signal.SIGINT, to_group=True)
    assert command.end(seconds=10) == 130
    assert "Runs: 4 not tried" in command.said
    assert "Traceback" not in command.said
    assert gone_within(workers, 2)


def test_a_second_ctrl_c_while_mlflow_hangs_leaves_at_once_and_the_same_command_heals_everything(
    workshop: Workshop, begin: Begin, undisturbed: Undisturbed
) -> None:
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


def test_a_second_ctrl_c_leaves_at_once_in_the_middle_of_a_long_step(workshop: Workshop, begin: Begin) -> None:
    # a step of some 6 s, most of them in one call of torch, during which Python calls no signal handler
    workshop.write("tiny.yaml", STUDY.replace("width: 4", "width: 32").replace("batch_size: 25", "batch_size: 500"))
    command = begin(*RUN, *ONE_RUN)
    command.wait_for(r"\[1/1\]")
    time.sleep(2.5)
    command.send(signal.SIGINT, to_group=True)
    time.sleep(0.8)
    assert command.code is None
    command.send(signal.SIGINT, to_group=True)
    assert command.end(seconds=1) == 130


def test_a_command_under_nohup_survives_its_terminal(
    workshop: Workshop, begin: Begin, undisturbed: Undisturbed
) -> None:
    command = begin(*RUN, *ONE_RUN, fresh=["nohup"])
    command.wait_for("epoch 1/")
    command.send(signal.SIGHUP, to_group=True)
    assert command.end() == 0, command.said
    assert_undisturbed(workshop.folder, undisturbed, only=["flip 0"])


@pytest.mark.parametrize(("what", "jobs"), [("pipe", 2), ("terminal", 1)])
def test_a_command_whose_reader_is_gone_stops_as_it_should(
    workshop: Workshop, begin: Begin, undisturbed: Undisturbed, what: str, jobs: int
) -> None:
    """Ctrl-C in ``cifar-ablate run | tee log`` ends tee first; a terminal that closes sends SIGHUP and takes no word."""
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
        return list(epochs_kept(workshop.folder).values()).count(0) <= NUM_RUNS - jobs

    wait_until(is_under_way)
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


# ------------------------------------------------------------------------------------------------------- edits


def test_an_edit_of_the_file_while_its_study_runs_does_not_reach_it(
    workshop: Workshop, begin: Begin, undisturbed: Undisturbed
) -> None:
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
