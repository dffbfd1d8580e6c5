"""A rendered report to its place, with its figures beside it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from cifar_ablate.errors import not_written
from cifar_ablate.folder import write_atomically
from cifar_ablate.records import StudyRecord
from cifar_ablate.registry import FORMATS
from cifar_ablate.report.types import Rendered, Report
from cifar_ablate.tracking import noted

if TYPE_CHECKING:
    from cifar_ablate.tracking import Tracking

REPORTS = Path("reports")
"""Where reports go that name no place: ``cifar-ablate report > reports/summary.md``."""


def with_reading_noted(tracking: Tracking, record: StudyRecord) -> StudyRecord:
    """The record, in whose ledger stands that its verdicts were read, and with which seeds planned."""
    document = record.document
    looks = document.get("looks") or ()
    planned = f"looks {', '.join(map(str, looks))}" if looks else str(len(document["seeds"]))
    return noted(tracking, record, "verdicts", planned)


SUFFIXES = {".md": "markdown", ".html": "html", ".htm": "html", ".tex": "latex", ".csv": "csv", ".json": "json"}


def format_of(asked: str | None, path: Path | None) -> str:
    """The format asked for, else the one that the file's name says, else markdown.

    Raises UnknownNameError for one that is not registered.
    """
    by_name = SUFFIXES.get(path.suffix.lower(), "markdown") if path is not None else "markdown"
    FORMATS.get(asked or by_name)
    return asked or by_name


def render(report: Report, format: str) -> Rendered:
    """The report in a format; raises UnknownNameError for one that is not registered."""
    rendered = FORMATS.get(format)(report)
    return rendered if isinstance(rendered, Rendered) else Rendered(rendered, {})


def write_files(rendered: Rendered, folder: Path) -> None:
    """The files that belong beside a report; raises OutputError where they cannot be written."""
    for name, content in rendered.files.items():
        _write(folder / name, content)


def write_report(rendered: Rendered, path: Path) -> None:
    """The report and its files; raises OutputError where they cannot be written."""
    write_files(rendered, path.parent)
    _write(path, rendered.text)


def _write(path: Path, content: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content)
    except OSError as error:
        raise not_written(path, error) from None
