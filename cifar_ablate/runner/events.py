"""What a runner tells while it works; the terminal shows it, tests record it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from cifar_ablate.folder import RunResult
from cifar_ablate.plan import PlannedRun


class Events:
    """Hooks that do nothing; override what you want to see."""

    def on_plan(self, todo: Sequence[PlannedRun], num_done: int, num_failed: int) -> None:
        """The record was compared with the plan: these runs are to be trained."""

    def on_start(self, run: PlannedRun, epochs_done: int) -> None:
        """A run starts, or resumes after ``epochs_done`` epochs."""

    def on_step(self, run: PlannedRun, epoch: int, step: int, num_steps: int, loss: Callable[[], float]) -> None:
        """A step was issued; calling ``loss`` waits for the device."""

    def on_epoch(self, run: PlannedRun, line: Mapping[str, Any]) -> None:
        """An epoch ended."""

    def on_end(self, run: PlannedRun, result: RunResult) -> None:
        """A run ended."""

    def on_not_trained(self, run: PlannedRun, why: str) -> None:
        """A run was not trained by this command, and why: its folder holds it already, or another command trains it."""
