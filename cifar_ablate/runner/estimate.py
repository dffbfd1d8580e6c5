"""Estimates of training time, measured on this device with the real network, data and augmentations."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from cifar_ablate.data import DataSet
from cifar_ablate.device import Slot, is_out_of_memory, on_stream
from cifar_ablate.plan import DataKey, PlannedRun
from cifar_ablate.training.batches import DeviceData, to_device
from cifar_ablate.training.engine import Engine, EngineOptions, choose_mode, draws_at_random
from cifar_ablate.training.state import set_up

EVAL_SHARE = 1 / 3
"""Cost of evaluating an image relative to training on it: a forward pass without the backward pass."""
SECONDS = 0.5
"""Duration of the measurement of one kind of work."""
CPU_BATCH = 64


def images_of(run: PlannedRun, data: DataSet) -> float:
    """Work of a run in training images; an evaluated image counts as EVAL_SHARE of one."""
    recipe, num_train, num_test = run.recipe, len(data.train_labels), len(data.test_labels)
    num_evals = (recipe.epochs - 1) // recipe.eval_every if recipe.eval_every else 0
    return recipe.epochs * num_train + EVAL_SHARE * (num_evals * num_test + num_test + num_train)


Kind = tuple[str, tuple[str, ...]]


def kind_of_work(run: PlannedRun) -> Kind:
    """Shape and augmentations. Runs with equal ones take the same time per image."""
    return run.shape, tuple(run.recipe.augment)


@dataclass(frozen=True)
class Throughput:
    """Training speed of one kind of work in a slot."""

    of_each: float
    """Training images per second of each run while all of the slot train; nan if it could not be measured."""
    num_in_turn: int
    """Number of runs that train in the slot together."""


def measure_rates(runs: Sequence[PlannedRun], data: Mapping[DataKey, DataSet], slot: Slot) -> dict[Kind, Throughput]:
    """The throughput of each kind of work in ``runs`` in one slot, from a few steps each.

    Nothing is compiled, because that takes longer than the measurement. A run that fails here gets nan: its error is
    reported when it is trained.
    """
    rates: dict[Kind, Throughput] = {}
    resident: tuple[DataKey, DeviceData] | None = None
    engine = Engine(replace(choose_mode(EngineOptions(), slot.device), compile=False))
    for run in runs:
        if kind_of_work(run) in rates:
            continue
        if resident is None or resident[0] != run.data_key:
            engine.keep_streams(0)  # they hold the previous data
            resident = None
            resident = (run.data_key, to_device(data[run.data_key], slot.device.torch))
        num = num_in_turn(run, data[run.data_key], slot)
        rates[kind_of_work(run)] = _rate(run, resident[1], engine, num)
    return rates


def _rate(run: PlannedRun, data: DeviceData, engine: Engine, num: int) -> Throughput:
    """The throughput of ``num`` runs together, or of as many as fit into memory."""
    engine.keep_streams(num)
    try:
        return Throughput(rate_in_turn([Probe(run, data, engine, stream) for stream in range(num)], SECONDS) / num, num)
    except Exception as error:
        if num == 1 or not is_out_of_memory(error):
            return Throughput(math.nan, num)
    engine.keep_streams(0)
    return _rate(run, data, engine, num // 2)


def num_in_turn(run: PlannedRun, data: DataSet, slot: Slot) -> int:
    """How many runs of this shape train together in a slot.

    It is one for a network that draws random numbers in training (dropout), because runs would share their generator.
    """
    alone = slot.num_slices == 1 or draws_at_random(run.recipe, data.num_classes, data.image_size_px)
    return 1 if alone else slot.num_slices


class Probe:
    """Real training steps of a run to be timed, with smaller batches on a CPU."""

    def __init__(self, run: PlannedRun, data: DeviceData, engine: Engine | None = None, stream: int = 0) -> None:
        # a CPU is as fast per image at 64 as at 512, and a step of 512 through resnet18 takes it 5 s
        size = min(run.recipe.batch_size, len(data.train_labels))
        self.device = data.mean.device
        tried = min(size, CPU_BATCH) if self.device.type == "cpu" else size
        self.scale = size / tried
        """The run's batch size divided by the measured one."""
        recipe = run.recipe.model_copy(update={"batch_size": tried})
        engine = engine or Engine()
        self.state = set_up(recipe, run.seed, data, run.precision, engine, stream)
        self.state.model.train()
        self.cuda_stream = engine.cuda_stream(stream, self.device)
        self.num_whole = len(data.train_labels) // tried
        self.taken = 0

    def step(self) -> int:
        """Take one step and return its number of images."""
        step = self.taken % self.num_whole
        with on_stream(self.cuda_stream):
            if step == 0:
                rates = self.state.base_lr * self.state.lr_factors[: self.state.num_steps]
                self.state.train_step.load_epoch(self.state.seed, 0, rates, 0)
            self.taken += 1
            return self.state.train_step(step)

    def wait(self) -> None:
        """Wait until the device has finished all steps."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def rate_in_turn(probes: Sequence[Probe], seconds: float) -> float:
    """Images per second of all probes together, which take steps in turn, after one step each to warm up."""
    steps = 10 if probes[0].device.type == "cuda" else 1  # waiting after each step would leave a GPU idle
    for probe in probes:
        probe.step()
    probes[0].wait()
    begun, num = time.perf_counter(), 0
    while time.perf_counter() - begun < seconds:
        num += sum(probe.step() for _ in range(steps) for probe in probes)
        probes[0].wait()
    return num / (time.perf_counter() - begun)
