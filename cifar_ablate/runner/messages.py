"""What is told while a group of runs is trained, from wherever it is trained to the command that asked for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from cifar_ablate.device import Place
from cifar_ablate.folder import RunResult
from cifar_ablate.plan import PlannedRun
from cifar_ablate.records import Key

Group = Sequence[PlannedRun]
"""Runs of one shape: they may be trained one after the other, or at once."""


@dataclass(frozen=True)
class Started:
    """A run starts, or goes on after ``epochs_done`` epochs."""

    key: Key
    epochs_done: int
    damaged: tuple[str, ...] = ()
    """Names of checkpoints that were passed over."""


@dataclass(frozen=True)
class Stepped:
    """A step of a run was taken; not every step is told."""

    key: Key
    epoch: int
    step: int
    num_steps: int
    loss: float


@dataclass(frozen=True)
class EpochEnded:
    """An epoch of a run has ended, and its line is in the run's folder."""

    key: Key
    line: Mapping[str, Any]


@dataclass(frozen=True)
class Ended:
    """What became of a run."""

    key: Key
    kind: str
    """finished, diverged or failed: trained now; shared: its folder held the result already; stopped: it can be taken
    up again; elsewhere: another process trains it; damaged: its folder cannot be used."""
    reason: str = ""
    result: RunResult | None = None
    """Of a run that has one."""
    halts: bool = False
    """The cause is not the run's own, and will meet the next one, too: a full disk."""


@dataclass(frozen=True)
class Lost:
    """The process that trained a run is gone."""

    key: Key
    reason: str


@dataclass(frozen=True)
class Noted:
    """Something that a person should know of; of no single run."""

    text: str


Message = Started | Stepped | EpochEnded | Ended | Lost | Noted


class Channel(Protocol):
    """The way between a training and the command that asked for it."""

    def tell(self, message: Message) -> None:
        """Pass on what happened."""

    def should_stop(self, key: Key | None = None) -> bool:
        """Shall this run (None: everything) stop, with a checkpoint? Asked after every step, so it answers at once."""


TrainGroup = Callable[[Group, Place, Channel], None]
"""Trains the runs of a group at a place, and tells how each of them fares; it can be sent to another process."""
