"""From a run's folder to its MLflow run, as it grows and as often as needed.

Delivery can be repeated at any time and after any interruption: an MLflow run is found by its fingerprint and arm;
epochs that it has are not sent again, even if they were trained again since; the end of a run carries the time of its
last epoch, and MLflow keeps one of equal (key, step, time, value) points. So delivering twice changes nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cifar_ablate.errors import BusyError, TakenError
from cifar_ablate.folder import RunFolder, RunResult
from cifar_ablate.records import RunIdentity
from cifar_ablate.tracking import checkpoints
from cifar_ablate.tracking.answering import answering, storing
from cifar_ablate.tracking.checkpoints import Kept
from cifar_ablate.tracking.claims import HEARTBEAT_SECONDS, STALE_SECONDS, Claim, claims_of, new_claim, winner_of
from cifar_ablate.tracking.described import MAX_TAG, flat_params, run_tags

if TYPE_CHECKING:
    from mlflow import MlflowClient

SILENT_SECONDS = 2 * HEARTBEAT_SECONDS
"""After such a silence a process looks again at what MLflow has: others may have taken it for dead."""
GONE = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")
"""What MLflow says when somebody else took a tag away, or deleted its run."""
PAGE = 1000
TUNING = "ablate.tuning"
"""Tag of a tuning's parent run and of its trials: the identity of the tuning. Two tunings may train the same trial."""
_ENDS = {"finished": "FINISHED", "diverged": "FINISHED", "failed": "FAILED", "killed": "KILLED", "pruned": "FINISHED"}


