"""Train a group of runs into their folders, wherever an executor calls it; it knows nothing of MLflow."""

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
from cifar_ablate.device import Device, Place, is_out_of_memory, on_stream, out_of_memory
from cifar_ablate.environment import describe_environment, git_state
from cifar_ablate.errors import AblateError, OutputError, RecordError
from cifar_ablate.folder import RunFolder, RunResult, write_atomically
from cifar_ablate.locks import holder, lock
from cifar_ablate.owner import Owner, owner_from
from cifar_ablate.plan import TRAINER_VERSION, DataKey, PlannedRun
from cifar_ablate.runner.artifacts import write_artifacts
from cifar_ablate.runner.estimate import num_in_turn
from cifar_ablate.runner.events import Ended, Group, RunEvent, RunEvents, ShouldStop
from cifar_ablate.training.batches import DeviceData, to_device
from cifar_ablate.training.engine import Engine, EngineOptions, choose_mode
from cifar_ablate.training.epoch import Stopped
from cifar_ablate.training.events import Result, Started
from cifar_ablate.training.train import train_run

WAIT_SECONDS = 0.5
"""Pause between two checks whether another process has finished a trial of the same values."""


class OutOfMemoryWhenShared(Exception):  # noqa: N818  no error: the training has to wait
    """A training found no memory beside the others."""


@dataclass
class TimeSlice:
    """One training's share of a device that several use in turn."""

    stream: int
    """Number of its stream, from 0; what belongs to a stream is used by one training at a time."""
    num_slices: int
    """Maximum number of trainings at the same time."""


RunSteps = Generator[RunEvent | None, None, Result]
"""A run's training: yields after every step, an event or None."""
Training = Callable[[TimeSlice], RunSteps[None]]


@dataclass
class _Active:
    time_slice: TimeSlice
    stream: Any
    training: Training | None = None
    steps: RunSteps[None] | None = None


def take_turns(
    trainings: Sequence[Training], num_slices: int, stream_of: Callable[[int], Any] = lambda stream: None
) -> Generator[RunEvent, None, list[Training]]:
    """Train all, ``num_slices`` at a time, one step each in turn; return those that ran out of memory beside others.

    While the device works on one run's step, the host issues the next run's. On a GPU each run has its own stream, so
    steps that leave parts of the device idle overlap. One thread does it all: no capture, allocation or random draw of
    one run falls into another's step, so a neighbour does not change a run: not one bit on a CPU.
    ``stream_of``: the torch.cuda.Stream of a number, or None.
    """
    waiting, crowded = deque(trainings), []
    num = min(num_slices, len(trainings))
    slices = [_Active(TimeSlice(one, num), stream_of(one) if num > 1 else None) for one in range(num)]
    try:
        while waiting or any(one.steps is not None for one in slices):
            for one in slices:
                if one.steps is None and waiting:
                    one.training = waiting.popleft()
                    one.steps = one.training(one.time_slice)
                if one.steps is None:
                    continue
                event = None
                try:
                    with on_stream(one.stream):
                        event = next(one.steps)
                except StopIteration:
                    one.steps = None
                except OutOfMemoryWhenShared:
                    one.steps = None
                    crowded += [one.training] if one.training else []
                if event is not None:
                    yield event
    finally:
        for one in slices:
            if one.steps is not None:
                one.steps.close()
    return crowded


