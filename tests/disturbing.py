"""Commands as processes that tests disturb, and the study they are to end up with as if nothing had happened."""

from __future__ import annotations

import multiprocessing
import os
import re
import resource
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
from pathlib import Path
from typing import Any

import psutil
import pytest

from cifar_ablate.record.folder import RunFolder, read_progress
from cifar_ablate.record.types import RunIdentity
from cifar_ablate.runner.kept_plans import kept_plans
from tests import comparing
from tests.comparing import bits, leftovers, runs_of, snapshot, without_speed
from tests.conftest import Workshop

NUM_EPOCHS, NUM_STEPS, NUM_RUNS = 4, 16, 4
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
      checkpoint_every: 2
      optimizer: {{name: sgd, lr: 0.05, momentum: 0.9}}
    arms:
      baseline:
      flip: {{augment: {{hflip: {{p: 0.5}}}}}}
"""
RUN = ("run", "tiny.yaml", "--checkpoint-seconds", "0")
ONE_RUN = ("--arm", "flip", "--seed", "0")

# Processes of this kind are forked from one that has imported everything: they start in 0.1 s, a fresh one in 4 s.
forked = multiprocessing.get_context("forkserver")
forked.set_forkserver_preload(
    [
        *("cifar_ablate.cli", "cifar_ablate.console", "cifar_ablate.runner.show_plan", "cifar_ablate.runner.summary"),
        *("cifar_ablate.runner.executors.local", "cifar_ablate.training.train", "cifar_ablate.record.mlflow_store"),
        *("mlflow.store.tracking.sqlalchemy_store", "sklearn.datasets", "timm", "matplotlib.figure", "pytest"),
    ]
)


HANGS_SECONDS = 300.0
"""What takes longer is taken to hang; on a busy machine a command has taken over a minute to start."""


class Command:
    """A ``cifar-ablate`` command beside the test, in a session and process group of its own."""

    def __init__(
        self,
        folder: Path,
        *arguments: str,
        fate: str = "",
        onto: Path | None = None,
        megabytes: int | None = None,
        fresh: Sequence[str] | None = None,
    ) -> None:
        """``fate``: where it kills itself (see ``_die_at``); ``onto``: where its output goes, if not into a file.

        ``megabytes``: the memory it may take in addition to what it has at its start. ``fresh``: not forked but
        started as a user does, with these words before it.
        """
        self.log = folder / f"output-{time.monotonic_ns()}.txt"
        place = self.log if onto is None else onto
        keep = {name: value for name, value in os.environ.items() if name.startswith(("MLFLOW", "OMP", "CIFAR"))}
        self.process: Any
        if fresh is None:
            self.process = forked.Process(target=_command, args=(folder, arguments, place, keep, fate, megabytes))
            self.process.start()
        else:
            with place.open("w") as log:
                start = comparing.command(*arguments, within=fresh)
                self.process = subprocess.Popen(start, cwd=folder, stdout=log, stderr=log, start_new_session=True)
        self.pid: int = self.process.pid
        wait_until(lambda: self.code is not None or os.getpgid(self.pid) == self.pid)  # so its group can be killed

    @property
    def code(self) -> int | None:
        """Its exit code; None while it runs."""
        return self.process.poll() if isinstance(self.process, subprocess.Popen) else self.process.exitcode

    @property
    def said(self) -> str:
        return self.log.read_text(encoding="utf-8") if self.log.exists() else ""

    def wait_for(self, pattern: str, *, seconds: float = HANGS_SECONDS) -> None:
        """Wait until a regular expression is found in what it said."""
        wait_until(lambda: bool(re.search(pattern, self.said)) or self.code is not None, seconds=seconds)
        assert re.search(pattern, self.said), f"{self.code}: {self.said}"

    def end(self, *, seconds: float = HANGS_SECONDS) -> int:
        """Wait for its end; gives its exit code."""
        wait_until(lambda: self.code is not None, seconds=seconds)
        return int(self.code or 0)

    def send(self, number: int, *, to_group: bool) -> None:
        with suppress(ProcessLookupError):  # it has just ended
            (os.killpg if to_group else os.kill)(self.pid, number)

    def workers(self) -> list[psutil.Process]:
        with suppress(psutil.NoSuchProcess):  # it has just ended
            return psutil.Process(self.pid).children(recursive=True)
        return []

    def hears_signals(self) -> bool:
        """Does it catch SIGTERM by now? Until then Python itself ends it."""
        caught = re.search(r"^SigCgt:\s*(\w+)$", Path(f"/proc/{self.pid}/status").read_text(), re.MULTILINE)
        return caught is not None and bool(int(caught[1], 16) & 1 << signal.SIGTERM - 1)

    def clear_away(self) -> None:
        if self.code is None:
            self.send(signal.SIGKILL, to_group=True)


def _command(
    folder: Path,
    arguments: Sequence[str],
    onto: Path,
    environment: dict[str, str],
    fate: str,
    megabytes: int | None,
) -> None:
    """What a forked process does."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # tests in the background do not hear it
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    os.chdir(folder)
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    os.environ.update(environment)
    # the first terminal that the leader of a session opens becomes its own
    output = os.open(onto, os.O_RDWR if onto.is_char_device() else os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1), os.dup2(output, 2)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
    sys.argv = ["cifar-ablate", *arguments]
    if fate:
        _die_at(fate)
    if megabytes is not None:
        most = psutil.Process().memory_info().vms + megabytes * 2**20
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
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


