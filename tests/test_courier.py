"""How run folders are brought to MLflow: many at once, with heartbeats, past whatever an artifact store raises."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from cifar_ablate.folder import RunFolder, RunResult
from cifar_ablate.records import RunIdentity
from cifar_ablate.tracking import courier as module
from cifar_ablate.tracking.courier import Courier
from cifar_ablate.tracking.parcel import MAX_OPENED

RESULT = RunResult("finished", 1, 1.0, 1.0, {})


def run_of(number: int) -> RunIdentity:
    return RunIdentity(study="s", arm="a", seed=number, precision="fp32", recipe_id="r", fingerprint=f"{number:04d}")


@dataclass
class Store:
    """A tracking store that counts, and does what a test wants at a heartbeat or an upload."""

    on_beat: Callable[[], None] = lambda: None
    on_push: Callable[[], None] = lambda: None
    on_finish: Callable[[], None] = lambda: None
    opened: set[str] = field(default_factory=set)
    most_opened: int = 0
    num_beats: int = 0
    num_renewals: int = 0
    finished: list[str] = field(default_factory=list)

    def deliver(self, experiment: str, run: RunIdentity, folder: RunFolder, **_: Any) -> Delivery:
        self.opened.add(run.fingerprint)
        self.most_opened = max(self.most_opened, len(self.opened))
        return Delivery(self, run)

    def answers(self) -> bool:
        return True


@dataclass
class Delivery:
    store: Store
    run: RunIdentity
    is_confirmed: bool = False

    def confirm(self, *, is_training: bool) -> None:
        self.is_confirmed = True

    def beat(self) -> None:
        self.store.num_beats += 1
        self.store.on_beat()

    def renew(self) -> None:
        self.store.num_renewals += 1

    def push(self, lines: object) -> None:
        self.store.on_push()

    def finish(self, result: RunResult) -> None:
        self.store.on_finish()
        self.store.opened.discard(self.run.fingerprint)
        self.store.finished.append(self.run.fingerprint)

    def let_go(self) -> None:
        pass


def courier_to(store: Store, notes: list[str] | None = None) -> Courier:
    said = [] if notes is None else notes
    return Courier(store, {"s": "1"}, on_note=said.append)  # type: ignore[arg-type]


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Heartbeats are due all the time, and nothing is waited for."""
    for name in ("HEARTBEAT_SECONDS", "SETTLING_SECONDS", "PUSH_SECONDS"):
        monkeypatch.setattr(module, name, 0.001 if name == "HEARTBEAT_SECONDS" else 0.0)


@pytest.mark.usefixtures("hasty")
def test_a_thousand_ended_runs_are_claimed_a_few_at_a_time(tmp_path: Path) -> None:
    store = Store()
    courier = courier_to(store)
    num = 1000
    for number in range(num):
        courier.end(run_of(number), RunFolder(tmp_path / str(number)), "finished", result=RESULT)
    assert courier.close(patience_seconds=5) == []
    assert len(store.finished) == num
    assert store.most_opened <= MAX_OPENED
    assert store.num_beats <= 3 * MAX_OPENED * num


@pytest.mark.slow
@pytest.mark.usefixtures("hasty")
def test_an_end_that_another_process_is_delivering_does_not_keep_others_waiting(tmp_path: Path) -> None:
    from cifar_ablate.errors import BusyError

    class Busy(Store):
        def deliver(self, experiment: str, run: RunIdentity, folder: RunFolder, **options: Any) -> Delivery:
            if run.seed < MAX_OPENED:
                raise BusyError("is being delivered by process 4711")
            return super().deliver(experiment, run, folder, **options)

    store = Busy()
    courier = courier_to(store)
    for number in range(MAX_OPENED + 5):
        courier.end(run_of(number), RunFolder(tmp_path / str(number)), "finished", result=RESULT)
    left = courier.close(patience_seconds=3)
    assert len(store.finished) == 5
    assert {parcel.trouble for parcel in left} == {"is being delivered by process 4711"}


@pytest.mark.usefixtures("hasty")
def test_patience_does_not_run_out_while_mlflow_answers_heartbeats(tmp_path: Path) -> None:
    store = Store(on_beat=lambda: time.sleep(0.05))
    courier = courier_to(store)
    for number in range(8):
        courier.begin(run_of(number), RunFolder(tmp_path / str(number)))
    wait_until(lambda: len(store.opened) == 8)
    for number in range(8):
        courier.end(run_of(number), RunFolder(tmp_path / str(number)), "finished", result=RESULT)
    assert courier.close(patience_seconds=0.3) == []  # less than eight heartbeats take


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("where", ["on_push", "on_beat"])
def test_whatever_is_raised_in_mid_training_a_runs_heartbeats_go_on(tmp_path: Path, where: str) -> None:
    def fail() -> None:
        raise RuntimeError("no credentials")

    store, notes = Store(), list[str]()
    setattr(store, where, fail)
    courier = courier_to(store, notes)
    courier.begin(run_of(0), RunFolder(tmp_path / "0"))
    wait_until(lambda: bool(notes))
    before = store.num_beats
    wait_until(lambda: store.num_beats > before + 2)
    setattr(store, where, lambda: None)
    courier.end(run_of(0), RunFolder(tmp_path / "0"), "finished", result=RESULT)
    assert courier.close(patience_seconds=5) == []
    assert notes == ["s a seed 0: MLflow does not get its epochs (no credentials); it is tried again"]


def test_claims_are_renewed_while_an_upload_takes_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HEARTBEAT_SECONDS", 0.05)
    monkeypatch.setattr(module, "SETTLING_SECONDS", 0.0)
    is_through = threading.Event()
    store = Store(on_finish=lambda: wait_for(is_through))
    courier = courier_to(store)
    courier.begin(run_of(1), RunFolder(tmp_path / "1"))
    courier.end(run_of(0), RunFolder(tmp_path / "0"), "finished", result=RESULT)
    wait_until(lambda: store.num_renewals > 4)
    is_through.set()
    courier.end(run_of(1), RunFolder(tmp_path / "1"), "finished", result=RESULT)
    assert courier.close(patience_seconds=5) == []


def wait_for(event: threading.Event) -> None:
    assert event.wait(20)


def wait_until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.01)
