"""How run folders are uploaded to MLflow in the background: many at once, past whatever an artifact store raises."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from cifar_ablate.errors import TakenError, TrackingError
from cifar_ablate.record import mlflow_writer as writer
from cifar_ablate.record.folder import RunFolder
from cifar_ablate.record.mlflow_writer import MlflowWriter
from cifar_ablate.record.types import RunIdentity


def run_of(number: int) -> RunIdentity:
    return RunIdentity(study="s", arm="a", seed=number, precision="fp32", recipe_id="r", fingerprint=f"{number:04d}")


@dataclass
class Store:
    """A tracking store that notes what it gets, and does what a test wants with an upload."""

    on_update: Callable[[str], None] = lambda outcome: None
    is_there: bool = True
    updates: list[tuple[str, str]] = field(default_factory=list)

    def upload(self, experiment: str, run: RunIdentity, folder: RunFolder, **_: Any) -> Upload:
        return Upload(self, run)

    def answers(self) -> bool:
        return self.is_there

    @property
    def ended(self) -> list[str]:
        return [fingerprint for fingerprint, outcome in self.updates if outcome]


@dataclass
class Upload:
    store: Store
    run: RunIdentity

    def update(self, outcome: str, reason: str) -> None:
        self.store.on_update(outcome)
        self.store.updates.append((self.run.fingerprint, outcome))


@pytest.fixture(autouse=True)
def _hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is waited for."""
    monkeypatch.setattr(writer, "UPLOAD_SECONDS", 0.0)
    monkeypatch.setattr(writer, "FIRST_PAUSE_SECONDS", 0.01)


def writer_to(store: Store, notes: list[str] | None = None, **options: Any) -> MlflowWriter:
    said = [] if notes is None else notes
    return MlflowWriter(store, {"s": "1"}, on_note=said.append, **options)  # type: ignore[arg-type]


def test_a_thousand_ended_runs_are_uploaded_once_each(tmp_path: Path) -> None:
    store = Store()
    to_store = writer_to(store)
    for number in range(1000):
        to_store.end(run_of(number), RunFolder(tmp_path / str(number)), "finished")
    assert to_store.close(patience_seconds=5) == []
    assert store.ended == [f"{number:04d}" for number in range(1000)]


def test_a_run_that_is_refused_does_not_keep_the_others_waiting(tmp_path: Path) -> None:
    store = Store()
    refused = []

    def refuse_first(outcome: str) -> None:
        if len(store.updates) == 0 and not refused:
            refused.append(outcome)
            raise TrackingError("no")

    store.on_update = refuse_first
    to_store = writer_to(store)
    for number in range(3):
        to_store.end(run_of(number), RunFolder(tmp_path / str(number)), "finished")
    assert to_store.close(patience_seconds=5) == []
    assert store.ended == ["0001", "0002", "0000"]


def test_a_run_that_is_refused_again_and_again_is_given_back_with_the_reason(tmp_path: Path) -> None:
    def refuse(outcome: str) -> None:
        raise TrackingError("the artifact store does not take files")

    to_store = writer_to(Store(on_update=refuse))
    to_store.end(run_of(0), RunFolder(tmp_path / "0"), "finished")
    (left,) = to_store.close(patience_seconds=5)
    assert left.trouble == "the artifact store does not take files"
    assert left.num_refusals == writer.MAX_REFUSALS


def test_whatever_is_raised_in_mid_training_is_told_once_and_tried_again(tmp_path: Path) -> None:
    def fail(outcome: str) -> None:
        raise RuntimeError("no credentials")

    store, notes = Store(on_update=fail), list[str]()
    to_store = writer_to(store, notes)
    to_store.begin(run_of(0), RunFolder(tmp_path / "0"))
    wait_until(lambda: bool(notes))
    store.on_update = lambda outcome: None
    wait_until(lambda: bool(store.updates))
    to_store.end(run_of(0), RunFolder(tmp_path / "0"), "finished")
    assert to_store.close(patience_seconds=5) == []
    assert notes == ["s a seed 0: MLflow does not get its epochs (no credentials); it is tried again"]


def test_a_store_that_is_away_is_told_once_and_gets_everything_when_it_is_back(tmp_path: Path) -> None:
    def be_away(outcome: str) -> None:
        raise TrackingError("the store does not answer")

    store, notes = Store(on_update=be_away, is_there=False), list[str]()
    to_store = writer_to(store, notes)
    to_store.end(run_of(0), RunFolder(tmp_path / "0"), "finished")
    wait_until(lambda: bool(notes))
    store.on_update, store.is_there = lambda outcome: None, True
    assert to_store.close(patience_seconds=5) == []
    assert notes == [
        "the store does not answer. Training goes on; the run folders keep everything until MLflow takes it.",
        "MLflow answers again; it gets what it missed.",
    ]


def test_a_run_that_another_process_trains_is_told_and_not_uploaded(tmp_path: Path) -> None:
    def refuse(outcome: str) -> None:
        raise TakenError("is being trained by process 4711")

    taken: dict[Any, str] = {}
    store = Store(on_update=refuse)
    to_store = writer_to(store, on_taken=taken.__setitem__)
    to_store.begin(run_of(0), RunFolder(tmp_path / "0"))
    wait_until(lambda: bool(taken))
    assert taken == {run_of(0).key: "is being trained by process 4711"}
    to_store.end(run_of(0), RunFolder(tmp_path / "0"), "killed")
    assert to_store.close(patience_seconds=5) == []


def wait_until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.01)