@dataclass
class GroupTrainer:
    """Trains groups of runs, one after the other or several in turn; it can be pickled before its first call."""

    data: Mapping[DataKey, DataSet]
    runs_root: Path
    """Absolute: a worker may live in another folder."""
    retry_failed: bool
    checkpoint_seconds: float
    step_seconds: float | None
    """Time between two steps that are told; None: none is."""
    owner: Owner
    """Who is told to train these runs: the command, not the worker, for that is whom a person can stop."""
    options: EngineOptions = field(default_factory=EngineOptions)
    num_images: Mapping[str, int] = field(default_factory=dict)
    """To be trained by the whole command, by shape."""
    keep_networks: bool = True
    """Weights, predictions and training accuracy of finished runs: trials of a tuning leave their history alone."""
    git: tuple[str, bool] = field(default_factory=git_state)
    """Of the command's folder: a node of a cluster may be in another repository, or in none."""
    patience_seconds: float = 0.0
    """A folder that is locked in our own command's name, by a process that is about to end, is waited for so long."""
    resident: tuple[DataKey, Device, DeviceData] | None = field(default=None, init=False)
    """The data set on the device; one at a time is kept there."""
    engine: Engine | None = field(default=None, init=False)

    def __call__(self, group: Group, place: Place, should_stop: ShouldStop) -> RunEvents:
        place.enter()
        mode = choose_mode(self.options, place.device, self.num_images.get(group[0].shape, 0))
        if self.engine is None or self.engine.mode != mode:
            self.engine = Engine(mode)
        self.engine.mode = mode  # the reasons can differ
        num_slices = num_in_turn(group[0], self.data[group[0].data_key], place)
        self.engine.keep_lanes(num_slices)
        streams = partial(self.engine.stream, device=place.device.torch)
        trainings: dict[Training, PlannedRun] = {partial(self._steps_of, run, place, should_stop): run for run in group}
        for crowded in (yield from take_turns(list(trainings), num_slices, streams)):
            self.engine.keep_lanes(0)
            if place.device.kind == "cuda":
                torch.cuda.empty_cache()
            if should_stop(trainings[crowded].key):  # it had started, so its end is awaited
                yield trainings[crowded].key, Ended("stopped")
            else:
                yield from take_turns([crowded], 1)

    def _steps_of(
        self, run: PlannedRun, place: Place, should_stop: ShouldStop, time_slice: TimeSlice
    ) -> RunSteps[None]:
        folder = RunFolder(self.runs_root / run.fingerprint)
        patient_until = time.monotonic() + self.patience_seconds
        while not should_stop(run.key):
            with lock(folder.lock, owner=self.owner.to_text()) as is_mine:  # only one process trains a run
                if is_mine or (self.keep_networks and not (time.monotonic() < patient_until and self._lets_go(folder))):
                    if is_mine:
                        ended = yield from self._train_or_share(run, folder, place, should_stop, time_slice)
                    else:
                        ended = _elsewhere(folder)
                    yield run.key, ended
                    return
            if time_slice.num_slices == 1:  # a trial waits for its twin and then takes its result
                time.sleep(WAIT_SECONDS)
            yield None

    def _lets_go(self, folder: RunFolder) -> bool:
        """Is a folder that was locked a moment ago free by now, or locked by this command?"""
        owner = holder(folder.lock)
        return owner is None or owner_from(owner) == self.owner

    def _train_or_share(
        self, run: PlannedRun, folder: RunFolder, place: Place, should_stop: ShouldStop, time_slice: TimeSlice
    ) -> RunSteps[Ended]:
        """Train a run, or take the result that its folder already holds."""
        try:
            earlier = folder.result()
            if earlier is not None and not (earlier.status == "failed" and self.retry_failed):
                folder.tidy()
                if earlier.status != "failed":
                    folder.drop_checkpoints()
                write_artifacts(folder, self.data[run.data_key].classes)  # a damaged folder ends here
                return Ended("shared", earlier.reason, earlier)
            folder.create(run.recipe.as_dict(), self._environment(run, place, time_slice))
            folder.clear_result()
            result = yield from self._train(run, folder, place, should_stop, time_slice)
            write_artifacts(folder, self.data[run.data_key].classes)
        except Stopped:
            return Ended("stopped")
        except RecordError as error:  # the other runs have their own folders
            return Ended("damaged", str(error))
        except OutputError as error:  # the run can resume once there is room
            return Ended("stopped", str(error), halts=True)
        return Ended(result.status, result.reason, result)

    def _describe(self, run: PlannedRun, folder: RunFolder, place: Place, time_slice: TimeSlice) -> None:
        """Update the environment with how the run is really trained: a step that could not be captured is called."""
        environment = self._environment(run, place, time_slice)
        if environment != folder.environment():
            folder.describe(environment)

    def _environment(self, run: PlannedRun, place: Place, time_slice: TimeSlice) -> dict[str, Any]:
        data = self.data[run.data_key]
        mode = self._engine().mode_of(run.recipe, time_slice.stream)
        engine = {
            "compile": mode.compile,
            "capture": mode.capture,
            "why": mode.why,
            "side_by_side": time_slice.num_slices,
        }
        described: dict[str, Any] = {"data": data.describe(), "data_digest": data.digest, "classes": list(data.classes)}
        environment = describe_environment(place.device, place.threads, self.git)
        described |= {} if self.keep_networks else {"keeps_network": False}
        return {**environment, **described, "engine": engine, "trainer": TRAINER_VERSION, "seed": run.seed}

    def _engine(self) -> Engine:
        if self.engine is None:
            raise RuntimeError("a run outside of a group")
        return self.engine

    def _train(
        self, run: PlannedRun, folder: RunFolder, place: Place, should_stop: ShouldStop, time_slice: TimeSlice
    ) -> RunSteps[RunResult]:
        """Train; whatever is wrong with the run itself becomes a failed result."""
        try:
            steps = train_run(
                run.recipe,
                run.seed,
                self._on_device(run.data_key, place.device),
                precision=run.precision,
                folder=folder,
                should_stop=partial(should_stop, run.key),
                step_seconds=self.step_seconds,
                checkpoint_seconds=self.checkpoint_seconds,
                engine=self._engine(),
                lane=time_slice.stream,
                keep_network=self.keep_networks,
            )
            with closing(steps):
                while True:
                    event = next(steps)
                    if isinstance(event, Started):  # whoever hears of the start reads the folder
                        self._describe(run, folder, place, time_slice)
                    yield None if event is None else (run.key, event)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]
        except (Stopped, OutputError):
            raise
        except AblateError as error:
            reason = str(error)
        except Exception as error:
            if is_out_of_memory(error) and time_slice.num_slices > 1:
                self._let_go(place, time_slice)
                raise OutOfMemoryWhenShared from error  # not its own fault: it is trained alone, later
            reason = _reason(error, run.recipe.batch_size)
            write_atomically(folder.path / "failure.txt", traceback.format_exc())
        self._let_go(place, time_slice)
        result = RunResult("failed", len(folder.history()), 0, 0, {}, reason)
        folder.write_result(result)
        return result

    def _let_go(self, place: Place, time_slice: TimeSlice) -> None:
        """What a failed run held may be what the next one lacks."""
        self._engine().drop(time_slice.stream)
        if place.device.kind == "cuda":
            torch.cuda.empty_cache()

    def _on_device(self, key: DataKey, device: Device) -> DeviceData:
        if self.resident is None or self.resident[:2] != (key, device):
            self._engine().keep_lanes(0)  # two data sets at once may be too much for the device
            self.resident = None
            self.resident = (key, device, to_device(self.data[key], device.torch))
        return self.resident[2]


def _reason(error: Exception, batch_size: int) -> str:
    """Why a run failed, in one line."""
    if is_out_of_memory(error):
        return str(out_of_memory(error, batch_size))
    return f"{type(error).__name__}: {error}".split("\n", 1)[0]


def _elsewhere(folder: RunFolder) -> Ended:
    owner = owner_from(holder(folder.lock) or "")
    return Ended("elsewhere", f"is being trained by {owner or 'another run command'}")
