"""A project folder that was made somewhere else: MLflow keeps absolute addresses of artifacts."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path


def settle(folder: Path, made_at: Path) -> None:
    """Put ``folder`` for ``made_at`` in the addresses of its ``mlflow.db``."""
    with closing(sqlite3.connect(folder / "mlflow.db")) as database:
        for table, column in (("experiments", "artifact_location"), ("runs", "artifact_uri")):
            database.execute(
                f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE {column} LIKE ?",
                (str(folder), len(str(made_at)) + 1, f"{made_at}/%"),
            )
        database.commit()
