"""The plans as files beside the run folders: ``sync`` needs them to upload runs that MLflow missed.

A run folder belongs to no study; the plan says which studies want it, as which arm and seed::

    mlruns/plans/<label>.json    the study as last planned, every run it wanted, and whether MLflow has the study
"""

from __future__ import annotations

import glob
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from cifar_ablate.errors import RecordError, not_written
from cifar_ablate.locks import lock
from cifar_ablate.plan import Plan
from cifar_ablate.record.folder import write_atomically
from cifar_ablate.record.types import RunIdentity, is_fingerprint

PLANS_ROOT = Path("mlruns") / "plans"
_FIELDS = ("arm", "seed", "precision", "recipe_id", "fingerprint")


@dataclass(frozen=True)
class KeptPlan:
    """A plan as read from its file."""

    label: str
    document: Mapping[str, Any]
    """The study, as the record keeps it."""
    is_recorded: bool
    """MLflow has this document."""
    runs: Sequence[RunIdentity]
    """Every run that the study wants, or wanted before it was edited."""


def keep_plan(plan: Plan) -> None:
    """Write a plan before any of its runs is trained; raises OutputError if that is not possible."""
    path = _path(plan.study.label)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise not_written(path, error) from None
    with lock(path.with_suffix(".lock"), on_wait=lambda: None):
        for leftover in path.parent.glob(f".{glob.escape(path.name)}.[0-9]*"):  # of a command that was killed here
            leftover.unlink(missing_ok=True)
        runs = {(run.arm, run.fingerprint): run for run in plan.runs}
        earlier = _read(path).runs if path.exists() else ()
        kept = [*runs.values(), *(run for run in earlier if (run.arm, run.fingerprint) not in runs)]
        _write(path, KeptPlan(plan.study.label, plan.document, is_recorded=False, runs=kept))


def mark_recorded(label: str, document: Mapping[str, Any]) -> None:
    """Note that MLflow has this document, unless the study was planned anew meanwhile."""
    path = _path(label)
    with lock(path.with_suffix(".lock"), on_wait=lambda: None):
        kept = _read(path)
        if kept.document == json.loads(json.dumps(document)):
            _write(path, KeptPlan(label, kept.document, is_recorded=True, runs=kept.runs))


def kept_plans() -> list[KeptPlan]:
    """All plans kept in this folder, by label; raises RecordError for a damaged one."""
    return [_read(path) for path in sorted(PLANS_ROOT.glob("*.json"))]


def _path(label: str) -> Path:
    name = quote(label, safe="@=,+ ")
    if len(name) > 100:  # file names end at 255 bytes
        name = f"{name[:80]}-{hashlib.sha256(label.encode()).hexdigest()[:12]}"
    return PLANS_ROOT / f"{name}.json"


def _read(path: Path) -> KeptPlan:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        label = content["label"]
        runs = [RunIdentity(study=label, **{name: run[name] for name in _FIELDS}) for run in content["runs"]]
        if not all(is_fingerprint(run.fingerprint) and is_fingerprint(run.recipe_id) for run in runs):
            raise ValueError("a fingerprint names a folder")
        return KeptPlan(label, content["document"], bool(content["is_recorded"]), runs)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise RecordError(f"{path} is damaged; remove it, and `cifar-ablate run STUDY.yaml` writes it again") from None


def _write(path: Path, kept: KeptPlan) -> None:
    runs = [{name: getattr(run, name) for name in _FIELDS} for run in kept.runs]
    content = {"label": kept.label, "is_recorded": kept.is_recorded, "document": kept.document, "runs": runs}
    write_atomically(path, json.dumps(content, indent=1))
