"""What a person sees while arms are tuned: a line for each trial, and live bars on a terminal."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Column

from cifar_ablate.console import duration
from cifar_ablate.runner.display import REFRESH_SECONDS
from cifar_ablate.spec.schema import label_of

if TYPE_CHECKING:
    from cifar_ablate.plan import PlannedRun
    from cifar_ablate.training.events import Stepped
    from cifar_ablate.tuning.plan import ArmPlan
    from cifar_ablate.tuning.trials import Asked


def in_words(values: Mapping[str, Any]) -> str:
    """``optimizer.lr 0.05, schedule cosine``."""
    return ", ".join(
        f"{name} {f'{value:g}' if isinstance(value, float) else label_of(value)}" for name, value in values.items()
    )


class TuningDisplay:
    """Progress of one ``tune`` command; use as a context manager around it."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.live = console.is_terminal
        self.step_seconds = REFRESH_SECONDS if self.live else None
        line = Column(no_wrap=True, overflow="ellipsis")
        columns = [BarColumn(8), TextColumn("{task.description}", table_column=line)]
        self.progress = Progress(*columns, console=console, disable=not self.live, transient=True)
        self.tasks: dict[int, TaskID] = {}
        """By the identity of the trial's object: numbers repeat between arms."""
        self.best: dict[str, tuple[float, int]] = {}
        """Value and number of the best trial, by the tuning's identity."""

    def __enter__(self) -> TuningDisplay:
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def knows(self, plan: ArmPlan, value: float, number: int) -> None:
        """A trial had this value already when the command began, or has it now."""
        if value > self.best.get(plan.identity, (-math.inf, 0))[0]:
            self.best[plan.identity] = (value, number)

    def on_trial(self, plan: ArmPlan, asked: Asked) -> None:
        """A trial was asked for."""
        if not self.live:
            note = " (the recipe as it stands)" if asked.is_present else ""
            self._print(f"{plan.arm} trial {asked.number}{note}: {in_words(asked.values)}")

    def on_start(self, plan: ArmPlan, asked: Asked, run: PlannedRun, epochs_done: int) -> None:
        """One of its trainings starts, or goes on after ``epochs_done`` epochs."""
        if epochs_done:
            self._print(f"{run.arm} seed {run.seed}: goes on from epoch {epochs_done + 1}")
        self._leave(asked)
        total = run.recipe.epochs * len(plan.seeds)
        self.tasks[id(asked)] = self.progress.add_task(self._line(plan, asked, 0.0), total=total)

    def on_step(self, plan: ArmPlan, asked: Asked, run: PlannedRun, step: Stepped) -> None:
        """A step was taken."""
        if id(asked) in self.tasks:
            done = run.recipe.epochs * len(asked.finals) + step.epoch - 1 + step.step / step.num_steps
            task = self.tasks[id(asked)]
            self.progress.update(task, completed=done, description=self._line(plan, asked, done))

    def on_finished(self, plan: ArmPlan, asked: Asked, value: float) -> None:
        """A trial has its value."""
        self._leave(asked)
        self.knows(plan, value, asked.number)
        best, number = self.best[plan.identity]
        said = "the best so far" if number == asked.number else f"best {best:.2f}%, trial {number}"
        self._print(f"{plan.arm} trial {asked.number}: val {value:.2f}%  in {duration(asked.seconds)}  ({said})")

    def on_ended(self, plan: ArmPlan, asked: Asked, how: str) -> None:
        """A trial ended in another way: pruned, failed, interrupted."""
        self._leave(asked)
        self._print(f"{plan.arm} trial {asked.number}: {how}")

    def on_unfit(self, plan: ArmPlan, number: int, values: Mapping[str, Any], reason: str) -> None:
        """A trial's values make no recipe."""
        self._print(f"{plan.arm} trial {number}: {in_words(values)}: {reason}")

    def on_note(self, text: str) -> None:
        """Something that concerns more than one trial; may come from another thread."""
        self._print(text)

    def _line(self, plan: ArmPlan, asked: Asked, done: float) -> str:
        total = asked.recipe.epochs * len(plan.seeds)
        best = self.best.get(plan.identity)
        so_far = f"  best {best[0]:.2f}%" if best else ""
        words = f"{plan.arm} trial {asked.number} of {plan.num_wanted}{so_far}  epoch {done:.1f}/{total}"
        return f"{words}  {in_words(asked.values)}".replace("[", "\\[")

    def _leave(self, asked: Asked) -> None:
        task = self.tasks.pop(id(asked), None)
        if task is not None:
            self.progress.remove_task(task)

    def _print(self, text: str) -> None:
        self.console.print(text, highlight=False, markup=False)
