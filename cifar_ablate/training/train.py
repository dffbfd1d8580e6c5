"""One run: a recipe, a seed and data in; a result, a history and weights in the run's folder out.

Training chooses nothing by the test set: the headline metrics are those of the last epoch's network, and the test curve
is only recorded. Names of metrics start with the split they were measured on: ``test_accuracy``, in a trial
``val_accuracy``.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cifar_ablate.record.folder import RunFolder, RunResult, Status, atomic
from cifar_ablate.rng import derive_seed
from cifar_ablate.spec.schema import Recipe
from cifar_ablate.training.batches import DeviceData
from cifar_ablate.training.checkpoint import save_weights
from cifar_ablate.training.engine import Engine
from cifar_ablate.training.evaluate import (
    accuracy,
    expected_calibration_error,
    negative_log_likelihood,
    predict_logits,
)
from cifar_ablate.training.events import EpochEnded, Started, Stepped, Steps
from cifar_ablate.training.state import TrainState, resume, set_up, weights_metadata, write_checkpoint

CHECKPOINT_SECONDS = 60.0
"""Minimum age of the last checkpoint, in seconds, for another one at the end of an epoch."""

ShouldStop = Callable[[], bool]
"""Called after every step and before every evaluated batch; True: write a checkpoint and raise Stopped."""


class Stopped(Exception):  # noqa: N818  a request, not an error
    """Training was asked to stop; the checkpoint in the folder holds its state."""


def never() -> bool:
    """The ShouldStop of a training that nothing stops."""
    return False


def train_run(
    recipe: Recipe,
    seed: int,
    data: DeviceData,
    *,
    precision: str,
    folder: RunFolder,
    should_stop: ShouldStop = never,
    step_seconds: float | None = None,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
    engine: Engine | None = None,
    stream: int = 0,
    keep_network: bool = True,
) -> Steps[RunResult]:
    """Train one run to its end; resume from the newest usable checkpoint in its folder.

    Yields Started, then Stepped or None after each step, and EpochEnded after each epoch. Several trainings can take
    turns on one device.

    Args:
        recipe: What to train; ``precision`` replaces its own.
        seed: Of the initial weights, the order of the images, and all augmentations.
        data: Training images, and the images to evaluate on.
        precision: fp32 or bf16.
        folder: Receives the history, checkpoints, weights, predictions and the result.
        should_stop: See ShouldStop.
        step_seconds: Minimum time between two Stepped, in seconds; None: no Stepped at all.
        checkpoint_seconds: Minimum time between two checkpoints at the end of an epoch, in seconds.
        engine: Shared with other runs of the same shape; None: a new one.
        stream: Number of the engine's stream; at any time, one training uses it.
        keep_network: Write the weights and logits, and measure the training accuracy.

    Returns:
        The result, which is also in the folder. A loss that is not finite ends the run as ``diverged``.

    Raises:
        Stopped: After ``should_stop`` returned True; a checkpoint is written, also in mid-epoch.
        OutputError: The folder cannot be written.
    """
    state = set_up(recipe, seed, data, precision, engine, stream)
    damaged = resume(state, folder)
    yield Started(state.epochs_done, tuple(path.name for path in damaged))
    try:
        return (yield from _train(state, folder, should_stop, step_seconds, checkpoint_seconds, keep_network))
    except Stopped:
        write_checkpoint(state, folder)
        raise


def _train(
    state: TrainState,
    folder: RunFolder,
    should_stop: ShouldStop,
    step_seconds: float | None,
    checkpoint_seconds: float,
    keep_network: bool,
) -> Steps[RunResult]:
    """Train the remaining epochs and write the result."""
    recipe, split = state.recipe, state.data.split
    checkpointed = time.monotonic()
    metrics: dict[str, float] = {}
    while state.epochs_done < recipe.epochs:
        line = yield from _epoch(state, should_stop, step_seconds)
        epoch = line["epoch"]
        if not math.isfinite(line["train_loss"]):
            return _end(state, folder, epoch, reason=f"the training loss was {line['train_loss']} in epoch {epoch}")
        if epoch == recipe.epochs:
            metrics = _final_metrics(state, folder, should_stop, keep_network)
            if not math.isfinite(metrics[f"{split}_nll"]):  # a loss is computed before its step, so not after the last
                folder.logits.unlink(missing_ok=True)
                return _end(state, folder, epoch, reason="the network's outputs were not finite after the last step")
            line |= {name: metrics[name] for name in (f"{split}_accuracy", f"{split}_nll")}
        folder.append_epoch(line)
        state.epochs_done, state.steps_done, state.epoch_seconds = epoch, 0, 0.0
        if recipe.checkpoint_every and epoch % recipe.checkpoint_every == 0:
            save_weights(folder.weights_of_epoch(epoch), state.evaluated, weights_metadata(state, folder))
        if time.monotonic() - checkpointed >= checkpoint_seconds and epoch < recipe.epochs:
            write_checkpoint(state, folder)
            checkpointed = time.monotonic()
        yield EpochEnded(line)
    if keep_network:
        save_weights(folder.weights, state.evaluated, weights_metadata(state, folder))
    return _end(state, folder, state.epochs_done, metrics=metrics)


def _epoch(state: TrainState, should_stop: ShouldStop, step_seconds: float | None) -> Steps[dict[str, Any]]:
    """Train one epoch, evaluate where it is due, and return the epoch's line of the history."""
    loss, running = yield from train_epoch(state, should_stop, step_seconds)
    epoch = state.epochs_done + 1
    line: dict[str, Any] = {
        "epoch": epoch,
        "time_ms": int(time.time() * 1000),
        "train_loss": loss,
        "running_accuracy": running,
        "lr": state.base_lr * float(state.lr_factors[epoch * state.num_steps - 1]),
        "images_per_second": len(state.data.train_labels) / state.epoch_seconds,
    }
    every = state.recipe.eval_every
    if every and epoch % every == 0 and epoch < state.recipe.epochs and math.isfinite(loss):
        with _timed_evaluation(state):
            logits = _predict(state, state.data.test_images, should_stop)
            labels = state.data.test_labels.cpu()
            line[f"{state.data.split}_accuracy"] = accuracy(logits, labels)
            line[f"{state.data.split}_nll"] = negative_log_likelihood(logits, labels)
    return line


