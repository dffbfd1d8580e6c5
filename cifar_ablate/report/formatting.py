"""Numbers and commands as text, the same in every format."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from typing import Any

from cifar_ablate.harmless import on_one_line
from cifar_ablate.report.types import ArmRow, Family, MeanSd


def ok_of_started(row: ArmRow) -> str:
    """Finished of started runs."""
    return f"{row.num_finished}/{row.num_started}"


def ok_of_planned(row: ArmRow) -> str:
    """Finished of planned runs, and what became of the others."""
    others = [f"{count} {outcome}" for outcome, count in sorted(row.outcomes.items()) if outcome != "finished"]
    return f"{row.num_finished}/{row.num_planned}" + (f" ({', '.join(others)})" if others else "")


def mean(row: ArmRow) -> str:
    """Mean test accuracy in percent."""
    return nothing(row) if row.test_accuracy is None else f"{row.test_accuracy.mean:.2f}" + averaged(row)


def nothing(row: ArmRow) -> str:
    """Why an arm has no accuracy."""
    return "none finished" if row.num_started else "not run"


def sd_with_floor(row: ArmRow) -> str:
    """Seed spread, with what flips of single images alone would give."""
    if row.test_accuracy is None or row.test_accuracy.sd is None:
        return ""
    floor = "" if row.sd_floor is None else f" ({row.sd_floor:.2f})"
    return f"{row.test_accuracy.sd:.2f}{floor}" + (", luckily small" if row.is_sd_lucky else "")


def with_sd(spread: MeanSd | None, decimals: int = 2) -> str:
    """Mean, and standard deviation in brackets."""
    if spread is None:
        return ""
    return f"{spread.mean:.{decimals}f}" + ("" if spread.sd is None else f" ({spread.sd:.{decimals}f})")


def size(family: Family) -> str:
    """How many comparisons share the level, and what became of the others."""
    contrasts = [one.contrast for one in family.comparisons]
    num = max((one.num_comparisons for one in contrasts if not one.is_diverged), default=0)
    alone = sum(one.is_diverged for one in contrasts)
    few = len(contrasts) - alone - num
    parts = [f"one family of {num}"] if num else []
    parts += [f"{alone} with a diverged run, each by itself"] if alone else []
    parts += [f"{few} with too few finished runs for an interval"] if few > 0 else []
    return "; ".join(parts)


def averaged(row: ArmRow) -> str:
    """Says where accuracies are of mirror images, too."""
    return ", flip-averaged" if row.is_flip_averaged and row.test_accuracy is not None else ""


def differs(row: ArmRow, baseline: str) -> str:
    """What the arm has changed, and from which arm."""
    if row.parent is None:
        return "baseline"
    said = "; ".join(row.differs)
    return said if row.parent == baseline else f"from {row.parent}: {said}"


def p_value(p: float | None) -> str:
    """Three decimals where it matters, and no false zero."""
    if p is None:
        return ""
    return "<0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def duration(seconds: float | None) -> str:
    """Seconds, minutes or hours."""
    if seconds is None:
        return ""
    if seconds < 100:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:.{1 if seconds < 360_000 else 0}f} h"


def quoted(word: str) -> str:
    """A word of a command, for a shell and on one line: one that begins a line would end a block of code."""
    return on_one_line(shlex.quote(word))


def overlay_options(variant: str) -> str:
    """The options that make a variant: ``pilot,epochs=1`` is ``--profile pilot --set epochs=1``."""
    parts = re.split(r",(?=[\w.?]+=)", variant) if variant else []
    return "".join(f" {'--set' if '=' in part else '--profile'} {quoted(part)}" for part in parts)


def run_command(document: Mapping[str, Any]) -> str:
    """What trains the study. Older records do not know its file, and one with line breaks would end a code block."""
    file = document.get("file", "")
    if not file or not file.isprintable():
        file = f"{document['study']}.yaml"
    return f"cifar-ablate run {quoted(file)}{overlay_options(document['variant'])}"
