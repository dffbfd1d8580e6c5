"""One ``run`` command, seen from its trainings: it hears how they fare, has it recorded, and decides when to stop."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cifar_ablate.errors import OutputError, RecordError
from cifar_ablate.folder import RunFolder, RunResult
from cifar_ablate.locks import lock
from cifar_ablate.plan import PlannedRun
from cifar_ablate.records import Key
from cifar_ablate.runner.artifacts import write_artifacts
from cifar_ablate.runner.events import Events
from cifar_ablate.runner.looks import LEFT_OUT
from cifar_ablate.runner.messages import Channel, Ended, EpochEnded, Lost, Message, Noted, Started, Stepped
from cifar_ablate.runner.reconcile import Reconciled
from cifar_ablate.runner.stopping import Stops
from cifar_ablate.tracking import Courier, Parcel

ALIKE = 3
"""So many runs in a row that fail before their first epoch, for one reason: the others would, too."""


@dataclass(frozen=True)
class Summary:
    """How a ``run`` command ended, in runs."""

    kinds: Counter[str]
    """Runs of this command by what became of them."""
    num_done_before: int
    num_failed_before: int
    num_not_tried: int
    """Left because the command stopped."""
    failures: tuple[tuple[PlannedRun, str], ...]
    """Runs that failed, now or before, and those whose folder is damaged, with the reason."""
    stopped_because: str
    """Why the command stopped before its plan was done; empty: it did not."""
    signal: str
    """The signal that stopped it, if one did."""
    undelivered: tuple[tuple[str, str], ...]
    """Names of runs that are in their folders, but not all in MLflow, with what MLflow said."""
    is_offline: bool
    waiting: tuple[str, ...] = ()
    """Looks that wait for runs, in words."""


class Command(Channel):
    """Hears everything from the trainings of one command."""

    def __init__(
        self,
        runs_root: Path,
        courier: Courier,
        events: Events,
        stops: Stops,
        *,
        fail_fast: bool,
    ) -> None:
        self.runs: dict[Key, PlannedRun] = {}
        self.num_done = 0
        self.failed_before: list[tuple[PlannedRun, str]] = []
        self.runs_root, self.courier, self.events, self.stops = runs_root, courier, events, stops
        self.fail_fast = fail_fast
        self.kinds: dict[Key, str] = {}
        """What became of each run that was tried."""
        self.failures: list[tuple[PlannedRun, str]] = []
        self.failed: set[Key] = set()
        """Keys of all of these."""
        self.early_failures: list[str] = []
        """Reasons of the last runs, as long as they failed before their first epoch."""
        self.has_learnt: set[Key] = set()
        """Runs that ended an epoch here."""

    def take(self, found: Reconciled) -> None:
        """What is to be done of one stage of the plans; each run belongs to one stage."""
        self.runs |= {run.key: run for run in found.todo}
        self.num_done += len(found.done)
        self.failed_before += found.failed
        self.failed |= {run.key for run, _ in found.failed}
        self.events.on_plan(found.todo, len(found.done), len(found.failed))

    def why_missing(self, run: PlannedRun) -> str:
        """Why a run has no result, in a few words."""
        if run.key in self.failed:
            return "failed"
        if run.key not in self.runs:
            return LEFT_OUT
        return {"elsewhere": "left to another run command", "stopped": "interrupted"}.get(
            self.kinds.get(run.key, ""), "not tried"
        )

    def should_stop(self, key: Key | None = None) -> bool:
        return self.stops.should_stop(key)

    def tell(self, message: Message) -> None:
        if isinstance(message, Noted):
            self.events.on_note(message.text)
            return
        run = self.runs[message.key]
        if isinstance(message, Started):
            self.courier.begin(run, self._folder(run))
            if message.damaged:
                names = " and ".join(message.damaged)
                self.events.on_note(
                    f"{run.name}: {names} damaged, or ahead of the history; it goes on from what was before"
                )
            self.events.on_start(run, message.epochs_done)
        elif isinstance(message, Stepped):
            self.events.on_step(run, message.epoch, message.step, message.num_steps, message.loss)
        elif isinstance(message, EpochEnded):
            self.has_learnt.add(run.key)
            self.courier.news(run.key)
            self.events.on_epoch(run, message.line)
        elif isinstance(message, Lost):
            self._end(run, self._settle(run, message.reason))
        else:
            self._end(run, message)

    def summary(self, left: Sequence[Parcel], waiting: Sequence[str]) -> Summary:
        """How it ended; ``left`` is what could not be delivered, ``waiting`` says which looks wait for what."""
        return Summary(
            kinds=Counter(self.kinds.values()),
            num_done_before=self.num_done,
            num_failed_before=len(self.failed_before),
            num_not_tried=len(self.runs.keys() - self.kinds.keys()),
            failures=(*self.failed_before, *self.failures),
            stopped_because=self.stops.reason,
            signal=self.stops.signal,
            undelivered=tuple((parcel.run.name, parcel.trouble) for parcel in left),
            is_offline=self.courier.is_offline,
            waiting=tuple(waiting),
        )

    def _end(self, run: PlannedRun, ended: Ended) -> None:
        kind, reason, result = ended.kind, ended.reason, ended.result
        if kind == "stopped" and run.key in self.stops.withdrawn:
            kind, reason = "elsewhere", self.stops.withdrawn[run.key]
            self.courier.drop(run.key)
        elif kind == "stopped":
            reason = reason or self.stops.reason
            if run.key in self.courier.parcels:
                self.courier.end(run, self._folder(run), "killed", reason=reason)
            reason = f"stopped, to be taken up again ({reason})"
        elif kind == "shared" and result is not None and result.status == "failed":
            kind = "failed"
        if result is not None:
            self.courier.end(run, self._folder(run), result.status, result=result, reason=result.reason)
        is_known = self.kinds.get(run.key) == kind == "elsewhere"
        self.kinds[run.key] = kind
        if kind in ("finished", "diverged", "failed") and result is not None:
            self.events.on_end(run, result)
        elif not is_known:
            shared = "trained before" if self.courier.is_offline else "trained before, now recorded here"
            self.events.on_not_trained(run, shared if kind == "shared" else reason)
        self._judge(run, ended, kind)

    def _judge(self, run: PlannedRun, ended: Ended, kind: str) -> None:
        """Shall the others go on?"""
        if ended.halts:
            self.stops.everything(ended.reason)
        if kind not in ("failed", "damaged"):
            self.early_failures = [] if run.key in self.has_learnt else self.early_failures
            return
        self.failures.append((run, ended.reason))
        self.failed.add(run.key)
        if self.fail_fast:
            self.stops.everything(f"{run.name} failed, and --fail-fast was given")
        if ended.kind != "failed" or run.key in self.has_learnt:
            return
        self.early_failures = [*self.early_failures, _without_particulars(ended.reason)][-ALIKE:]
        if len(self.early_failures) == ALIKE and len(set(self.early_failures)) == 1:
            self.stops.everything(f"{ALIKE} runs in a row failed at their start for one reason: {ended.reason}")

    def _settle(self, run: PlannedRun, reason: str) -> Ended:
        """A process died in a run: its folder says so from now on, and keeps its checkpoint."""
        folder = self._folder(run)
        with lock(folder.lock) as mine:
            if not mine:
                return Ended(run.key, "elsewhere", "is being trained by another run command")
            if not folder.is_begun():  # nothing to settle: the next command trains it
                return Ended(run.key, "failed", reason)
            try:
                result = folder.result()
                if result is None or result.status == "failed":
                    result = RunResult("failed", len(folder.history()), 0, 0, {}, reason)
                    folder.write_result(result)
                else:  # it died when all was done
                    folder.drop_checkpoints()
                    write_artifacts(folder, folder.environment()["classes"])
            except (RecordError, OutputError) as error:
                return Ended(run.key, "damaged", str(error))
        return Ended(run.key, result.status, result.reason, result)

    def _folder(self, run: PlannedRun) -> RunFolder:
        return RunFolder(self.runs_root / run.fingerprint)


def _without_particulars(reason: str) -> str:
    """A reason without the numbers and names of one run."""
    return re.sub(r"[0-9a-f]{8,}|\d+", "#", reason)
