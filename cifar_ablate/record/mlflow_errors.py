"""Errors of MLflow and its stores as one sentence with the cure."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cifar_ablate.errors import CURES, AblateError, OutputError, TrackingError, not_written
from cifar_ablate.text_safety import redact, redact_url, sanitize

_DISK_WORDS = {
    "database or disk is full": "free space, or run where there is more",
    "No space left on device": "free space, or run where there is more",
    "attempt to write a readonly database": "run where you may write",
    "unable to open database file": "run where you may write",
    "disk I/O error": "look after that disk",
}


@contextmanager
def translate_errors(*more: type[Exception]) -> Iterator[None]:
    """Raise TrackingError, naming the store, for errors of MLflow or its database in the block.

    A disk that is full or read-only raises OutputError. ``more``: further exception types to translate.
    """
    from mlflow import get_tracking_uri
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    caught: tuple[type[Exception], ...] = (MlflowException, SQLAlchemyError, OSError, *more)
    try:
        yield
    except AblateError:
        raise
    except caught as error:
        if isinstance(error, OSError) and error.errno in CURES:
            raise not_written(Path(error.filename or "mlruns"), error) from None
        uri = get_tracking_uri()
        if disk := disk_error(error, uri):
            raise disk from None
        first = redact(sanitize(str(error)).strip().split("\n", 1)[0])[:300]
        cure = "check MLFLOW_TRACKING_URI, or unset it to use mlflow.db in this folder"
        if isinstance(error, ImportError):
            cure = "install the database's driver, such as `pip install 'psycopg[binary]'` for postgresql+psycopg://"
        elif "database is locked" in str(error):
            cure = "another program holds it: end that one, or wait"
        raise TrackingError(
            f"the tracking store at {redact_url(uri)} does not answer as it should ({first}); {cure}"
        ) from None


@contextmanager
def translate_upload_errors() -> Iterator[None]:
    """The same for uploads: every artifact store raises the errors of its own library, or of a missing one."""
    try:
        with translate_errors():
            yield
    except AblateError:
        raise
    except Exception as error:
        raise store_error(error, "take") from None


def store_error(error: Exception, asked: str) -> TrackingError:
    """The error for an artifact store that does not ``take`` or ``give`` files."""
    first = redact(sanitize(str(error)).strip().split("\n", 1)[0])[:300] or type(error).__name__
    cure = "check its address and credentials"
    if isinstance(error, ImportError):
        cure = "install its library, such as `pip install boto3` for s3://"
    return TrackingError(f"the artifact store does not {asked} files ({first}); {cure}")


def disk_error(error: BaseException, uri: str) -> OutputError | None:
    """The error for a full or read-only disk, if that is why SQLite failed."""
    words = next((words for words in _DISK_WORDS if words in str(error)), None)
    if words is None or not uri.startswith("sqlite:///"):
        return None
    return OutputError(Path(uri.removeprefix("sqlite:///")), words, _DISK_WORDS[words])