def train_epoch(
    state: TrainState, should_stop: ShouldStop = never, step_seconds: float | None = None
) -> Steps[tuple[float, float]]:
    """Take the remaining steps of an epoch.

    Yields Stepped at most every ``step_seconds`` (None: never), and None after the other steps. Waits for the device
    only to read a loss that is reported, and after the last step.

    Returns:
        The mean loss of the epoch, in nats, and the running accuracy: that of the augmented images during training, in
        percent.

    Raises:
        Stopped: Between two steps, after ``should_stop`` returned True.
    """
    device, sums = state.data.mean.device, state.train_step.sums
    num = len(state.data.train_labels)
    if not state.steps_done:
        for total in sums.values():
            total.zero_()
    begun = time.perf_counter()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        _set_random_state(state, device)
        try:
            yield from _steps(state, should_stop, step_seconds)
            loss, running = (sums["loss"] / num).item(), (100 * sums["num_right"] / num).item()
        except Stopped:
            sums["loss"].item()  # wait for the device before the clock is read
            state.random_state = _random_state(device)
            raise
        finally:
            seconds = time.perf_counter() - begun
            state.epoch_seconds += seconds
            state.train_seconds += seconds
    return loss, running


def _steps(state: TrainState, should_stop: ShouldStop, step_seconds: float | None) -> Steps[None]:
    first = state.epochs_done * state.num_steps
    rates = state.base_lr * state.lr_factors[first : first + state.num_steps]
    state.train_step.load_epoch(state.seed, state.epochs_done, rates, state.steps_done)
    state.model.train()
    for step in range(state.steps_done, state.num_steps):
        state.train_step(step)
        state.steps_done = step + 1
        if step_seconds is not None and time.monotonic() - state.reported >= step_seconds:
            state.reported = time.monotonic()
            yield Stepped(state.epochs_done + 1, step + 1, state.num_steps, state.train_step.last_loss())
        else:
            yield None
        _stop_if_asked(should_stop)


def _stop_if_asked(should_stop: ShouldStop) -> None:
    if should_stop():
        raise Stopped


def _set_random_state(state: TrainState, device: torch.device) -> None:
    """Seed torch's global generators, which dropout layers draw from; in mid-epoch, restore them."""
    torch.manual_seed(derive_seed(state.seed, "dropout", state.epochs_done))
    saved, state.random_state = state.random_state, {}
    if "random_cpu" in saved:
        torch.set_rng_state(saved["random_cpu"])
    if "random_cuda" in saved and device.type == "cuda":
        torch.cuda.set_rng_state(saved["random_cuda"], device)


def _random_state(device: torch.device) -> dict[str, Tensor]:
    saved = {"random_cpu": torch.get_rng_state()}
    return saved | ({"random_cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {})


def _predict(state: TrainState, images: Tensor, should_stop: ShouldStop) -> Tensor:
    return predict_logits(
        state.evaluated,
        images,
        state.pipeline,
        state.precision,
        flip_averaging=state.recipe.flip_averaging,
        between=partial(_stop_if_asked, should_stop),
    )


@contextmanager
def _timed_evaluation(state: TrainState) -> Iterator[None]:
    """Add the time of the block to the evaluation time, even when the block raises."""
    begun = time.perf_counter()
    try:
        yield
    finally:
        state.eval_seconds += time.perf_counter() - begun


def _final_metrics(
    state: TrainState, folder: RunFolder, should_stop: ShouldStop, keep_network: bool
) -> dict[str, float]:
    """Headline metrics of the last epoch's network; with ``keep_network``, its logits are written to the folder."""
    with _timed_evaluation(state):
        data, split = state.data, state.data.split
        logits, labels = _predict(state, data.test_images, should_stop), data.test_labels.cpu()
        metrics = {
            f"{split}_accuracy": accuracy(logits, labels),
            f"{split}_nll": negative_log_likelihood(logits, labels),
            f"{split}_ece": expected_calibration_error(logits, labels),
        }
        if not keep_network:
            return metrics
        train_logits = _predict(state, data.train_images, should_stop)
        # shift each image's largest logit to 0: the softmax stays, and float16 keeps the order and cannot overflow
        shifted = (logits - logits.amax(1, keepdim=True)).to(torch.float16)
        for path, values in ((folder.logits, shifted), (folder.labels, labels)):
            with atomic(path) as temporary, temporary.open("wb") as file:
                np.save(file, values.numpy(), allow_pickle=False)
        return metrics | {"train_accuracy": accuracy(train_logits, data.train_labels.cpu())}


def _end(
    state: TrainState, folder: RunFolder, epochs: int, *, metrics: Mapping[str, float] | None = None, reason: str = ""
) -> RunResult:
    """Write the result: finished with metrics, or diverged for a reason."""
    status: Status = "diverged" if metrics is None else "finished"
    result = RunResult(status, epochs, state.train_seconds, state.eval_seconds, dict(metrics or {}), reason)
    folder.write_result(result)
    return result
