"""Export a study from MLflow to a compact record, to be committed with a report."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from cifar_ablate.compact import save_record
from cifar_ablate.errors import RecordError
from cifar_ablate.records import StudyRecord
from cifar_ablate.tracking import Tracking, noted


def export_study(tracking: Tracking, label: str, folder: Path) -> StudyRecord:
    """Write the compact record of a study's current runs; raises RecordError if none has a result.

    Runs that an edited study has superseded are left out.
    """
    record = tracking.load(label)
    runs = record.current()
    ended = [run for run in runs if run.outcome in ("finished", "diverged")]
    if not ended:
        raise RecordError(f"no run of {label!r} has ended yet, so there is nothing to export; run the study first")
    current = replace(noted(tracking, record, "export", "compact record"), runs=runs)
    details = record.details
    save_record(
        folder,
        current,
        curves=details.curves(ended),
        environments=details.environments(ended),
        predictions=details.predictions([run for run in ended if run.outcome == "finished"]),
    )
    return current