class Delivery:
    """One MLflow run that receives one run folder."""

    def __init__(
        self,
        client: MlflowClient,
        experiment_id: str,
        planned: RunIdentity,
        folder: RunFolder,
        *,
        is_training: bool = False,
        on_success: Callable[[], None] = lambda: None,
    ) -> None:
        """Find the MLflow run, or create it; claim it; it is then RUNNING, and describes the folder as it is now.

        Raises RecordError where the folder is damaged; with nothing changed, TakenError where a process that is alive
        claimed the run before, or MLflow has its result, and BusyError where that process is only delivering.
        ``is_training``: more will come from this process. ``on_success`` is called when MLflow has more than before.
        """
        self.client, self.experiment_id, self.planned, self.folder = client, experiment_id, planned, folder
        self.on_success = on_success
        self.is_confirmed = False
        self.claiming = threading.Lock()
        """Held by the thread that writes the claim."""
        self.claim: Claim
        self.has_claim = self.was_silent = False
        self.kept: Kept | None = None
        self.kept_stamp = 0
        self.has_kept = False
        """Did this process begin to keep checkpoints in MLflow? An upload that was cut off has no tag yet."""
        self.artifacts_delivered: set[str] = set()
        self._open(is_training)

    def confirm(self, *, is_training: bool = False) -> None:
        """See that the run is still ours, where that is not certain: before any metric, after a silence, at the end.

        Of two claims written at one moment each may have missed the other, and so may two creations; after a silence
        others may have taken the run over, and delivered epochs of it. Raises TakenError and BusyError as above.
        """
        if not self.is_confirmed:
            with answering():
                oldest = self._find_or_create()
                if oldest == self.run_id:
                    self._hold(is_training)
                else:  # another process made one at the same moment
                    self._drop(self.claim.tag)
                    if not self.epochs_delivered:
                        self.client.delete_run(self.run_id)
                    self._open(is_training)
            self.is_confirmed = True
        elif self.was_silent or self.claim.silent_seconds > SILENT_SECONDS or self.claim.delivers == is_training:
            with answering():
                self._hold(is_training)

    def beat(self) -> None:
        """Say that this process is alive; raises TakenError and BusyError where an older claim has turned up."""
        with answering():
            self._hold(is_training=not self.claim.delivers)

    def renew(self) -> None:
        """Say so from another thread, while an upload takes long; at the claims of others ``beat`` will look.

        A claim that has gone stale is left as it is: others may have taken the run over.
        """
        with self.claiming:
            if self.has_claim and self.claim.silent_seconds < STALE_SECONDS:
                self.was_silent |= self.claim.silent_seconds > SILENT_SECONDS
                claim = self.claim.beating(delivers=self.claim.delivers)
                with answering():
                    self.client.set_tag(self.run_id, claim.tag, claim.to_text())
                self.claim = claim

    def let_go(self) -> None:
        """Take the claim back: this process will not come to the end of the run."""
        with answering():
            self._drop(self.claim.tag)

    def _open(self, is_training: bool) -> None:
        tags = run_tags(self.planned, self.folder.environment())
        params = {"arm": self.planned.arm, "seed": self.planned.seed, **flat_params(self.folder.recipe())}
        with answering():
            self.run_id = self._find_or_create()
            # directly before it is written, so that the oldest claim is the first one written
            self.claim = new_claim(delivers=not is_training)
            run = self._hold(is_training)
            # a parameter cannot be changed in MLflow; those that could differ now never decide a training, and
            # recipe.yaml has them as they are
            self._log(tags=tags, params={name: value for name, value in params.items() if name not in run.data.params})
            if run.info.status != "RUNNING":
                self.client.update_run(self.run_id, status="RUNNING")
            self._read_progress()

    def _read_progress(self) -> None:
        points = self.client.get_metric_history(self.run_id, "train_loss")
        self.epochs_delivered = max((point.step for point in points), default=0)

    def _hold(self, is_training: bool) -> Any:
        """Claim the run, and give it as it is; where it is another's, take the claim back, and raise as above."""
        with self.claiming:
            was_silent = self.was_silent or self.claim.silent_seconds > SILENT_SECONDS
            self.was_silent, self.has_claim = was_silent, True
            self.claim = self.claim.beating(delivers=not is_training)
            self.client.set_tag(self.run_id, self.claim.tag, self.claim.to_text())
        run = self.client.get_run(self.run_id)
        # our own claim is alive, whatever its text says of clocks
        winner = winner_of(run.data.tags, ours=self.claim.tag)
        lost: TakenError | BusyError | None = None
        if run.info.status == "FINISHED":
            lost = TakenError("is recorded as finished by another run command")
        elif winner is not None and winner.owner != self.claim.owner:
            delivers, trains = f"is being delivered by {winner.owner}", f"is being trained by {winner.owner}"
            lost = BusyError(delivers) if winner.delivers else TakenError(f"{trains}, whose claim is older")
        for claim in claims_of(run.data.tags):  # also one of ours that an earlier attempt could not take back
            is_ours = claim.owner == self.claim.owner
            if (lost and is_ours) or (claim.tag != self.claim.tag and (is_ours or not claim.is_alive())):
                self._drop(claim.tag)
        if lost:
            raise lost
        self.kept = checkpoints.kept_from(run.data.tags, self.run_id)  # by others, too, before they left the run to us
        if was_silent:  # another process may have had the run meanwhile
            self._read_progress()
        self.was_silent = False
        return run

    def _drop(self, tag: str) -> None:
        """Remove a claim, if it is still there; raises MlflowException where the store does not do it."""
        from mlflow.exceptions import MlflowException

        with self.claiming:  # a claim that is renewed after this would be there again
            self.has_claim &= tag != self.claim.tag
        try:
            self.client.delete_tag(self.run_id, tag)
        except MlflowException as error:
            if error.error_code not in GONE:
                raise

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
            with answering(Exception):
                self.client.log_batch(self.run_id, metrics=metrics)
            self.epochs_delivered = page[-1]["epoch"]
            self.on_success()

    def keep_checkpoint(self) -> None:
        """Bring the newest checkpoint to the artifact store, where another machine can take the run up from it."""
        with storing():
            for path in self.folder.artifacts():
                if path.name.startswith("weights-epoch-"):  # of epochs that nobody trains again
                    self._log_artifact(path)
            stamp = self._stamp()
            if stamp == self.kept_stamp:  # a checkpoint is newer once a minute, and hashing one takes a while
                return
            self.has_kept = True
            kept = checkpoints.upload(self.client, self.run_id, self.folder, self.kept)
            if kept != self.kept:
                self.kept = kept
                self.on_success()
            self.kept_stamp = stamp

    def _stamp(self) -> int:
        """When the newest checkpoint was written; 0 where there is none."""
        with suppress(OSError):
            return self.folder.checkpoint.stat().st_mtime_ns
        return 0

    def _log_artifact(self, path: Path) -> None:
        if path.name not in self.artifacts_delivered:
            self.client.log_artifact(self.run_id, str(path))
            self.artifacts_delivered.add(path.name)
            self.on_success()

    def finish(self, result: RunResult) -> None:
        """Deliver the end of a run: what is left of its history, headline metrics, artifacts, and how it ended."""
        from mlflow.entities import Metric

        history = self.folder.history()
        self.push(history)
        last = history[-1] if history else {"time_ms": 0}
        times = {"train_seconds": result.train_seconds, "eval_seconds": result.eval_seconds}
        times = {} if result.status == "failed" else times  # nobody knows how long it took
        headline = {name: value for name, value in {**result.metrics, **times}.items() if name not in last}
        metrics = [Metric(name, value, int(last["time_ms"]), result.epochs) for name, value in headline.items()]
        with answering(Exception):
            self.client.log_batch(self.run_id, metrics=metrics)
        with storing():
            for path in self.folder.artifacts():
                self._log_artifact(path)
        self.end(result.status, result.reason)

    def end(self, outcome: str, reason: str = "") -> None:
        """Set how the run ended: finished, diverged, failed, killed or (a trial) pruned."""
        with storing():
            if (self.kept or self.has_kept) and outcome not in ("failed", "killed"):
                checkpoints.discard(self.client, self.run_id)
                self.kept, self.has_kept = None, False
            self._log(tags={"ablate.outcome": outcome, "ablate.reason": reason[:MAX_TAG]})
            self._drop(self.claim.tag)  # killed after this, the run is RUNNING without an owner, and is delivered again
            self.client.set_terminated(self.run_id, _ENDS[outcome])

    def _find_or_create(self) -> str:
        """Id of the oldest MLflow run of this training; one is made where there is none."""
        if not self._all():
            tags = {"ablate.fingerprint": self.planned.fingerprint, "ablate.arm": self.planned.arm}
            self.client.create_run(
                self.experiment_id,
                run_name=f"{self.planned.arm} seed {self.planned.seed}",
                tags=tags | dict(self.planned.tags),
            )
        oldest, *doubles = self._all()
        for run in doubles:  # two processes at one moment, or a server whose answer was lost
            if not run.data.params:
                self.client.delete_run(run.info.run_id)
        return str(oldest.info.run_id)

    def _all(self) -> list[Any]:
        """All MLflow runs of this training, the oldest first; of a trial, those of its tuning alone."""
        query = f"tags.`ablate.fingerprint` = '{self.planned.fingerprint}'"
        found = self.client.search_runs([self.experiment_id], query, max_results=PAGE)
        wanted = {"ablate.arm": self.planned.arm, TUNING: dict(self.planned.tags).get(TUNING)}
        mine = [run for run in found if all(run.data.tags.get(name) == value for name, value in wanted.items())]
        return sorted(mine, key=lambda run: (run.info.start_time, run.info.run_id))

    def _log(self, *, tags: Mapping[str, str], params: Mapping[str, Any] | None = None) -> None:
        from mlflow.entities import Param, RunTag

        self.client.log_batch(
            self.run_id,
            tags=[RunTag(name, value) for name, value in tags.items()],
            params=[Param(name, str(value)) for name, value in (params or {}).items()],
        )
