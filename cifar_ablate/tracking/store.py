"""What is recorded in MLflow: studies, their runs, curves and artifacts."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cifar_ablate.errors import OutputError, RecordError, TrackingError, UnknownNameError, not_written
from cifar_ablate.locks import lock
from cifar_ablate.records import (
    LedgerEntry,
    RecordedRun,
    RunIdentity,
    StudyRecord,
    check_document,
)
from cifar_ablate.text_safety import redact_url, sanitize_values
from cifar_ablate.tracking import checkpoints
from cifar_ablate.tracking.answering import answering, store_error
from cifar_ablate.tracking.checkpoints import Kept
from cifar_ablate.tracking.delivery import TUNING, Delivery
from cifar_ablate.tracking.details import TrackedDetails
from cifar_ablate.tracking.ledger import as_tag, entries_in, entry_now
from cifar_ablate.tracking.recorded import recorded

if TYPE_CHECKING:
    from cifar_ablate.folder import RunFolder

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
# a courier tries again by itself; with MLflow's own 7 attempts and 120 s each, a dead server is found out in minutes
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")

CHUNK = 4500  # an experiment tag holds 5,000 characters
PAGE = 1000
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
DOCUMENT = "ablate.study"
"""Experiment tag that points at the study's document: its digest and in how many pieces it is kept."""


