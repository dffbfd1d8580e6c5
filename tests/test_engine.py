"""The engine: what runs share, what may be forced, and that none of it changes a result."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils._python_dispatch import TorchDispatchMode

from cifar_ablate.data import load_data
from cifar_ablate.device import Device, find_device, first_cause, is_out_of_memory
from cifar_ablate.errors import DeviceError, UsageError
from cifar_ablate.record.folder import RunFolder
from cifar_ablate.runner.train_group import OutOfMemoryWhenShared, RunSteps, TimeSlice, take_turns
from cifar_ablate.spec.schema import Recipe
from cifar_ablate.training import engine as engine_module
from cifar_ablate.training import step as step_module
from cifar_ablate.training.batches import DeviceData, to_device
from cifar_ablate.training.engine import (
    Engine,
    EngineOptions,
    Mode,
    choose_mode,
    draws_at_random,
    has_cpp_compiler,
)
from cifar_ablate.training.evaluate import predict_logits
from cifar_ablate.training.events import finish
from cifar_ablate.training.state import set_up
from cifar_ablate.training.step import TrainStep, optimize
from cifar_ablate.training.train import Stopped, train_run
from tests.test_training import CPU, EVERYTHING, NARROW, Diary, Run, fixed_batch, recipe, same, train_in

GPU = Device("cuda", "a GPU", fast_bf16=True)
EXACT = {"name": "sgd", "lr": 0.03125, "momentum": 0.9, "nesterov": True, "weight_decay": 5e-4}
"""A learning rate that float32 holds to the bit, as a captured step reads it."""


@pytest.fixture(scope="module")
def data() -> DeviceData:
    """200 training images, so that the last of 4 steps has 8, and 100 test images."""
    whole = to_device(load_data("digits", {}, train_size=200), CPU)
    return replace(whole, test_images=whole.test_images[:100], test_labels=whole.test_labels[:100])


@pytest.fixture
def trained(data: DeviceData, tmp_path: Path) -> Callable[..., Run]:
    """Train a recipe in a new folder."""

    def go(chosen: Recipe, **more: Any) -> Run:
        return train_in(RunFolder(tmp_path / f"run-{len(list(tmp_path.iterdir()))}"), chosen, data, **more)

    return go


# A network that is used again


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_network_that_is_used_again_gives_the_bits_of_a_new_one(precision: str, trained: Callable[..., Run]) -> None:
    shared = Engine()
    arms = [
        recipe(),
        recipe(schedule="cosine", epochs=3),
        recipe(augment=EVERYTHING, loss={"label_smoothing": 0.1}),
        recipe(optimizer={"name": "adamw", "lr": 1e-3}),
        recipe(optimizer={"name": "muon", "lr": 1e-2}),
        recipe(ema={"decay": 0.9}),
        recipe(model=NARROW | {"dropout": 0.2}),
        recipe(batch_size=50),
        recipe(),
    ]
    for seed, arm in enumerate(arms):
        assert trained(arm, seed=seed, precision=precision, engine=shared).equals(
            trained(arm, seed=seed, precision=precision)
        ), arm


def test_runs_of_one_shape_share_a_network_and_others_do_not(data: DeviceData) -> None:
    shared = Engine()
    first = set_up(recipe(), 0, data, "fp32", shared).model
    assert set_up(recipe(augment=EVERYTHING), 1, data, "fp32", shared).model is first
    assert set_up(recipe(), 0, data, "fp32", shared, stream=1).model is not first
    assert set_up(recipe(model=NARROW | {"width": 4}), 0, data, "fp32", shared).model is not first


def test_a_run_that_failed_leaves_nothing_to_the_next(data: DeviceData) -> None:
    shared = Engine()
    first = set_up(recipe(), 0, data, "fp32", shared).model
    shared.drop()
    assert set_up(recipe(), 0, data, "fp32", shared).model is not first


# Steps that are captured: what a GPU replays, a CPU calls


class NothingReadOnTheHost(TorchDispatchMode):
    """Refuses what no capture allows. A fused optimizer on a CPU reads its learning rate below this."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            raise RuntimeError("a value of the device is read on the host in the middle of a step")
        return func(*args, **(kwargs or {}))


