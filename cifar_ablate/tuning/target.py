"""Where ``--write`` writes, and whether it will be able to: asked before a tuning that may take hours."""

from __future__ import annotations

import copy
import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from cifar_ablate.errors import OutputError, Problem, StudyError, UsageError
from cifar_ablate.spec.component import shown
from cifar_ablate.spec.load import load_study
from cifar_ablate.spec.overlay import Overlay
from cifar_ablate.spec.schema import Parameter, Recipe, Study
from cifar_ablate.spec.space import applies, ends, put, settings
from cifar_ablate.spec.text import Path_, Tree
from cifar_ablate.tuning.plan import ArmPlan

ENDING = "-tuned"
MAX_LABEL = 64
"""Characters of a study's name."""
Plain = dict[str, Any]


def target_of(source: Path, output: Path | None) -> Path:
    """The file that is written: the one that was asked for, or ``STUDY-tuned.yaml`` beside the study."""
    return output or source.with_name(f"{source.stem}{ENDING}.yaml")


def check_target(path: Path, study: Study, plans: Sequence[ArmPlan], overlay: Overlay) -> None:
    """Raise whatever would keep ``--write`` from writing what these arms come to; asked before they are tuned, too.

    ``study``: without an overlay. UsageError: the file is somebody's own, or has tuned arms that would be lost.
    StudyError: the overlay changes a field that is tuned.
    """
    name, arms = study.name, [plan.arm for plan in plans]
    if found := [problem for plan in plans for problem in _overlaid(study, plan, overlay)]:
        raise StudyError(list(dict.fromkeys(found)))
    if not path.parent.is_dir():
        raise UsageError(f"--write: there is no folder {path.parent}; make it, or name another file with --output")
    if not os.access(path.parent, os.W_OK):
        raise OutputError(path, "Permission denied", "run where you may write")
    if len(name + ENDING) > MAX_LABEL:
        raise UsageError(
            f"--write: the name {name}{ENDING} has over {MAX_LABEL} characters; give the study a shorter one"
        )
    if not path.exists():
        return
    try:
        before = load_study(path).tuned
    except StudyError:
        before = None
    if before is not None and before.study != name:
        raise UsageError(f"--write: {path} is the tuned {before.study}; name another file with --output")
    if before is None:
        raise UsageError(f"--write: {path} is there, and not of a tuning; name another file with --output")
    if lost := [arm for arm in before.arms if arm not in arms]:
        every = " ".join(f"--arm {shlex.quote(arm)}" for arm in (*lost, *arms))
        raise UsageError(
            f"--write: {path} has tuned values of {', '.join(lost)}, which would be lost; give {every} (what is tuned "
            "is not tuned again), or name another file with --output"
        )


def _overlaid(study: Study, plan: ArmPlan, overlay: Overlay) -> list[Problem]:
    """Tuned fields that the overlay changes: a value tuned under it would be changed once more when it is written."""
    values = study.arm(plan.arm).recipe.as_dict()
    return [
        _changed_again(plan, one, overlay)
        for one in plan.space
        if any(
            _is_changed(before, after, one.path, value, overlay)
            for before, after in zip(*(settings(one, plan.space, each) for each in (values, plan.values)), strict=False)
            for value in ends(one)
            if applies(one, after)
        )
    ]


def _is_changed(values: Plain, overlaid: Plain, path: Path_, value: Any, overlay: Overlay) -> bool:
    """Does it make a difference whether a value is set before the overlay is laid over it, or after?"""
    before, after = copy.deepcopy(values), copy.deepcopy(overlaid)
    put(before, path, value)
    put(after, path, value)
    try:
        before = overlay.apply(Tree(Recipe.model_validate(before).as_dict()), []).value
        return Recipe.model_validate(before) != Recipe.model_validate(after)
    except ValidationError:  # it is tuned only where other fields have other values
        return False


def _changed_again(plan: ArmPlan, one: Parameter, overlay: Overlay) -> Problem:
    message = (
        f"is tuned as {shown(overlay.variant)} leaves it in arm {shown(plan.arm)}, and written into the study it would "
        "be changed by that once more; tune without that overlay, or without --write"
    )
    return Problem(one.written.location, one.written.path, message)
