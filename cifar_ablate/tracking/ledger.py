"""Who has read a study's test accuracies, when, and what was settled before: entries kept as tags of its experiment.

One tag to an entry, under a name that follows from what it says, so that saying it again writes nothing and two
processes that say it at once write one tag. An entry is never written over.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from cifar_ablate.errors import OutputError, RecordError, TrackingError
from cifar_ablate.records import LedgerEntry, RecordedRun, StudyRecord, ledger_entry
from cifar_ablate.text_safety import sanitize_values

if TYPE_CHECKING:
    from cifar_ablate.tracking.store import Tracking

PREFIX = "ablate.ledger."
STATELESS = frozenset({"margin"})
"""Kinds of which only the first entry of a detail counts, whatever had been trained when it was said again."""


def entry_now(kind: str, detail: str, runs: Iterable[RecordedRun]) -> tuple[str, LedgerEntry]:
    """The tag's name and the entry, as of now; only the finished ones of ``runs`` count."""
    finished = [run for run in runs if run.outcome == "finished"]
    state = [] if kind in STATELESS else sorted({run.fingerprint for run in finished})
    digest = hashlib.sha256(json.dumps([detail, state]).encode()).hexdigest()[:8]
    when = datetime.now(UTC).isoformat(timespec="seconds")
    return f"{PREFIX}{kind}.{digest}", LedgerEntry(
        kind, when, detail, num_seeds=len({run.seed for run in finished}), num_runs=len(finished)
    )


def noted(tracking: Tracking, record: StudyRecord, kind: str, detail: str) -> StudyRecord:
    """The record with this reading in its ledger; a store that cannot be written to is no reason not to read it."""
    with suppress(TrackingError, OutputError):
        entry = tracking.note(record.label, kind, detail, record.current())
        return record if entry is None else replace(record, ledger=[*record.ledger, entry])
    return record


def as_tag(entry: LedgerEntry) -> str:
    """The value of an entry's tag."""
    return json.dumps(asdict(entry))


def entries_in(label: str, tags: Mapping[str, str]) -> tuple[LedgerEntry, ...]:
    """All entries among an experiment's tags, the oldest first; raises RecordError for a damaged one."""
    found = []
    for name, value in tags.items():
        if name.startswith(PREFIX):
            try:
                found.append(ledger_entry(sanitize_values(json.loads(value))))
            except (ValueError, TypeError, RecursionError):
                raise RecordError(
                    f"the tag {name} that MLflow keeps of {label!r} is damaged; remove it, and its entry is lost"
                ) from None
    return tuple(sorted(found, key=_order))


def _order(entry: LedgerEntry) -> tuple[str, bool, int, str, str]:
    """By time; within a second the margin first, for a command sets it before it looks at anything."""
    return entry.when, entry.kind != "margin", entry.num_runs, entry.kind, entry.detail