class Replayed:
    """A graph for those who have no GPU: it calls what was captured, and refuses what a real graph would not see."""

    def __init__(self, warm_up: Callable[[], None], step: Callable[[], None], train_step: TrainStep) -> None:
        for _ in range(step_module.WARM_UP_STEPS):  # changes weights and statistics, as the real one does
            warm_up()
        self.step, self.train_step = step, train_step
        self.places = self.addresses()

    def addresses(self) -> dict[str, int]:
        """Where lies what a real graph would read: it would not notice that one of them has moved."""
        train_step, setup = self.train_step, self.train_step.setup
        optimizer = setup.optimizer
        found = dict(setup.model.state_dict())
        if setup.average is not None:
            found |= {f"average {name}": value for name, value in setup.average.model.state_dict().items()}
        for index, parameter in enumerate(one for group in optimizer.param_groups for one in group["params"]):
            found |= {f"{index} {key}": value for key, value in optimizer.state[parameter].items()}
        found |= {f"rate {index}": group["lr"] for index, group in enumerate(optimizer.param_groups)}
        found |= {f"table {name}": table for name, table in train_step.tables.items()}
        found |= {f"draw {name} {key}": drawn[key] for name, drawn in train_step.draws.items() for key in drawn}
        found |= {f"sum {name}": total for name, total in train_step.sums.items()}
        found |= {name: getattr(train_step, name) for name in ("position", "index", "line", "loss")}
        return {name: tensor.data_ptr() for name, tensor in found.items()}

    def replay(self) -> None:
        assert self.addresses() == self.places
        with NothingReadOnTheHost():
            self.step()

    def pool(self) -> None:
        return None


@pytest.fixture
def captured(monkeypatch: pytest.MonkeyPatch) -> Engine:
    """An engine that captures, where no GPU is."""
    made: list[Replayed] = []

    def capture(warm_up: Callable[[], None], step: Callable[[], None], train_step: TrainStep, pool: Any) -> Replayed:
        made.append(Replayed(warm_up, step, train_step))
        return made[-1]

    monkeypatch.setattr(step_module, "_captured", capture)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *_: None)
    engine = Engine(Mode(capture=True, capture_is_forced=True))
    engine.made = made  # type: ignore[attr-defined]
    return engine


ARMS = {
    "plain": {},
    "augmented": {"augment": EVERYTHING, "loss": {"label_smoothing": 0.1}},
    "averaged": {"ema": {"decay": 0.9}},
    "scheduled": {"schedule": {"name": "step", "every_epochs": 1, "gamma": 0.5}},
}


@pytest.mark.slow
@pytest.mark.parametrize("arm", ARMS)
def test_a_captured_run_gives_the_bits_of_one_that_is_not(
    arm: str, trained: Callable[..., Run], captured: Engine
) -> None:
    chosen = recipe(optimizer=EXACT, **ARMS[arm])
    for seed in (0, 1):
        assert trained(chosen, seed=seed, engine=captured).equals(trained(chosen, seed=seed))


def test_a_step_is_captured_once_for_each_size_of_a_batch_and_serves_all_runs(
    trained: Callable[..., Run], captured: Engine
) -> None:
    for seed, schedule in enumerate(("constant", "cosine")):  # neither a seed nor a schedule needs a new capture
        trained(recipe(optimizer=EXACT, schedule=schedule), seed=seed, engine=captured)
    assert len(captured.made) == 2  # type: ignore[attr-defined]
    trained(recipe(optimizer=EXACT, augment={"hflip": {}}), engine=captured)
    assert len(captured.made) == 4  # type: ignore[attr-defined]


