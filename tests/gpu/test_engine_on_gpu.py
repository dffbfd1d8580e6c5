"""The engine on a real GPU: captured steps, runs in turn, no waiting inside an epoch, and what memory allows."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from cifar_ablate.data import load_data
from cifar_ablate.device import find_device, is_out_of_memory
from cifar_ablate.folder import RunFolder
from cifar_ablate.runner.turns import Turn, take_turns
from cifar_ablate.spec.schema import Recipe
from cifar_ablate.training.batches import DeviceData, to_device
from cifar_ablate.training.engine import Engine, EngineOptions, Mode, choose_mode
from cifar_ablate.training.epoch import Steps, finish
from cifar_ablate.training.fit import Fit, set_up
from cifar_ablate.training.train import train_run
from tests.gpu.test_training_on_gpu import RECIPE, Silent

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device here"),
]
CAPTURED = Mode(capture=True)


@pytest.fixture(scope="module")
def data() -> DeviceData:
    return to_device(load_data("digits", {}), torch.device("cuda"))


def losses(fit: Fit, epochs: int = 2) -> list[float]:
    """The mean loss of each epoch."""
    found = []
    for number in range(epochs):
        for total in fit.stepper.sums.values():
            total.zero_()
        first = number * fit.num_steps
        fit.stepper.load_epoch(fit.seed, number, fit.base_lr * fit.lr_factors[first : first + fit.num_steps], 0)
        fit.model.train()
        for step in range(fit.num_steps):
            fit.stepper(step)
        found.append(fit.stepper.sums["loss"].item() / len(fit.data.train_labels))
    return found


def recipe(**fields: Any) -> Recipe:
    return Recipe.model_validate(RECIPE | fields)


def test_auto_captures_here(data: DeviceData) -> None:
    assert choose_mode(EngineOptions(), find_device()).capture
    assert set_up(recipe(), 0, data, "fp32", Engine(CAPTURED)).stepper.is_captured


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"optimizer": {"name": "adamw", "lr": 1e-3}},
        {"ema": {"decay": 0.9}},
        {"schedule": {"name": "step", "every_epochs": 1, "gamma": 0.5}},
    ],
    ids=str,
)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_captured_steps_train_as_called_ones_do(fields: dict[str, Any], precision: str, data: DeviceData) -> None:
    engine = Engine(CAPTURED)
    losses(set_up(recipe(**fields), 1, data, precision, engine))  # the second run finds everything captured
    captured = losses(set_up(recipe(**fields), 0, data, precision, engine))
    called = losses(set_up(recipe(**fields), 0, data, precision))
    assert captured == pytest.approx(called, rel=2e-2)


def test_nothing_is_waited_for_inside_an_epoch(data: DeviceData) -> None:
    for mode in (Mode(), CAPTURED):
        fit = set_up(recipe(), 0, data, "bf16", Engine(mode))
        losses(fit, 1)
        fit.stepper.load_epoch(0, 0, fit.base_lr * fit.lr_factors[: fit.num_steps], 0)
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            for step in range(fit.num_steps):
                fit.stepper(step)
        finally:
            torch.cuda.set_sync_debug_mode("default")


def test_dropout_of_a_captured_step_draws_anew_each_time(data: DeviceData) -> None:
    model = {"name": "resnet18-compact", "width": 8, "dropout": 0.5}
    constant = recipe(model=model, augment={}, optimizer={"name": "sgd", "lr": 1e-12})
    fit = set_up(constant, 0, data, "fp32", Engine(CAPTURED))
    fit.stepper.load_epoch(0, 0, 0 * fit.lr_factors[: fit.num_steps], 0)
    fit.model.train()
    seen = set()
    for _ in range(3):
        fit.stepper.position.zero_()
        fit.stepper.index.zero_()
        fit.stepper(0)
        seen.add(fit.stepper.loss.item())
    assert len(seen) == 3


def test_runs_in_turn_learn_as_runs_alone_do(data: DeviceData, tmp_path: Path) -> None:
    engine, ended = Engine(CAPTURED), {}

    def work(seed: int) -> Any:
        def steps(turn: Turn) -> Steps[None]:
            folder = RunFolder(tmp_path / str(seed))
            folder.create({}, {})
            ended[seed] = yield from train_run(
                recipe(), seed, data, precision="bf16", folder=folder, watcher=Silent(), engine=engine, lane=turn.lane
            )

        return steps

    streams = partial(engine.stream, device=torch.device("cuda"))
    assert take_turns([work(seed) for seed in range(6)], 3, streams) == []
    for seed in range(6):
        folder = RunFolder(tmp_path / f"alone-{seed}")
        folder.create({}, {})
        alone = finish(train_run(recipe(), seed, data, precision="bf16", folder=folder, watcher=Silent()))
        assert ended[seed].metrics["test_accuracy"] == pytest.approx(alone.metrics["test_accuracy"], abs=6)


def test_out_of_memory_is_known(data: DeviceData) -> None:
    images, labels = data.train_images.repeat(100, 1, 1, 1), data.train_labels.repeat(100)
    many = replace(data, train_images=images, train_labels=labels)
    huge = recipe(model={"name": "resnet18", "width": 1024}, batch_size=100_000)
    with pytest.raises(RuntimeError) as caught:
        losses(set_up(huge, 0, many, "fp32"), 1)
    assert is_out_of_memory(caught.value)
    torch.cuda.empty_cache()
