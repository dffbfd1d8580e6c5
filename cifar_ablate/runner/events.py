"""What a runner tells while it works; the terminal shows it, tests record it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cifar_ablate.folder import RunResult
from cifar_ablate.plan import PlannedRun


class Events:
    """Hooks that do nothing; override what you want to see."""

    step_seconds: float | None = None
    """Time between two steps that are worth telling; None: none is."""

    def on_plan(self, todo: Sequence[PlannedRun], num_done: int, num_failed: int) -> None:
        """The record was compared with the plan: these runs are to be trained. Told again when a look asks for more."""

    def on_look(self, text: str) -> None:
        """A study's look was taken: what it says of one contrast, and what follows."""

    def on_start(self, run: PlannedRun, epochs_done: int) -> None:
        """A run starts, or resumes after ``epochs_done`` epochs."""

    def on_step(self, run: PlannedRun, epoch: int, step: int, num_steps: int, loss: float) -> None:
        """A step was taken."""

    def on_epoch(self, run: PlannedRun, line: Mapping[str, Any]) -> None:
        """An epoch ended."""

    def on_end(self, run: PlannedRun, result: RunResult) -> None:
        """A run ended."""

    def on_not_trained(self, run: PlannedRun, why: str) -> None:
        """A run was not trained by this command, or not to its end, and why."""

    def on_note(self, text: str) -> None:
        """Something that concerns more than one run; may come from another thread."""
