"""Another process holds the database for half a minute: nothing fails by it, and nothing is lost."""

from __future__ import annotations

import multiprocessing
import shutil
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.conftest import Tried, Workshop
from tests.disturbing import RUN, Begin, Undisturbed, assert_undisturbed
from tests.tuning import TUNE, told, write

pytestmark = pytest.mark.faults

LOCKED_SECONDS = 30.0
FINITE = ("{low: 0.001, high: 0.5, log: true}", "{low: 0.001, high: 0.05, log: true}")


def _hold(path: Path, held: multiprocessing.synchronize.Event) -> None:
    """What the other process does: an exclusive transaction, which lets nobody read or write."""
    database = sqlite3.connect(path, timeout=60, isolation_level=None)
    database.execute("BEGIN EXCLUSIVE")
    held.set()
    time.sleep(LOCKED_SECONDS)
    database.rollback()
    database.close()


@contextmanager
def locked_by_another(path: Path) -> Iterator[None]:
    """In the block, for 30 s from its start, another process holds this database; the block waits for its end."""
    spawn = multiprocessing.get_context("spawn")
    held = spawn.Event()
    holder = spawn.Process(target=_hold, args=(path, held))
    holder.start()
    try:
        assert held.wait(60)
        yield
    finally:
        holder.join()
        holder.close()


def test_a_study_trains_on_while_another_process_holds_its_database_for_half_a_minute(
    workshop: Workshop, begin: Begin, undisturbed: Undisturbed, tried: Tried
) -> None:
    fault = "mlflow.db locked by another process for 30 s"
    tried(fault)
    command = begin(*RUN)
    command.wait_for(r"\[1/[^z]*epoch 1/")
    with locked_by_another(workshop.folder / "mlflow.db"):
        begun = time.monotonic()
        command.wait_for(r"(?m)^tiny flip seed 1: test", seconds=LOCKED_SECONDS)  # no training waits for it
        assert time.monotonic() - begun < LOCKED_SECONDS
        assert workshop("plan", "tiny.yaml").code in (0, 1)
    assert command.end() == 0, command.said
    assert "Traceback" not in command.said
    assert_undisturbed(workshop.folder, undisturbed)


def test_a_tuning_waits_for_a_process_that_holds_its_database_for_half_a_minute(
    workshop: Workshop, begin: Begin, tried: Tried
) -> None:
    tried("optuna.db locked by another process for 30 s")
    edits = (FINITE, ("epochs: 3", "epochs: 60"))  # it shall not be over before the database is locked
    expected = workshop.folder / "undisturbed"
    expected.mkdir()
    here = workshop.folder
    workshop.monkeypatch.chdir(expected)
    shutil.move(write(workshop, *edits), "small.yaml")
    assert workshop(*TUNE, "--trials", "3").code == 0
    workshop.monkeypatch.chdir(here)
    write(workshop, *edits)
    command = begin(*TUNE, "--trials", "3")
    command.wait_for("baseline trial 1: optimizer")
    with locked_by_another(here / "optuna.db"):
        assert command.code is None
    assert command.end() == 0, command.said
    assert "Traceback" not in command.said
    assert told(here) == told(expected)
