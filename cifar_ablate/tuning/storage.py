"""The Optuna storage of tunings: a database or a journal file, with an Optuna study per tuned arm."""

from __future__ import annotations

import json
import os
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cifar_ablate.errors import CURES, AblateError, TakenError, TrackingError, UsageError, not_written
from cifar_ablate.locks import lock
from cifar_ablate.record.mlflow_errors import disk_error
from cifar_ablate.text_safety import redact, redact_url, remember_secret, sanitize

if TYPE_CHECKING:
    from optuna.storages import BaseStorage, RDBStorage
    from sqlalchemy.engine import URL

DEFAULT_URL = "sqlite:///optuna.db"
"""A file in the current folder, which ``optuna-dashboard sqlite:///optuna.db`` shows."""
SQLITE = "sqlite:///"
JOURNAL_START = b'{"op_code":'
"""The first bytes of a journal file (optuna/storages/journal/_storage.py)."""
SQLITE_TIMEOUT_SECONDS = 60
"""Maximum time that a writer waits for another one that holds the database."""
MAX_ATTEMPTS, PAUSE_SECONDS = 5, 1.0
"""Attempts to open a database server: of two processes that create its tables at the same moment, one fails."""


def storage_url(given: str | None) -> str:
    """The storage's address: ``given``, else ``$OPTUNA_STORAGE`` (as in Optuna's own tools), else the default."""
    url = given or os.environ.get("OPTUNA_STORAGE") or DEFAULT_URL
    remember_secret(url)
    return url


@contextmanager
def open_storage(url: str) -> Iterator[BaseStorage]:
    """Open a storage, which is created if it does not exist; several processes may do so at once.

    ``url`` is a database's address as SQLAlchemy writes it, or the path of a journal file. Raises UsageError or
    TrackingError.
    """
    storage = _open(url)
    try:
        yield storage
    finally:
        engine = getattr(storage, "engine", None)  # a database's connections would stay open
        if engine is not None:
            engine.dispose()


def _open(url: str) -> BaseStorage:
    import optuna
    from sqlalchemy.engine import make_url

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    if "://" not in url and url.endswith((".db", ".sqlite", ".sqlite3")):
        raise UsageError(f"--storage {url}: a path is a journal file; for a database write {SQLITE}{url}")
    if url.startswith("redis"):  # Optuna keeps pickles there: whoever can write one can run code here
        raise UsageError("--storage redis://...: what Redis keeps cannot be read safely; use postgresql+psycopg://...")
    with storage_errors(url, ValueError):
        if "://" not in url:
            return _journal(Path(url))
        address = make_url(url)
        if address.get_backend_name() != "sqlite":
            return _on_a_server(url)
        if address.database in (None, "", ":memory:"):
            raise UsageError(f"--storage {url}: it would be gone with the command; write {SQLITE}optuna.db")
        _make_database(address)
        return _database(url, connect_args={"timeout": SQLITE_TIMEOUT_SECONDS})


@contextmanager
def storage_errors(url: str, *more: type[Exception]) -> Iterator[None]:
    """Turn errors of Optuna and of its database in the block into TrackingError with the storage's address.

    A full disk raises OutputError, a trial that another command took over TakenError. ``more`` lists further exception
    types to treat as errors of the storage.
    """
    from optuna.exceptions import OptunaError, UpdateFinishedTrialError
    from sqlalchemy.exc import SQLAlchemyError

    damaged: tuple[type[Exception], ...] = (json.JSONDecodeError, UnicodeDecodeError)
    caught: tuple[type[Exception], ...] = (OptunaError, SQLAlchemyError, ImportError, OSError, *damaged)
    try:
        yield
    except AblateError:
        raise
    except UpdateFinishedTrialError:
        raise TakenError("another command took it over, having heard nothing of this one for minutes") from None
    except (*caught, *more) as error:
        if isinstance(error, OSError) and error.errno in CURES and "://" not in url:
            raise not_written(Path(error.filename or url), error) from None
        cause = error.__cause__ or error
        if disk := disk_error(cause, url):
            raise disk from None
        first = redact(sanitize(str(cause)).strip().split("\n", 1)[0])[:300]
        cure = "check --storage or OPTUNA_STORAGE, or leave both out to use optuna.db in this folder"
        if isinstance(error, ImportError):
            cure = "install the database's driver, such as `pip install 'psycopg[binary]'` for postgresql+psycopg://"
        elif "locked" in first:
            cure = "another program holds it: end that one, or wait"
        message = f"the tuning storage at {redact_url(url)} does not answer as it should ({first}); {cure}"
        raise TrackingError(message) from None


def _journal(path: Path) -> BaseStorage:
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    path.parent.mkdir(parents=True, exist_ok=True)
    cure = "move the file away, or name another one with --storage"
    if path.is_file():
        with path.open("rb") as file:
            start = file.read(len(JOURNAL_START))
        if not JOURNAL_START.startswith(start):  # Optuna would skip the first line, and append to any other file
            raise TrackingError(f"{path} is not a journal file of Optuna: it does not start with an entry; {cure}")
    try:
        journal: BaseStorage = JournalStorage(JournalFileBackend(str(path)))
    except OSError:
        raise
    except Exception as error:  # Optuna reads the whole file here, and checks none of its content
        problem = f"{type(error).__name__}: {sanitize(str(error)).strip()}"[:300]
        raise TrackingError(f"the journal file {path} is damaged ({problem}); {cure}") from None
    return journal


def _make_database(address: URL) -> None:
    """Create a SQLite database under another name, then rename it: two processes creating its tables would fail."""
    path = Path(address.database or "")
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with lock(path.with_name(f".{path.name}.lock"), on_wait=lambda: None):
        if path.exists():
            return
        unfinished = path.with_name(f".{path.name}.unfinished")
        unfinished.unlink(missing_ok=True)
        _database(address.set(database=str(unfinished)).render_as_string(hide_password=False)).engine.dispose()
        unfinished.replace(path)


def _on_a_server(url: str) -> BaseStorage:
    for attempt in range(MAX_ATTEMPTS):
        try:
            return _database(url, pool_pre_ping=True)
        except ImportError:
            raise
        except Exception:
            if attempt == MAX_ATTEMPTS - 1:
                raise
            time.sleep(PAUSE_SECONDS)
    raise AssertionError("unreachable")


def _database(url: str, **engine_options: Any) -> RDBStorage:
    from optuna.storages import RDBStorage

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # SQLAlchemy warns about Optuna's use of it
        return RDBStorage(url, engine_kwargs=engine_options)
