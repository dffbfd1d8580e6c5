"""What is noted on Optuna's trials and studies beside what Optuna keeps, and what it says of a trial."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from cifar_ablate.process import process_from_text

LOST, OWNER, BEAT, REASON, PRESENT = "lost", "owner", "beat", "reason", "is_present_recipe"
TAKEN_UP, OUTCOME, CRASHED = "taken_up_from", "outcome", "worker_died_before"
VALUES, SECONDS, EPOCHS, FINGERPRINTS, RECIPE_ID = "values", "seconds", "epochs", "fingerprints", "recipe_id"
"""Names of a trial's attributes, as optuna-dashboard shows them."""
RETRIED = "retried"
"""Attribute of a study: numbers of the failed trials that were asked to be tried again, and count no more."""
STALE_SECONDS = 300.0
"""A trial of another machine without a heartbeat for this long is lost: ten heartbeats."""
UNCLAIMED_SECONDS = 60.0
"""A trial that nobody has claimed for so long after it was made belongs to a process that is gone."""


def counted(study: optuna.Study, trials: Iterable[FrozenTrial]) -> list[FrozenTrial]:
    """Without those that are gone: lost, or tried again under another number."""
    attributes = study._storage.get_study_user_attrs(study._study_id)  # a bracket of Hyperband's has no user_attrs
    retried = set(attributes.get(RETRIED, ()))
    return [one for one in trials if LOST not in one.user_attrs and one.number not in retried]


def can_be_retried(one: FrozenTrial) -> bool:
    """Could it not be trained, for a reason that may be gone?"""
    return one.state == TrialState.FAIL and one.user_attrs.get(OUTCOME) == "failed"


def is_alive(one: FrozenTrial) -> bool:
    """Is the process of a running trial alive? On this machine it is looked up; elsewhere its heartbeat tells."""
    owner = process_from_text(one.user_attrs.get(OWNER, ""))
    begun = one.datetime_start.timestamp() if one.datetime_start else 0.0
    if owner is None:
        return time.time() - begun < UNCLAIMED_SECONDS
    if owner.is_here():
        return owner.is_alive()
    return abs(time.time() - float(one.user_attrs.get(BEAT, begun))) < STALE_SECONDS


def place_of(study: optuna.Study, trial: FrozenTrial) -> int:
    """Of a trial among those that count."""
    every = study._storage.get_all_trials(study._study_id, deepcopy=False)
    return len(counted(study, [one for one in every if one.number < trial.number]))


def values_of(one: FrozenTrial) -> dict[str, Any]:
    """The tuned fields of a trial as they were set."""
    values = one.user_attrs.get(VALUES, {})
    return dict(json.loads(values)) if isinstance(values, str) else dict(values)
