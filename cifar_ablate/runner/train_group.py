"""Train a group of runs into their folders, in the process that an executor chose. Nothing here uses MLflow."""

from __future__ import annotations

import time
import traceback
from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from cifar_ablate.data import DataSet
from cifar_ablate.device import Device, Slot, is_out_of_memory, on_stream, out_of_memory
from cifar_ablate.environment import describe_environment, git_state
from cifar_ablate.errors import AblateError, OutputError, RecordError
from cifar_ablate.locks import holder, lock
from cifar_ablate.plan import TRAINER_VERSION, DataKey, PlannedRun
from cifar_ablate.process import ProcessId, process_from_text
from cifar_ablate.record.folder import RunFolder, RunResult, write_atomically
from cifar_ablate.runner.artifacts import write_artifacts
from cifar_ablate.runner.estimate import num_in_turn
from cifar_ablate.runner.events import Ended, Group, RunEvent, RunEvents, ShouldStop
from cifar_ablate.training.batches import DeviceData, to_device
from cifar_ablate.training.engine import Engine, EngineOptions, choose_mode
from cifar_ablate.training.events import Result, Started
from cifar_ablate.training.train import Stopped, train_run

WAIT_SECONDS = 0.5
"""Pause between two checks whether another process has finished the same trial, in seconds."""


class OutOfMemoryWhenShared(Exception):  # noqa: N818  no error: the training has to wait
    """A training ran out of memory while others shared the device."""


@dataclass
class TimeSlice:
    """One training's share of a device on which several take turns."""

    stream: int
    """Number of its stream, from 0; at any time, a stream belongs to one training."""
    num_slices: int
    """Maximum number of trainings at the same time."""


RunSteps = Generator[RunEvent | None, None, Result]
"""A run's training: yields after every step, an event or None."""
Training = Callable[[TimeSlice], RunSteps[None]]


@dataclass
class _Stream:
    """A stream and the training that uses it now."""

    time_slice: TimeSlice
    cuda_stream: Any
    training: Training | None = None
    steps: RunSteps[None] | None = None


def take_turns(
    trainings: Sequence[Training], num_slices: int, cuda_stream_of: Callable[[int], Any] = lambda stream: None
) -> Generator[RunEvent, None, list[Training]]:
    """Train all, ``num_slices`` at a time, which take turns step by step; yield their events.

    While the device computes a step of one run, the host issues one of the next run. On a GPU each run has its own
    stream, so that steps which leave parts of the device idle overlap. A single thread issues all steps: no capture,
    allocation or random draw of one run falls into a step of another. So on a CPU a run's results do not depend on the
    others, to the bit.

    ``cuda_stream_of`` maps the number of a stream to its torch.cuda.Stream, or None.

    Returns:
        The trainings that ran out of memory while they shared the device; train them alone.
    """
    waiting, deferred = deque(trainings), []
    num = min(num_slices, len(trainings))
    streams = [_Stream(TimeSlice(one, num), cuda_stream_of(one) if num > 1 else None) for one in range(num)]
    try:
        while waiting or any(one.steps is not None for one in streams):
            for one in streams:
                if one.steps is None and waiting:
                    one.training = waiting.popleft()
                    one.steps = one.training(one.time_slice)
                if one.steps is None:
                    continue
                event = None
                try:
                    with on_stream(one.cuda_stream):
                        event = next(one.steps)
                except StopIteration:
                    one.steps = None
                except OutOfMemoryWhenShared:
                    one.steps = None
                    deferred += [one.training] if one.training else []
                if event is not None:
                    yield event
    finally:
        for one in streams:
            if one.steps is not None:
                one.steps.close()
    return deferred


