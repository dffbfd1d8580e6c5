"""The records that a report is about, and those that their comparisons need."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cifar_ablate.errors import RecordError, suggest
from cifar_ablate.record.compact import find_records
from cifar_ablate.record.mlflow_store import noted
from cifar_ablate.record.types import StudyRecord
from cifar_ablate.report.tuned import shared_labels

if TYPE_CHECKING:
    from cifar_ablate.record.mlflow_store import Tracking


def from_folder(folder: Path, labels: Sequence[str]) -> tuple[list[StudyRecord], list[StudyRecord]]:
    """Records to report, and the shared recipes of tuned ones among them, from exported records.

    Without labels all records are reported. Raises RecordError where one is missing.
    """
    by_label = {record.label: record for record in find_records(folder)}
    for label in labels:
        if label not in by_label:
            raise RecordError(f"{folder} holds no record of {label!r}{suggest(label, by_label)}")
    records = [by_label[label] for label in labels or by_label]
    return records, [by_label[label] for label in shared_labels(records) if label in by_label]


def from_tracking(tracking: Tracking, labels: Sequence[str]) -> tuple[list[StudyRecord], list[StudyRecord]]:
    """The same from MLflow; enters in the ledger of each that its verdicts were read.

    Raises RecordError where nothing is recorded.
    """
    known = tracking.labels()
    if not (labels or known):
        raise RecordError(f"nothing is recorded at {tracking.uri} yet; start with `cifar-ablate run STUDY.yaml`")
    records = [_load_and_note(tracking, label) for label in labels or known]
    needed = [label for label in shared_labels(records) if label in known]
    return records, [_load_and_note(tracking, label) for label in needed]


def _load_and_note(tracking: Tracking, label: str) -> StudyRecord:
    """The record, with an entry in its ledger: verdicts were read, and which seeds were planned then."""
    record = tracking.load(label)
    looks = record.document.get("looks") or ()
    planned = f"looks {', '.join(map(str, looks))}" if looks else str(len(record.document["seeds"]))
    return noted(tracking, record, "verdicts", planned)
