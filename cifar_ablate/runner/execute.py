"""Carry out a plan: what the record lacks is trained, group by group, and delivered as it grows."""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from cifar_ablate.data import DataSet
from cifar_ablate.device import Device
from cifar_ablate.environment import describe_environment
from cifar_ablate.errors import AblateError, RecordError, TrackingError
from cifar_ablate.folder import RunFolder, RunResult, write_atomically
from cifar_ablate.locks import lock
from cifar_ablate.plan import TRAINER_VERSION, DataKey, Plan, PlannedRun
from cifar_ablate.registry import EXECUTORS
from cifar_ablate.runner.artifacts import write_artifacts
from cifar_ablate.runner.events import Events
from cifar_ablate.runner.reconcile import reconcile
from cifar_ablate.tracking import Delivery, Tracking
from cifar_ablate.training.batches import DeviceData, to_device
from cifar_ablate.training.train import Watcher, train_run

RUNS_ROOT = Path("mlruns") / "runs"

Group = Sequence[PlannedRun]
"""Runs of one shape: an executor may train them one after the other, or at once."""


@dataclass(frozen=True)
class Outcome:
    """What became of one run in this command."""

    run: PlannedRun
    kind: str
    """finished, diverged or failed: trained here; shared: its folder held it already; elsewhere: another trains it."""
    reason: str = ""


TrainGroup = Callable[[Group], Iterator[Outcome]]
"""Trains and records a group's runs; gives the outcome of each as soon as it ends."""


@dataclass(frozen=True)
class Summary:
    """How a ``run`` command ended, in runs."""

    kinds: Counter[str]
    """Runs of this command by their outcome's kind."""
    num_done_before: int
    num_failed_before: int
    failures: tuple[tuple[PlannedRun, str], ...]
    """Runs that failed, now or before, with the reason."""


@dataclass
class RunCommand:
    """What one ``run`` command holds: data, device, record."""

    tracking: Tracking
    device: Device
    threads: int
    data: Mapping[DataKey, DataSet]
    events: Events
    experiments: dict[str, str] = field(default_factory=dict)
    """MLflow experiment by study label."""
    resident: tuple[DataKey, DeviceData] | None = None

    def on_device(self, key: DataKey) -> DeviceData:
        """The data set on the device; one at a time is kept there."""
        if self.resident is None or self.resident[0] != key:
            self.resident = (key, to_device(self.data[key], self.device.torch))
        return self.resident[1]


def run_plans(
    plans: Sequence[Plan],
    *,
    tracking: Tracking,
    data: Mapping[DataKey, DataSet],
    device: Device,
    threads: int,
    executor: str = "local",
    retry_failed: bool = False,
    wanted: Callable[[PlannedRun], bool] = lambda run: True,
    events: Events | None = None,
) -> Summary:
    """Make the record match the plans; gives what was done. Raises AblateError where nothing could be started.

    ``wanted`` leaves out runs of the plan from this command alone; the plan that is recorded stays whole.
    """
    command = RunCommand(tracking, device, threads, data, events or Events())
    todo: list[PlannedRun] = []
    failures: list[tuple[PlannedRun, str]] = []
    num_done = 0
    for plan in plans:
        command.experiments[plan.study.label] = tracking.open_study(plan.study.label, plan.document)
        recorded = tracking.runs(command.experiments[plan.study.label])
        status = reconcile([run for run in plan.runs if wanted(run)], recorded, retry_failed=retry_failed)
        todo.extend(status.todo)
        failures.extend(status.failed)
        num_done += len(status.done)
    num_failed = len(failures)
    command.events.on_plan(todo, num_done, num_failed)
    kinds: Counter[str] = Counter()
    for outcome in EXECUTORS.get(executor)(grouped(todo), partial(_train_group, command)):
        kinds[outcome.kind] += 1
        if outcome.kind == "failed":
            failures.append((outcome.run, outcome.reason))
    return Summary(kinds, num_done, num_failed, tuple(failures))


