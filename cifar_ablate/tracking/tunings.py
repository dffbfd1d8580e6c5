"""Tunings in MLflow: one parent run for each arm, in an experiment of its own beside the study's; trials are nested."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cifar_ablate.tracking.answering import answering
from cifar_ablate.tracking.store import Tracking

TUNING = "ablate.tuning"
"""Tag of a parent and of its trials: the identity of the tuning."""
PARENT = "mlflow.parentRunId"
PAGE = 1000


@dataclass(frozen=True)
class OpenedTuning:
    """A tuning's place in MLflow."""

    experiment_id: str
    run_id: str
    """Of the parent."""
    recorded: frozenset[str]
    """Trials (``arm trial number``) that MLflow has to their end."""


def open_tuning(tracking: Tracking, label: str, arm: str, identity: str, protocol: Mapping[str, Any]) -> OpenedTuning:
    """The parent run of a tuning, made where there is none, and RUNNING now."""
    from mlflow.exceptions import MlflowException

    client = tracking.client
    with answering():
        experiment = client.get_experiment_by_name(label)
        if experiment is not None and experiment.lifecycle_stage == "deleted":
            client.restore_experiment(experiment.experiment_id)
        if experiment is None:
            with suppress(MlflowException):  # another process was first
                client.create_experiment(label)
        experiment_id = tracking.experiment_id(label)
        found = client.search_runs([experiment_id], f"tags.`{TUNING}` = '{identity}'", max_results=50_000)
        parents = [run for run in found if PARENT not in run.data.tags]
        parents.sort(key=lambda run: (run.info.start_time, run.info.run_id))
        if parents:
            run_id = str(parents[0].info.run_id)
            client.update_run(run_id, status="RUNNING")
        else:
            tags = {TUNING: identity, "ablate.arm": arm, "mlflow.source.name": "cifar-ablate"}
            run_id = str(client.create_run(experiment_id, run_name=f"{arm} tuning", tags=tags).info.run_id)
            for name, value in flat(protocol).items():
                client.log_param(run_id, name, str(value)[:6000])
        ended = {run.data.tags.get("ablate.arm", "") for run in found if run.info.status in ("FINISHED", "FAILED")}
    return OpenedTuning(experiment_id, run_id, frozenset(ended))


def close_tuning(
    tracking: Tracking,
    run_id: str,
    *,
    is_done: bool,
    tags: Mapping[str, str],
    points: Iterable[tuple[str, float, int, int]],
    files: Sequence[Path],
) -> None:
    """Bring the parent run up to date: ``points`` are (metric, value, milliseconds since 1970, trial)."""
    from mlflow.entities import Metric, RunTag

    metrics = [Metric(name, value, time_ms, step) for name, value, time_ms, step in points]
    with answering():
        for start in range(0, len(metrics), PAGE):
            tracking.client.log_batch(run_id, metrics=metrics[start : start + PAGE])
        tracking.client.log_batch(run_id, tags=[RunTag(name, value) for name, value in tags.items()])
        for path in files:
            tracking.client.log_artifact(run_id, str(path))
        tracking.client.set_terminated(run_id, "FINISHED" if is_done else "KILLED")


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values with dotted names."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        path = f"{prefix}.{name}" if prefix else name
        found |= flat(value, path) if isinstance(value, Mapping) else {path: value}
    return found