@pytest.mark.slow
def test_a_captured_run_is_resumed_in_place_and_ends_with_the_same_bits(
    trained: Callable[..., Run], data: DeviceData, tmp_path: Path, captured: Engine
) -> None:
    chosen = recipe(optimizer=EXACT, augment=EVERYTHING, ema={"decay": 0.9}, epochs=3)
    folder = RunFolder(tmp_path / "stopped")
    with pytest.raises(Stopped):  # in the middle of epoch 2
        train_in(folder, chosen, data, engine=captured, diary=Diary(stop=lambda diary: len(diary.steps) == 6))
    trained(recipe(optimizer=EXACT), seed=7, engine=captured)  # another run was there in between
    assert train_in(folder, chosen, data, engine=captured).equals(trained(chosen))


def test_an_optimizer_that_reads_its_learning_rate_on_the_host_is_not_captured(
    trained: Callable[..., Run], captured: Engine
) -> None:
    chosen = recipe(optimizer={"name": "muon", "lr": 0.01})
    assert trained(chosen, engine=captured).equals(trained(chosen))
    assert captured.made == []  # type: ignore[attr-defined]


@pytest.fixture
def refusing(monkeypatch: pytest.MonkeyPatch) -> None:
    """No step can be captured, as where a network asks the device something in the middle of it."""

    def refuse(warm_up: Callable[[], None], *_: Any) -> None:
        warm_up()
        raise RuntimeError("operation not permitted when stream is capturing\nCompile with DEBUG to see more")

    monkeypatch.setattr(step_module, "_captured", refuse)


@pytest.mark.usefixtures("refusing")
def test_a_step_that_cannot_be_captured_is_called_instead_and_it_is_said(trained: Callable[..., Run]) -> None:
    engine = Engine(Mode(capture=True))
    for seed in (0, 1):
        chosen = recipe(augment=EVERYTHING, ema={"decay": 0.9})
        assert trained(chosen, seed=seed, engine=engine).equals(trained(chosen, seed=seed))
        mode = engine.mode_of(chosen)
        assert not mode.capture
        said = "its step cannot be captured (RuntimeError: operation not permitted when stream is capturing)"
        assert mode.why == said


@pytest.mark.usefixtures("refusing")
def test_where_capturing_is_forced_a_step_that_cannot_be_captured_is_an_error(trained: Callable[..., Run]) -> None:
    with pytest.raises(RuntimeError, match="not permitted"):
        trained(recipe(), engine=Engine(Mode(capture=True, capture_is_forced=True)))


