"""The only door to MLflow: deliver run folders, find and load what is recorded.

Delivery can be repeated at any time: a run is found by its fingerprint and arm, parameters and tags are set to the same
values, each metric carries the time at which its epoch ended, and MLflow's store keeps one of equal (key, step, time,
value) points, so delivering twice changes nothing.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cifar_ablate.errors import RecordError, TrackingError
from cifar_ablate.folder import RunFolder, RunResult
from cifar_ablate.records import RecordedRun, StudyRecord

if TYPE_CHECKING:
    from cifar_ablate.plan import PlannedRun  # which imports torch; a report has no need of it

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")

CHUNK = 4500  # an experiment tag holds 5,000 characters
PAGE = 1000
CURVES = ("train_loss", "running_accuracy", "test_accuracy", "test_nll", "lr", "images_per_second")
_ENDS = {"finished": "FINISHED", "diverged": "FINISHED", "failed": "FAILED", "killed": "KILLED"}


class Tracking:
    """A tracking store: MLFLOW_TRACKING_URI where it is set, else what plain ``mlflow ui`` shows here."""

    def __init__(self) -> None:
        import mlflow

        for name in ("mlflow", "alembic"):  # after the import, which sets levels of its own
            logging.getLogger(name).setLevel(logging.WARNING)

        with _answering():
            self.client = mlflow.MlflowClient()
            self.uri: str = mlflow.get_tracking_uri()
            self.client.search_experiments(max_results=1)  # creates a fresh database, or finds that none answers

    def open_study(self, label: str, document: Mapping[str, Any]) -> str:
        """Id of the experiment of a study's variant, created where needed, with the study as planned now."""
        from mlflow.exceptions import MlflowException

        with _answering():
            experiment = self.client.get_experiment_by_name(label)
            if experiment is None:
                try:
                    experiment_id = str(self.client.create_experiment(label))
                except MlflowException:  # another process was first
                    experiment_id = self._experiment_id(label)
            else:
                experiment_id = str(experiment.experiment_id)
                if experiment.lifecycle_stage == "deleted":
                    self.client.restore_experiment(experiment_id)
            text = json.dumps(document)
            chunks = [text[start : start + CHUNK] for start in range(0, len(text), CHUNK)]
            for index, chunk in enumerate(chunks):
                self.client.set_experiment_tag(experiment_id, f"ablate.study.{index}", chunk)
            self.client.set_experiment_tag(experiment_id, "ablate.study.chunks", str(len(chunks)))
            self.client.set_experiment_tag(experiment_id, "mlflow.note.content", str(document["question"]))
        return experiment_id

    def labels(self) -> list[str]:
        """Labels of all recorded studies, sorted."""
        with _answering():
            found = self._pages(self.client.search_experiments)
            return sorted(item.name for item in found if "ablate.study.chunks" in item.tags)

    def load(self, label: str) -> StudyRecord:
        """Everything recorded under a label; raises RecordError where nothing is."""
        with _answering():
            experiment = self.client.get_experiment_by_name(label)
            tags = {} if experiment is None else experiment.tags
            if experiment is None or "ablate.study.chunks" not in tags:
                raise RecordError(
                    f"nothing is recorded of {label!r}; recorded: {', '.join(self.labels()) or 'nothing'}"
                )
            text = "".join(tags[f"ablate.study.{index}"] for index in range(int(tags["ablate.study.chunks"])))
            return StudyRecord(label, json.loads(text), self.runs(str(experiment.experiment_id)))

    def runs(self, experiment_id: str) -> list[RecordedRun]:
        """All runs of an experiment that this program recorded."""
        with _answering():
            found = self._pages(self.client.search_runs, experiment_ids=[experiment_id])
        return [_recorded(run) for run in found if "ablate.fingerprint" in run.data.tags]

    def start(self, experiment_id: str, planned: PlannedRun, folder: RunFolder) -> str:
        """Id of the MLflow run of a planned run: the one recorded before, else a new one; it is then RUNNING."""
        environment = folder.environment()
        tags = {
            "ablate.study": planned.study,
            "ablate.arm": planned.arm,
            "ablate.seed": str(planned.seed),
            "ablate.fingerprint": planned.fingerprint,
            "ablate.recipe": planned.recipe_id,
            "ablate.precision": planned.precision,
            "ablate.data": environment["data"],
            "ablate.data_digest": environment["data_digest"],
            "ablate.device": environment["device"],
            "ablate.git_dirty": str(environment["git_dirty"]).lower(),
            "mlflow.source.git.commit": environment["git_commit"],
            "mlflow.source.name": "cifar-ablate",
        }
        with _answering():
            run_id = self._find(experiment_id, planned)
            if run_id is None:
                name = f"{planned.arm} seed {planned.seed}"
                run_id = self.client.create_run(experiment_id, run_name=name, tags=tags).info.run_id
            else:
                self.client.update_run(run_id, status="RUNNING")
            self._log_params(run_id, {**flat_params(folder.recipe()), "seed": planned.seed})
        return str(run_id)

    def push(self, run_id: str, lines: Sequence[Mapping[str, Any]]) -> None:
        """Deliver lines of a run's history."""
        from mlflow.entities import Metric

        metrics = [
            Metric(key, float(value), int(line["time_ms"]), int(line["epoch"]))
            for line in lines
            for key, value in line.items()
            if key not in ("epoch", "time_ms")
        ]
        with _answering():
            for start in range(0, len(metrics), PAGE):
                self.client.log_batch(run_id, metrics=metrics[start : start + PAGE])

    def finish(self, run_id: str, folder: RunFolder, result: RunResult, artifacts: Sequence[Path]) -> None:
        """Deliver the end of a run: all lines, headline metrics, artifacts, and how it ended."""
        from mlflow.entities import Metric

        history = folder.history()
        self.push(run_id, history)
        last = history[-1] if history else {"time_ms": 0}
        times = {"train_seconds": result.train_seconds, "eval_seconds": result.eval_seconds}
        headline = {name: value for name, value in {**result.metrics, **times}.items() if name not in last}
        metrics = [Metric(name, value, int(last["time_ms"]), result.epochs) for name, value in headline.items()]
        with _answering():
            self.client.log_batch(run_id, metrics=metrics)
            for path in artifacts:
                self.client.log_artifact(run_id, str(path))
        self.end(run_id, result.status, result.reason)

    def end(self, run_id: str, outcome: str, reason: str = "") -> None:
        """Set how a run ended: finished, diverged, failed or killed."""
        with _answering():
            self.client.set_tag(run_id, "ablate.outcome", outcome)
            self.client.set_tag(run_id, "ablate.reason", reason[:CHUNK])
            self.client.set_terminated(run_id, _ENDS[outcome])

    def curves(self, run_id: str, names: Sequence[str]) -> dict[str, list[tuple[int, float]]]:
        """Points (epoch, value) of each named metric of a run."""
        with _answering():
            return {
                name: [(point.step, point.value) for point in self.client.get_metric_history(run_id, name)]
                for name in names
            }

    def artifact(self, run_id: str, name: str, into: Path) -> Path:
        """Download one artifact into a folder; raises RecordError where the run has none of that name."""
        from mlflow.exceptions import MlflowException

        try:
            return Path(self.client.download_artifacts(run_id, name, str(into)))
        except (OSError, MlflowException):
            message = f"run {run_id} has no artifact {name!r}; if mlruns/ was moved, move it back to where it was made"
            raise RecordError(message) from None

    def _experiment_id(self, label: str) -> str:
        experiment = self.client.get_experiment_by_name(label)
        if experiment is None:
            raise TrackingError(f"the tracking store at {self.uri} refuses to create {label!r}")
        return str(experiment.experiment_id)

    def _find(self, experiment_id: str, planned: PlannedRun) -> str | None:
        query = f"tags.`ablate.fingerprint` = '{planned.fingerprint}'"
        found = self._pages(self.client.search_runs, experiment_ids=[experiment_id], filter_string=query)
        mine = [run for run in found if run.data.tags.get("ablate.arm") == planned.arm]
        return min(mine, key=lambda run: run.info.start_time).info.run_id if mine else None

    def _log_params(self, run_id: str, params: Mapping[str, Any]) -> None:
        from mlflow.entities import Param

        self.client.log_batch(run_id, params=[Param(name, str(value)) for name, value in params.items()])

    @staticmethod
    def _pages(search: Any, **query: Any) -> Iterator[Any]:
        token = None
        while True:
            page = search(max_results=PAGE, page_token=token, **query)
            yield from page
            token = page.token
            if not token:
                return


