"""Carry out a plan: what the record lacks is trained, group by group, and delivered as it grows."""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from cifar_ablate.data import DataSet
from cifar_ablate.device import Device
from cifar_ablate.environment import describe_environment
from cifar_ablate.errors import AblateError, InterruptedRunError
from cifar_ablate.folder import RunFolder, RunResult, write_atomically
from cifar_ablate.plan import DataKey, Plan, PlannedRun
from cifar_ablate.registry import EXECUTORS
from cifar_ablate.runner.artifacts import write_artifacts
from cifar_ablate.runner.events import Events
from cifar_ablate.runner.reconcile import reconcile
from cifar_ablate.tracking import Tracking
from cifar_ablate.training.batches import DeviceData, to_device
from cifar_ablate.training.train import Watcher, train_run

RUNS_ROOT = Path("mlruns") / "runs"

Group = Sequence[PlannedRun]
"""Runs of one shape: an executor may train them one after the other, or at once."""
TrainGroup = Callable[[Group], Iterator[tuple[PlannedRun, RunResult]]]
"""Trains and records a group's runs; gives each with its result as soon as it ends."""


@dataclass(frozen=True)
class Summary:
    """How a ``run`` command ended, in runs."""

    trained: Counter[str]
    """finished, diverged, failed: runs of this command."""
    num_done_before: int
    num_shared: int
    num_failed_before: int
    failures: tuple[tuple[PlannedRun, str], ...]

    @property
    def any_failed(self) -> bool:
        return bool(self.failures)


@dataclass
class Session:
    """What one ``run`` command holds: data, device, record."""

    tracking: Tracking
    device: Device
    threads: int
    data: Mapping[DataKey, DataSet]
    events: Events
    experiments: dict[str, str]
    resident: tuple[DataKey, DeviceData] | None = None
    num_shared: int = 0

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
    session = Session(tracking, device, threads, data, events or Events(), {})
    todo: list[PlannedRun] = []
    failed: list[tuple[PlannedRun, str]] = []
    num_done = 0
    for plan in plans:
        session.experiments[plan.study.label] = tracking.open_study(plan.study.label, plan.document)
        recorded = tracking.runs(session.experiments[plan.study.label])
        status = reconcile([run for run in plan.runs if wanted(run)], recorded, retry_failed=retry_failed)
        todo.extend(status.todo)
        failed.extend(status.failed)
        num_done += len(status.done)
    session.events.on_plan(todo, num_done, len(failed))
    trained: Counter[str] = Counter()
    failures = list(failed)
    execute = EXECUTORS.get(executor)
    for run, result in execute(grouped(todo), partial(_train_group, session)):
        trained[result.status] += 1
        if result.status == "failed":
            failures.append((run, result.reason))
    trained["finished"] -= session.num_shared
    return Summary(+trained, num_done, session.num_shared, len(failed), tuple(failures))


def grouped(runs: Sequence[PlannedRun]) -> list[Group]:
    """Runs of one study and shape together, seed by seed, so that a study interrupted early has whole seeds."""
    groups: dict[tuple[str, str, int], list[PlannedRun]] = {}
    order = {run.study: index for index, run in reversed(list(enumerate(runs)))}
    for run in sorted(runs, key=lambda run: (order[run.study], run.seed)):
        groups.setdefault((run.study, run.shape, run.seed), []).append(run)
    return list(groups.values())


def _train_group(session: Session, group: Group) -> Iterator[tuple[PlannedRun, RunResult]]:
    """Train a group's runs one after the other; each is in the record before the next one starts."""
    for run in group:
        yield run, _train_one(session, run)


def _train_one(session: Session, run: PlannedRun) -> RunResult:
    folder = RunFolder(RUNS_ROOT / run.fingerprint)
    earlier = folder.result()
    data = session.data[run.data_key]
    if earlier is None or earlier.status == "failed":
        environment = describe_environment(session.device, session.threads)
        described = {"data": data.describe(), "data_digest": data.digest, "classes": list(data.classes)}
        folder.create(run.recipe.as_dict(), {**environment, **described, "seed": run.seed})
        folder.clear_result()
        earlier = None
    run_id = session.tracking.start(session.experiments[run.study], run, folder)
    try:
        if earlier is not None:
            session.num_shared += 1
            session.events.on_shared(run)
        result = earlier or _train(session, run, folder, run_id)
        session.tracking.finish(run_id, folder, result, write_artifacts(folder, data.classes))
    except KeyboardInterrupt:
        session.tracking.end(run_id, "killed", "interrupted from the keyboard")
        raise InterruptedRunError("interrupted; the same command again does what is left") from None
    if earlier is None:
        session.events.on_end(run, result)
    return result


def _train(session: Session, run: PlannedRun, folder: RunFolder, run_id: str) -> RunResult:
    """Train, turning whatever goes wrong into a recorded outcome; only an interruption leaves."""
    try:
        data = session.on_device(run.data_key)
        history = folder.history() if folder.checkpoint.exists() else []
        session.events.on_start(run, len(history), len(data.train_labels))
        watcher = _RunWatcher(session, run, run_id)
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
    session: Session
    run: PlannedRun
    run_id: str

    def on_step(self, epoch: int, step: int, num_steps: int, loss: Callable[[], float]) -> None:
        self.session.events.on_step(self.run, epoch, step, num_steps, loss)

    def on_epoch(self, line: dict[str, Any]) -> None:
        self.session.tracking.push(self.run_id, [line])
        self.session.events.on_epoch(self.run, line)
