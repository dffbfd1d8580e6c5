"""Tunings in MLflow: an experiment per tuned study, with a parent run per arm; the runs of trials are nested in it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cifar_ablate.locks import lock
from cifar_ablate.record.mlflow_errors import translate_errors
from cifar_ablate.record.mlflow_store import Tracking
from cifar_ablate.record.mlflow_upload import TUNING

PARENT, TRIAL = "mlflow.parentRunId", "ablate.trial"
"""Tags of a trial's runs."""
BEST = "ablate.best."
"""Prefix of a parent run's tags with the values of its best trial."""
PAGE = 1000
"""Maximum number of metrics in one request, set by MLflow."""
MAX_RUNS = 50_000
"""Maximum number of runs in one answer, set by MLflow."""
MAX_PARAM = 6000
"""Maximum length of a parameter's value, set by MLflow."""


@dataclass(frozen=True)
class RecordedTuning:
    """The tuning of an arm in MLflow."""

    identity: str
    """The tuning's identity (``ArmPlan.identity``)."""
    experiment_id: str
    run_id: str
    """The parent run."""
    ended: frozenset[tuple[str, str]]
    """(trial's name, fingerprint) of each training whose run has ended."""


@dataclass(frozen=True)
class UntrainedTrial:
    """A trial without a training, because its values are no valid recipe."""

    name: str
    tags: Mapping[str, str]
    values: Mapping[str, Any]
    reason: str


def open_tuning(tracking: Tracking, label: str, arm: str, identity: str, protocol: Mapping[str, Any]) -> RecordedTuning:
    """Open the parent run of a tuning: it is created if there is none, and set to RUNNING.

    ``label`` is the experiment's name; ``protocol`` becomes the run's parameters.
    """
    from mlflow.entities import Param
    from mlflow.exceptions import MlflowException

    client = tracking.client
    with translate_errors():
        experiment = client.get_experiment_by_name(label)
        if experiment is not None and experiment.lifecycle_stage == "deleted":
            client.restore_experiment(experiment.experiment_id)
        if experiment is None:
            with suppress(MlflowException):  # another process created it
                client.create_experiment(label)
        experiment_id = tracking.experiment_id(label)
        with _locked(identity):
            if not _parents(_runs(tracking, experiment_id, identity)):
                tags = {TUNING: identity, "ablate.arm": arm, "mlflow.source.name": "cifar-ablate"}
                client.create_run(experiment_id, run_name=f"{arm} tuning", tags=tags)
            found = _runs(tracking, experiment_id, identity)
            parent, *doubles = _parents(found)
            for double in doubles:  # created by another folder at the same moment; one that is in use has parameters
                if not double.data.params:
                    client.delete_run(double.info.run_id)
            run_id = str(parent.info.run_id)
            params = {name: str(value)[:MAX_PARAM] for name, value in flat(protocol).items()}
            lacking = [Param(name, value) for name, value in params.items() if name not in parent.data.params]
            if lacking:  # the run is new, or its command was killed before it wrote them
                client.log_batch(run_id, params=lacking)
            client.update_run(run_id, status="RUNNING")
    ended = [run.data.tags for run in found if run.info.status in ("FINISHED", "FAILED") and PARENT in run.data.tags]
    names = frozenset((tags.get("ablate.arm", ""), tags.get("ablate.fingerprint", "")) for tags in ended)
    return RecordedTuning(identity, experiment_id, run_id, names)


def record_untrained(tracking: Tracking, tuning: RecordedTuning, trials: Sequence[UntrainedTrial]) -> None:
    """Create a nested run with the status FAILED for each trial, unless it has one."""
    from mlflow.entities import Param

    client = tracking.client
    with translate_errors(), _locked(tuning.identity):
        known = {
            run.data.tags.get("ablate.arm"): run
            for run in (_runs(tracking, tuning.experiment_id, tuning.identity) if trials else ())
            if run.data.tags.get("ablate.outcome") == "failed"
        }
        for one in trials:
            run = known.get(one.name)
            if run is not None and run.info.status == "FAILED":
                continue
            if run is None:  # otherwise its command was killed before it wrote all of it
                tags = {**one.tags, "ablate.arm": one.name, "ablate.outcome": "failed", "ablate.reason": one.reason}
                run = client.create_run(tuning.experiment_id, run_name=one.name, tags=tags)
            params = [Param(key, str(value)) for key, value in flat(one.values).items()]
            client.log_batch(run.info.run_id, params=params)
            client.set_terminated(run.info.run_id, "FAILED")


def end_lost(tracking: Tracking, tuning: RecordedTuning, reasons: Mapping[int, str]) -> None:
    """Set runs of lost trials from RUNNING to KILLED; ``reasons`` by number of the trial."""
    client = tracking.client
    with translate_errors(), _locked(tuning.identity):
        for run in _runs(tracking, tuning.experiment_id, tuning.identity) if reasons else ():
            number = run.data.tags.get(TRIAL, "")
            if run.info.status != "RUNNING" or not number.isdigit() or int(number) not in reasons:
                continue
            client.set_tag(run.info.run_id, "ablate.outcome", "killed")
            client.set_tag(run.info.run_id, "ablate.reason", reasons[int(number)])
            client.set_terminated(run.info.run_id, "KILLED")


def _locked(identity: str) -> AbstractContextManager[bool]:
    """Exclude the other processes of this folder."""
    return lock(Path("mlruns") / "tuning" / f"{identity}.mlflow.lock", on_wait=lambda: None)


def _runs(tracking: Tracking, experiment_id: str, identity: str) -> list[Any]:
    return list(tracking.client.search_runs([experiment_id], f"tags.`{TUNING}` = '{identity}'", max_results=MAX_RUNS))


def _parents(runs: Iterable[Any]) -> list[Any]:
    """Parent runs, the oldest first."""
    parents = [run for run in runs if PARENT not in run.data.tags]
    return sorted(parents, key=lambda run: (run.info.start_time, run.info.run_id))


def close_tuning(
    tracking: Tracking,
    tuning: RecordedTuning,
    *,
    is_done: bool,
    tags: Mapping[str, str],
    points: Iterable[tuple[str, float, int, int]],
    files: Sequence[Path],
) -> None:
    """Bring the parent run up to date, and end it: FINISHED if the tuning is done, otherwise KILLED.

    ``points`` are (metric, value, milliseconds since 1970, number of the trial).
    """
    client, run_id = tracking.client, tuning.run_id
    from mlflow.entities import Metric, RunTag

    metrics = [Metric(name, value, time_ms, step) for name, value, time_ms, step in points]
    with translate_errors(), _locked(tuning.identity):
        for start in range(0, len(metrics), PAGE):
            client.log_batch(run_id, metrics=metrics[start : start + PAGE])
        before = client.get_run(run_id).data.tags
        for name in before.keys() - tags.keys():
            if name.startswith(BEST):  # of an earlier best trial
                _delete_tag(client, run_id, name)
        client.log_batch(run_id, tags=[RunTag(name, value) for name, value in tags.items()])
        for path in files:
            client.log_artifact(run_id, str(path))
        client.set_terminated(run_id, "FINISHED" if is_done else "KILLED")


def _delete_tag(client: Any, run_id: str, name: str) -> None:
    """Delete a tag, which a command in another folder may delete at the same moment."""
    from mlflow.exceptions import MlflowException

    try:
        client.delete_tag(run_id, name)
    except MlflowException:
        if name in client.get_run(run_id).data.tags:
            raise


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values as one mapping with dotted names."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        path = f"{prefix}.{name}" if prefix else name
        found |= flat(value, path) if isinstance(value, Mapping) else {path: value}
    return found
