"""What a person sees while a study runs: live bars on a terminal, one line per epoch elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn
from rich.table import Column

from cifar_ablate.folder import RunResult
from cifar_ablate.plan import PlannedRun
from cifar_ablate.runner.events import Events

REFRESH_SECONDS = 0.5


def duration(seconds: float) -> str:
    """0:42, 12:07, 3:05:00."""
    minutes, rest = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class Pace:
    """Time left, from how fast the work has gone since the start; ``done`` was done before."""

    def __init__(self, total: float, done: float = 0.0) -> None:
        self.total, self.done, self.done_before, self.begun = total, done, done, time.monotonic()

    def left(self) -> str:
        """Time left in words; "?" until enough is done to tell."""
        here, elapsed = self.done - self.done_before, time.monotonic() - self.begun
        if elapsed < 1 or here < 0.002 * self.total:
            return "?"
        return duration(elapsed * max(self.total - self.done, 0.0) / here)


class Terminal(Events):
    """Progress of one ``run`` command; use as a context manager around it."""

    def __init__(self, console: Console, work: Callable[[PlannedRun], float]) -> None:
        self.console, self.work = console, work
        self.live = console.is_terminal
        # what must stay in a narrow window comes first: time left, accuracy; the end of a line is cut
        line = Column(no_wrap=True, overflow="ellipsis")
        columns = [BarColumn(8), TextColumn("{task.description}"), TextColumn("{task.fields[note]}", table_column=line)]
        self.progress = Progress(*columns, console=console, disable=not self.live, transient=True)
        self.study_task: TaskID | None = None
        self.run_task: TaskID | None = None
        self.study_pace, self.run_pace = Pace(0), Pace(0)
        self.num_runs, self.num_ended = 0, 0
        self.finished_work = 0.0
        self.last_refresh = 0.0
        self.step_since: tuple[float, int] = (0.0, 0)
        self.accuracy, self.run_name = "", ""

    def __enter__(self) -> Terminal:
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def on_plan(self, todo: Sequence[PlannedRun], num_done: int, num_failed: int) -> None:
        self.num_runs = len(todo)
        self.study_pace = Pace(sum(self.work(run) for run in todo))
        said = [f"{len(todo)} to train", f"{num_done} done before"]
        if num_failed:
            said.append(f"{num_failed} failed before (--retry failed tries them again)")
        self.console.print("Runs: " + ", ".join(said), highlight=False)
        if todo:
            self.study_task = self.progress.add_task("study", total=self.study_pace.total, note="")

    def on_start(self, run: PlannedRun, epochs_done: int) -> None:
        self.run_pace = Pace(self.work(run), done=self.work(run) * epochs_done / run.recipe.epochs)
        self.step_since, self.accuracy = (time.monotonic(), epochs_done), ""
        name = f"{run.study} {run.arm} seed {run.seed}"
        where = f" (from epoch {epochs_done + 1})" if epochs_done else ""
        if not self.live:
            self.console.print(f"[{self.num_ended + 1}/{self.num_runs}] {name}{where}", highlight=False, markup=False)
        if self.run_task is not None:
            self.progress.remove_task(self.run_task)
        self.run_name = f"{run.arm} seed {run.seed}{where}"
        self.run_task = self.progress.add_task("run", total=self.run_pace.total, note=f"? left  {self.run_name}")

    def on_step(self, run: PlannedRun, epoch: int, step: int, num_steps: int, loss: Callable[[], float]) -> None:
        if not self.live or time.monotonic() - self.last_refresh < REFRESH_SECONDS:
            return
        self.last_refresh = now = time.monotonic()
        epochs = epoch - 1 + step / num_steps
        since, epochs_then = self.step_since
        rate = (epochs - epochs_then) * num_steps / max(now - since, 1e-9)
        self._advance(run, epochs / run.recipe.epochs)
        self._show(f"epoch {epoch}/{run.recipe.epochs}{self.accuracy}  loss {loss():.3f}  {rate:.1f} steps/s")

    def on_epoch(self, run: PlannedRun, line: Mapping[str, Any]) -> None:
        self._advance(run, line["epoch"] / run.recipe.epochs)
        if self.live:
            tested = f"{line['test_accuracy']:.1f}%" if "test_accuracy" in line else "-"
            self.accuracy = f"  test {tested}  running {line['running_accuracy']:.1f}%"
            return
        rate = f"{line['images_per_second']:.0f} images/s"
        left = f"run {self.run_pace.left()} left, study {self.study_pace.left()} left"
        measured = f"loss {line['train_loss']:.3f}  running {line['running_accuracy']:.1f}%"
        measured += f"  test {line['test_accuracy']:.2f}%" if "test_accuracy" in line else ""
        said = f"  epoch {line['epoch']}/{run.recipe.epochs}  {measured}  {rate}  {left}"
        self.console.print(said, highlight=False, markup=False)

    def on_end(self, run: PlannedRun, result: RunResult) -> None:
        self.num_ended += 1
        self.finished_work += self.work(run)
        self._advance(run, 0, ended=True)
        name = f"{run.study} {run.arm} seed {run.seed}"
        if result.status == "finished":
            said = f"test {result.metrics['test_accuracy']:.2f}%  in {duration(result.train_seconds)}"
        else:
            said = f"{result.status}: {result.reason}"
        self.console.print(f"{name}: {said}", highlight=False, markup=False)

    def on_not_trained(self, run: PlannedRun, why: str) -> None:
        self.num_ended += 1
        self.study_pace.total -= self.work(run)
        name = f"{run.study} {run.arm} seed {run.seed}"
        self.console.print(f"{name}: {why}", highlight=False, markup=False)

    def _advance(self, run: PlannedRun, share: float, *, ended: bool = False) -> None:
        self.run_pace.done = self.run_pace.total if ended else share * self.run_pace.total
        self.study_pace.done = self.finished_work + (0.0 if ended else share * self.work(run))

    def _show(self, measured: str) -> None:
        if self.run_task is not None:
            note = f"{self.run_pace.left()} left  {measured}  {self.run_name}"
            self.progress.update(self.run_task, completed=self.run_pace.done, note=note.replace("[", "\\["))
        if self.study_task is not None:
            note = f"{self.study_pace.left()} left  run {min(self.num_ended + 1, self.num_runs)} of {self.num_runs}"
            total, done = self.study_pace.total, self.study_pace.done
            self.progress.update(self.study_task, total=total, completed=done, note=note)


@contextmanager
def reporting(console: Console) -> Iterator[Callable[[str, int, int | None], None]]:
    """A progress callback (what, done, total) for loading data: a bar on a terminal, a line per task elsewhere."""
    columns = [TextColumn("{task.description}"), BarColumn(24), TaskProgressColumn()]
    progress = Progress(*columns, console=console, disable=not console.is_terminal, transient=True)
    tasks: dict[str, TaskID] = {}

    def report(what: str, done: int, total: int | None) -> None:
        if what not in tasks:
            tasks[what] = progress.add_task(what, total=total)
            if not console.is_terminal:
                console.print(f"{what} ...", highlight=False, markup=False)
        progress.update(tasks[what], completed=done, total=total)

    with progress:
        yield report
