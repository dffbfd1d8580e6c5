"""The events of trainings: from where runs are trained to the command that trains them."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Literal

from cifar_ablate.device import Slot
from cifar_ablate.plan import PlannedRun
from cifar_ablate.record.folder import RunResult
from cifar_ablate.record.types import Key
from cifar_ablate.training.events import EpochEnded, Started, Stepped

Group = Sequence[PlannedRun]
"""Runs of one shape: they can share a compiled step, and take turns on one device."""


@dataclass(frozen=True)
class Ended:
    """A run ended, or will not be trained by this command."""

    kind: Literal["finished", "diverged", "failed", "shared", "stopped", "elsewhere", "damaged"]
    """finished, diverged, failed: trained now; shared: the folder already held the result; stopped: can be resumed;
    elsewhere: another process trains it; damaged: the folder cannot be used."""
    reason: str = ""
    result: RunResult | None = None
    halts: bool = False
    """The cause is not the run's own and will meet the next run too, such as a full disk."""


@dataclass(frozen=True)
class Lost:
    """The process that trained a run died."""

    reason: str


@dataclass(frozen=True)
class Noted:
    """A note for the user that concerns no single run."""

    text: str


Event = Started | Stepped | EpochEnded | Ended | Lost | Noted
RunEvent = tuple[Key | None, Event]
"""An event and the key of its run; None for Noted."""
RunEvents = Generator[RunEvent, None, None]
ShouldStop = Callable[[Key | None], bool]
"""Must this run (None: everything) stop with a checkpoint? Asked after every step, so it must answer at once."""
TrainGroup = Callable[[Group, Slot, ShouldStop], RunEvents]
"""Trains the runs of a group in a slot and yields their events; can be pickled and sent to another process."""
