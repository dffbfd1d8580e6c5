"""From a run's folder to its MLflow run, as it grows and as often as needed.

Delivery can be repeated at any time and after any interruption: an MLflow run is found by its fingerprint and arm;
epochs that it has are not sent again, even if they were trained again since; the end of a run carries the time of its
last epoch, and MLflow keeps one of equal (key, step, time, value) points. So delivering twice changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from cifar_ablate.errors import TakenError
from cifar_ablate.folder import RunFolder, RunResult
from cifar_ablate.records import RunIdentity
from cifar_ablate.tracking.answering import answering
from cifar_ablate.tracking.claims import Claim, claims_of, new_claim, winner_of

if TYPE_CHECKING:
    from mlflow import MlflowClient

PAGE = 1000
MAX_TAG = 4500
_ENDS = {"finished": "FINISHED", "diverged": "FINISHED", "failed": "FAILED", "killed": "KILLED"}


class Delivery:
    """One MLflow run that receives one run folder."""

    def __init__(self, client: MlflowClient, experiment_id: str, planned: RunIdentity, folder: RunFolder) -> None:
        """Find the MLflow run, or create it; claim it; it is then RUNNING, and describes the folder as it is now.

        Raises RecordError where the folder is damaged, and TakenError, with nothing changed, where a process that is
        alive claimed the run before, or MLflow has its result.
        """
        tags = _tags(planned, folder.environment())
        params = {"arm": planned.arm, "seed": planned.seed, **flat_params(folder.recipe())}
        self.client = client
        self.is_confirmed = False
        with answering():
            self.run_id = self._find_or_create(experiment_id, planned)
            self.claim = new_claim()  # directly before it is written, so that the oldest claim is the first one written
            run = self._hold()
            # a parameter cannot be changed in MLflow; those that could differ now never decide a training, and
            # recipe.yaml has them as they are
            self._log(tags=tags, params={name: value for name, value in params.items() if name not in run.data.params})
            if run.info.status != "RUNNING":
                client.update_run(self.run_id, status="RUNNING")
            points = client.get_metric_history(self.run_id, "train_loss")
            self.epochs_delivered = max((point.step for point in points), default=0)

    def confirm(self) -> None:
        """Look again, once: of two claims written at one moment, each may have missed the other. Before any metric.

        Raises TakenError where the run is another's.
        """
        if not self.is_confirmed:
            with answering():
                self._hold()
            self.is_confirmed = True

    def beat(self) -> None:
        """Say that this process is alive; raises TakenError where an older claim has turned up."""
        with answering():
            self.claim = self.claim.beating()
            self._hold()

    def _hold(self) -> Any:
        """Claim the run, and give it as it is; raises TakenError, without the claim, where it is another's."""
        self.client.set_tag(self.run_id, self.claim.tag, self.claim.to_text())
        run = self.client.get_run(self.run_id)
        winner = winner_of(run.data.tags)
        taken = ""
        if run.info.status == "FINISHED":
            taken = "is recorded as finished by another run command"
        elif winner is not None and winner.owner != self.claim.owner:
            taken = f"is being trained by {winner.owner}, whose claim is older"
        if taken:
            self._drop(self.claim)
            raise TakenError(taken)
        for claim in claims_of(run.data.tags):
            if not claim.is_alive() or (claim.owner == self.claim.owner and claim.tag != self.claim.tag):
                self._drop(claim)
        return run

    def _drop(self, claim: Claim) -> None:
        from mlflow.exceptions import MlflowException

        with suppress(MlflowException):  # somebody else took it away
            self.client.delete_tag(self.run_id, claim.tag)

    def push(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """Deliver the lines of a run's history that are not delivered yet."""
        from mlflow.entities import Metric

        waiting = [line for line in lines if line["epoch"] > self.epochs_delivered]
        longest = max((len(line) for line in waiting), default=1)
        per_page = max(1, PAGE // longest)
        for start in range(0, len(waiting), per_page):  # whole epochs: one that has its train_loss is not sent again
            page = waiting[start : start + per_page]
            metrics = [
                Metric(key, float(value), int(line["time_ms"]), line["epoch"])
                for line in page
                for key, value in line.items()
                if key not in ("epoch", "time_ms")
            ]
            with answering():
                self.client.log_batch(self.run_id, metrics=metrics)
            self.epochs_delivered = page[-1]["epoch"]

    def finish(self, folder: RunFolder, result: RunResult) -> None:
        """Deliver the end of a run: what is left of its history, headline metrics, artifacts, and how it ended."""
        from mlflow.entities import Metric

        history = folder.history()
        self.push(history)
        last = history[-1] if history else {"time_ms": 0}
        times = {"train_seconds": result.train_seconds, "eval_seconds": result.eval_seconds}
        times = {} if result.status == "failed" else times  # nobody knows how long it took
        headline = {name: value for name, value in {**result.metrics, **times}.items() if name not in last}
        metrics = [Metric(name, value, int(last["time_ms"]), result.epochs) for name, value in headline.items()]
        with answering():
            self.client.log_batch(self.run_id, metrics=metrics)
            for path in folder.artifacts():
                self.client.log_artifact(self.run_id, str(path))
        self.end(result.status, result.reason)

    def end(self, outcome: str, reason: str = "") -> None:
        """Set how the run ended: finished, diverged, failed or killed."""
        with answering():
            self._log(tags={"ablate.outcome": outcome, "ablate.reason": reason[:MAX_TAG]})
            self._drop(self.claim)  # killed after this, the run is RUNNING without an owner, and is delivered again
            self.client.set_terminated(self.run_id, _ENDS[outcome])

    def _find_or_create(self, experiment_id: str, planned: RunIdentity) -> str:
        """Id of the oldest MLflow run of this training; one is made where there is none."""
        if not self._all(experiment_id, planned):
            self.client.create_run(
                experiment_id,
                run_name=f"{planned.arm} seed {planned.seed}",
                tags={"ablate.fingerprint": planned.fingerprint, "ablate.arm": planned.arm},
            )
        oldest, *doubles = self._all(experiment_id, planned)
        for run in doubles:  # two processes at one moment, or a server whose answer was lost
            if not run.data.params:
                self.client.delete_run(run.info.run_id)
        return str(oldest.info.run_id)

    def _all(self, experiment_id: str, planned: RunIdentity) -> list[Any]:
        """All MLflow runs of this training, the oldest first."""
        query = f"tags.`ablate.fingerprint` = '{planned.fingerprint}'"
        found = self.client.search_runs([experiment_id], query, max_results=PAGE)
        mine = [run for run in found if run.data.tags.get("ablate.arm") == planned.arm]
        return sorted(mine, key=lambda run: (run.info.start_time, run.info.run_id))

    def _log(self, *, tags: Mapping[str, str], params: Mapping[str, Any] | None = None) -> None:
        from mlflow.entities import Param, RunTag

        self.client.log_batch(
            self.run_id,
            tags=[RunTag(name, value) for name, value in tags.items()],
            params=[Param(name, str(value)) for name, value in (params or {}).items()],
        )


def _tags(planned: RunIdentity, environment: Mapping[str, Any]) -> dict[str, str]:
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
        "ablate.git_dirty": str(environment["git_dirty"]).lower(),
        "mlflow.source.git.commit": environment["git_commit"],
        "mlflow.source.name": "cifar-ablate",
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