def grouped(runs: Sequence[PlannedRun]) -> list[Group]:
    """Runs of one study and shape together, seed by seed, so that a study interrupted early has whole seeds."""
    groups: dict[tuple[str, str, int], list[PlannedRun]] = {}
    order = {run.study: index for index, run in reversed(list(enumerate(runs)))}
    for run in sorted(runs, key=lambda run: (order[run.study], run.seed)):
        groups.setdefault((run.study, run.shape, run.seed), []).append(run)
    return list(groups.values())


def _train_group(command: RunCommand, group: Group) -> Iterator[Outcome]:
    """Train a group's runs one after the other; each is in the record before the next one starts."""
    for run in group:
        folder = RunFolder(RUNS_ROOT / run.fingerprint)
        with lock(folder.path / ".lock") as mine:  # of two commands in one folder, one trains the run
            try:
                outcome = _train_one(command, run, folder) if mine else Outcome(run, "elsewhere")
            except RecordError as error:  # a damaged folder: the other runs have theirs
                outcome = Outcome(run, "failed", str(error))
        if outcome.kind == "elsewhere":
            command.events.on_not_trained(run, "is being trained by another run command")
        yield outcome


def _train_one(command: RunCommand, run: PlannedRun, folder: RunFolder) -> Outcome:
    """Train a run, or take what its folder holds already, and record it."""
    earlier = folder.result()
    if earlier is not None and earlier.status != "failed":
        return _record_earlier(command, run, folder, earlier)
    data = command.data[run.data_key]
    described = {"data": data.describe(), "data_digest": data.digest, "classes": list(data.classes)}
    environment = describe_environment(command.device, command.threads)
    folder.create(run.recipe.as_dict(), {**environment, **described, "trainer": TRAINER_VERSION, "seed": run.seed})
    folder.clear_result()
    delivery = command.tracking.deliver(command.experiments[run.study], run, folder)
    try:
        result = _train(command, run, folder, delivery)
        delivery.finish(folder, result, write_artifacts(folder, data.classes))
    except KeyboardInterrupt:
        delivery.end("killed", "interrupted from the keyboard")
        raise
    command.events.on_end(run, result)
    return Outcome(run, result.status, result.reason)


def _record_earlier(command: RunCommand, run: PlannedRun, folder: RunFolder, earlier: RunResult) -> Outcome:
    """Record what a folder holds of an earlier training."""
    artifacts = write_artifacts(folder, command.data[run.data_key].classes)  # a damaged folder ends here, unrecorded
    delivery = command.tracking.deliver(command.experiments[run.study], run, folder)
    delivery.finish(folder, earlier, artifacts)
    command.events.on_not_trained(run, "trained before, now recorded here")
    return Outcome(run, "shared", earlier.reason)


def _train(command: RunCommand, run: PlannedRun, folder: RunFolder, delivery: Delivery) -> RunResult:
    """Train, turning whatever goes wrong into a recorded outcome; only an interruption leaves."""
    try:
        data = command.on_device(run.data_key)
        watcher = _RunWatcher(command.events, run, delivery)
        return train_run(run.recipe, run.seed, data, precision=run.precision, folder=folder, watcher=watcher)
    except AblateError as error:
        reason = str(error)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".split("\n", 1)[0]
        write_atomically(folder.path / "failure.txt", traceback.format_exc())
    result = RunResult("failed", len(folder.history()), 0, 0, {}, reason)
    folder.write_result(result)
    return result


@dataclass(frozen=True)
class _RunWatcher(Watcher):
    """Passes on what a training tells: its epochs to the record, everything to the terminal."""

    events: Events
    run: PlannedRun
    delivery: Delivery

    def on_start(self, epochs_done: int) -> None:
        self.events.on_start(self.run, epochs_done)

    def on_step(self, epoch: int, step: int, num_steps: int, loss: Callable[[], float]) -> None:
        self.events.on_step(self.run, epoch, step, num_steps, loss)

    def on_epoch(self, line: dict[str, Any]) -> None:
        with suppress(TrackingError):  # the folder has the line, and the next delivery takes it along
            self.delivery.push([line])
        self.events.on_epoch(self.run, line)
