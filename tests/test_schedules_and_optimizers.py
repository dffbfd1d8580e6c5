"""Schedules against torch's, step for step; optimizers against torch's, and a contract for every registered one."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, LinearLR, LRScheduler, OneCycleLR, StepLR

from cifar_ablate.registry import OPTIMIZERS, SCHEDULES
from cifar_ablate.training.optim import parameter_groups, sgd

LENGTHS = [1, 2, 3, 10, 97, 500]
LR = 0.7
SomeOptimizer = torch.optim.Optimizer


def curve(name: str, total_steps: int, steps_per_epoch: int = 10, **options: Any) -> np.ndarray:
    values: np.ndarray = SCHEDULES.bind(name, options)(total_steps, steps_per_epoch)
    return values


def torch_curve(make: Callable[[SomeOptimizer], LRScheduler], num: int) -> list[float]:
    """Learning rate over LR in ``num`` steps of one of torch's schedulers."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=LR)
    scheduler = make(optimizer)
    values = []
    for index in range(num):
        values.append(optimizer.param_groups[0]["lr"] / LR)
        if index < num - 1:
            optimizer.step()
            scheduler.step()
    return values


def assert_same(ours: np.ndarray, theirs: list[float]) -> None:
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-12)


# Schedules


@pytest.mark.parametrize("total_steps", LENGTHS)
@pytest.mark.parametrize("final", [0.0, 0.1])
def test_cosine_is_torch_s(total_steps: int, final: float) -> None:
    theirs = torch_curve(lambda opt: CosineAnnealingLR(opt, T_max=total_steps, eta_min=final * LR), total_steps)
    assert_same(curve("cosine", total_steps, final=final), theirs)


@pytest.mark.parametrize("total_steps", LENGTHS)
@pytest.mark.parametrize("final", [0.0, 0.1, 1.0])
def test_linear_is_torch_s(total_steps: int, final: float) -> None:
    def make(optimizer: SomeOptimizer) -> LRScheduler:
        return LinearLR(optimizer, start_factor=1.0, end_factor=final, total_iters=total_steps)

    assert_same(curve("linear", total_steps, final=final), torch_curve(make, total_steps))


@pytest.mark.parametrize("total_steps", LENGTHS)
@pytest.mark.parametrize("warmup", [0.2, 0.5, 0.9])
@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_a_warm_up_rises_in_equal_steps_to_1_before_the_decay(name: str, warmup: float, total_steps: int) -> None:
    num_rise = round(warmup * total_steps)

    def factor(step: int) -> float:
        if step < num_rise:
            return (step + 1) / num_rise
        done = (step - num_rise) / (total_steps - num_rise)
        return 1 - done if name == "linear" else (1 + math.cos(math.pi * done)) / 2

    theirs = torch_curve(lambda opt: LambdaLR(opt, factor), total_steps)
    assert_same(curve(name, total_steps, warmup=warmup), theirs)


@pytest.mark.parametrize("steps_per_epoch", [1, 3, 10])
@pytest.mark.parametrize(("every_epochs", "gamma"), [(1, 0.5), (2, 0.1), (3, 1.0)])
def test_step_is_torch_s_stepped_once_an_epoch(steps_per_epoch: int, every_epochs: int, gamma: float) -> None:
    theirs = torch_curve(lambda opt: StepLR(opt, step_size=every_epochs, gamma=gamma), 7)
    ours = curve("step", 7 * steps_per_epoch, steps_per_epoch, every_epochs=every_epochs, gamma=gamma)
    assert_same(ours, np.repeat(theirs, steps_per_epoch).tolist())


@pytest.mark.parametrize("total_steps", LENGTHS)
@pytest.mark.parametrize("shape", ["cos", "linear"])
@pytest.mark.parametrize("warmup", [0.0, 0.25, 0.3, 0.95])
def test_one_cycle_is_torch_s(total_steps: int, shape: str, warmup: float) -> None:
    start, final = 0.1, 1e-3

    def make(optimizer: SomeOptimizer) -> LRScheduler:
        return OneCycleLR(
            optimizer,
            max_lr=LR,
            total_steps=total_steps,
            pct_start=warmup,
            anneal_strategy=shape,  # type: ignore[arg-type]
            cycle_momentum=False,
            div_factor=1 / start,
            final_div_factor=start / final,
        )

    ours = curve("one-cycle", total_steps, warmup=warmup, start=start, final=final, shape=shape)
    assert_same(ours, torch_curve(make, total_steps))


