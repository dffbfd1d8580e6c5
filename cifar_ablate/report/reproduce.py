"""How to get the same numbers again."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from typing import Any

from cifar_ablate.analysis.sentences import count
from cifar_ablate.report.accuracy import Study
from cifar_ablate.report.types import Reproduce
from cifar_ablate.text_safety import sanitize_line

VERSIONED = ("cifar_ablate", "python", "torch", "torchvision", "timm", "numpy", "mlflow")


def quoted(word: str) -> str:
    """A word of a command, for a shell and on one line: one that begins a line would end a block of code."""
    return sanitize_line(shlex.quote(word))


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


def reproduce(study: Study, shared: Study | None) -> Reproduce:
    """Commands, commits, versions and data; ``shared``: the study that a tuned one is compared with."""
    document, environments = study.document, list(study.environments.values())
    commits = dict.fromkeys(
        f"{one['git_commit'][:12]}{' with changes' if one.get('git_dirty') else ''}"
        for one in environments
        if one.get("git_commit")
    )
    versions = dict.fromkeys(
        ", ".join(f"{name} {one[name]}" for name in VERSIONED if name in one)
        + f"; {one.get('device', 'unknown device')}, {count(one.get('threads', 1), 'thread')}"
        for one in environments
    )
    return Reproduce(
        commands=(
            *([] if shared is None else [run_command(shared.document)]),
            run_command(document),
            f"cifar-ablate report {quoted(study.record.label)}",
        ),
        commits=tuple(commits),
        versions=tuple(versions),
        data_digests=tuple(dict.fromkeys(arm["data_digest"] for arm in document["arms"])),
    )
