"""The records that a report is about, and those that it needs beside them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cifar_ablate.compact import find_records
from cifar_ablate.errors import RecordError, suggest
from cifar_ablate.records import StudyRecord
from cifar_ablate.report.deliver import with_reading_noted
from cifar_ablate.report.tuned import shared_labels

if TYPE_CHECKING:
    from cifar_ablate.tracking import Tracking

Gathered = tuple[list[StudyRecord], list[StudyRecord]]
"""Of the studies that are reported, and of the shared recipes that tuned ones among them are compared with."""


def from_folder(folder: Path, labels: Sequence[str]) -> Gathered:
    """From exported records; all where no label is given. Raises RecordError where one is not there."""
    by_label = {record.label: record for record in find_records(folder)}
    for label in labels:
        if label not in by_label:
            raise RecordError(f"{folder} holds no record of {label!r}{suggest(label, by_label)}")
    records = [by_label[label] for label in labels or by_label]
    return records, [by_label[label] for label in shared_labels(records) if label in by_label]


def from_tracking(tracking: Tracking, labels: Sequence[str]) -> Gathered:
    """From MLflow, with this reading in the ledger of each; raises RecordError where nothing is recorded."""
    known = tracking.labels()
    if not (labels or known):
        raise RecordError(f"nothing is recorded at {tracking.uri} yet; start with `cifar-ablate run STUDY.yaml`")
    records = [with_reading_noted(tracking, tracking.load(label)) for label in labels or known]
    needed = [label for label in shared_labels(records) if label in known]
    return records, [with_reading_noted(tracking, tracking.load(label)) for label in needed]