def wait_until(condition: Callable[[], bool], *, seconds: float = HANGS_SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.005)


def gone_within(processes: Sequence[psutil.Process], seconds: float) -> bool:
    """Have all of them ended in this time?"""
    return not psutil.wait_procs(processes, timeout=seconds)[1]


MEGABYTES = 20


class SmallDisk:
    """A file system of 20 MB, mounted at a folder."""

    def __init__(self, path: Path) -> None:
        self.path, self.filler = path, path / "filler"

    def mount(self, *options: str) -> subprocess.CompletedProcess[str]:
        words = ["mount", "-t", "tmpfs", "-o", ",".join((f"size={MEGABYTES}m", *options)), "tmpfs", str(self.path)]
        return subprocess.run(words, capture_output=True, text=True, check=False)

    def fill(self, *, leave_kib: int = 0) -> None:
        """Take all room but this."""
        with self.filler.open("ab", buffering=0) as file:
            free = os.statvfs(self.path)
            try:
                file.write(bytes(max(0, free.f_bavail * free.f_frsize - leave_kib * 1024)))
                while not leave_kib:
                    file.write(bytes(4096))
            except OSError:
                return

    def clear(self) -> None:
        self.filler.unlink()


Begin = Callable[..., Command]


def commands_in(workshop: Workshop) -> Iterator[Begin]:
    """For a fixture: gives a function that starts commands in the folder of a test, and ends what is left of them."""
    workshop.write("tiny.yaml", STUDY)
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


def train_undisturbed(root: Path, database: Path) -> Undisturbed:
    """Two studies in processes of their own, with --jobs 1 and 2; once in a session."""
    left = []
    Command(root, "models").end()  # what is forked next is forked from a warm one
    for jobs in (1, 2):
        folder = root / f"undisturbed-{jobs}"
        folder.mkdir()
        shutil.copy(database, folder / "mlflow.db")
        (folder / "tiny.yaml").write_text(textwrap.dedent(STUDY), encoding="utf-8")
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'mlflow.db'}")
            command = Command(folder, *RUN, "--jobs", str(jobs))
            try:
                assert command.end() == 0, command.said
            finally:
                command.clear_away()
            left.append((bits(folder), without_speed("tiny")))
    assert left[0] == left[1]
    return Undisturbed(*left[0])


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
    for _, status, _, _, metrics, _ in snapshot("tiny"):
        assert status == "FINISHED"
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


def said(commands: Sequence[Command]) -> str:
    """What several commands said, whole: of a list pytest shows the two ends only."""
    return "\n---\n".join(command.said for command in commands)
