"""Numbers and commands as text, the same in every format."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from cifar_ablate.report.types import Family
from cifar_ablate.text_safety import sanitize_line


def listed(names: Sequence[str], mark: str = ", ", *, last: str = "", most: int = 6) -> str:
    """``a, b, c``, or the first ``most`` names and how many more there are; ``last`` joins the last one (" and ")."""
    if len(names) > most:
        return f"{mark.join(names[:most])}{mark}and {len(names) - most} more"
    return (last or mark).join([*([mark.join(names[:-1])] if len(names) > 1 else []), *names[-1:]])


def first_few(numbers: Sequence[int], most: int = 12) -> str:
    """``0, 1, 2, ...``"""
    return ", ".join(map(str, numbers[:most])) + (", ..." if len(numbers) > most else "")


def family_size(family: Family) -> str:
    """How many comparisons share a level, and why others do not."""
    contrasts = [one.contrast for one in family.comparisons]
    num = max((one.num_comparisons for one in contrasts if not one.is_diverged), default=0)
    alone = sum(one.is_diverged for one in contrasts)
    few = len(contrasts) - alone - num
    parts = [f"one family of {num}"] if num else []
    parts += [f"{alone} with a diverged run, each by itself"] if alone else []
    parts += [f"{few} with too few finished runs for an interval"] if few > 0 else []
    return "; ".join(parts)


def duration(seconds: float) -> str:
    """Seconds, minutes or hours."""
    if seconds < 100:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:.{1 if seconds < 360_000 else 0}f} h"


def quoted(word: str) -> str:
    """A word of a command, quoted for a shell and on one line: a line break would end a block of code."""
    return sanitize_line(shlex.quote(word))


def overlay_options(variant: str) -> str:
    """The options that make a variant: ``pilot,epochs=1`` is ``--profile pilot --set epochs=1``."""
    parts = re.split(r",(?=[\w.?]+=)", variant) if variant else []
    return "".join(f" {'--set' if '=' in part else '--profile'} {quoted(part)}" for part in parts)


def run_command(document: Mapping[str, Any]) -> str:
    """The command that trains the study; its name stands for a file that is not recorded or not printable."""
    file = document.get("file", "")
    if not file or not file.isprintable():
        file = f"{document['study']}.yaml"
    return f"cifar-ablate run {quoted(file)}{overlay_options(document['variant'])}"