@contextmanager
def _answering() -> Iterator[None]:
    """Turn MLflow's own errors into one sentence."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except (MlflowException, OSError) as error:
        if isinstance(error, RecordError | TrackingError):
            raise
        import mlflow

        first = str(error).strip().split("\n", 1)[0][:300]
        message = f"the tracking store at {mlflow.get_tracking_uri()} does not answer as it should ({first})"
        raise TrackingError(
            f"{message}; check MLFLOW_TRACKING_URI, or unset it to use mlflow.db in this folder"
        ) from None


def flat_params(recipe: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A recipe's fields as dotted parameters; a component's name stands under its own key (``optimizer: sgd``)."""
    flat: dict[str, Any] = {}
    for key, value in recipe.items():
        path = prefix if key == "name" and prefix else f"{prefix}.{key}" if prefix else key
        if isinstance(value, Mapping) and value:
            flat |= {path: "on"} if "name" not in value and prefix == "augment" else {}
            flat |= flat_params(value, path)
        else:
            flat[path] = "none" if value is None else value
    return flat


def _recorded(run: Any) -> RecordedRun:
    tags, metrics = run.data.tags, dict(run.data.metrics)
    states = {"RUNNING": "running", "SCHEDULED": "running", "KILLED": "killed", "FAILED": "failed"}
    outcome = states.get(run.info.status) or tags.get("ablate.outcome", "failed")
    return RecordedRun(
        run_id=run.info.run_id,
        arm=tags["ablate.arm"],
        seed=int(tags["ablate.seed"]),
        fingerprint=tags["ablate.fingerprint"],
        recipe_id=tags["ablate.recipe"],
        outcome=outcome,
        reason=tags.get("ablate.reason", ""),
        metrics=metrics,
    )
