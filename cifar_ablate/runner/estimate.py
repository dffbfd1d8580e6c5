"""How long runs will take, measured on this device with the real network, data and augmentations."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import torch

from cifar_ablate.data import DataSet
from cifar_ablate.device import Device
from cifar_ablate.plan import DataKey, PlannedRun
from cifar_ablate.training.batches import DeviceData, to_device
from cifar_ablate.training.engine import Engine
from cifar_ablate.training.fit import set_up

EVAL_SHARE = 1 / 3
"""Cost of evaluating one image over training on it: the forward pass without the backward one."""
MIN_SECONDS = 0.5
MAX_STEPS = 20
CPU_BATCH = 64


def images_of(run: PlannedRun, data: DataSet) -> float:
    """Work of a run in training images: its epochs, and its evaluations at a third of their images."""
    recipe, num_train, num_test = run.recipe, len(data.train_labels), len(data.test_labels)
    num_evals = (recipe.epochs - 1) // recipe.eval_every if recipe.eval_every else 0
    return recipe.epochs * num_train + EVAL_SHARE * (num_evals * num_test + num_test + num_train)


Work = tuple[str, tuple[str, ...]]


def kind_of_work(run: PlannedRun) -> Work:
    """Runs of one kind take the same time per image: one shape, and the same augmentations."""
    return run.shape, tuple(run.recipe.augment)


def measure_rates(runs: Sequence[PlannedRun], data: Mapping[DataKey, DataSet], device: Device) -> dict[Work, float]:
    """Training images per second for each kind of work in ``runs``, from a few steps each after one to warm up."""
    rates: dict[Work, float] = {}
    resident: tuple[DataKey, DeviceData] | None = None
    for run in runs:
        if kind_of_work(run) in rates:
            continue
        if resident is None or resident[0] != run.data_key:
            resident = (run.data_key, to_device(data[run.data_key], device.torch))
        rates[kind_of_work(run)] = _rate(run, resident[1])
    return rates


def _rate(run: PlannedRun, data: DeviceData) -> float:
    trial = Trial(run, data)
    trial.step()
    trial.wait()
    begun, steps, num = time.perf_counter(), 0, 0
    while steps < MAX_STEPS and time.perf_counter() - begun < MIN_SECONDS:
        num += trial.step()
        steps += 1
    trial.wait()
    return num / (time.perf_counter() - begun)


class Trial:
    """A run's real steps, taken for their time alone; on a CPU with smaller batches."""

    def __init__(self, run: PlannedRun, data: DeviceData, engine: Engine | None = None, lane: int = 0) -> None:
        # a CPU is as fast per image at 64 as at 512, and a step of 512 through resnet18 takes it 5 s
        size = min(run.recipe.batch_size, len(data.train_labels))
        self.device = data.mean.device
        tried = min(size, CPU_BATCH) if self.device.type == "cpu" else size
        self.scale = size / tried
        """The run's batch over the one that is tried."""
        recipe = run.recipe.model_copy(update={"batch_size": tried})
        self.fit = set_up(recipe, run.seed, data, run.precision, engine, lane)
        self.num_whole = len(data.train_labels) // tried
        self.taken = 0

    def step(self) -> int:
        """Take a whole step; gives its number of images."""
        step = self.taken % self.num_whole
        if step == 0:
            rates = self.fit.base_lr * self.fit.lr_factors[: self.fit.num_steps]
            self.fit.stepper.load_epoch(self.fit.seed, 0, rates, 0)
        self.fit.model.train()
        self.taken += 1
        return self.fit.stepper(step)

    def wait(self) -> None:
        """Until the device has done what it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
