"""Training: equal seeds give equal bits, and the test set only measures (resuming: test_checkpoint.py)."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sklearn.metrics import accuracy_score, log_loss
from torch import Tensor
from torch.nn import functional

from cifar_ablate.augment.base import Epoch
from cifar_ablate.data import load_data
from cifar_ablate.record.folder import RunFolder, RunResult
from cifar_ablate.spec.schema import Recipe
from cifar_ablate.training import step as step_module
from cifar_ablate.training import train
from cifar_ablate.training.batches import DeviceData, plan_epoch, slices, to_device
from cifar_ablate.training.engine import Engine
from cifar_ablate.training.evaluate import (
    accuracy,
    expected_calibration_error,
    negative_log_likelihood,
    precision_context,
    predict_logits,
)
from cifar_ablate.training.events import Started, Stepped, Steps, TrainingEvent, finish
from cifar_ablate.training.state import TrainState, set_up
from cifar_ablate.training.step import TrainSetup, optimize
from cifar_ablate.training.train import train_run

CPU = torch.device("cpu")
SGD = {"name": "sgd", "lr": 0.02, "momentum": 0.9, "nesterov": True, "weight_decay": 5e-4}
NARROW = {"name": "resnet18-compact", "width": 8}
EVERYTHING = {"crop": {}, "hflip": {}, "affine": {}, "cutout": {}, "erasing": {}, "mixup": {}, "cutmix": {}}
NOT_COMPARED = {"time_ms", "images_per_second"}


def recipe(**fields: Any) -> Recipe:
    basis = {"data": "digits", "model": NARROW, "epochs": 2, "batch_size": 64, "optimizer": SGD}
    return Recipe.model_validate(basis | fields)


@pytest.fixture(scope="module")
def data() -> DeviceData:
    """200 training images, so that the last of 4 steps has 8, and 100 test images."""
    whole = to_device(load_data("digits", {}, train_size=200), CPU)
    return replace(whole, test_images=whole.test_images[:100], test_labels=whole.test_labels[:100])


@dataclass
class Diary:
    """Follows a training and remembers, and leaves it where it is told to."""

    interrupt_after: int | None = None
    """The epoch after which the keyboard interrupts: unlike a stop, that writes no checkpoint."""
    stop: Callable[[Diary], bool] = lambda _: False
    """The answer to whether training shall stop, each time it asks."""
    asked: int = 0
    steps: list[tuple[int, int, int]] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    lines: list[dict[str, Any]] = field(default_factory=list)
    started_after: list[int] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)

    def follow(self, steps: Steps[RunResult]) -> RunResult:
        """Take all steps, and note what they tell."""
        while True:
            try:
                event = next(steps)
            except StopIteration as end:
                return end.value  # type: ignore[no-any-return]
            if event is not None:
                self.note(event)

    def note(self, event: TrainingEvent) -> None:
        if isinstance(event, Started):
            self.started_after.append(event.epochs_done)
            self.damaged.extend(event.damaged)
        elif isinstance(event, Stepped):
            self.steps.append((event.epoch, event.step, event.num_steps))
            self.losses.append(event.loss)
        else:
            self.lines.append(dict(event.line))
            if event.line["epoch"] == self.interrupt_after:
                raise KeyboardInterrupt

    def should_stop(self) -> bool:
        self.asked += 1
        return self.stop(self)


@dataclass(frozen=True)
class Run:
    """A run that has ended."""

    folder: RunFolder
    result: RunResult
    diary: Diary

    @property
    def history(self) -> list[dict[str, Any]]:
        return [{name: line[name] for name in line if name not in NOT_COMPARED} for line in self.folder.history()]

    @property
    def weights(self) -> dict[str, Tensor]:
        return load_file(self.folder.weights)

    def equals(self, other: Run) -> bool:
        """Everything but times is equal to the bit."""
        return (
            self.history == other.history
            and self.result.metrics == other.result.metrics
            and self.folder.logits.read_bytes() == other.folder.logits.read_bytes()
            and self.folder.labels.read_bytes() == other.folder.labels.read_bytes()
            and same(self.weights, other.weights)
        )


def train_in(
    folder: RunFolder,
    chosen: Recipe,
    images: DeviceData,
    *,
    seed: int = 0,
    precision: str = "fp32",
    diary: Diary | None = None,
    checkpoint_seconds: float = 60.0,
    engine: Engine | None = None,
) -> Run:
    """Train a recipe in a new folder, or in that of an earlier attempt."""
    folder.create(chosen.as_dict(), {})
    diary = diary or Diary()
    result = diary.follow(
        train_run(
            chosen,
            seed,
            images,
            precision=precision,
            folder=folder,
            should_stop=diary.should_stop,
            step_seconds=0.0,
            checkpoint_seconds=checkpoint_seconds,
            engine=engine,
        )
    )
    return Run(folder, result, diary)


Trainer = Callable[..., Run]


@pytest.fixture
def run(data: DeviceData, tmp_path: Path) -> Trainer:
    """Train a recipe in a new folder."""

    def go(chosen: Recipe, *, images: DeviceData = data, **more: Any) -> Run:
        return train_in(RunFolder(tmp_path / f"run-{len(list(tmp_path.iterdir()))}"), chosen, images, **more)

    return go


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def metadata_of(path: Path) -> dict[str, str]:
    size = int.from_bytes(path.read_bytes()[:8], "little")
    return dict(json.loads(path.read_bytes()[8 : 8 + size])["__metadata__"])


def fixed_batch(num: int, seed: int) -> tuple[Tensor, Tensor]:
    """Normalised images and soft targets that do not come from the data."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(num, 3, 32, 32, generator=generator)
    return images, torch.rand(num, 10, generator=generator).softmax(1)


