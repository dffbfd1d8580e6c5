"""Render a report, write it with its figures, and check that one on disk still says what the record says."""

from __future__ import annotations

from collections.abc import Iterator
from difflib import unified_diff
from pathlib import Path

from cifar_ablate.analysis.sentences import count
from cifar_ablate.errors import RecordError, not_written
from cifar_ablate.record.folder import write_atomically
from cifar_ablate.registry import FORMATS
from cifar_ablate.report.blocks import Rendered
from cifar_ablate.report.caveats import TEST_SET_READ
from cifar_ablate.report.formatting import listed
from cifar_ablate.report.types import Report

REPORTS = Path("reports")
"""Folder of the figures of a printed report: ``cifar-ablate report > reports/summary.md``."""
SUFFIXES = {"md": "markdown", "htm": "html", "tex": "latex"}
"""Formats by the ends of file names; any other format has its name as the end."""
MAX_LINES = 10
"""How many changed lines a message shows."""


def format_of(asked: str | None, path: Path | None) -> str:
    """The format asked for, else the one that the file's name ends with, else markdown.

    Raises UnknownNameError for one that is not registered.
    """
    if asked is not None:
        FORMATS.get(asked)
        return asked
    suffix = path.suffix.lower().removeprefix(".") if path is not None else ""
    by_name = SUFFIXES.get(suffix, suffix)
    return by_name if by_name in FORMATS.names() else "markdown"


def render(report: Report, format: str) -> Rendered:
    """The report in a format; raises UnknownNameError for one that is not registered."""
    rendered = FORMATS.get(format)(report)
    return rendered if isinstance(rendered, Rendered) else Rendered(rendered)


def write_files(rendered: Rendered, folder: Path) -> None:
    """Write the files that belong beside a report; raises OutputError where they cannot be written."""
    for name, content in rendered.files.items():
        _write(folder / name, content)


def write_report(rendered: Rendered, path: Path) -> None:
    """Write the report and its files; raises OutputError where they cannot be written."""
    write_files(rendered, path.parent)
    _write(path, rendered.text)


def _write(path: Path, content: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content)
    except OSError as error:
        raise not_written(path, error) from None


def check_report(report: Report, rendered: Rendered, path: Path) -> list[str]:
    """Each difference between the report at ``path`` and the record, in words; empty where they match.

    Raises RecordError where there is no report to check.
    """
    try:
        kept = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise RecordError(f"there is no report to check at {path} ({reason}); write it with --output {path}") from None
    return [*_stale_runs(report), *_stale_lines(kept, rendered.text), *_stale_files(rendered, path)]


def _stale_runs(report: Report) -> Iterator[str]:
    for study in report.studies:
        if study.missing:
            missing = listed(study.missing)
            yield f"{study.label}: {count(len(study.missing), 'planned run')} without a result: {missing}"
        numbers = {row.name: row.num_ended for row in study.rows}
        if len(set(numbers.values())) > 1 and not study.looks:
            by_arm = ", ".join(f"{name} {number}" for name, number in numbers.items())
            yield f"{study.label}: arms have unequal numbers of seeds with a result: {by_arm}"


def _stale_lines(kept: str, now: str) -> Iterator[str]:
    # each reading changes the count of readings of the test set, and makes no number stale
    before, after = (TEST_SET_READ.sub("", text).splitlines() for text in (kept, now))
    if before == after:
        return
    lines = list(unified_diff(before, after, lineterm="", n=0))[2:]
    changed = [line for line in lines if line[:1] in "+-"]
    yield f"{count(len(changed), 'line')} differ; - is what the report says, + what the record says:"
    for line in changed[:MAX_LINES]:
        yield f"  {line[:160]}"
    if len(changed) > MAX_LINES:
        yield f"  and {len(changed) - MAX_LINES} more"


def _stale_files(rendered: Rendered, path: Path) -> Iterator[str]:
    missing = [name for name in rendered.files if not (path.parent / name).is_file()]
    if missing:
        yield f"{count(len(missing), 'figure')} missing beside it: {listed(missing)}"
    there = [name for name in rendered.files if name not in missing]
    stale = [name for name in there if (path.parent / name).read_text(encoding="utf-8") != rendered.files[name]]
    if stale:
        yield f"{count(len(stale), 'figure')} out of date: {listed(stale)}"