class Tracking:
    """A tracking store: MLFLOW_TRACKING_URI where it is set, else what plain ``mlflow ui`` shows here."""

    def __init__(self) -> None:
        import mlflow

        for name in ("mlflow", "alembic"):  # after the import, which sets levels of its own
            logging.getLogger(name).setLevel(logging.WARNING)
        logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # a traceback for what our errors say
        with answering(ImportError, ValueError):  # a driver that is not there, an address that is none
            uri = mlflow.get_tracking_uri()
            self.uri = redact_url(uri)
            _make_database(uri)
            _ask_once(uri)
            self.client = mlflow.MlflowClient()
            self.client.search_experiments(max_results=1)

    def answers(self) -> bool:
        """Does the store answer at this moment?"""
        try:
            with answering():
                self.client.search_experiments(max_results=1)
        except (TrackingError, OutputError):
            return False
        return True

    def open_study(self, label: str, document: Mapping[str, Any]) -> str:
        """Id of the experiment of a study's variant, created where needed, with the study as planned now.

        The document is kept in pieces under its digest; the tag that points at them is written last, so a reader finds
        the old document or the new one, and never parts of both.
        """
        from mlflow.exceptions import MlflowException

        with answering():
            experiment = self.client.get_experiment_by_name(label)
            if experiment is None:
                try:
                    experiment_id = str(self.client.create_experiment(label))
                except MlflowException:  # another process was first, or the store cannot write
                    experiment = self.client.get_experiment_by_name(label)
                    if experiment is None:
                        raise
                    experiment_id = str(experiment.experiment_id)
            else:
                experiment_id = str(experiment.experiment_id)
                if experiment.lifecycle_stage == "deleted":
                    self.client.restore_experiment(experiment_id)
            text = json.dumps(document)
            digest = hashlib.sha256(text.encode()).hexdigest()[:8]
            pieces = [text[start : start + CHUNK] for start in range(0, len(text), CHUNK)]
            for index, piece in enumerate(pieces):
                self._tag(experiment_id, f"{DOCUMENT}.{digest}.{index}", piece)
            self._tag(experiment_id, DOCUMENT, f"{digest}:{len(pieces)}")
            self._tag(experiment_id, "mlflow.note.content", str(document["question"]))
        return experiment_id

    def _tag(self, experiment_id: str, name: str, value: str) -> None:
        """Set a tag of an experiment; of two processes that do so at once, MLflow lets one fail (UNIQUE constraint)."""
        from mlflow.exceptions import MlflowException

        try:
            self.client.set_experiment_tag(experiment_id, name, value)
        except MlflowException:
            self.client.set_experiment_tag(experiment_id, name, value)

    def labels(self) -> list[str]:
        """Labels of all recorded studies, sorted."""
        with answering():
            found = self.pages(self.client.search_experiments)
            return sorted(item.name for item in found if DOCUMENT in item.tags and item.name.isprintable())

    def load(self, label: str) -> StudyRecord:
        """Everything recorded under a label; raises UnknownNameError where nothing is."""
        with answering():
            experiment = self.client.get_experiment_by_name(label)
            if experiment is not None and experiment.lifecycle_stage == "deleted":
                experiment = None
            if experiment is None or DOCUMENT not in experiment.tags:
                raise UnknownNameError("recorded study", label, self.labels())
            digest, _, num_pieces = experiment.tags[DOCUMENT].partition(":")
            try:
                pieces = [experiment.tags[f"{DOCUMENT}.{digest}.{index}"] for index in range(int(num_pieces))]
                document = sanitize_values(json.loads("".join(pieces)))
                check_document(document, "it")
            except (KeyError, ValueError, RecursionError):
                message = f"the study kept in MLflow under {label!r} is damaged; `cifar-ablate run` writes it again"
                raise RecordError(message) from None
            ledger = entries_in(label, experiment.tags)
            found = self._recorded_runs(str(experiment.experiment_id))
            places = {run.info.run_id: run.info.artifact_uri for run in found}
            details = TrackedDetails(self, places)
            return StudyRecord(label, document, [recorded(run) for run in found], details, ledger)

    def tags_of(self, run_id: str) -> dict[str, str]:
        """Tags of a run."""
        with answering():
            return dict(self.client.get_run(run_id).data.tags)

    def study_of(self, run_id: str) -> str:
        """Label of the study that a run belongs to; raises RecordError where it is none of ours."""
        from mlflow.exceptions import MlflowException

        with answering():
            try:
                tags = self.client.get_run(run_id).data.tags
            except MlflowException as error:
                if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                    raise
                raise RecordError(
                    f"there is no run {run_id!r} in {self.uri}; `mlflow ui` shows the runs with their ids"
                ) from None
            if "ablate.study" not in tags:
                raise RecordError(f"run {run_id!r} is none of a study's arm and seed; name one of those")
            if TUNING in tags:
                raise RecordError(f"run {run_id!r} is a trial of a tuning, which keeps no weights; name a study's run")
            return str(tags["ablate.study"])

    def note(self, label: str, kind: str, detail: str, runs: Iterable[RecordedRun]) -> LedgerEntry | None:
        """Enter in a study's ledger what was done with these ``runs``; None where that is there already.

        One request where it is, two otherwise. Raises UnknownNameError where nothing is recorded under the label.
        """
        name, entry = entry_now(kind, detail, runs)
        with answering():
            experiment = self.client.get_experiment_by_name(label)
            if experiment is None:
                raise UnknownNameError("recorded study", label, self.labels())
            if name in experiment.tags:
                return None
            self._tag(str(experiment.experiment_id), name, as_tag(entry))
        return entry

    def runs(self, experiment_id: str) -> list[RecordedRun]:
        """All runs of an experiment that this program recorded."""
        with answering():
            return [recorded(run) for run in self._recorded_runs(experiment_id)]

    def _recorded_runs(self, experiment_id: str) -> list[Any]:
        found = self.pages(self.client.search_runs, experiment_ids=[experiment_id])
        return [run for run in found if "ablate.recipe" in run.data.tags]

    def deliver(self, experiment_id: str, planned: RunIdentity, folder: RunFolder, **options: Any) -> Delivery:
        """Start, or take up again, the delivery of a run's folder; options are those of ``Delivery``."""
        return Delivery(self.client, experiment_id, planned, folder, **options)

    def kept_checkpoints(self, experiment_id: str) -> dict[str, Kept]:
        """Checkpoints of unfinished runs that the store keeps, by fingerprint: the furthest of each."""
        found: dict[str, Kept] = {}
        with answering():
            query = f"tags.`{checkpoints.TAG}` LIKE '%'"
            for run in self.pages(self.client.search_runs, experiment_ids=[experiment_id], filter_string=query):
                kept = checkpoints.kept_from(run.data.tags, run.info.run_id)
                fingerprint = run.data.tags.get("ablate.fingerprint", "")
                if kept is not None and (fingerprint not in found or kept.progress >= found[fingerprint].progress):
                    found[fingerprint] = kept
        return found

    def fetch_checkpoint(self, kept: Kept, folder: RunFolder) -> None:
        """Write a kept checkpoint into a run's folder; raises RecordError, OutputError."""
        with answering():
            checkpoints.fetch(self.client, kept, folder)

    def curves(self, run_id: str, names: Sequence[str]) -> dict[str, list[tuple[int, float]]]:
        """Points (epoch, value) of each named metric of a run."""
        with answering():
            return {
                name: [(point.step, point.value) for point in self.client.get_metric_history(run_id, name)]
                for name in names
            }

    def artifact(self, run_id: str, name: str, into: Path) -> Path:
        """Download one artifact into a folder; raises RecordError where the run has none of that name."""
        from mlflow.exceptions import MlflowException

        try:
            return Path(self.client.download_artifacts(run_id, name, str(into)))
        except (OSError, MlflowException) as error:
            if isinstance(error, OSError) and error.errno in NO_ROOM:
                raise not_written(into, error) from None
            cure = "if mlruns/ was moved, move it back; if deleted, delete the run in MLflow, and `run` trains it again"
            raise RecordError(f"run {run_id} has no artifact {name!r}; {cure}") from None
        except Exception as error:  # each kind of store raises what its own library raises, or lacks it
            raise store_error(error, "give") from None

    def experiment_id(self, label: str) -> str:
        """Id of a study's experiment; raises TrackingError where there is none."""
        experiment = self.client.get_experiment_by_name(label)
        if experiment is None:
            raise TrackingError(f"the tracking store at {self.uri} refuses to create {label!r}; look at its log")
        return str(experiment.experiment_id)

    @staticmethod
    def pages(search: Any, **query: Any) -> Iterator[Any]:
        token = None
        while True:
            page = search(max_results=PAGE, page_token=token, **query)
            yield from page
            token = page.token
            if not token:
                return


