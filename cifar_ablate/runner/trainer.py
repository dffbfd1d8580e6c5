"""Train a group of runs into their folders, wherever an executor calls it; it knows nothing of MLflow."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from cifar_ablate.data import DataSet
from cifar_ablate.device import Device, Place, is_out_of_memory, out_of_memory
from cifar_ablate.environment import describe_environment, git_state
from cifar_ablate.errors import AblateError, OutputError, RecordError
from cifar_ablate.folder import RunFolder, RunResult, write_atomically
from cifar_ablate.locks import holder, lock
from cifar_ablate.owner import Owner, owner_from
from cifar_ablate.plan import TRAINER_VERSION, DataKey, PlannedRun
from cifar_ablate.runner.artifacts import write_artifacts
from cifar_ablate.runner.estimate import num_in_turn
from cifar_ablate.runner.messages import Channel, Ended, EpochEnded, Group, Started, Stepped
from cifar_ablate.runner.turns import Crowded, Turn, Work, take_turns
from cifar_ablate.training.batches import DeviceData, to_device
from cifar_ablate.training.engine import Engine, EngineOptions, choose_mode
from cifar_ablate.training.epoch import Steps, Stopped, Watcher
from cifar_ablate.training.train import train_run

WAIT_SECONDS = 0.5
"""Between two looks at whether another process is done with a trial of the same values."""


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

    def __call__(self, group: Group, place: Place, channel: Channel) -> None:
        place.enter()
        mode = choose_mode(self.options, place.device, self.num_images.get(group[0].shape, 0))
        if self.engine is None or self.engine.mode != mode:
            self.engine = Engine(mode)
        self.engine.mode = mode  # its reason may be another one
        side_by_side = num_in_turn(group[0], self.data[group[0].data_key], place)
        self.engine.keep_lanes(side_by_side)
        streams = partial(self.engine.stream, device=place.device.torch)
        works: dict[Work, PlannedRun] = {partial(self._steps_of, run, place, channel): run for run in group}
        for crowded in take_turns(list(works), side_by_side, streams):
            self.engine.keep_lanes(0)
            if place.device.kind == "cuda":
                torch.cuda.empty_cache()
            if channel.should_stop(works[crowded].key):  # it had begun, so somebody waits for its end
                channel.tell(Ended(works[crowded].key, "stopped"))
            take_turns([crowded], 1)

    def _steps_of(self, run: PlannedRun, place: Place, channel: Channel, turn: Turn) -> Steps[None]:
        folder = RunFolder(self.runs_root / run.fingerprint)
        patient_until = time.monotonic() + self.patience_seconds
        while not channel.should_stop(run.key):
            with lock(folder.lock, note=self.owner.to_text()) as mine:  # of two processes, one trains the run
                if mine or (self.keep_networks and not (time.monotonic() < patient_until and self._lets_go(folder))):
                    is_mine = self._end_of(run, folder, place, channel, turn)
                    ended = (yield from is_mine) if mine else _elsewhere(run, folder)
                    channel.tell(ended)
                    return
            if turn.num_lanes == 1:  # a trial waits for its twin, and has its result then
                time.sleep(WAIT_SECONDS)
            yield

    def _lets_go(self, folder: RunFolder) -> bool:
        """Is a folder that was locked a moment ago free by now, or locked in our own command's name?"""
        note = holder(folder.lock)
        return note is None or owner_from(note) == self.owner

    def _end_of(self, run: PlannedRun, folder: RunFolder, place: Place, channel: Channel, turn: Turn) -> Steps[Ended]:
        """Train a run, or take what its folder holds already."""
        try:
            earlier = folder.result()
            if earlier is not None and not (earlier.status == "failed" and self.retry_failed):
                folder.tidy()
                if earlier.status != "failed":
                    folder.drop_checkpoints()
                write_artifacts(folder, self.data[run.data_key].classes)  # a damaged folder ends here
                return Ended(run.key, "shared", earlier.reason, earlier)
            self._open(run, folder, place, turn)
            result = yield from self._train(run, folder, place, channel, turn)
            write_artifacts(folder, self.data[run.data_key].classes)
        except Stopped:
            return Ended(run.key, "stopped")
        except RecordError as error:  # the other runs have folders of their own
            return Ended(run.key, "damaged", str(error))
        except OutputError as error:  # the run can go on where there is room again
            return Ended(run.key, "stopped", str(error), halts=True)
        return Ended(run.key, result.status, result.reason, result)

    def _open(self, run: PlannedRun, folder: RunFolder, place: Place, turn: Turn) -> None:
        folder.create(run.recipe.as_dict(), self._environment(run, place, turn))
        folder.clear_result()

    def _describe(self, run: PlannedRun, folder: RunFolder, place: Place, turn: Turn) -> None:
        """Write how it is really trained: a step that could not be captured is called."""
        environment = self._environment(run, place, turn)
        if environment != folder.environment():
            folder.describe(environment)

    def _environment(self, run: PlannedRun, place: Place, turn: Turn) -> dict[str, Any]:
        data = self.data[run.data_key]
        mode = self._engine().mode_of(run.recipe, turn.lane)
        engine = {"compile": mode.compile, "capture": mode.capture, "why": mode.why, "side_by_side": turn.num_lanes}
        described: dict[str, Any] = {"data": data.describe(), "data_digest": data.digest, "classes": list(data.classes)}
        environment = describe_environment(place.device, place.threads, self.git)
        described |= {} if self.keep_networks else {"keeps_network": False}
        return {**environment, **described, "engine": engine, "trainer": TRAINER_VERSION, "seed": run.seed}

    def _engine(self) -> Engine:
        if self.engine is None:
            raise RuntimeError("a run outside of a group")
        return self.engine

    def _train(
        self, run: PlannedRun, folder: RunFolder, place: Place, channel: Channel, turn: Turn
    ) -> Steps[RunResult]:
        """Train, turning whatever is wrong with the run itself into a result."""
        try:
            return (
                yield from train_run(
                    run.recipe,
                    run.seed,
                    self._on_device(run.data_key, place.device),
                    precision=run.precision,
                    folder=folder,
                    watcher=_Teller(run, channel, self.step_seconds, partial(self._describe, run, folder, place, turn)),
                    checkpoint_seconds=self.checkpoint_seconds,
                    engine=self._engine(),
                    lane=turn.lane,
                    keep_network=self.keep_networks,
                )
            )
        except (Stopped, OutputError):
            raise
        except AblateError as error:
            reason = str(error)
        except Exception as error:
            if is_out_of_memory(error) and turn.num_lanes > 1:
                self._let_go(place, turn)
                raise Crowded from error  # not its own fault: it is trained alone, later
            reason = _reason(error, run.recipe.batch_size)
            write_atomically(folder.path / "failure.txt", traceback.format_exc())
        self._let_go(place, turn)
        result = RunResult("failed", len(folder.history()), 0, 0, {}, reason)
        folder.write_result(result)
        return result

    def _let_go(self, place: Place, turn: Turn) -> None:
        """What a failed run held may be what the next one lacks."""
        self._engine().drop(turn.lane)
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


def _elsewhere(run: PlannedRun, folder: RunFolder) -> Ended:
    owner = owner_from(holder(folder.lock) or "")
    return Ended(run.key, "elsewhere", f"is being trained by {owner or 'another run command'}")


@dataclass
class _Teller(Watcher):
    """Passes on what a training tells."""

    run: PlannedRun
    channel: Channel
    step_seconds: float | None
    describe: Callable[[], None]
    last_step: float = 0.0

    def on_start(self, epochs_done: int, damaged: Sequence[Path]) -> None:
        self.describe()  # who hears of the start reads it
        self.channel.tell(Started(self.run.key, epochs_done, tuple(path.name for path in damaged)))

    def on_step(self, epoch: int, step: int, num_steps: int, loss: Callable[[], float]) -> None:
        if self.step_seconds is not None and time.monotonic() - self.last_step >= self.step_seconds:
            self.last_step = time.monotonic()
            self.channel.tell(Stepped(self.run.key, epoch, step, num_steps, loss()))

    def on_epoch(self, line: dict[str, Any]) -> None:
        self.channel.tell(EpochEnded(self.run.key, line))

    def should_stop(self) -> bool:
        return self.channel.should_stop(self.run.key)
