"""The file that ``--write`` writes, and whether it can: checked before a tuning that may take hours."""

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
"""Maximum length of a study's name."""
Plain = dict[str, Any]


def target_of(source: Path, output: Path | None) -> Path:
    """The given output file, or ``STUDY-tuned.yaml`` in the folder of the study."""
    return output or source.with_name(f"{source.stem}{ENDING}.yaml")


def check_target(path: Path, study: Study, plans: Sequence[ArmPlan], overlay: Overlay) -> None:
    """Raise an error if ``--write`` could not write the best values of these arms; called before and after tuning.

    ``study`` has no overlay. Raises UsageError if the file was not written by a tuning, or holds tuned arms that would
    be lost; StudyError if the overlay changes a tuned field; OutputError if the folder is not writable.
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
        raise UsageError(f"--write: {path} exists, and was not written by a tuning; name another file with --output")
    if lost := [arm for arm in before.arms if arm not in arms]:
        every = " ".join(f"--arm {shlex.quote(arm)}" for arm in (*lost, *arms))
        raise UsageError(
            f"--write: {path} has tuned values of {', '.join(lost)}, which would be lost; give {every} (what is tuned "
            "is not tuned again), or name another file with --output"
        )


def _overlaid(study: Study, plan: ArmPlan, overlay: Overlay) -> list[Problem]:
    """Tuned fields that the overlay changes: it would change the written value a second time."""
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
    """Whether a value that is set before the overlay is applied gives another recipe than one set after it."""
    before, after = copy.deepcopy(values), copy.deepcopy(overlaid)
    put(before, path, value)
    put(after, path, value)
    try:
        before = overlay.apply(Tree(Recipe.model_validate(before).as_dict()), []).value
        return Recipe.model_validate(before) != Recipe.model_validate(after)
    except ValidationError:  # other fields have values that this one is not tuned for
        return False


def _changed_again(plan: ArmPlan, one: Parameter, overlay: Overlay) -> Problem:
    message = (
        f"is tuned in arm {shown(plan.arm)} under {shown(overlay.variant)}, which would change the written value "
        "again; tune without that overlay, or without --write"
    )
    return Problem(one.written.location, one.written.path, message)
