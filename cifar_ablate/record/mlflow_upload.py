"""One run folder becomes, or updates, one MLflow run.

An upload can be repeated at any time and after any interruption: the MLflow run is found by its fingerprint and arm;
epochs that it has are not sent again, even if they were trained again since; the end of a run carries the time of its
last epoch, and MLflow keeps one of equal (key, step, time, value) points. So uploading twice changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cifar_ablate.errors import TakenError
from cifar_ablate.process import ProcessId, process_from_text, this_process
from cifar_ablate.record.folder import RunFolder, RunResult
from cifar_ablate.record.mlflow_errors import translate_errors, translate_upload_errors
from cifar_ablate.record.types import RunIdentity

if TYPE_CHECKING:
    from mlflow import MlflowClient

MAX_TAG = 4500
"""Maximum number of characters of a tag; MLflow's own limit is 5,000."""
PAGE = 1000
HOST, PROCESS = "ablate.host", "ablate.process"
"""Tags that name the process that trains a run."""
CLAIM = "ablate.claim."
"""Prefix of the tags in which version 0.1.0 kept this."""
TUNING = "ablate.tuning"
"""Tag of a tuning's parent run and of its trials: the identity of the tuning. Two tunings may train the same trial."""
_ENDS = {"finished": "FINISHED", "diverged": "FINISHED", "failed": "FAILED", "killed": "KILLED", "pruned": "FINISHED"}


def owner_of(tags: Mapping[str, str]) -> ProcessId | None:
    """The process that an unfinished MLflow run belongs to; None if its tags name none."""
    if PROCESS in tags:
        return process_from_text(tags[PROCESS])
    return next(
        (owner for name in sorted(tags) if name.startswith(CLAIM) and (owner := process_from_text(tags[name]))), None
    )


