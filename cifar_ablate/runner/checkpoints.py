"""Checkpoints that other machines left in MLflow, brought here before their runs are trained."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from cifar_ablate.errors import RecordError, TrackingError
from cifar_ablate.folder import RunFolder
from cifar_ablate.locks import lock
from cifar_ablate.records import RunIdentity
from cifar_ablate.tracking import Kept, Tracking
from cifar_ablate.training.checkpoint import read_progress


def bring_checkpoints(
    tracking: Tracking,
    experiment_id: str,
    runs: Sequence[RunIdentity],
    runs_root: Path,
    on_note: Callable[[str], None],
    should_stop: Callable[[], bool] = lambda: False,
) -> None:
    """Fetch the checkpoint of each of these runs that is further in MLflow than here.

    What cannot be fetched is told, and trained from where it stands here. Raises OutputError.
    """
    try:
        there = tracking.kept_checkpoints(experiment_id) if runs else {}
    except TrackingError as error:
        on_note(f"checkpoints of other machines cannot be asked for ({error})")
        return
    for run in runs:
        kept = there.get(run.fingerprint)
        folder = RunFolder(runs_root / run.fingerprint)
        if kept is None or should_stop() or not _is_ahead(kept, folder):
            continue
        with lock(folder.lock) as mine:
            if mine:
                try:
                    tracking.fetch_checkpoint(kept, folder)
                    on_note(f"{run.name}: goes on from the checkpoint that MLflow keeps of it")
                except (RecordError, TrackingError) as error:
                    on_note(f"{run.name}: {error}; it goes on from what is here")


def _is_ahead(kept: Kept, folder: RunFolder) -> bool:
    """Has another machine come further than this one?"""
    try:
        result = folder.result()
        if result is not None and result.status != "failed":
            return False
    except RecordError:
        return False
    here = [read_progress(path) for path in (folder.checkpoint, folder.checkpoint_before)]
    return all((one["epochs"], one["steps"]) < (kept.epochs, kept.steps) for one in here if one is not None)
