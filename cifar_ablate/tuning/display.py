"""What a user sees while arms are tuned: a line per trial, and live bars on a terminal."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.progress import TaskID

from cifar_ablate.console import duration
from cifar_ablate.plan import PlannedRun
from cifar_ablate.runner.display import LiveBars, escape_markup
from cifar_ablate.spec.schema import label_of
from cifar_ablate.training.events import Stepped
from cifar_ablate.tuning.plan import ArmPlan
from cifar_ablate.tuning.trials import RunningTrial


def describe_values(values: Mapping[str, Any]) -> str:
    """Tuned fields with their values: ``optimizer.lr 0.05, schedule cosine``."""
    return ", ".join(
        f"{name} {f'{value:g}' if isinstance(value, float) else label_of(value)}" for name, value in values.items()
    )


class TuningDisplay(LiveBars):
    """Progress of one ``tune`` command."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self.tasks: dict[int, TaskID] = {}
        """By the identity of the trial's object: numbers repeat between arms."""
        self.best: dict[str, tuple[float, int]] = {}
        """Value and number of the best trial, by the tuning's identity."""

    def note_best(self, plan: ArmPlan, value: float, number: int) -> None:
        """Take note of a complete trial, of this command or an earlier one."""
        if value > self.best.get(plan.identity, (-math.inf, 0))[0]:
            self.best[plan.identity] = (value, number)

    def on_trial(self, trial: RunningTrial) -> None:
        """Optuna proposed a trial."""
        if not self.live:
            note = " (the recipe as it stands)" if trial.is_untuned else ""
            self._print(f"{trial.plan.arm} trial {trial.number}{note}: {describe_values(trial.values)}")

    def on_invalid(self, plan: ArmPlan, number: int, values: Mapping[str, Any], reason: str) -> None:
        """The proposed values of a trial are no valid recipe."""
        self._print(f"{plan.arm} trial {number}: {describe_values(values)}: {reason}")

    def on_start(self, trial: RunningTrial, run: PlannedRun, epochs_done: int) -> None:
        """One of a trial's trainings starts, or resumes after ``epochs_done`` epochs."""
        if epochs_done:
            self._print(f"{run.arm} seed {run.seed}: goes on from epoch {epochs_done + 1}")
        self._leave(trial)
        self.tasks[id(trial)] = self.progress.add_task("trial", total=trial.num_epochs, note=self._note(trial, 0.0))

    def on_step(self, trial: RunningTrial, run: PlannedRun, step: Stepped) -> None:
        """A step was taken."""
        if id(trial) in self.tasks:
            done = run.recipe.epochs * len(trial.finals) + step.epoch - 1 + step.step / step.num_steps
            self.progress.update(self.tasks[id(trial)], completed=done, note=self._note(trial, done))

    def on_complete(self, trial: RunningTrial, value: float) -> None:
        """A trial is complete: ``value`` is its validation accuracy in percent."""
        self._leave(trial)
        self.note_best(trial.plan, value, trial.number)
        best, number = self.best[trial.plan.identity]
        said = "the best so far" if number == trial.number else f"best {best:.2f}%, trial {number}"
        self._print(f"{trial.plan.arm} trial {trial.number}: val {value:.2f}%  in {duration(trial.seconds)}  ({said})")

    def on_incomplete(self, trial: RunningTrial, how: str) -> None:
        """A trial ended without a value: pruned, failed or interrupted."""
        self._leave(trial)
        self._print(f"{trial.plan.arm} trial {trial.number}: {how}")

    def _note(self, trial: RunningTrial, done: float) -> str:
        plan, best = trial.plan, self.best.get(trial.plan.identity)
        so_far = f"  best {best[0]:.2f}%" if best else ""
        words = f"{plan.arm} trial {trial.number} of {plan.num_wanted}{so_far}  epoch {done:.1f}/{trial.num_epochs}"
        return escape_markup(f"{words}  {describe_values(trial.values)}")

    def _leave(self, trial: RunningTrial) -> None:
        task = self.tasks.pop(id(trial), None)
        if task is not None:
            self.progress.remove_task(task)