def test_out_of_memory_in_a_capture_is_no_reason_to_go_on_without(
    trained: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    def crowded(*_: Any) -> None:
        try:
            raise torch.OutOfMemoryError("CUDA out of memory")
        finally:
            raise RuntimeError("capture failed due to a previous error")  # as the end of a capture does

    monkeypatch.setattr(step_module, "_captured", crowded)
    with pytest.raises(RuntimeError, match="previous error") as caught:
        trained(recipe(), engine=Engine(Mode(capture=True)))
    assert is_out_of_memory(caught.value)
    assert first_cause(caught.value) == "OutOfMemoryError: CUDA out of memory"


# What may be forced


def test_on_a_cpu_auto_neither_compiles_nor_captures() -> None:
    mode = choose_mode(EngineOptions(), find_device("cpu"))
    assert (mode.compile, mode.capture) == (False, False)


@pytest.mark.parametrize(("capability", "captures"), [((6, 1), False), ((7, 0), True), ((9, 0), True)])
def test_on_a_gpu_auto_captures_unless_the_gpu_is_old(
    capability: tuple[int, int], captures: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    assert choose_mode(EngineOptions(), GPU).capture is captures
    assert choose_mode(EngineOptions(capture="off"), GPU).capture is False
    forced = choose_mode(EngineOptions(capture="on"), GPU)
    assert (forced.capture, forced.capture_is_forced) == (True, True)
    assert not choose_mode(EngineOptions(), GPU).capture_is_forced


def test_on_a_gpu_auto_compiles_where_there_is_enough_to_train(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr(engine_module, "find_spec", lambda _: object())
    monkeypatch.setattr(engine_module, "which", lambda name: name)
    assert [choose_mode(EngineOptions(), GPU, num).compile for num in (50_000, 50_000_000)] == [False, True]
    assert choose_mode(EngineOptions(compile="off"), GPU, 50_000_000).compile is False
    assert choose_mode(EngineOptions(compile="on"), GPU).compile is True
    monkeypatch.setattr(engine_module, "find_spec", lambda _: None)
    without = choose_mode(EngineOptions(), GPU, 50_000_000)
    with pytest.raises(DeviceError, match="--compile on: torch compiles for a GPU with triton"):
        choose_mode(EngineOptions(compile="on"), GPU)
    assert (without.compile, without.why) == (False, "there is no triton, or no C compiler for it")


def test_what_a_device_does_not_have_cannot_be_forced(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DeviceError, match="--capture on: a cpu has no CUDA graphs; leave it at auto"):
        choose_mode(EngineOptions(capture="on"), find_device("cpu"))
    monkeypatch.setattr(engine_module, "which", lambda _: None)
    with pytest.raises(DeviceError, match=r"--compile on: torch compiles for a CPU with g\+\+ or clang\+\+"):
        choose_mode(EngineOptions(compile="on"), find_device("cpu"))
    with pytest.raises(UsageError, match="--compile always: choose auto, on or off"):
        choose_mode(EngineOptions(compile="always"), find_device("cpu"))  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.skipif(not has_cpp_compiler(), reason="torch compiles for a CPU with g++ or clang++, and there is none")
def test_a_compiled_network_trains_to_nearly_the_same(trained: Callable[..., Run]) -> None:
    chosen = recipe(model=NARROW | {"width": 4}, epochs=1)
    compiled, plain = trained(chosen, engine=Engine(Mode(compile=True))), trained(chosen)
    assert compiled.result.status == "finished"
    assert compiled.history[0]["train_loss"] == pytest.approx(plain.history[0]["train_loss"], rel=0.02)
    assert list(compiled.weights) == list(plain.weights)


# Several in turn


@pytest.mark.slow
def test_trainings_that_take_turns_give_the_bits_of_trainings_alone(
    trained: Callable[..., Run], data: DeviceData, tmp_path: Path
) -> None:
    changes: list[dict[str, Any]] = [
        {},
        {"epochs": 3},
        {"augment": EVERYTHING},
        {"ema": {"decay": 0.9}},
        {"eval_every": 0},
    ]
    arms = [recipe(**change) for change in changes]
    shared = Engine()
    ended = {}

    def steps_of(seed: int) -> Callable[[TimeSlice], RunSteps[None]]:
        def steps(time_slice: TimeSlice) -> RunSteps[None]:
            folder = RunFolder(tmp_path / f"turn-{seed}")
            folder.create({}, {})
            stream = time_slice.stream
            for _ in train_run(arms[seed], seed, data, precision="fp32", folder=folder, engine=shared, stream=stream):
                yield None
            ended[seed] = Run(folder, folder.result(), Diary())  # type: ignore[arg-type]

        return steps

    assert finish(take_turns([steps_of(seed) for seed in range(len(arms))], 3)) == []
    for seed, arm in enumerate(arms):
        assert ended[seed].equals(trained(arm, seed=seed))


def test_one_that_finds_no_room_beside_the_others_is_given_back_and_the_others_go_on() -> None:
    done = []

    def work(number: int) -> Callable[[TimeSlice], RunSteps[None]]:
        def steps(time_slice: TimeSlice) -> RunSteps[None]:
            for _ in range(3 + number % 2):
                yield None
            if number == 1 and time_slice.num_slices > 1:
                raise OutOfMemoryWhenShared
            done.append(number)

        return steps

    left = finish(take_turns([work(number) for number in range(4)], 2))  # 0 has ended when 1 gives up
    assert sorted(done) == [0, 2, 3]
    assert finish(take_turns(left, 1)) == []
    assert sorted(done) == [0, 1, 2, 3]


def test_an_error_of_one_closes_the_others() -> None:
    closed = []

    def failing(_: TimeSlice) -> RunSteps[None]:
        yield None
        raise RuntimeError("broken")

    def long(_: TimeSlice) -> RunSteps[None]:
        try:
            while True:
                yield None
        finally:
            closed.append(True)

    with pytest.raises(RuntimeError, match="broken"):
        finish(take_turns([long, failing], 2))
    assert closed == [True]


@pytest.mark.parametrize(
    ("model", "draws"),
    [
        ({"name": "resnet18", "width": 4}, False),
        ({"name": "resnet18", "width": 4, "dropout": 0.1}, True),
        ({"name": "test_vit"}, False),
        ({"name": "test_vit", "drop_path": 0.2}, True),
    ],
    ids=str,
)
def test_networks_that_draw_random_numbers_are_known(model: dict[str, Any], draws: bool) -> None:
    assert draws_at_random(recipe(model=model), 10, 32) is draws


# Averages


def test_the_average_of_the_weights_is_that_of_torch(data: DeviceData) -> None:
    state = set_up(recipe(ema={"decay": 0.9}), 0, data, "fp32")
    average = state.setup.average
    assert average is not None
    expected = AveragedModel(copy.deepcopy(state.model), multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    expected.update_parameters(state.model)  # its first update copies
    for index in range(4):
        optimize(state.setup, *fixed_batch(32, index))
        average.update(state.model)
        expected.update_parameters(state.model)
    for (name, mine), torchs in zip(average.model.named_parameters(), expected.module.parameters(), strict=True):
        torch.testing.assert_close(mine, torchs, msg=name)
    assert not same(dict(average.model.state_dict()), dict(state.model.state_dict()))


def test_with_an_average_it_is_the_average_that_is_evaluated_and_kept(
    trained: Callable[..., Run], data: DeviceData
) -> None:
    plain, averaged = trained(recipe()), trained(recipe(ema={"decay": 0.9}))
    assert [line["train_loss"] for line in averaged.history] == [line["train_loss"] for line in plain.history]
    assert not same(averaged.weights, plain.weights)
    state = set_up(recipe(), 1, data, "fp32")
    state.model.load_state_dict(averaged.weights)
    logits = predict_logits(state.model, data.test_images, state.pipeline, "fp32")
    right = (logits.argmax(1) == data.test_labels).float().mean().item()
    assert 100 * right == pytest.approx(averaged.result.metrics["test_accuracy"])


@pytest.mark.parametrize("step", [2, 4, 6])
def test_a_run_with_an_average_goes_on_bit_for_bit(
    step: int, trained: Callable[..., Run], data: DeviceData, tmp_path: Path
) -> None:
    chosen = recipe(ema={"decay": 0.9})
    folder = RunFolder(tmp_path / "stopped")
    with pytest.raises(Stopped):
        train_in(folder, chosen, data, diary=Diary(stop=lambda diary: len(diary.steps) == step))
    assert train_in(folder, chosen, data).equals(trained(chosen))


@pytest.mark.parametrize("decay", [0.0, 1.0, -0.5, 2])
def test_a_decay_that_is_no_average_is_refused(decay: float) -> None:
    with pytest.raises(ValueError, match="decay"):
        recipe(ema={"decay": decay})


# Flip averaging


def test_flip_averaging_is_the_mean_of_an_image_and_its_mirror_image(data: DeviceData) -> None:
    state = set_up(recipe(), 0, data, "fp32")
    mirrored = data.test_images.flip(3)
    one, other = (
        predict_logits(state.model, images, state.pipeline, "fp32") for images in (data.test_images, mirrored)
    )
    both = predict_logits(state.model, data.test_images, state.pipeline, "fp32", flip_averaging=True)
    torch.testing.assert_close(both, (one + other) / 2)


def test_flip_averaging_changes_the_figures_and_not_the_network(trained: Callable[..., Run]) -> None:
    plain, averaged = trained(recipe()), trained(recipe(flip_averaging=True))
    assert same(plain.weights, averaged.weights)
    assert plain.result.metrics["test_nll"] != averaged.result.metrics["test_nll"]