# Equal seeds


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_equal_seeds_give_equal_bits(precision: str, run: Trainer) -> None:
    chosen = recipe(augment=EVERYTHING, model=NARROW | {"dropout": 0.1}, loss={"label_smoothing": 0.1})
    first = run(chosen, precision=precision)
    torch.rand(7)  # the state of the global generators must not matter
    np.random.default_rng().random()
    assert first.equals(run(chosen, precision=precision))


def test_another_seed_gives_other_weights_and_another_order(run: Trainer, data: DeviceData) -> None:
    assert not run(recipe(epochs=1)).equals(run(recipe(epochs=1), seed=1))
    one, other = (set_up(recipe(), seed, data, "fp32").model for seed in (0, 1))
    assert not torch.equal(one.conv1.weight, other.conv1.weight)


@pytest.fixture
def orders(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The orders that trainings have asked for."""
    asked: list[Tensor] = []

    def recorded(seed: int, number: int, data: DeviceData) -> Epoch:
        epoch = plan_epoch(seed, number, data)
        asked.append(torch.from_numpy(epoch.order))
        return epoch

    monkeypatch.setattr(step_module, "plan_epoch", recorded)
    return asked


def test_a_seed_gives_every_arm_the_same_initial_weights_and_orders(
    run: Trainer, data: DeviceData, orders: list[Tensor]
) -> None:
    arms = {
        "augmented": recipe(augment=EVERYTHING),
        "optimizer": recipe(optimizer={"name": "adamw", "lr": 1e-3}),
        "dropout": recipe(model=NARROW | {"dropout": 0.3}),
        "smoothed": recipe(loss={"label_smoothing": 0.1}, schedule="cosine"),
    }
    baseline = recipe()
    initial = set_up(baseline, 0, data, "fp32").model.state_dict()
    reference = run(baseline)
    expected = orders[:]
    assert len(expected) == 2
    assert not torch.equal(expected[0], expected[1])
    for arm in arms.values():
        orders.clear()
        assert same(dict(set_up(arm, 0, data, "fp32").model.state_dict()), dict(initial))
        assert not same(run(arm).weights, reference.weights)
        assert all(torch.equal(*pair) for pair in zip(orders, expected, strict=True))


def test_an_epoch_sees_every_image_once(data: DeviceData) -> None:
    for number in range(3):
        assert sorted(plan_epoch(0, number, data).order) == list(range(200))
    assert list(slices(200, 64)) == [slice(0, 64), slice(64, 128), slice(128, 192), slice(192, 200)]
    assert list(slices(128, 64)) == [slice(0, 64), slice(64, 128)]


def test_training_leaves_the_global_generators_alone(run: Trainer) -> None:
    before = torch.random.get_rng_state(), np.random.get_state()[1]
    run(recipe(epochs=1, augment=EVERYTHING, model=NARROW | {"dropout": 0.1}))
    assert torch.equal(torch.random.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])  # type: ignore[arg-type]


# How a run ends


def test_a_loss_that_is_not_finite_ends_the_run_as_diverged(run: Trainer) -> None:
    ended = run(recipe(optimizer=SGD | {"lr": 1e20}))
    assert ended.result.status == "diverged"
    assert ended.result.reason.endswith("in epoch 1")
    assert ended.result.epochs == 1
    assert ended.result.metrics == {}
    assert ended.folder.result() == ended.result
    assert not ended.folder.weights.exists()
    assert not ended.folder.logits.exists()
    assert ended.history == []


def test_a_run_that_diverges_late_keeps_the_history_of_its_good_epochs(
    run: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = []

    def lost(setup: TrainSetup, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        loss, logits = optimize(setup, images, targets)
        taken.append(len(images))
        return (loss * math.nan if sum(taken) > 200 else loss), logits

    monkeypatch.setattr(step_module, "optimize", lost)
    ended = run(recipe(epochs=3), checkpoint_seconds=0.0)
    assert ended.result.status == "diverged"
    assert ended.result.reason == "the training loss was nan in epoch 2"
    assert [line["epoch"] for line in ended.history] == [1]
    assert ended.result.train_seconds > 0
    assert not ended.folder.weights.exists()
    assert not ended.folder.checkpoint.exists()


def test_eval_every_decides_what_is_written_and_never_what_is_trained(run: Trainer) -> None:
    every = {0: [3], 1: [1, 2, 3], 2: [2, 3], 5: [3]}
    runs = {num: run(recipe(epochs=3, eval_every=num)) for num in every}
    for num, epochs in every.items():
        assert [line["epoch"] for line in runs[num].history if "test_accuracy" in line] == epochs
        assert [line["epoch"] for line in runs[num].history if "test_nll" in line] == epochs
        assert same(runs[num].weights, runs[1].weights)
        assert runs[num].result.metrics == runs[1].result.metrics


def test_checkpoint_every_keeps_the_weights_of_those_epochs(run: Trainer) -> None:
    kept = run(recipe(epochs=4, checkpoint_every=2))
    assert sorted(path.name for path in kept.folder.path.glob("weights-*")) == [
        "weights-epoch-0002.safetensors",
        "weights-epoch-0004.safetensors",
    ]
    assert same(load_file(kept.folder.weights_of_epoch(4)), kept.weights)
    assert not same(load_file(kept.folder.weights_of_epoch(2)), kept.weights)
    identity = {"fingerprint": kept.folder.fingerprint, "seed": "0", "epoch": "2"}
    metadata = metadata_of(kept.folder.weights_of_epoch(2))
    assert metadata.items() >= identity.items()
    assert json.loads(metadata["model"])["name"] == "resnet18-compact"
    assert json.loads(metadata["preprocessing"])["image_size_px"] == 32


def test_the_headline_is_the_last_epoch_even_if_an_earlier_one_was_better(
    run: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoiled(state: TrainState, *options: Any) -> Steps[tuple[float, float]]:
        ended = yield from train_epoch(state, *options)
        if state.epochs_done == 3:
            with torch.no_grad():
                state.model.head.weight.neg_()
        return ended

    train_epoch = train.train_epoch
    monkeypatch.setattr(train, "train_epoch", spoiled)
    ended = run(recipe(epochs=4))
    measured = [line["test_accuracy"] for line in ended.history]
    assert measured[-1] < max(measured)
    assert ended.result.metrics["test_accuracy"] == measured[-1]


def test_the_headline_is_the_last_line_and_can_be_computed_again_from_the_logits(
    run: Trainer, data: DeviceData
) -> None:
    ended = run(recipe())
    metrics, last = ended.result.metrics, ended.history[-1]
    assert last["test_accuracy"] == metrics["test_accuracy"]
    assert last["test_nll"] == metrics["test_nll"]
    logits, labels = np.load(ended.folder.logits), np.load(ended.folder.labels)
    assert logits.dtype == np.float16
    assert logits.shape == (100, 10)
    assert np.array_equal(labels, data.test_labels.numpy())
    again = torch.from_numpy(logits.astype(np.float32)), torch.from_numpy(labels)
    assert accuracy(*again) == metrics["test_accuracy"]
    assert negative_log_likelihood(*again) == pytest.approx(metrics["test_nll"], rel=2e-3)
    model = set_up(recipe(), 1, data, "fp32")
    model.model.load_state_dict(ended.weights)
    logits_again = predict_logits(model.model, data.test_images, model.pipeline, "fp32")
    assert torch.equal((logits_again - logits_again.amax(1, keepdim=True)).half(), torch.from_numpy(logits))
    assert accuracy(logits_again, data.test_labels) == metrics["test_accuracy"]
    train_logits = predict_logits(model.model, data.train_images, model.pipeline, "fp32")
    assert accuracy(train_logits, data.train_labels) == metrics["train_accuracy"]


def test_the_lines_of_the_history_say_what_happened(run: Trainer) -> None:
    ended = run(recipe(schedule={"name": "step", "every_epochs": 1, "gamma": 0.5}))
    assert ended.diary.steps == [(epoch, step, 4) for epoch in (1, 2) for step in (1, 2, 3, 4)]
    sizes = np.array([64, 64, 64, 8])
    for epoch, line in enumerate(ended.history):
        losses = np.array(ended.diary.losses[4 * epoch : 4 * epoch + 4])
        assert line["train_loss"] == pytest.approx((losses * sizes).sum() / 200, rel=1e-5)
        assert line["lr"] == 0.02 * 0.5**epoch
        assert 0 <= line["running_accuracy"] <= 100
    assert ended.result.epochs == 2
    assert ended.result.train_seconds > 0
    assert ended.result.eval_seconds > 0
    assert ended.folder.result() == ended.result


# The test set


def test_training_never_reads_the_test_images(run: Trainer, data: DeviceData) -> None:
    chosen = recipe(augment=EVERYTHING)
    generator = torch.Generator().manual_seed(0)
    other = replace(
        data,
        test_images=torch.randint(0, 256, data.test_images.shape, dtype=torch.uint8, generator=generator),
        test_labels=data.test_labels[torch.randperm(100, generator=generator)],
    )
    one, another = run(chosen), run(chosen, images=other)
    assert same(one.weights, another.weights)
    assert one.result.metrics["train_accuracy"] == another.result.metrics["train_accuracy"]
    assert one.result.metrics["test_nll"] != another.result.metrics["test_nll"]


def test_mean_and_deviation_are_those_of_the_training_images(data: DeviceData) -> None:
    raw = load_data("digits", {}, train_size=200)
    pixels = raw.train_images.astype(np.float64) / 255
    np.testing.assert_allclose(data.mean.numpy().ravel(), pixels.mean((0, 2, 3)), rtol=1e-6)
    np.testing.assert_allclose(data.std.numpy().ravel(), pixels.std((0, 2, 3)), rtol=1e-6)
    black = replace(raw, train_images=np.zeros_like(raw.train_images))
    assert (to_device(black, CPU).std > 0).all()


def test_digits_are_learnt_in_seconds(tmp_path: Path) -> None:
    images = to_device(load_data("digits", {}, train_size=500), CPU)
    chosen = recipe(epochs=6, batch_size=32, optimizer=SGD | {"lr": 0.05}, schedule="cosine", eval_every=0)
    folder = RunFolder(tmp_path / "run")
    folder.create(chosen.as_dict(), {})
    result = finish(train_run(chosen, 0, images, precision="fp32", folder=folder))
    assert result.metrics["test_accuracy"] > 85
    assert result.metrics["train_accuracy"] > result.metrics["test_accuracy"] - 2


# One step


@pytest.mark.parametrize("nesterov", [False, True])
def test_a_step_equals_one_written_by_hand_to_the_bit(nesterov: bool, data: DeviceData) -> None:
    options = {"lr": 0.05, "momentum": 0.9, "nesterov": nesterov, "weight_decay": 5e-4}
    state = set_up(recipe(optimizer={"name": "sgd", **options}), 0, data, "fp32")
    model = copy.deepcopy(state.model)
    optimizer = torch.optim.SGD(model.parameters(), fused=True, **options)  # type: ignore[arg-type]
    for index in range(5):
        images, targets = fixed_batch(64 if index < 4 else 8, index)
        loss, logits = optimize(state.setup, images, targets)
        optimizer.zero_grad()
        expected_logits = model(images.contiguous(memory_format=torch.channels_last))
        expected_loss = functional.cross_entropy(expected_logits, targets)
        expected_loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        assert torch.equal(loss, expected_loss)
        assert torch.equal(logits, expected_logits)
        assert same(dict(state.model.state_dict()), dict(model.state_dict()))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_loss_is_cross_entropy_on_smoothed_and_mixed_targets(precision: str, data: DeviceData) -> None:
    state = set_up(recipe(augment={"mixup": {"alpha": 1.0}}, loss={"label_smoothing": 0.1}), 0, data, precision)
    rows = slice(64, 128)
    draws = state.pipeline.draw_epoch(plan_epoch(0, 0, data), CPU)
    batch = state.pipeline(data.train_images[rows], data.train_labels[rows], draws, 64)
    kept = draws["mixup"]["kept"][rows, None].double()
    one_hot = functional.one_hot(data.train_labels[rows], 10).double()
    smooth = 0.9 * one_hot + 0.1 / 10
    targets = kept * smooth + (1 - kept) * smooth.flip(0)
    loss, logits = optimize(state.setup, batch.images, batch.targets)
    expected = -(targets * logits.double().log_softmax(1)).sum(1).mean()
    assert loss.dtype == logits.dtype == torch.float32
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_bf16_computes_in_bf16_and_keeps_weights_and_losses_in_float32(data: DeviceData) -> None:
    state = set_up(recipe(), 0, data, "bf16")
    with precision_context(CPU, "bf16"):
        assert state.model(torch.zeros(2, 3, 32, 32)).dtype == torch.bfloat16
    with precision_context(CPU, "fp32"):
        assert state.model(torch.zeros(2, 3, 32, 32)).dtype == torch.float32
    optimize(state.setup, *fixed_batch(16, 0))
    assert {value.dtype for value in state.model.parameters()} == {torch.float32}


def test_predictions_leave_the_network_as_it_was(data: DeviceData) -> None:
    state = set_up(recipe(model=NARROW | {"dropout": 0.5}), 0, data, "fp32")
    before = copy.deepcopy(state.model.state_dict())
    first = predict_logits(state.model, data.test_images, state.pipeline, "fp32")
    assert state.model.training
    assert not first.requires_grad
    assert torch.equal(first, predict_logits(state.model, data.test_images, state.pipeline, "fp32"))
    assert same(dict(state.model.state_dict()), dict(before))


# Metrics


@pytest.fixture
def guesses() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 10, (500,), generator=generator)
    return 3 * torch.randn(500, 10, generator=generator) + 3 * functional.one_hot(labels, 10), labels


def test_accuracy_and_likelihood_are_sklearn_s(guesses: tuple[Tensor, Tensor]) -> None:
    logits, labels = guesses
    assert accuracy(logits, labels) == pytest.approx(100 * accuracy_score(labels, logits.argmax(1)), abs=1e-12)
    probabilities = logits.double().softmax(1).numpy()
    expected = log_loss(labels.numpy(), probabilities, labels=range(10))
    assert negative_log_likelihood(logits, labels) == pytest.approx(expected, rel=1e-9)


def test_the_calibration_error_is_the_one_computed_by_hand(guesses: tuple[Tensor, Tensor]) -> None:
    logits, labels = guesses
    confidence, predicted = logits.double().softmax(1).max(1)
    expected = 0.0
    for index in range(15):
        inside = (confidence >= index / 15) & (confidence < (index + 1) / 15)
        if inside.any():
            gap = (predicted[inside] == labels[inside]).double().mean() - confidence[inside].mean()
            expected += inside.double().mean().item() * abs(gap.item())
    assert expected_calibration_error(logits, labels) == pytest.approx(expected, abs=1e-12)


def test_the_calibration_error_of_known_cases() -> None:
    sure = torch.tensor([[1000.0, 0.0], [1000.0, 0.0], [1000.0, 0.0], [1000.0, 0.0]])
    assert expected_calibration_error(sure, torch.tensor([0, 0, 0, 0])) == 0
    assert expected_calibration_error(sure, torch.tensor([0, 0, 0, 1])) == 0.25
    unsure = torch.zeros(4, 2)  # half sure, and right half of the time
    assert expected_calibration_error(unsure, torch.tensor([0, 1, 0, 1])) == 0