@pytest.mark.parametrize("total_steps", LENGTHS)
def test_one_cycle_has_torch_s_defaults(total_steps: int) -> None:
    def make(optimizer: SomeOptimizer) -> LRScheduler:
        return OneCycleLR(optimizer, max_lr=LR, total_steps=total_steps, cycle_momentum=False)

    assert_same(curve("one-cycle", total_steps), torch_curve(make, total_steps))


@pytest.mark.parametrize("total_steps", LENGTHS)
@pytest.mark.parametrize("name", SCHEDULES.names())
def test_every_schedule_is_a_finite_factor_of_at_most_1_for_every_step(name: str, total_steps: int) -> None:
    required = {field for field, info in SCHEDULES.options(name).model_fields.items() if info.is_required()}
    options = {"every_epochs": 2} if name == "step" else {}
    if required - set(options):
        pytest.skip(f"{name} needs options that this test does not know")
    values = curve(name, total_steps, **options)
    assert values.shape == (total_steps,)
    assert values.dtype == np.float64
    assert np.isfinite(values).all()
    assert values.min() >= 0
    assert values.max() <= 1
    assert SCHEDULES.summary(name)


@pytest.mark.parametrize("name", SCHEDULES.names())
def test_a_schedule_refuses_options_that_it_does_not_know(name: str) -> None:
    with pytest.raises(ValidationError, match="no_such_option"):
        SCHEDULES.options(name).model_validate({"no_such_option": 1})


# Optimizers


