"""Where a run stands: the one place that compares its record in MLflow, its folder and its lock."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from cifar_ablate.errors import RecordError
from cifar_ablate.locks import holder, last_owner
from cifar_ablate.process import ProcessId, process_from_text, this_process
from cifar_ablate.record.folder import RunFolder, RunResult, read_progress
from cifar_ablate.record.types import RecordedRun, RunIdentity, worth

RESULTS = ("finished", "diverged")
"""Outcomes that count as a result; a failed run has none."""
Kind = Literal["recorded", "trained", "running", "elsewhere", "failed", "damaged", "interrupted", "to do"]


@dataclass(frozen=True)
class RunStatus:
    """Where a run stands."""

    kind: Kind
    """recorded: MLflow has the result; trained: only the folder has it; running: a process on this machine, or in this
    folder, trains it; elsewhere: MLflow shows it as RUNNING on another host; failed; damaged: the folder cannot be
    used; interrupted: it can be resumed; to do."""
    record: RecordedRun | None = None
    """The run in MLflow."""
    result: RunResult | None = None
    """The result in the folder."""
    epochs_done: int = 0
    """Epochs that will not be trained again."""
    reason: str = ""
    """Why it failed, what is damaged, or why it cannot be resumed."""
    owner: ProcessId | None = None
    """The process that trains it, or that left it RUNNING."""

    @property
    def is_to_train(self) -> bool:
        return self.kind in ("to do", "interrupted")

    def as_recorded(self, run: RunIdentity) -> RecordedRun | None:
        """The run as a result for the analysis, from MLflow or else from the folder; None if it has none."""
        if self.kind == "recorded":
            return self.record
        if self.result is None or self.result.status not in RESULTS:
            return None
        metrics = {**self.result.metrics, "train_seconds": self.result.train_seconds}
        outcome, reason = self.result.status, self.result.reason
        return RecordedRun("", run.arm, run.seed, run.fingerprint, run.recipe_id, outcome, reason, metrics)


def by_training(recorded: Iterable[RecordedRun]) -> dict[tuple[str, str], list[RecordedRun]]:
    """Recorded runs of one study by (arm, fingerprint)."""
    found: dict[tuple[str, str], list[RecordedRun]] = {}
    for one in recorded:
        found.setdefault((one.arm, one.fingerprint), []).append(one)
    return found


def status(recorded: Iterable[RecordedRun], folder: RunFolder) -> RunStatus:  # noqa: PLR0911  a list of decisions
    """Where a run stands; ``recorded`` is what MLflow has of this run."""
    record = max(recorded, key=worth, default=None)
    if record is not None and record.outcome in RESULTS:
        return RunStatus("recorded", record)
    held_by = holder(folder.lock)
    try:
        result, reason = folder.result(), ""
    except RecordError as error:
        result, reason = None, str(error)
    if held_by is not None:
        return RunStatus("running", record, result, len(folder.history()), owner=process_from_text(held_by))
    owner = record.owner if record is not None else None
    if owner is not None and owner not in (this_process(), process_from_text(last_owner(folder.lock))):
        # of a run that was trained in this folder, the lock tells that its process is gone, on whatever machine
        return RunStatus("running" if owner.is_here() else "elsewhere", record, result, owner=owner)
    if reason:
        return RunStatus("damaged", record, reason=reason, owner=owner)
    if result is not None and result.status in RESULTS:
        return RunStatus("trained", record, result, owner=owner)
    if record is not None and record.outcome == "failed":
        return RunStatus("failed", record, result, reason=record.reason)
    if result is not None:
        return RunStatus("failed", record, result, reason=result.reason, owner=owner)
    return _unfinished(record, folder, owner)


def _unfinished(record: RecordedRun | None, folder: RunFolder, owner: ProcessId | None) -> RunStatus:
    num_lines = len(folder.history())
    for path in (folder.checkpoint, folder.checkpoint_before):
        progress = read_progress(path)
        if progress is not None and progress["epochs"] <= num_lines:
            return RunStatus("interrupted", record, epochs_done=progress["epochs"], owner=owner)
    if num_lines or owner is not None or (record is not None and record.outcome == "killed"):
        return RunStatus("interrupted", record, reason="no checkpoint here: starts over", owner=owner)
    return RunStatus("to do", record)
