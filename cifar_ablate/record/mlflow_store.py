"""The MLflow tracking store: studies, their runs, curves, artifacts and ledgers."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cifar_ablate.errors import OutputError, RecordError, TrackingError, UnknownNameError, not_written
from cifar_ablate.locks import lock
from cifar_ablate.record.mlflow_details import TrackedDetails
from cifar_ablate.record.mlflow_errors import store_error, translate_errors
from cifar_ablate.record.mlflow_upload import TUNING, RunUpload, owner_of
from cifar_ablate.record.types import (
    ABANDONED,
    LedgerEntry,
    RecordedRun,
    RunIdentity,
    StudyRecord,
    check_document,
    is_fingerprint,
    ledger_entry,
    seed_of,
)
from cifar_ablate.text_safety import redact_url, sanitize, sanitize_line, sanitize_values

if TYPE_CHECKING:
    from cifar_ablate.process import ProcessId
    from cifar_ablate.record.folder import RunFolder

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
# MlflowWriter tries again by itself; with MLflow's own 7 attempts of 120 s, a dead server is noticed after minutes
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")

CHUNK = 4500  # an experiment tag holds 5,000 characters
PAGE = 1000
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
DOCUMENT = "ablate.study"
"""Experiment tag that points at the study's document: its digest and in how many pieces it is kept."""
LEDGER = "ablate.ledger."
"""Prefix of the experiment tags that hold the ledger: who read the test accuracies, when, and what was set before.

One tag for each entry, named after its content: writing it again changes nothing. Entries are never overwritten.
"""
STATELESS = frozenset({"margin"})
"""Kinds of ledger entries of which only the first for a detail counts, whatever had been trained by then."""
OURS = ("ablate.arm", "ablate.seed", "ablate.fingerprint", "ablate.recipe")
"""Tags that every run of ours has."""


class Tracking:
    """A tracking store: MLFLOW_TRACKING_URI if set, else the database that plain ``mlflow ui`` shows here."""

    def __init__(self) -> None:
        import mlflow

        for name in ("mlflow", "alembic"):  # after the import, which sets its own levels
            logging.getLogger(name).setLevel(logging.WARNING)
        logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # our errors already say it
        with translate_errors(ImportError, ValueError):  # a missing driver, an invalid address
            uri = mlflow.get_tracking_uri()
            self.uri = redact_url(uri)
            _make_database(uri)
            _ask_once(uri)
            self.client = mlflow.MlflowClient()
            self.client.search_experiments(max_results=1)

    def answers(self) -> bool:
        """Does the store answer?"""
        try:
            with translate_errors():
                self.client.search_experiments(max_results=1)
        except (TrackingError, OutputError):
            return False
        return True

    def open_study(self, label: str, document: Mapping[str, Any]) -> str:
        """Id of the experiment of a study's variant, created if needed, with the study as planned now.

        The document is kept in pieces under its digest; the tag that points at them is written last, so a reader finds
        the old or the new document, never parts of both.
        """
        from mlflow.exceptions import MlflowException

        with translate_errors():
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
        """Set a tag of an experiment; if two processes do so at once, one fails in MLflow (UNIQUE constraint)."""
        from mlflow.exceptions import MlflowException

        try:
            self.client.set_experiment_tag(experiment_id, name, value)
        except MlflowException:
            self.client.set_experiment_tag(experiment_id, name, value)

    def labels(self) -> list[str]:
        """Labels of all recorded studies, sorted."""
        with translate_errors():
            found = self.pages(self.client.search_experiments)
            return sorted(item.name for item in found if DOCUMENT in item.tags and item.name.isprintable())

    def load(self, label: str) -> StudyRecord:
        """Everything recorded under a label; raises UnknownNameError if there is nothing."""
        with translate_errors():
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
            details = TrackedDetails(self.curves, self.artifact, places)
            return StudyRecord(label, document, [recorded(run) for run in found], details, ledger)

    def tags_of(self, run_id: str) -> dict[str, str]:
        """Tags of a run."""
        with translate_errors():
            return dict(self.client.get_run(run_id).data.tags)

    def study_of(self, run_id: str) -> str:
        """Label of the study that a run belongs to; raises RecordError for other runs."""
        from mlflow.exceptions import MlflowException

        with translate_errors():
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
        """Enter into a study's ledger what was done with these ``runs``; None if the entry exists.

        Raises UnknownNameError if nothing is recorded under the label.
        """
        name, entry = entry_now(kind, detail, runs)
        with translate_errors():
            experiment = self.client.get_experiment_by_name(label)
            if experiment is None:
                raise UnknownNameError("recorded study", label, self.labels())
            if name in experiment.tags:
                return None
            self._tag(str(experiment.experiment_id), name, as_tag(entry))
        return entry

    def runs(self, experiment_id: str) -> list[RecordedRun]:
        """All runs of an experiment that this program recorded."""
        with translate_errors():
            return [recorded(run) for run in self._recorded_runs(experiment_id)]

    def _recorded_runs(self, experiment_id: str) -> list[Any]:
        found = self.pages(self.client.search_runs, experiment_ids=[experiment_id])
        return [run for run in found if "ablate.recipe" in run.data.tags]

    def upload(
        self,
        experiment_id: str,
        run: RunIdentity,
        folder: RunFolder,
        *,
        replaces: ProcessId | None = None,
        on_success: Callable[[], None] = lambda: None,
    ) -> RunUpload:
        """The upload of a run's folder; nothing is sent before its ``update`` (see ``RunUpload``)."""
        return RunUpload(self.client, experiment_id, run, folder, replaces=replaces, on_success=on_success)

    def curves(self, run_id: str, names: Sequence[str]) -> dict[str, list[tuple[int, float]]]:
        """Points (epoch, value) of each named metric of a run."""
        with translate_errors():
            return {
                name: [(point.step, point.value) for point in self.client.get_metric_history(run_id, name)]
                for name in names
            }

    def artifact(self, run_id: str, name: str, into: Path) -> Path:
        """Download one artifact into a folder; raises RecordError if the run has none of that name."""
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
        """Id of a study's experiment; raises TrackingError if there is none."""
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
    """Is the store a database file that does not exist yet? The check does not create it."""
    import mlflow

    path = _database_file(mlflow.get_tracking_uri())
    return path is not None and not path.exists()