class TinyNet(nn.Module):
    """Convolution, norm, bias and matrix: one parameter of each kind."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.norm(self.conv(x)).relu().mean((2, 3)))
        return out


@pytest.fixture
def tiny() -> TinyNet:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return TinyNet().to(memory_format=torch.channels_last)


def batches(num: int) -> list[tuple[Tensor, Tensor]]:
    """Images whose class is the brightest quarter of their rows."""
    generator = torch.Generator().manual_seed(0)
    labels = [torch.randint(0, 4, (32,), generator=generator) for _ in range(num)]
    noise = [torch.randn(32, 3, 8, 8, generator=generator) for _ in range(num)]
    colours = torch.randn(4, 3, generator=generator).view(4, 3, 1, 1)
    return [(image + 2 * colours[label], label) for image, label in zip(noise, labels, strict=True)]


def train(model: nn.Module, optimizer: SomeOptimizer, num: int) -> list[float]:
    losses = []
    for images, labels in batches(num):
        loss = nn.functional.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(loss.item())
    return losses


def copy_of(model: TinyNet) -> TinyNet:
    other = TinyNet().to(memory_format=torch.channels_last)
    other.load_state_dict(model.state_dict())
    return other


def assert_equal_weights(one: nn.Module, other: nn.Module, atol: float = 0.0) -> None:
    for name, value in one.state_dict().items():
        torch.testing.assert_close(value, other.state_dict()[name], rtol=0, atol=atol, msg=name)


@pytest.mark.parametrize("name", OPTIMIZERS.names())
def test_every_optimizer_takes_lr_and_lowers_the_loss(name: str, tiny: TinyNet) -> None:
    assert OPTIMIZERS.options(name).model_fields["lr"].is_required()
    optimizer = OPTIMIZERS.bind(name, {"lr": 0.02})(tiny)
    assert all(group["lr"] == 0.02 for group in optimizer.param_groups)
    before = {key: value.clone() for key, value in tiny.named_parameters()}
    losses = train(tiny, optimizer, 60)
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])
    for key, value in tiny.named_parameters():
        assert value.isfinite().all()
        assert not torch.equal(value, before[key]), f"{key} was never changed"


@pytest.mark.parametrize("name", OPTIMIZERS.names())
def test_an_optimizer_obeys_the_lr_that_a_schedule_sets(name: str, tiny: TinyNet) -> None:
    optimizer = OPTIMIZERS.bind(name, {"lr": 0.02})(tiny)
    before = {key: value.clone() for key, value in tiny.named_parameters()}
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    train(tiny, optimizer, 3)
    for key, value in tiny.named_parameters():
        assert torch.equal(value, before[key])


@pytest.mark.parametrize("name", OPTIMIZERS.names())
def test_an_optimizer_refuses_options_that_it_does_not_know(name: str) -> None:
    with pytest.raises(ValidationError, match="no_such_option"):
        OPTIMIZERS.options(name).model_validate({"lr": 0.1, "no_such_option": 1})


@pytest.mark.parametrize("foreach", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {"momentum": 0.9},
        {"momentum": 0.9, "weight_decay": 5e-4},
        {"momentum": 0.9, "nesterov": True, "weight_decay": 5e-4},
        {},
    ],
)
def test_sgd_is_torch_s_for_loop(options: dict[str, Any], foreach: bool, tiny: TinyNet) -> None:
    other = copy_of(tiny)
    ours = OPTIMIZERS.bind("sgd", {"lr": 0.05, **options})(tiny)
    theirs = torch.optim.SGD(other.parameters(), lr=0.05, foreach=foreach, **options)
    for _ in range(2):
        assert train(tiny, ours, 5) == pytest.approx(train(other, theirs, 5), rel=1e-6)
    assert_equal_weights(tiny, other, atol=1e-6)


def test_adamw_is_torch_s_for_loop(tiny: TinyNet) -> None:
    other = copy_of(tiny)
    ours = OPTIMIZERS.bind("adamw", {"lr": 1e-3, "weight_decay": 0.1})(tiny)
    theirs = torch.optim.AdamW(other.parameters(), lr=1e-3, weight_decay=0.1, foreach=False)
    assert train(tiny, ours, 10) == pytest.approx(train(other, theirs, 10), rel=1e-5)
    assert_equal_weights(tiny, other, atol=1e-5)


def test_norms_and_biases_decay_unless_they_are_exempt(tiny: TinyNet) -> None:
    (everything,) = parameter_groups(tiny, 0.1, decay_norm_and_bias=True)
    assert len(everything["params"]) == 5
    assert everything["weight_decay"] == 0.1
    decayed, exempt = parameter_groups(tiny, 0.1, decay_norm_and_bias=False)
    assert decayed["weight_decay"] == 0.1
    assert {id(one) for one in decayed["params"]} == {id(tiny.conv.weight), id(tiny.head.weight)}
    assert exempt["weight_decay"] == 0
    assert {id(one) for one in exempt["params"]} == {id(tiny.norm.weight), id(tiny.norm.bias), id(tiny.head.bias)}


@pytest.mark.parametrize("name", OPTIMIZERS.names())
def test_weight_decay_shrinks_what_it_should_where_there_is_no_gradient(name: str, tiny: TinyNet) -> None:
    if "decay_norm_and_bias" not in OPTIMIZERS.options(name).model_fields:
        pytest.skip(f"{name} decides itself what decays")
    before = {key: value.clone() for key, value in tiny.named_parameters()}
    options = {"lr": 0.1, "weight_decay": 0.5, "decay_norm_and_bias": False}
    optimizer = OPTIMIZERS.bind(name, options)(tiny)
    for value in tiny.parameters():
        value.grad = torch.zeros_like(value)
    optimizer.step()
    for key, value in tiny.named_parameters():
        factor = 0.95 if value.ndim > 1 else 1.0
        torch.testing.assert_close(value, factor * before[key], rtol=1e-5, atol=1e-7)


def test_frozen_parameters_are_left_out(tiny: TinyNet) -> None:
    tiny.conv.weight.requires_grad_(False)
    optimizer = sgd(tiny, lr=0.1)
    assert len(optimizer.param_groups[0]["params"]) == 4


def test_nesterov_without_momentum_is_refused_with_the_remedy() -> None:
    with pytest.raises(ValueError, match="nesterov: true needs momentum above 0; set momentum"):
        OPTIMIZERS.check("sgd", {"lr": 0.1, "momentum": 0.0, "nesterov": True})


def test_no_optimizer_draws_from_a_global_generator(tiny: TinyNet) -> None:
    for name in OPTIMIZERS.names():
        states = torch.random.get_rng_state(), random.getstate()
        train(tiny, OPTIMIZERS.bind(name, {"lr": 1e-3})(tiny), 1)
        assert torch.equal(torch.random.get_rng_state(), states[0])
        assert random.getstate() == states[1]
