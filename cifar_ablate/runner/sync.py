"""Deliver to MLflow what run folders hold and MLflow has missed; nothing is trained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cifar_ablate.errors import OutputError, RecordError
from cifar_ablate.folder import RunFolder
from cifar_ablate.locks import holder
from cifar_ablate.records import ABANDONED, Key, RecordedRun, RunIdentity, worth
from cifar_ablate.runner.artifacts import write_missing_artifacts
from cifar_ablate.runner.kept_plans import KeptPlan, kept_plans, mark_recorded
from cifar_ablate.tracking import Courier, Tracking

PATIENCE_SECONDS = 60.0


@dataclass(frozen=True)
class Synced:
    """What a ``sync`` did, in names of runs."""

    delivered: tuple[str, ...]
    undelivered: tuple[tuple[str, str], ...]
    """With the reason."""
    running: tuple[str, ...]
    """Left to the commands that train them."""


def sync(tracking: Tracking, runs_root: Path, on_note: Callable[[str], None]) -> Synced:
    """Deliver every kept plan's runs as far as their folders go; raises RecordError where there is no plan."""
    plans = kept_plans()
    if not plans:
        raise RecordError("no run folders to deliver here; `cifar-ablate run` makes them in mlruns/ of its folder")
    experiments: dict[str, str] = {}
    taken: dict[Key, str] = {}
    courier = Courier(tracking, experiments, on_note=on_note, on_taken=taken.__setitem__)
    offered: list[RunIdentity] = []
    running, unusable = [], []
    for plan in plans:
        recorded = _open(tracking, plan, experiments)
        for run in plan.runs:
            folder = RunFolder(runs_root / run.fingerprint)
            if holder(folder.lock) is not None:
                running.append(run.name)
                continue
            try:
                outcome = _end(run, folder, recorded, tracking)
                if outcome:
                    write_missing_artifacts(folder)
                    courier.end(run, folder, outcome, result=folder.result(), reason=_reason(folder))
                    offered.append(run)
            except (RecordError, OutputError) as error:
                unusable.append((run.name, str(error)))
    left = courier.close(patience_seconds=PATIENCE_SECONDS)
    kept_back = {parcel.run.key for parcel in left} | taken.keys()
    return Synced(
        delivered=tuple(run.name for run in offered if run.key not in kept_back),
        undelivered=(*unusable, *((parcel.run.name, parcel.trouble) for parcel in left)),
        running=tuple(running),
    )


def _open(tracking: Tracking, plan: KeptPlan, experiments: dict[str, str]) -> list[RecordedRun]:
    """The experiment of a plan, and what it holds; MLflow gets the study itself only where it missed it."""
    if not plan.is_recorded or plan.label not in tracking.labels():
        experiments[plan.label] = tracking.open_study(plan.label, plan.document)
        mark_recorded(plan.label, plan.document)
    else:
        experiments[plan.label] = tracking.experiment_id(plan.label)
    return tracking.runs(experiments[plan.label])


def _end(run: RunIdentity, folder: RunFolder, recorded: list[RecordedRun], tracking: Tracking) -> str:
    """How the folder says the run ended, if MLflow does not know it yet; else nothing."""
    mine = [record for record in recorded if (record.arm, record.fingerprint) == (run.arm, run.fingerprint)]
    known = max(mine, key=worth, default=None)
    if known is not None and (known.outcome in ("finished", "diverged") or known.trained_by):
        return ""
    result = folder.result()
    if result is None and known is not None and known.reason == ABANDONED and folder.is_begun():
        return "killed"
    if result is None:
        has_end = known is not None and known.outcome == "killed" and known.reason != ABANDONED
        recorded_epochs = _num_epochs(tracking, known) if known is not None and has_end else 0
        return "killed" if len(folder.history()) > recorded_epochs else ""
    return "" if known is not None and known.outcome == result.status else result.status


def _num_epochs(tracking: Tracking, run: RecordedRun) -> int:
    points = tracking.curves(run.run_id, ["train_loss"])["train_loss"]
    return max((epoch for epoch, _ in points), default=0)


def _reason(folder: RunFolder) -> str:
    result = folder.result()
    return "interrupted; `cifar-ablate run` goes on" if result is None else result.reason
