"""From a run as MLflow gives it to what is known of it; its tags may be anybody's."""

from __future__ import annotations

from typing import Any

from cifar_ablate.errors import RecordError
from cifar_ablate.records import ABANDONED, RecordedRun, is_fingerprint, seed_of
from cifar_ablate.text_safety import sanitize, sanitize_line
from cifar_ablate.tracking.claims import winner_of

OURS = ("ablate.arm", "ablate.seed", "ablate.fingerprint", "ablate.recipe")
"""Tags that every run of ours has."""


def recorded(run: Any) -> RecordedRun:
    """Raises RecordError where this program cannot have written it."""
    tags = {name: sanitize(value) for name, value in run.data.tags.items()}
    wrong = [name for name in OURS if name not in tags]
    wrong += [name for name in ("ablate.fingerprint", "ablate.recipe") if not is_fingerprint(tags.get(name))]
    if wrong or not _is_seed(tags["ablate.seed"]) or not is_fingerprint(run.info.run_id):
        raise RecordError(
            f"run {sanitize_line(run.info.run_id)} in MLflow was not written by this program (look at its tags "
            f"{', '.join(OURS)}); delete it there"
        )
    states = {"RUNNING": "running", "SCHEDULED": "running", "KILLED": "killed", "FAILED": "failed"}
    outcome = states.get(run.info.status) or tags.get("ablate.outcome", "failed")
    reason = tags.get("ablate.reason", "")
    trained_by = ""
    if outcome == "running":  # MLflow leaves a run RUNNING for ever when its process is killed
        claim = winner_of(tags)
        if claim is None:
            outcome, reason = "killed", ABANDONED
        else:
            reason, trained_by = "", str(claim.owner)
    return RecordedRun(
        run_id=run.info.run_id,
        arm=tags["ablate.arm"],
        seed=seed_of(tags["ablate.seed"]),
        fingerprint=tags["ablate.fingerprint"],
        recipe_id=tags["ablate.recipe"],
        outcome=outcome,
        reason=reason,
        metrics=dict(run.data.metrics),
        trained_by=trained_by,
    )


def _is_seed(text: str) -> bool:
    try:
        return seed_of(text) >= 0
    except ValueError:
        return False
