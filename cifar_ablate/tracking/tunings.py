"""Tunings in MLflow: one parent run for each arm, in an experiment of its own beside the study's; trials are nested."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cifar_ablate.locks import lock
from cifar_ablate.tracking.mlflow_errors import answering
from cifar_ablate.tracking.store import Tracking
from cifar_ablate.tracking.upload import TUNING

PARENT, TRIAL = "mlflow.parentRunId", "ablate.trial"
"""Tags of a trial's runs."""
BEST = "ablate.best."
"""Begins the tags of a parent that hold the values of its best trial."""
PAGE = 1000
MAX_RUNS = 50_000


@dataclass(frozen=True)
class OpenedTuning:
    """A tuning's place in MLflow."""

    experiment_id: str
    run_id: str
    """Of the parent."""
    recorded: frozenset[tuple[str, str]]
    """(``arm trial number``, fingerprint) of each training that MLflow has to its end."""


@dataclass(frozen=True)
class Untrained:
    """A trial that nothing could be trained of."""

    name: str
    tags: Mapping[str, str]
    values: Mapping[str, Any]
    reason: str


def open_tuning(tracking: Tracking, label: str, arm: str, identity: str, protocol: Mapping[str, Any]) -> OpenedTuning:
    """The parent run of a tuning, made where there is none, and RUNNING now."""
    from mlflow.entities import Param
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
        with _alone(identity):
            if not _parents(_runs(tracking, experiment_id, identity)):
                tags = {TUNING: identity, "ablate.arm": arm, "mlflow.source.name": "cifar-ablate"}
                client.create_run(experiment_id, run_name=f"{arm} tuning", tags=tags)
            found = _runs(tracking, experiment_id, identity)
            parent, *doubles = _parents(found)
            for double in doubles:  # of another folder, at the same moment; one that is in use has parameters
                if not double.data.params:
                    client.delete_run(double.info.run_id)
            run_id = str(parent.info.run_id)
            params = {name: str(value)[:6000] for name, value in flat(protocol).items()}
            lacking = [Param(name, value) for name, value in params.items() if name not in parent.data.params]
            if lacking:  # new, or its command was killed before it could write them
                client.log_batch(run_id, params=lacking)
            client.update_run(run_id, status="RUNNING")
    ended = [run.data.tags for run in found if run.info.status in ("FINISHED", "FAILED") and PARENT in run.data.tags]
    recorded = frozenset((tags.get("ablate.arm", ""), tags.get("ablate.fingerprint", "")) for tags in ended)
    return OpenedTuning(experiment_id, run_id, recorded)


def record_untrained(tracking: Tracking, opened: OpenedTuning, identity: str, trials: Sequence[Untrained]) -> None:
    """A nested run, FAILED, for each trial whose values made no recipe: nothing of it could be trained."""
    from mlflow.entities import Param

    client = tracking.client
    with answering(), _alone(identity):
        known = {
            run.data.tags.get("ablate.arm"): run
            for run in (_runs(tracking, opened.experiment_id, identity) if trials else ())
            if run.data.tags.get("ablate.outcome") == "failed"
        }
        for one in trials:
            run = known.get(one.name)
            if run is not None and run.info.status == "FAILED":
                continue
            if run is None:  # else its command was killed before it was whole
                tags = {**one.tags, "ablate.arm": one.name, "ablate.outcome": "failed", "ablate.reason": one.reason}
                run = client.create_run(opened.experiment_id, run_name=one.name, tags=tags)
            params = [Param(key, str(value)) for key, value in flat(one.values).items()]
            client.log_batch(run.info.run_id, params=params)
            client.set_terminated(run.info.run_id, "FAILED")


def end_lost(tracking: Tracking, opened: OpenedTuning, identity: str, reasons: Mapping[int, str]) -> None:
    """Nested runs of trials that were lost (``reasons``, by number) are KILLED: a killed process could not say so."""
    client = tracking.client
    with answering(), _alone(identity):
        for run in _runs(tracking, opened.experiment_id, identity) if reasons else ():
            number = run.data.tags.get(TRIAL, "")
            if run.info.status != "RUNNING" or not number.isdigit() or int(number) not in reasons:
                continue
            client.set_tag(run.info.run_id, "ablate.outcome", "killed")
            client.set_tag(run.info.run_id, "ablate.reason", reasons[int(number)])
            client.set_terminated(run.info.run_id, "KILLED")


def _alone(identity: str) -> AbstractContextManager[bool]:
    """Among the processes of this folder."""
    return lock(Path("mlruns") / "tuning" / f"{identity}.mlflow.lock", on_wait=lambda: None)


def _runs(tracking: Tracking, experiment_id: str, identity: str) -> list[Any]:
    return list(tracking.client.search_runs([experiment_id], f"tags.`{TUNING}` = '{identity}'", max_results=MAX_RUNS))


def _parents(runs: Iterable[Any]) -> list[Any]:
    """The oldest first."""
    parents = [run for run in runs if PARENT not in run.data.tags]
    return sorted(parents, key=lambda run: (run.info.start_time, run.info.run_id))


def close_tuning(
    tracking: Tracking,
    run_id: str,
    identity: str,
    *,
    is_done: bool,
    tags: Mapping[str, str],
    points: Iterable[tuple[str, float, int, int]],
    files: Sequence[Path],
) -> None:
    """Bring the parent run up to date: ``points`` are (metric, value, milliseconds since 1970, trial)."""
    from mlflow.entities import Metric, RunTag

    metrics = [Metric(name, value, time_ms, step) for name, value, time_ms, step in points]
    with answering(), _alone(identity):
        for start in range(0, len(metrics), PAGE):
            tracking.client.log_batch(run_id, metrics=metrics[start : start + PAGE])
        before = tracking.client.get_run(run_id).data.tags
        for name in before.keys() - tags.keys():
            if name.startswith(BEST):  # of a trial that was the best before
                _delete_tag(tracking.client, run_id, name)
        tracking.client.log_batch(run_id, tags=[RunTag(name, value) for name, value in tags.items()])
        for path in files:
            tracking.client.log_artifact(run_id, str(path))
        tracking.client.set_terminated(run_id, "FINISHED" if is_done else "KILLED")


def _delete_tag(client: Any, run_id: str, name: str) -> None:
    """Commands that end at the same moment delete the same tags: in this folder in turn, from another one at once."""
    from mlflow.exceptions import MlflowException

    try:
        client.delete_tag(run_id, name)
    except MlflowException:
        if name in client.get_run(run_id).data.tags:
            raise


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values with dotted names."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        path = f"{prefix}.{name}" if prefix else name
        found |= flat(value, path) if isinstance(value, Mapping) else {path: value}
    return found
