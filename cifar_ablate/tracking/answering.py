"""MLflow's own errors as one sentence with the cure."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from cifar_ablate.errors import AblateError, TrackingError


@contextmanager
def answering() -> Iterator[None]:
    """Raise TrackingError, naming the store, for whatever MLflow or its database raises in the block."""
    from mlflow import get_tracking_uri
    from mlflow.exceptions import MlflowException

    try:
        yield
    except AblateError:
        raise
    except (MlflowException, OSError) as error:
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
