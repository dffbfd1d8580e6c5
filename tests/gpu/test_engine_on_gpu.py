"""The engine on a real GPU: captured steps, runs in turn, no waiting inside an epoch, and what memory allows."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cifar_ablate.data import load_data
from cifar_ablate.device import find_device, is_out_of_memory
from cifar_ablate.record.folder import RunFolder
from cifar_ablate.runner.train_group import RunSteps, TimeSlice, take_turns
from cifar_ablate.spec.schema import Recipe
from cifar_ablate.training import step as step_module
from cifar_ablate.training.batches import DeviceData, to_device
from cifar_ablate.training.engine import Engine, EngineOptions, Mode, choose_mode, has_c_compiler
from cifar_ablate.training.events import Steps, finish
from cifar_ablate.training.state import TrainState, set_up
from cifar_ablate.training.step import optimize
from cifar_ablate.training.train import Stopped, train_run
from tests.gpu.test_training_on_gpu import RECIPE

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device here"),
]
CAPTURED = Mode(capture=True, capture_is_forced=True)
ADAMW = {"name": "adamw", "lr": 2**-12}
GENTLE = {"name": "sgd", "lr": 2**-8, "momentum": 0.9, "nesterov": True}
"""Rates that float32 holds, so small that the rounding of one step does not become another training in ten."""


@pytest.fixture(scope="module")
def data() -> DeviceData:
    return to_device(load_data("digits", {}), torch.device("cuda"))


def losses(state: TrainState, epochs: int = 2) -> list[float]:
    """The mean loss of each epoch."""
    found = []
    for number in range(epochs):
        for total in state.train_step.sums.values():
            total.zero_()
        first = number * state.num_steps
        state.train_step.load_epoch(
            state.seed, number, state.base_lr * state.lr_factors[first : first + state.num_steps], 0
        )
        state.model.train()
        for step in range(state.num_steps):
            state.train_step(step)
        found.append(state.train_step.sums["loss"].item() / len(state.data.train_labels))
    return found


def recipe(**fields: Any) -> Recipe:
    return Recipe.model_validate(RECIPE | {"optimizer": GENTLE} | fields)


def test_auto_captures_here(data: DeviceData) -> None:
    assert choose_mode(EngineOptions(), find_device()).capture
    assert set_up(recipe(), 0, data, "fp32", Engine(CAPTURED)).train_step.is_captured


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"optimizer": ADAMW},
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
        state = set_up(recipe(), 0, data, "bf16", Engine(mode))
        losses(state, 1)
        state.train_step.load_epoch(0, 0, state.base_lr * state.lr_factors[: state.num_steps], 0)
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            for step in range(state.num_steps):
                state.train_step(step)
        finally:
            torch.cuda.set_sync_debug_mode("default")


def test_dropout_of_a_captured_step_draws_anew_each_time(data: DeviceData) -> None:
    model = {"name": "resnet18-compact", "width": 8, "dropout": 0.5}
    constant = recipe(model=model, augment={}, optimizer={"name": "sgd", "lr": 1e-12})
    state = set_up(constant, 0, data, "fp32", Engine(CAPTURED))
    state.train_step.load_epoch(0, 0, 0 * state.lr_factors[: state.num_steps], 0)
    state.model.train()
    seen = set()
    for _ in range(3):
        state.train_step.position.zero_()
        state.train_step.index.zero_()
        state.train_step(0)
        seen.add(state.train_step.loss.item())
    assert len(seen) == 3


def train(folder: RunFolder, chosen: Recipe, data: DeviceData, **options: Any) -> Steps[None]:
    """All steps of a run in fp32, seed 0; captured if not said otherwise."""
    folder.create({}, {})
    yield from train_run(chosen, 0, data, precision="fp32", folder=folder, **{"engine": Engine(CAPTURED)} | options)


def epoch_losses(folder: RunFolder) -> list[float]:
    return [line["train_loss"] for line in folder.history()]


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"optimizer": ADAMW},
        {"model": "test_vit", "optimizer": {"name": "adamw", "lr": 1e-3}},
    ],
    ids=str,
)
def test_runs_in_turn_learn_as_runs_alone_do(fields: dict[str, Any], data: DeviceData, tmp_path: Path) -> None:
    """Three streams; one gets another arm, which is captured anew, while the others go on."""
    arms = [recipe(epochs=epochs, eval_every=1, **fields) for epochs in (1, 2, 2)]
    arms += [recipe(epochs=1, augment={"hflip": {}}, **fields), recipe(epochs=1, ema={"decay": 0.9}, **fields)]
    engine = Engine(CAPTURED)

    def work(number: int) -> Any:
        def steps(time_slice: TimeSlice) -> RunSteps[None]:
            for _ in train(
                RunFolder(tmp_path / f"{number}"), arms[number], data, engine=engine, stream=time_slice.stream
            ):
                yield None

        return steps

    streams = partial(engine.cuda_stream, device=torch.device("cuda"))
    assert finish(take_turns([work(number) for number in range(len(arms))], 3, streams)) == []
    for number, arm in enumerate(arms):
        alone = RunFolder(tmp_path / f"{number}-alone")
        finish(train(alone, arm, data, engine=Engine()))
        assert epoch_losses(RunFolder(tmp_path / f"{number}")) == pytest.approx(epoch_losses(alone), rel=2e-2)


def test_a_captured_run_goes_on_where_it_was_stopped(data: DeviceData, tmp_path: Path) -> None:
    chosen, engine = recipe(epochs=2, eval_every=1, ema={"decay": 0.9}), Engine(CAPTURED)
    stopped, whole = RunFolder(tmp_path / "stopped"), RunFolder(tmp_path / "whole")
    num_steps, asked = len(data.train_labels) // 64 + 5, count()  # in the middle of epoch 2, after an evaluation
    with pytest.raises(Stopped):
        finish(train(stopped, chosen, data, engine=engine, should_stop=lambda: next(asked) >= num_steps))
    finish(train(RunFolder(tmp_path / "between"), recipe(epochs=1), data, engine=engine))
    finish(train(stopped, chosen, data, engine=engine))
    finish(train(whole, chosen, data))
    assert epoch_losses(stopped) == pytest.approx(epoch_losses(whole), rel=2e-2)


def test_the_last_batch_of_an_epoch_is_smaller_and_captured_too(data: DeviceData) -> None:
    state = set_up(recipe(), 0, data, "fp32", Engine(CAPTURED))
    assert set(state.train_step.graphs) == {64, len(data.train_labels) % 64}


@pytest.mark.skipif(
    find_spec("triton") is None or not has_c_compiler(), reason="torch compiles for a GPU with triton and a C compiler"
)
def test_compiled_and_captured_steps_train_as_called_ones_do(data: DeviceData) -> None:
    engine = Engine(Mode(compile=True, capture=True, capture_is_forced=True))
    compiled, called = (losses(set_up(recipe(), 0, data, "fp32", one), 1) for one in (engine, Engine()))
    assert compiled == pytest.approx(called, rel=2e-2)


def test_a_step_that_asks_the_device_something_is_called_instead(
    data: DeviceData, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a network does that is not made for captures; what was being captured must leave nothing broken behind."""

    def asking(*arguments: Any) -> tuple[Tensor, Tensor]:
        loss, logits = optimize(*arguments)
        return loss * loss.item(), logits

    monkeypatch.setattr(step_module, "optimize", asking)
    state = set_up(recipe(), 0, data, "fp32", Engine(Mode(capture=True)))
    monkeypatch.undo()
    assert not state.train_step.is_captured
    assert "cannot be captured" in state.train_step.why_not_captured
    assert "capturing" in state.train_step.why_not_captured  # what was wrong, not that the capture ended
    assert losses(state, 1) == pytest.approx(losses(set_up(recipe(), 0, data, "fp32"), 1), rel=2e-2)


def test_out_of_memory_is_known(data: DeviceData) -> None:
    images, labels = data.train_images.repeat(100, 1, 1, 1), data.train_labels.repeat(100)
    many = replace(data, train_images=images, train_labels=labels)
    huge = recipe(model="resnet18", batch_size=100_000)
    with pytest.raises(RuntimeError) as caught:
        losses(set_up(huge, 0, many, "fp32"), 1)
    assert is_out_of_memory(caught.value)
    torch.cuda.empty_cache()
