"""Upload to MLflow what run folders hold and MLflow has missed; nothing is trained."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from cifar_ablate.errors import OutputError, RecordError
from cifar_ablate.record.folder import RunFolder
from cifar_ablate.record.mlflow_store import Tracking
from cifar_ablate.record.mlflow_writer import MlflowWriter
from cifar_ablate.record.types import ABANDONED, Key, RecordedRun, RunIdentity
from cifar_ablate.runner.artifacts import write_missing_artifacts
from cifar_ablate.runner.kept_plans import KeptPlan, kept_plans, mark_recorded
from cifar_ablate.runner.status import RunStatus, by_training, status
from cifar_ablate.runner.summary import SyncSummary

PATIENCE_SECONDS = 60.0


def sync(tracking: Tracking, runs_root: Path, on_note: Callable[[str], None]) -> SyncSummary:
    """Upload every kept plan's runs as far as their folders go; raises RecordError if there is no plan."""
    plans = kept_plans()
    if not plans:
        raise RecordError("no run folders to deliver here; `cifar-ablate run` makes them in mlruns/ of its folder")
    experiments: dict[str, str] = {}
    taken: dict[Key, str] = {}
    writer = MlflowWriter(tracking, experiments, on_note=on_note, on_taken=taken.__setitem__)
    offered: list[RunIdentity] = []
    running, unusable = [], []
    for plan in plans:
        recorded = by_training(_open(tracking, plan, experiments))
        for run in plan.runs:
            folder = RunFolder(runs_root / run.fingerprint)
            found = status(recorded.get((run.arm, run.fingerprint), ()), folder)
            if found.kind == "running":
                running.append(run.name)
            elif found.kind == "damaged":
                unusable.append((run.name, found.reason))
            elif outcome := _outcome(found, folder, tracking):
                try:
                    write_missing_artifacts(folder)
                except (RecordError, OutputError) as error:
                    unusable.append((run.name, str(error)))
                    continue
                if found.owner is not None:
                    writer.replaces[run.key] = found.owner
                writer.end(run, folder, outcome, "interrupted; `cifar-ablate run` goes on")
                offered.append(run)
    left = writer.close(patience_seconds=PATIENCE_SECONDS)
    kept_back = {one.run.key for one in left} | taken.keys()
    return SyncSummary(
        delivered=tuple(run.name for run in offered if run.key not in kept_back),
        undelivered=(*unusable, *((one.run.name, one.trouble) for one in left)),
        running=tuple(running),
    )


def _open(tracking: Tracking, plan: KeptPlan, experiments: dict[str, str]) -> list[RecordedRun]:
    """A plan's runs in MLflow; MLflow gets the study itself only if it missed it."""
    if not plan.is_recorded or plan.label not in tracking.labels():
        experiments[plan.label] = tracking.open_study(plan.label, plan.document)
        mark_recorded(plan.label, plan.document)
    else:
        experiments[plan.label] = tracking.experiment_id(plan.label)
    return tracking.runs(experiments[plan.label])


def _outcome(found: RunStatus, folder: RunFolder, tracking: Tracking) -> str:
    """The outcome that MLflow lacks; empty if it lacks none or another process takes care of the run."""
    if found.kind in ("recorded", "running", "elsewhere"):
        return ""
    record = found.record
    if found.result is not None:
        return "" if record is not None and record.outcome == found.result.status else found.result.status
    if record is not None and folder.is_begun() and (record.outcome == "running" or record.reason == ABANDONED):
        return "killed"
    num_recorded = _num_epochs(tracking, record) if record is not None and record.outcome == "killed" else 0
    return "killed" if len(folder.history()) > num_recorded else ""


def _num_epochs(tracking: Tracking, run: RecordedRun) -> int:
    points = tracking.curves(run.run_id, ["train_loss"])["train_loss"]
    return max((epoch for epoch, _ in points), default=0)
