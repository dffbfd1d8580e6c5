"""Does a report on disk still say what the record says?"""

from __future__ import annotations

from collections.abc import Iterator
from difflib import unified_diff
from pathlib import Path

from cifar_ablate.analysis.sentences import count
from cifar_ablate.errors import RecordError
from cifar_ablate.report.reading import TEST_SET_READ
from cifar_ablate.report.types import Rendered, Report

MAX_NAMED = 5


def check(report: Report, rendered: Rendered, path: Path) -> list[str]:
    """Everything in which the report at ``path`` does not match the record, in words; empty where it does.

    Raises RecordError where there is no report to check.
    """
    try:
        kept = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise RecordError(f"there is no report to check at {path} ({reason}); write it with --output {path}") from None
    return [*_runs(report), *_numbers(kept, rendered.text), *_files(rendered, path)]


def _runs(report: Report) -> Iterator[str]:
    for study in report.studies:
        if study.missing:
            yield f"{study.label}: {count(len(study.missing), 'planned run')} without a result: {_named(study.missing)}"
        numbers = {row.name: row.num_ended for row in study.rows}
        if len(set(numbers.values())) > 1 and not study.looks:
            listed = ", ".join(f"{name} {number}" for name, number in numbers.items())
            yield f"{study.label}: arms have unequal numbers of seeds with a result: {listed}"


def _numbers(kept: str, now: str) -> Iterator[str]:
    # who read the test set changes with every reading, and makes no number stale
    before, after = (TEST_SET_READ.sub("", text).splitlines() for text in (kept, now))
    if before == after:
        return
    lines = list(unified_diff(before, after, lineterm="", n=0))[2:]
    changed = [line for line in lines if line[:1] in "+-"]
    yield f"{count(len(changed), 'line')} would be another today; - is what it says, + what the record says:"
    for line in changed[: 2 * MAX_NAMED]:
        yield f"  {line[:160]}"
    if len(changed) > 2 * MAX_NAMED:
        yield f"  and {len(changed) - 2 * MAX_NAMED} more"


def _files(rendered: Rendered, path: Path) -> Iterator[str]:
    missing = [name for name in rendered.files if not (path.parent / name).is_file()]
    if missing:
        yield f"{count(len(missing), 'figure')} missing beside it: {_named(tuple(missing))}"
    there = [name for name in rendered.files if name not in missing]
    stale = [name for name in there if (path.parent / name).read_text(encoding="utf-8") != rendered.files[name]]
    if stale:
        yield f"{count(len(stale), 'figure')} would be drawn otherwise today: {_named(tuple(stale))}"


def _named(names: tuple[str, ...]) -> str:
    more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    return ", ".join(names[:MAX_NAMED]) + more