def is_empty() -> bool:
    """Is the store a database file that nobody has made yet? Finding that out makes none."""
    import mlflow

    path = _database_file(mlflow.get_tracking_uri())
    return path is not None and not path.exists()


def existing() -> Tracking:
    """The tracking store, for what only reads; raises RecordError where nothing was ever recorded, and makes none."""
    if is_empty():
        raise RecordError("nothing is recorded in this folder yet; start with `cifar-ablate run STUDY.yaml`")
    return Tracking()


def _database_file(uri: str) -> Path | None:
    return Path(uri.removeprefix("sqlite:///")) if uri.startswith("sqlite:///") else None


def _make_database(uri: str) -> None:
    """Make a fresh SQLite database whole or not at all.

    MLflow builds its tables in steps; interrupted between them, or by two processes at once, it leaves a file that no
    command can use any more. So it is built under another name, under a lock, and then takes its place.
    """
    import mlflow

    path = _database_file(uri)
    if path is None or path.exists():
        return
    with lock(path.with_name(f".{path.name}.lock"), on_wait=lambda: None):
        if path.exists():
            return
        unfinished = path.with_name(f".{path.name}.unfinished")
        unfinished.unlink(missing_ok=True)
        mlflow.MlflowClient(f"sqlite:///{unfinished}").search_experiments(max_results=1)
        unfinished.replace(path)


def _ask_once(uri: str) -> None:
    """Raise SQLAlchemyError where a database server does not answer: MLflow itself would try for three minutes."""
    from sqlalchemy import create_engine
    from sqlalchemy.pool import NullPool

    if not uri.startswith(("postgresql", "mysql", "mssql")):
        return
    create_engine(uri, poolclass=NullPool).connect().close()
