"""A run as its MLflow run describes it: tags and parameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cifar_ablate.records import RunIdentity

MAX_TAG = 4500


def _as_tag(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def run_tags(planned: RunIdentity, environment: Mapping[str, Any]) -> dict[str, str]:
    """Which training it is, and where it is done."""
    return {
        "ablate.study": planned.study,
        "ablate.arm": planned.arm,
        "ablate.seed": str(planned.seed),
        "ablate.fingerprint": planned.fingerprint,
        "ablate.recipe": planned.recipe_id,
        "ablate.precision": planned.precision,
        "ablate.data": environment["data"],
        "ablate.data_digest": environment["data_digest"],
        "ablate.device": environment["device"],
        "ablate.threads": str(environment["threads"]),
        "ablate.torch": environment["torch"],
        **{f"ablate.{name}": _as_tag(value)[:MAX_TAG] for name, value in environment.get("engine", {}).items()},
        "ablate.git_dirty": _as_tag(environment["git_dirty"]),
        "mlflow.source.git.commit": environment["git_commit"],
        "mlflow.source.name": "cifar-ablate",
        **dict(planned.tags),
    }


def flat_params(recipe: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A recipe's fields as dotted parameters; a component's name stands under its own key (``optimizer: sgd``)."""
    flat: dict[str, Any] = {}
    for key, value in recipe.items():
        path = prefix if key == "name" and prefix else f"{prefix}.{key}" if prefix else key
        if isinstance(value, Mapping):
            flat |= {path: "on"} if prefix == "augment" else {}
            flat |= flat_params(value, path)
        else:
            flat[path] = "none" if value is None else value
    return flat