class RunUpload:
    """Uploads one run folder to one MLflow run."""

    def __init__(
        self,
        client: MlflowClient,
        experiment_id: str,
        run: RunIdentity,
        folder: RunFolder,
        *,
        replaces: ProcessId | None = None,
        on_success: Callable[[], None] = lambda: None,
    ) -> None:
        """``replaces``: the process that left the run RUNNING and is gone. ``on_success`` is called after each step."""
        self.client, self.experiment_id, self.run, self.folder = client, experiment_id, run, folder
        self.replaces, self.on_success = replaces, on_success
        self.run_id = ""
        self.is_confirmed = False
        """Was it checked again that no other process created an MLflow run of this training at the same moment?"""
        self.epochs_uploaded = 0
        self.artifacts_uploaded: set[str] = set()

    def update(self, outcome: str = "", reason: str = "") -> None:
        """Bring MLflow up to the folder; with an ``outcome``, also end the run.

        outcome: finished, diverged, failed, killed, or pruned (a trial). A result in the folder decides, except for
        killed and pruned. Raises RecordError for a damaged folder, TrackingError or OutputError if MLflow does not
        take it, and TakenError, with nothing changed, if another process trains the run or has finished it.
        """
        with translate_errors():
            if not self.run_id:
                self._open()
            else:
                self._check_ours(self.client.get_run(self.run_id) if self.is_confirmed else self._confirmed())
        result = self.folder.result() if outcome not in ("", "killed", "pruned") else None
        self._push(self.folder.history())
        if result is not None:
            self._finish(result)
            outcome, reason = result.status, result.reason
        if outcome:
            self._end(outcome, reason)

    def _open(self) -> None:
        """Find the MLflow run or create it; it is then RUNNING, ours, and describes the folder."""
        tags = {**run_tags(self.run, self.folder.environment()), **_ours()}
        params = {"arm": self.run.arm, "seed": self.run.seed, **flat_params(self.folder.recipe())}
        run = self._find_or_create()
        self._check_ours(run)
        run_id = str(run.info.run_id)
        # A parameter cannot be changed in MLflow. Those that could differ now never decide a training, and recipe.yaml
        # has them as they are.
        new = {name: value for name, value in params.items() if name not in run.data.params}
        self._log(run_id, tags=tags, params=new)
        if run.info.status != "RUNNING":
            self.client.update_run(run_id, status="RUNNING")
        points = self.client.get_metric_history(run_id, "train_loss")
        self.epochs_uploaded = max((point.step for point in points), default=0)
        self.run_id = run_id

    def _confirmed(self) -> Any:
        """The oldest MLflow run of this training; if another process created one first, ours is deleted."""
        oldest = self._all()[0]
        if oldest.info.run_id != self.run_id:
            self.client.delete_run(self.run_id)
        self.is_confirmed = True
        return oldest

    def _check_ours(self, run: Any) -> None:
        """Raise TakenError if the run is another process's by now."""
        if run.info.status == "FINISHED":
            raise TakenError("is recorded as finished by another run command")
        owner = owner_of(run.data.tags)
        if run.info.status != "RUNNING" or owner is None or owner in (self.replaces, this_process()):
            return
        if not (owner.is_here() and not owner.is_alive()):
            raise TakenError(f"is being trained by {owner}")

    def _find_or_create(self) -> Any:
        """The oldest MLflow run of this training; of two created at the same moment, the other is deleted."""
        if not self._all():
            tags = {"ablate.fingerprint": self.run.fingerprint, "ablate.arm": self.run.arm, **_ours()}
            name = f"{self.run.arm} seed {self.run.seed}"
            self.client.create_run(self.experiment_id, run_name=name, tags=tags | dict(self.run.tags))
        oldest, *doubles = self._all()
        for run in doubles:  # also after a server whose answer was lost
            if not run.data.params:
                self.client.delete_run(run.info.run_id)
        return oldest

    def _all(self) -> list[Any]:
        """All MLflow runs of this training, the oldest first; for a trial, those of its own tuning."""
        query = f"tags.`ablate.fingerprint` = '{self.run.fingerprint}'"
        found = self.client.search_runs([self.experiment_id], query, max_results=PAGE)
        wanted = {"ablate.arm": self.run.arm, TUNING: dict(self.run.tags).get(TUNING)}
        mine = [run for run in found if all(run.data.tags.get(name) == value for name, value in wanted.items())]
        return sorted(mine, key=lambda run: (run.info.start_time, run.info.run_id))

    def _push(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """Upload the lines of the history that MLflow lacks."""
        from mlflow.entities import Metric

        waiting = [line for line in lines if line["epoch"] > self.epochs_uploaded]
        longest = max((len(line) for line in waiting), default=1)
        per_page = max(1, PAGE // longest)
        for start in range(0, len(waiting), per_page):  # whole epochs: one with its train_loss is not sent again
            page = waiting[start : start + per_page]
            metrics = [
                Metric(key, float(value), int(line["time_ms"]), line["epoch"])
                for line in page
                for key, value in line.items()
                if key not in ("epoch", "time_ms")
            ]
            with translate_errors(Exception):
                self.client.log_batch(self.run_id, metrics=metrics)
            self.epochs_uploaded = page[-1]["epoch"]
            self.on_success()

    def _finish(self, result: RunResult) -> None:
        """Upload headline metrics and artifacts."""
        from mlflow.entities import Metric

        history = self.folder.history()
        last = history[-1] if history else {"time_ms": 0}
        times = {"train_seconds": result.train_seconds, "eval_seconds": result.eval_seconds}
        times = {} if result.status == "failed" else times  # how long a failed run took is unknown
        headline = {name: value for name, value in {**result.metrics, **times}.items() if name not in last}
        metrics = [Metric(name, value, int(last["time_ms"]), result.epochs) for name, value in headline.items()]
        with translate_errors(Exception):
            self.client.log_batch(self.run_id, metrics=metrics)
        with translate_upload_errors():
            for path in self.folder.artifacts():
                if path.name not in self.artifacts_uploaded:
                    self.client.log_artifact(self.run_id, str(path))
                    self.artifacts_uploaded.add(path.name)
                    self.on_success()

    def _end(self, outcome: str, reason: str) -> None:
        with translate_errors():
            self._log(self.run_id, tags={"ablate.outcome": outcome, "ablate.reason": reason[:MAX_TAG]})
            self.client.set_terminated(self.run_id, _ENDS[outcome])

    def _log(self, run_id: str, *, tags: Mapping[str, str], params: Mapping[str, Any] | None = None) -> None:
        from mlflow.entities import Param, RunTag

        self.client.log_batch(
            run_id,
            tags=[RunTag(name, value) for name, value in tags.items()],
            params=[Param(name, str(value)) for name, value in (params or {}).items()],
        )


def _ours() -> dict[str, str]:
    process = this_process()
    return {HOST: process.host, PROCESS: process.to_text()}


def _as_tag(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def run_tags(run: RunIdentity, environment: Mapping[str, Any]) -> dict[str, str]:
    """Tags that say which training it is, and on what it runs."""
    return {
        "ablate.study": run.study,
        "ablate.arm": run.arm,
        "ablate.seed": str(run.seed),
        "ablate.fingerprint": run.fingerprint,
        "ablate.recipe": run.recipe_id,
        "ablate.precision": run.precision,
        "ablate.data": environment["data"],
        "ablate.data_digest": environment["data_digest"],
        "ablate.device": environment["device"],
        "ablate.threads": str(environment["threads"]),
        "ablate.torch": environment["torch"],
        **{f"ablate.{name}": _as_tag(value)[:MAX_TAG] for name, value in environment.get("engine", {}).items()},
        "ablate.git_dirty": _as_tag(environment["git_dirty"]),
        "mlflow.source.git.commit": environment["git_commit"],
        "mlflow.source.name": "cifar-ablate",
        **dict(run.tags),
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
