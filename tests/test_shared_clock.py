"""The clock that machines share, after its machine slept or was set while the server does not answer."""

from __future__ import annotations

import time

import pytest

from cifar_ablate.tracking import clock
from cifar_ablate.tracking.clock import SharedClock

HOUR = 3600.0
AHEAD = 120.0
"""Of the server before this machine."""


class Machine:
    """Its clocks, and a server that can be asked until it is away."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.right, self.set_by, self.slept, self.is_away = time.time, 0.0, 0.0, False
        ticks = time.monotonic
        monkeypatch.setattr(time, "time", lambda: self.right() + self.set_by)
        monkeypatch.setattr(time, "monotonic", lambda: ticks() - self.slept)  # it stands still in a sleep
        monkeypatch.setattr(clock, "_server", lambda: "http://server")
        monkeypatch.setattr(
            clock, "_server_ahead", lambda uri: None if self.is_away else self.right() + AHEAD - time.time()
        )

    def off(self, shared: SharedClock) -> float:
        """Seconds by which a clock is wrong."""
        return abs(shared.now() - self.right() - AHEAD)


@pytest.mark.skipif(not hasattr(time, "CLOCK_BOOTTIME"), reason="no clock here goes on in a sleep")
@pytest.mark.parametrize("is_away", [True, False], ids=["away", "there"])
def test_a_sleep_of_the_machine_moves_no_clock(monkeypatch: pytest.MonkeyPatch, is_away: bool) -> None:
    machine, shared = Machine(monkeypatch), SharedClock()
    assert machine.off(shared) < 1
    machine.slept, machine.is_away = HOUR, is_away
    assert machine.off(shared) < 1


def test_a_clock_that_is_set_while_the_server_is_away_is_seen_through(monkeypatch: pytest.MonkeyPatch) -> None:
    machine, shared = Machine(monkeypatch), SharedClock()
    assert machine.off(shared) < 1
    machine.set_by, machine.is_away = HOUR, True
    assert machine.off(shared) < 1
