"""What a user sees while a study runs: live bars on a terminal, one line per epoch elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, TaskID, TextColumn
from rich.table import Column

from cifar_ablate.console import duration
from cifar_ablate.plan import PlannedRun
from cifar_ablate.record.folder import RunResult
from cifar_ablate.record.types import Key
from cifar_ablate.training.events import Stepped

REFRESH_SECONDS = 0.5


class RunDisplay:
    """Shows nothing; override the hooks for what you want to see."""

    step_seconds: float | None = None
    """Minimum time between two reported steps; None: steps are not reported."""

    def on_plan(self, todo: Sequence[PlannedRun], num_done: int, num_failed: int) -> None:
        """The record was compared with the plan; called again if a look asks for more runs."""

    def on_look(self, text: str) -> None:
        """A study's look was taken: what it says about one contrast, and what follows."""

    def on_start(self, run: PlannedRun, epochs_done: int) -> None:
        """A run starts, or resumes after ``epochs_done`` epochs."""

    def on_step(self, run: PlannedRun, step: Stepped) -> None:
        """A step was taken."""

    def on_epoch(self, run: PlannedRun, line: Mapping[str, Any]) -> None:
        """An epoch ended."""

    def on_end(self, run: PlannedRun, result: RunResult) -> None:
        """A run ended."""

    def on_not_trained(self, run: PlannedRun, why: str) -> None:
        """A run was not trained, or not to its end, by this command."""

    def on_note(self, text: str) -> None:
        """A note that concerns more than one run; may come from another thread."""


class Pace:
    """Time left, from how fast the work has gone since the start; ``done`` was done before."""

    def __init__(self, total: float, done: float = 0.0) -> None:
        self.total, self.done, self.done_before, self.begun = total, done, done, time.monotonic()

    def begin(self) -> None:
        """The work starts only now."""
        self.begun = time.monotonic()

    def left(self) -> str:
        """Time left in words; "?" until enough is done to tell."""
        here, elapsed = self.done - self.done_before, time.monotonic() - self.begun
        if elapsed < 1 or here < 0.002 * self.total:
            return "?"
        return duration(elapsed * max(self.total - self.done, 0.0) / here)


@dataclass
class ActiveRun:
    """A run that is being trained."""

    name: str
    pace: Pace
    task: TaskID
    epochs_before: float
    since: float = field(default_factory=time.monotonic)
    accuracy: str = ""


class LiveBars:
    """Progress bars on a terminal and lines above them; elsewhere only the lines. Use as a context manager.

    ``columns`` go between the bar and the bar's note, which is cut where the window ends: what must stay in a narrow
    window comes first in it.
    """

    def __init__(self, console: Console, *columns: ProgressColumn) -> None:
        self.console, self.live = console, console.is_terminal
        self.step_seconds = REFRESH_SECONDS if self.live else None
        note = TextColumn("{task.fields[note]}", table_column=Column(no_wrap=True, overflow="ellipsis"))
        self.progress = Progress(BarColumn(8), *columns, note, console=console, disable=not self.live, transient=True)

    def __enter__(self) -> Self:
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def on_note(self, text: str) -> None:
        """Print a note that concerns no single run or trial; may be called from another thread."""
        self._print(text)

    def _print(self, text: str) -> None:
        self.console.print(text, highlight=False, markup=False)


