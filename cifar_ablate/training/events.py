"""Events that a training yields."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar


@dataclass(frozen=True)
class Started:
    """A training starts, or resumes after ``epochs_done`` epochs."""

    epochs_done: int
    damaged: tuple[str, ...] = ()
    """File names of damaged checkpoints that were skipped."""


@dataclass(frozen=True)
class Stepped:
    """A step was taken; with a throttle, not every step is reported."""

    epoch: int
    """From 1."""
    step: int
    """Of the epoch, from 1."""
    num_steps: int
    """Number of steps in the epoch."""
    loss: float
    """Mean cross-entropy of the batch, in nats; on a GPU that of a recent step, or nan at first."""


@dataclass(frozen=True)
class EpochEnded:
    """An epoch ended, and its line is in the history of the run's folder."""

    line: Mapping[str, Any]


TrainingEvent = Started | Stepped | EpochEnded
Result = TypeVar("Result")
Steps = Generator[TrainingEvent | None, None, Result]
"""Work that yields after every step: an event, or None. Several trainings can take turns on one device."""


def finish(steps: Steps[Result]) -> Result:
    """Take all steps and return the result; events are dropped."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]