@dataclass
class GroupTrainer:
    """Trains groups of runs, one after another or taking turns. Can be pickled before its first call."""

    data: Mapping[DataKey, DataSet]
    runs_root: Path
    """An absolute path: a worker may have another working directory."""
    retry_failed: bool
    checkpoint_seconds: float
    step_seconds: float | None
    """Minimum time between two Stepped of a run, in seconds; None: no Stepped at all."""
    owner: ProcessId
    """Named as the owner of the locks: the command, because that is the process that a user can stop."""
    options: EngineOptions = field(default_factory=EngineOptions)
    num_images: Mapping[str, int] = field(default_factory=dict)
    """By shape: number of training images of the whole command, over all runs and epochs."""
    keep_networks: bool = True
    """Keep weights, predictions and training accuracy of finished runs; trials of a tuning keep only their history."""
    git: tuple[str, bool] = field(default_factory=git_state)
    """``git_state`` of the command's folder: a node of a cluster may be in another repository, or in none."""
    patience_seconds: float = 0.0
    """How long to wait for a folder that another process of this command still locks, in seconds."""
    resident: tuple[DataKey, Device, DeviceData] | None = field(default=None, init=False)
    """The data set that is on the device; one at a time."""
    engine: Engine | None = field(default=None, init=False)

    def __call__(self, group: Group, slot: Slot, should_stop: ShouldStop) -> RunEvents:
        slot.enter()
        mode = choose_mode(self.options, slot.device, self.num_images.get(group[0].shape, 0))
        if self.engine is None or self.engine.mode != mode:
            self.engine = Engine(mode)
        self.engine.mode = mode  # an equal mode may have another reason
        num_slices = num_in_turn(group[0], self.data[group[0].data_key], slot)
        self.engine.keep_streams(num_slices)
        cuda_stream_of = partial(self.engine.cuda_stream, device=slot.device.torch)
        trainings: dict[Training, PlannedRun] = {
            partial(self._train_in_turn, run, slot, should_stop): run for run in group
        }
        for deferred in (yield from take_turns(list(trainings), num_slices, cuda_stream_of)):
            self.engine.keep_streams(0)
            if slot.device.kind == "cuda":
                torch.cuda.empty_cache()
            if should_stop(trainings[deferred].key):  # it has yielded Started, so it must yield Ended
                yield trainings[deferred].key, Ended("stopped")
            else:
                yield from take_turns([deferred], 1)

    def _train_in_turn(
        self, run: PlannedRun, slot: Slot, should_stop: ShouldStop, time_slice: TimeSlice
    ) -> RunSteps[None]:
        folder = RunFolder(self.runs_root / run.fingerprint)
        patient_until = time.monotonic() + self.patience_seconds
        while not should_stop(run.key):
            with lock(folder.lock, owner=self.owner.to_text()) as is_mine:  # only one process trains a run
                if is_mine or (self.keep_networks and not (time.monotonic() < patient_until and self._is_ours(folder))):
                    if is_mine:
                        ended = yield from self._train_or_share(run, folder, slot, should_stop, time_slice)
                    else:
                        ended = _elsewhere(folder)
                    yield run.key, ended
                    return
            if time_slice.num_slices == 1:  # a trial waits for the same trial elsewhere, and then takes its result
                time.sleep(WAIT_SECONDS)
            yield None

    def _is_ours(self, folder: RunFolder) -> bool:
        """Is the lock of a folder free by now, or held by a process of this command?"""
        owner = holder(folder.lock)
        return owner is None or process_from_text(owner) == self.owner

    def _train_or_share(
        self, run: PlannedRun, folder: RunFolder, slot: Slot, should_stop: ShouldStop, time_slice: TimeSlice
    ) -> RunSteps[Ended]:
        """Train a run, or take the result that its folder already holds."""
        try:
            earlier = folder.result()
            if earlier is not None and not (earlier.status == "failed" and self.retry_failed):
                folder.tidy()
                if earlier.status != "failed":
                    folder.drop_checkpoints()
                write_artifacts(folder, self.data[run.data_key].classes)  # raises RecordError if it is damaged
                return Ended("shared", earlier.reason, earlier)
            folder.create(run.recipe.as_dict(), self._environment(run, slot, time_slice))
            folder.clear_result()
            result = yield from self._train(run, folder, slot, should_stop, time_slice)
            write_artifacts(folder, self.data[run.data_key].classes)
        except Stopped:
            return Ended("stopped")
        except RecordError as error:  # only this folder is damaged: go on with the other runs
            return Ended("damaged", str(error))
        except OutputError as error:  # the run can resume once there is room
            return Ended("stopped", str(error), halts=True)
        return Ended(result.status, result.reason, result)

    def _update_environment(self, run: PlannedRun, folder: RunFolder, slot: Slot, time_slice: TimeSlice) -> None:
        """Record how the steps are really taken: one that could not be captured is called."""
        environment = self._environment(run, slot, time_slice)
        if environment != folder.environment():
            folder.describe(environment)

    def _environment(self, run: PlannedRun, slot: Slot, time_slice: TimeSlice) -> dict[str, Any]:
        data = self.data[run.data_key]
        mode = self._engine().mode_of(run.recipe, time_slice.stream)
        engine = {
            "compile": mode.compile,
            "capture": mode.capture,
            "why": mode.why,
            "side_by_side": time_slice.num_slices,
        }
        described: dict[str, Any] = {"data": data.describe(), "data_digest": data.digest, "classes": list(data.classes)}
        environment = describe_environment(slot.device, slot.threads, self.git)
        described |= {} if self.keep_networks else {"keeps_network": False}
        return {**environment, **described, "engine": engine, "trainer": TRAINER_VERSION, "seed": run.seed}

    def _engine(self) -> Engine:
        if self.engine is None:
            raise RuntimeError("the engine exists only while a group is trained")
        return self.engine

    def _train(
        self, run: PlannedRun, folder: RunFolder, slot: Slot, should_stop: ShouldStop, time_slice: TimeSlice
    ) -> RunSteps[RunResult]:
        """Train; an error of the run itself becomes a failed result."""
        try:
            steps = train_run(
                run.recipe,
                run.seed,
                self._on_device(run.data_key, slot.device),
                precision=run.precision,
                folder=folder,
                should_stop=partial(should_stop, run.key),
                step_seconds=self.step_seconds,
                checkpoint_seconds=self.checkpoint_seconds,
                engine=self._engine(),
                stream=time_slice.stream,
                keep_network=self.keep_networks,
            )
            with closing(steps):
                while True:
                    event = next(steps)
                    if isinstance(event, Started):  # who receives Started reads the folder
                        self._update_environment(run, folder, slot, time_slice)
                    yield None if event is None else (run.key, event)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]
        except (Stopped, OutputError):
            raise
        except AblateError as error:
            reason = str(error)
        except Exception as error:
            if is_out_of_memory(error) and time_slice.num_slices > 1:
                self._free_memory(slot, time_slice)
                raise OutOfMemoryWhenShared from error  # it may fit alone
            reason = _reason(error, run.recipe.batch_size)
            write_atomically(folder.path / "failure.txt", traceback.format_exc())
        self._free_memory(slot, time_slice)
        result = RunResult("failed", len(folder.history()), 0, 0, {}, reason)
        folder.write_result(result)
        return result

    def _free_memory(self, slot: Slot, time_slice: TimeSlice) -> None:
        """Free what a failed run holds, for the next one."""
        self._engine().drop(time_slice.stream)
        if slot.device.kind == "cuda":
            torch.cuda.empty_cache()

    def _on_device(self, key: DataKey, device: Device) -> DeviceData:
        if self.resident is None or self.resident[:2] != (key, device):
            self._engine().keep_streams(0)  # two data sets may not fit on the device
            self.resident = None
            self.resident = (key, device, to_device(self.data[key], device.torch))
        return self.resident[2]


def _reason(error: Exception, batch_size: int) -> str:
    """Why a run failed, in one line."""
    if is_out_of_memory(error):
        return str(out_of_memory(error, batch_size))
    return f"{type(error).__name__}: {error}".split("\n", 1)[0]


def _elsewhere(folder: RunFolder) -> Ended:
    owner = process_from_text(holder(folder.lock) or "")
    return Ended("elsewhere", f"is being trained by {owner or 'another run command'}")