class TerminalDisplay(LiveBars, RunDisplay):
    """Progress of one ``run`` command."""

    def __init__(self, console: Console, work: Callable[[PlannedRun], float]) -> None:
        super().__init__(console, TextColumn("{task.description}"))
        self.work = work
        self.study_task: TaskID | None = None
        self.study_pace = Pace(0)
        self.num_runs = 0
        self.active: dict[Key, ActiveRun] = {}
        self.ended: set[Key] = set()
        self.finished_work = 0.0

    def on_plan(self, todo: Sequence[PlannedRun], num_done: int, num_failed: int) -> None:
        is_more = self.study_task is not None
        self.num_runs += len(todo)
        self.study_pace.total += sum(self.work(run) for run in todo)
        said = [f"{len(todo)} {'more ' if is_more else ''}to train", f"{num_done} done before"]
        if num_failed:
            said.append(f"{num_failed} failed before (--retry failed tries them again)")
        self.console.print("Runs: " + ", ".join(said), highlight=False)
        if todo and not is_more:
            self.study_task = self.progress.add_task("study", total=self.study_pace.total, note="")

    def on_start(self, run: PlannedRun, epochs_done: int) -> None:
        pace = Pace(self.work(run), done=self.work(run) * epochs_done / run.recipe.epochs)
        where = f" (from epoch {epochs_done + 1})" if epochs_done else ""
        name = f"{run.arm} seed {run.seed}{where}"
        if not self.active and not self.ended:
            self.study_pace.begin()  # what came before, starting workers, is not the pace of the study
        if not self.live:
            number = len(self.ended | self.active.keys() | {run.key})
            self._print(f"[{number}/{self.num_runs}] {run.name}{where}")
        self._leave(run)
        task = self.progress.add_task("run", total=pace.total, note=f"? left  {escape_markup(name)}")
        self.active[run.key] = ActiveRun(name, pace, task, epochs_done)
        self._refresh()

    def on_step(self, run: PlannedRun, step: Stepped) -> None:
        active = self.active[run.key]
        epochs = step.epoch - 1 + step.step / step.num_steps
        rate = (epochs - active.epochs_before) * step.num_steps / max(time.monotonic() - active.since, 1e-9)
        active.pace.done = epochs / run.recipe.epochs * active.pace.total
        measured = f"epoch {step.epoch}/{run.recipe.epochs}{active.accuracy}  loss {step.loss:.3f}  {rate:.1f} steps/s"
        note = f"{active.pace.left()} left  {measured}  {active.name}"
        self.progress.update(active.task, completed=active.pace.done, note=escape_markup(note))
        self._refresh()

    def on_epoch(self, run: PlannedRun, line: Mapping[str, Any]) -> None:
        active = self.active[run.key]
        active.pace.done = line["epoch"] / run.recipe.epochs * active.pace.total
        self._refresh()
        if self.live:
            tested = f"{line['test_accuracy']:.1f}%" if "test_accuracy" in line else "-"
            active.accuracy = f"  test {tested}  running {line['running_accuracy']:.1f}%"
            return
        rate = f"{line['images_per_second']:.0f} images/s"
        left = f"run {active.pace.left()} left, study {self.study_pace.left()} left"
        measured = f"loss {line['train_loss']:.3f}  running {line['running_accuracy']:.1f}%"
        measured += f"  test {line['test_accuracy']:.2f}%" if "test_accuracy" in line else ""
        whose = f"{run.arm} seed {run.seed}: " if len(self.active) > 1 else ""
        self._print(f"  {whose}epoch {line['epoch']}/{run.recipe.epochs}  {measured}  {rate}  {left}")

    def on_end(self, run: PlannedRun, result: RunResult) -> None:
        self._leave(run)
        self.ended.add(run.key)
        self.finished_work += self.work(run)
        self._refresh()
        if result.status == "finished":
            said = f"test {result.metrics['test_accuracy']:.2f}%  in {duration(result.train_seconds)}"
        else:
            said = f"{result.status}: {result.reason}"
        self._print(f"{run.name}: {said}")

    def on_not_trained(self, run: PlannedRun, why: str) -> None:
        self._leave(run)
        if run.key not in self.ended:
            self.ended.add(run.key)
            self.study_pace.total -= self.work(run)
        self._print(f"{run.name}: {why}")

    def on_look(self, text: str) -> None:
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def _leave(self, run: PlannedRun) -> None:
        active = self.active.pop(run.key, None)
        if active is not None:
            self.progress.remove_task(active.task)

    def _refresh(self) -> None:
        """The study's bar: what has ended, and the parts of what is being trained."""
        if self.study_task is None:
            return
        pace = self.study_pace
        pace.done = self.finished_work + sum(active.pace.done for active in self.active.values())
        now = len(self.active)
        first = min(len(self.ended) + 1, self.num_runs)
        which = f"run {first} of {self.num_runs}" if now < 2 else f"{now} of {self.num_runs} runs at a time"
        self.progress.update(
            self.study_task, total=pace.total, completed=pace.done, note=f"{pace.left()} left  {which}"
        )


def escape_markup(text: str) -> str:
    """Text in which rich sees no markup."""
    return text.replace("[", "\\[")
