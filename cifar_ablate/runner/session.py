"""What happens with the events of one command's trainings: the record and the display get them, and they decide."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from cifar_ablate.device import Slot
from cifar_ablate.errors import OutputError, RecordError
from cifar_ablate.locks import lock
from cifar_ablate.plan import PlannedRun
from cifar_ablate.record.folder import RunFolder, RunResult
from cifar_ablate.record.mlflow_writer import MlflowWriter, PendingUpload
from cifar_ablate.record.types import Key
from cifar_ablate.runner.artifacts import write_artifacts
from cifar_ablate.runner.display import RunDisplay
from cifar_ablate.runner.events import Ended, Event, Group, Lost, Noted, TrainGroup
from cifar_ablate.runner.executor import Executor
from cifar_ablate.runner.looks import LEFT_OUT
from cifar_ablate.runner.stop import StopSignal
from cifar_ablate.runner.summary import RunSummary
from cifar_ablate.training.events import EpochEnded, Started, Stepped

MAX_ALIKE = 3
"""Number of runs (or trials) in a row that fail for one reason, after which the command stops: the others would too."""


class Session(ABC):
    """One command: ``train`` passes on every event of its trainings. ``run`` and ``tune`` differ in what follows."""

    def __init__(self, runs_root: Path, writer: MlflowWriter, stop: StopSignal) -> None:
        self.runs_root, self.writer, self.stop = runs_root, writer, stop
        self.runs: dict[Key, PlannedRun] = {}
        """The runs that events can be about."""

    def train(
        self, executor: Executor, groups: Iterable[Group], train_group: TrainGroup, slots: Sequence[Slot]
    ) -> None:
        """Train all groups and handle each event as it comes."""
        with closing(executor.train(groups, train_group, slots, self.stop)) as events:
            for key, event in events:
                self.handle(key, event)

    def handle(self, key: Key | None, event: Event) -> None:
        if isinstance(event, Noted):
            self.on_note(event.text)
            return
        assert key is not None, "only a note concerns no run"  # noqa: S101
        run = self.runs[key]
        folder = RunFolder(self.runs_root / run.fingerprint)
        if isinstance(event, Started):
            self.writer.begin(run, folder)
            self.on_start(run, folder, event)
        elif isinstance(event, Stepped):
            self.on_step(run, event)
        elif isinstance(event, EpochEnded):
            self.writer.news(key)
            self.on_epoch(run, event.line)
        elif isinstance(event, Lost):
            self.on_end(run, folder, self.settle(run, folder, event.reason))
        else:
            self.on_end(run, folder, event)

    @abstractmethod
    def on_note(self, text: str) -> None: ...
    @abstractmethod
    def on_start(self, run: PlannedRun, folder: RunFolder, started: Started) -> None: ...
    @abstractmethod
    def on_step(self, run: PlannedRun, step: Stepped) -> None: ...
    @abstractmethod
    def on_epoch(self, run: PlannedRun, line: Mapping[str, Any]) -> None: ...
    @abstractmethod
    def settle(self, run: PlannedRun, folder: RunFolder, reason: str) -> Ended:
        """The process that trained a run died: how did the run end?"""

    @abstractmethod
    def on_end(self, run: PlannedRun, folder: RunFolder, ended: Ended) -> None: ...


class RunSession(Session):
    """One ``run`` command."""

    def __init__(
        self, runs_root: Path, writer: MlflowWriter, display: RunDisplay, stop: StopSignal, *, fail_fast: bool
    ) -> None:
        super().__init__(runs_root, writer, stop)
        self.display, self.fail_fast = display, fail_fast
        self.num_done = 0
        self.failed_before: list[tuple[PlannedRun, str]] = []
        self.kinds: dict[Key, str] = {}
        """How each run ended: a kind of ``Ended``."""
        self.failures: list[tuple[PlannedRun, str]] = []
        self.failed: set[Key] = set()
        """Runs that failed, in this command or before."""
        self.early_failures: list[str] = []
        """Reasons of the last runs in a row that failed before their first epoch."""
        self.has_learnt: set[Key] = set()
        """Runs that ended an epoch in this command."""

    def plan_stage(
        self,
        todo: Sequence[PlannedRun],
        *,
        num_done: int,
        failed: Sequence[tuple[PlannedRun, str]],
        left_alone: Sequence[tuple[PlannedRun, str]],
    ) -> None:
        """What one stage of the plans has to do; each run belongs to one stage."""
        self.runs |= {run.key: run for run in (*todo, *(run for run, _ in left_alone))}
        self.num_done += num_done
        self.failed_before += failed
        self.failed |= {run.key for run, _ in failed}
        self.display.on_plan(todo, num_done, len(failed))
        for run, why in left_alone:
            self.kinds[run.key] = "elsewhere"
            self.display.on_note(f"{run.name}: {why}")

    def why_missing(self, run: PlannedRun) -> str:
        """Why a run has no result, in a few words."""
        if run.key in self.failed:
            return "failed"
        if run.key not in self.runs:
            return LEFT_OUT
        return {"elsewhere": "left to another run command", "stopped": "interrupted"}.get(
            self.kinds.get(run.key, ""), "not tried"
        )

    def on_note(self, text: str) -> None:
        self.display.on_note(text)

    def on_start(self, run: PlannedRun, folder: RunFolder, started: Started) -> None:
        if started.damaged:
            names = " and ".join(started.damaged)
            self.on_note(f"{run.name}: {names} damaged, or ahead of the history; it goes on from what was before")
        self.display.on_start(run, started.epochs_done)

    def on_step(self, run: PlannedRun, step: Stepped) -> None:
        self.display.on_step(run, step)

    def on_epoch(self, run: PlannedRun, line: Mapping[str, Any]) -> None:
        self.has_learnt.add(run.key)
        self.display.on_epoch(run, line)

    def on_end(self, run: PlannedRun, folder: RunFolder, ended: Ended) -> None:
        kind: str = ended.kind
        reason, result = ended.reason, ended.result
        if kind == "stopped" and run.key in self.stop.taken:
            kind, reason = "elsewhere", self.stop.taken[run.key]
            self.writer.drop(run.key)
        elif kind == "stopped":
            reason = reason or self.stop.reason
            if self.writer.has(run.key):
                self.writer.end(run, folder, "killed", reason)
            reason = f"stopped, to be taken up again ({reason})"
        elif kind == "shared" and result is not None and result.status == "failed":
            kind = "failed"
        if result is not None:
            self.writer.end(run, folder, result.status, result.reason)
        is_known = self.kinds.get(run.key) == kind == "elsewhere"
        self.kinds[run.key] = kind
        if kind in ("finished", "diverged", "failed") and result is not None:
            self.display.on_end(run, result)
        elif not is_known:
            shared = "trained before" if self.writer.is_offline else "trained before, now recorded here"
            self.display.on_not_trained(run, shared if kind == "shared" else reason)
        self._judge(run, ended, kind)

    def _judge(self, run: PlannedRun, ended: Ended, kind: str) -> None:
        """Must the other runs stop?"""
        if ended.halts:
            self.stop.everything(ended.reason)
        if kind not in ("failed", "damaged"):
            self.early_failures = [] if run.key in self.has_learnt else self.early_failures
            return
        self.failures.append((run, ended.reason))
        self.failed.add(run.key)
        if self.fail_fast:
            self.stop.everything(f"{run.name} failed, and --fail-fast was given")
        if ended.kind != "failed" or run.key in self.has_learnt:
            return
        self.early_failures = [*self.early_failures, _without_particulars(ended.reason)][-MAX_ALIKE:]
        if len(self.early_failures) == MAX_ALIKE and len(set(self.early_failures)) == 1:
            self.stop.everything(f"{MAX_ALIKE} runs in a row failed at their start for one reason: {ended.reason}")

    def settle(self, run: PlannedRun, folder: RunFolder, reason: str) -> Ended:
        """Write a failed result into the folder, which keeps its checkpoint."""
        with lock(folder.lock) as is_mine:
            if not is_mine:
                return Ended("elsewhere", "is being trained by another run command")
            if not folder.is_begun():  # nothing to settle: the next command trains it
                return Ended("failed", reason)
            try:
                result = folder.result()
                if result is None or result.status == "failed":
                    result = RunResult("failed", len(folder.history()), 0, 0, {}, reason)
                    folder.write_result(result)
                else:  # the process died when everything was done
                    folder.drop_checkpoints()
                    write_artifacts(folder, folder.environment()["classes"])
            except (RecordError, OutputError) as error:
                return Ended("damaged", str(error))
        return Ended(result.status, result.reason, result)

    def summary(self, left: Sequence[PendingUpload], waiting: Sequence[str]) -> RunSummary:
        """How the command ended; ``left`` could not be uploaded, ``waiting`` says which looks wait for what."""
        return RunSummary(
            kinds=Counter(self.kinds.values()),
            num_done_before=self.num_done,
            num_failed_before=len(self.failed_before),
            num_not_tried=len(self.runs.keys() - self.kinds.keys()),
            failures=(*self.failed_before, *self.failures),
            stopped_because=self.stop.reason,
            signal=self.stop.signal,
            undelivered=tuple((one.run.name, one.trouble) for one in left),
            is_offline=self.writer.is_offline,
            waiting=tuple(waiting),
        )


def _without_particulars(reason: str) -> str:
    """A reason without the numbers and names of one run."""
    return re.sub(r"[0-9a-f]{8,}|\d+", "#", reason)
