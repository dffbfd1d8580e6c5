"""What a planned run's state is, from the record, its folder and its lock."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from cifar_ablate.errors import RecordError
from cifar_ablate.folder import RunFolder
from cifar_ablate.locks import holder
from cifar_ablate.owner import owner_from
from cifar_ablate.plan import PlannedRun
from cifar_ablate.records import RecordedRun, worth
from cifar_ablate.training.checkpoint import read_progress


@dataclass(frozen=True)
class State:
    """Where a planned run stands."""

    kind: str
    """done, running, failed, interrupted, or to do; where looks decide, if open or spared."""
    text: str
    """For people."""
    epochs_done: int = 0
    """Epochs that will not be trained again."""

    @property
    def is_to_train(self) -> bool:
        return self.kind in ("to do", "interrupted")


RECORDABLE = State("done", "trained, to record")


def state_of(run: PlannedRun, recorded: Sequence[RecordedRun], runs_root: Path) -> State:
    """The state of a run; ``recorded`` is what the record holds of this training for its arm."""
    record = max(recorded, key=worth, default=None)
    folder = RunFolder(runs_root / run.fingerprint)
    if record is not None and record.outcome in ("finished", "diverged"):
        return State("done", "done" if record.outcome == "finished" else "done (diverged)")
    note = holder(folder.lock)
    if note is not None:
        who = owner_from(note) or "another run command"
        return State("running", f"running: {who}, {_epochs(len(folder.history()), run)}")
    if record is not None and record.outcome == "running":
        return State("running", f"running: {record.trained_by}")
    return _of_folder(run, folder, record)


def _of_folder(run: PlannedRun, folder: RunFolder, record: RecordedRun | None) -> State:
    """The state of a run that nobody trains, and that has no result in the record."""
    try:
        result = folder.result()
    except RecordError as error:
        return State("failed", f"damaged: {error}")
    if result is not None and result.status != "failed":
        return RECORDABLE
    if record is not None and record.outcome == "failed":
        return State("failed", f"failed: {record.reason}")
    return _unfinished(run, folder, record) if result is None else State("failed", f"failed: {result.reason}")


def has_ended(run: PlannedRun, runs_root: Path) -> bool:
    """Does its folder hold a result that is not a failure?"""
    with suppress(RecordError):
        result = RunFolder(runs_root / run.fingerprint).result()
        return result is not None and result.status != "failed"
    return False


def _unfinished(run: PlannedRun, folder: RunFolder, record: RecordedRun | None) -> State:
    num_lines = len(folder.history())
    for path in (folder.checkpoint, folder.checkpoint_before):
        progress = read_progress(path)
        if progress is not None and progress["epochs"] <= num_lines:
            return State("interrupted", f"interrupted at {_epochs(progress['epochs'], run)}", progress["epochs"])
    if num_lines or (record is not None and record.outcome == "killed"):
        return State("interrupted", "interrupted, no checkpoint here: starts over")
    return State("to do", "to do")


def _epochs(num: int, run: PlannedRun) -> str:
    return f"epoch {num}/{run.recipe.epochs}"