def existing() -> Tracking:
    """The tracking store for reading; raises RecordError, and creates none, if nothing was ever recorded."""
    if is_empty():
        raise RecordError("nothing is recorded in this folder yet; start with `cifar-ablate run STUDY.yaml`")
    return Tracking()


def _database_file(uri: str) -> Path | None:
    return Path(uri.removeprefix("sqlite:///")) if uri.startswith("sqlite:///") else None


def _make_database(uri: str) -> None:
    """Create a SQLite database completely or not at all.

    MLflow creates its tables in steps; interrupted between them, or run by two processes at once, it leaves an unusable
    file. So the database is created under another name, under a lock, and then renamed.
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
    """Raise SQLAlchemyError if a database server does not answer: MLflow itself would try for three minutes."""
    from sqlalchemy import create_engine
    from sqlalchemy.pool import NullPool

    if not uri.startswith(("postgresql", "mysql", "mssql")):
        return
    create_engine(uri, poolclass=NullPool).connect().close()


def recorded(run: Any) -> RecordedRun:
    """A run of MLflow as a RecordedRun; raises RecordError if this program cannot have written it."""
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
    owner = None
    if outcome == "running":  # MLflow leaves a run RUNNING for ever when its process is killed
        owner = owner_of(tags)
        if owner is None or (owner.is_here() and not owner.is_alive()):
            outcome, reason = "killed", ABANDONED
        else:
            reason = ""
    return RecordedRun(
        run_id=run.info.run_id,
        arm=tags["ablate.arm"],
        seed=seed_of(tags["ablate.seed"]),
        fingerprint=tags["ablate.fingerprint"],
        recipe_id=tags["ablate.recipe"],
        outcome=outcome,
        reason=reason,
        metrics=dict(run.data.metrics),
        owner=owner if outcome == "running" else None,
    )


def _is_seed(text: str) -> bool:
    try:
        return seed_of(text) >= 0
    except ValueError:
        return False


def entry_now(kind: str, detail: str, runs: Iterable[RecordedRun]) -> tuple[str, LedgerEntry]:
    """The tag's name and the ledger entry as of now; only finished ``runs`` count."""
    finished = [run for run in runs if run.outcome == "finished"]
    state = [] if kind in STATELESS else sorted({run.fingerprint for run in finished})
    digest = hashlib.sha256(json.dumps([detail, state]).encode()).hexdigest()[:8]
    when = datetime.now(UTC).isoformat(timespec="seconds")
    return f"{LEDGER}{kind}.{digest}", LedgerEntry(
        kind, when, detail, num_seeds=len({run.seed for run in finished}), num_runs=len(finished)
    )


def noted(tracking: Tracking, record: StudyRecord, kind: str, detail: str) -> StudyRecord:
    """The record with this reading in its ledger; a read-only store is no reason not to read."""
    with suppress(TrackingError, OutputError):
        entry = tracking.note(record.label, kind, detail, record.current())
        return record if entry is None else replace(record, ledger=[*record.ledger, entry])
    return record


def as_tag(entry: LedgerEntry) -> str:
    """The value of an entry's tag."""
    return json.dumps(asdict(entry))


def entries_in(label: str, tags: Mapping[str, str]) -> tuple[LedgerEntry, ...]:
    """All ledger entries among an experiment's tags, the oldest first; raises RecordError for a damaged one."""
    found = []
    for name, value in tags.items():
        if name.startswith(LEDGER):
            try:
                found.append(ledger_entry(sanitize_values(json.loads(value))))
            except (ValueError, TypeError, RecursionError):
                raise RecordError(
                    f"the tag {name} that MLflow keeps of {label!r} is damaged; remove it, and its entry is lost"
                ) from None
    return tuple(sorted(found, key=_order))


def _order(entry: LedgerEntry) -> tuple[str, bool, int, str, str]:
    """By time; within a second the margin first, because a command sets it before it reads anything."""
    return entry.when, entry.kind != "margin", entry.num_runs, entry.kind, entry.detail
