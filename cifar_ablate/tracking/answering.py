"""MLflow's own errors as one sentence with the cure."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cifar_ablate.errors import AblateError, OutputError, TrackingError

_DISK_WORDS = (
    "database or disk is full",
    "attempt to write a readonly database",
    "disk I/O error",
    "unable to open database file",
    "No space left on device",
)
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)


@contextmanager
def answering() -> Iterator[None]:
    """Raise TrackingError, naming the store, for whatever MLflow or its database raises in the block.

    A disk that is full or may not be written raises OutputError.
    """
    from mlflow import get_tracking_uri
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except AblateError:
        raise
    except (MlflowException, SQLAlchemyError, OSError) as error:
        if isinstance(error, OSError) and error.errno in _DISK:
            path = Path(error.filename or "mlruns")
            raise OutputError(path, str(error.strerror), "free space, or run where you may write") from None
        words = next((words for words in _DISK_WORDS if words in str(error)), None)
        if words and get_tracking_uri().startswith("sqlite:///"):
            path = Path(get_tracking_uri().removeprefix("sqlite:///"))
            raise OutputError(path, words, "free space, or run where you may write") from None
        first = str(error).strip().split("\n", 1)[0][:300]
        raise TrackingError(
            f"the tracking store at {without_password(get_tracking_uri())} does not answer as it should ({first}); "
            "check MLFLOW_TRACKING_URI, or unset it to use mlflow.db in this folder"
        ) from None


def without_password(uri: str) -> str:
    """A store's address as it may be shown: ``postgresql://user:***@host/db``."""
    scheme, separator, rest = uri.partition("://")
    user, at, place = rest.rpartition("@")
    return f"{scheme}{separator}{user.partition(':')[0]}:***@{place}" if at and ":" in user else uri
