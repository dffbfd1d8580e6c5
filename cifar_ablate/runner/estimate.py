"""How long runs will take, measured on this device with the real network, data and augmentations."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import torch

from cifar_ablate.data import DataSet
from cifar_ablate.device import Device
from cifar_ablate.plan import DataKey, PlannedRun
from cifar_ablate.training.batches import DeviceData, plan_epoch, to_device
from cifar_ablate.training.fit import set_up
from cifar_ablate.training.step import optimize

EVAL_SHARE = 1 / 3
"""Cost of evaluating one image over training on it: the forward pass without the backward one."""
MIN_SECONDS = 0.5
MAX_STEPS = 20


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
    fit = set_up(run.recipe, run.seed, data, run.precision)
    num = len(data.train_labels)
    # a CPU is as fast per image at 64 as at 512, and a step of 512 through resnet18 takes it 5 s
    size = min(run.recipe.batch_size, num, 64 if data.mean.device.type == "cpu" else run.recipe.batch_size)
    draws = fit.pipeline.draw_epoch(plan_epoch(run.seed, 0, data), data.mean.device)
    fit.model.train()

    def step() -> None:
        batch = fit.pipeline(data.train_images[:size], data.train_labels[:size], draws, 0)
        optimize(fit.network, batch.images, batch.targets)

    step()
    _wait(data.mean.device)
    begun, steps = time.perf_counter(), 0
    while steps < MAX_STEPS and time.perf_counter() - begun < MIN_SECONDS:
        step()
        steps += 1
    _wait(data.mean.device)
    return steps * size / (time.perf_counter() - begun)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
