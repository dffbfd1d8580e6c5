"""One run: a recipe, a seed and data in; a result, a history and weights in the run's folder out.

Set up, fit, evaluate. Training chooses nothing by the test set: the headline is the last epoch's network, and the test
curve is only written down. Metrics are named after the split that they are of: ``test_accuracy``, in a trial
``val_accuracy``.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cifar_ablate.folder import RunFolder, RunResult, Status, atomic
from cifar_ablate.spec.schema import Recipe
from cifar_ablate.training.batches import DeviceData
from cifar_ablate.training.checkpoint import save_weights
from cifar_ablate.training.engine import Engine
from cifar_ablate.training.epoch import ShouldStop, Stopped, never, stop_if_asked, train_epoch
from cifar_ablate.training.evaluate import (
    accuracy,
    expected_calibration_error,
    negative_log_likelihood,
    predict_logits,
)
from cifar_ablate.training.events import EpochEnded, Started, Steps
from cifar_ablate.training.fit import Fit, checkpoint_fit, identity_of, resume, set_up

CHECKPOINT_SECONDS = 60.0
"""A checkpoint is written at the end of an epoch, when the last one is at least this old."""


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
    lane: int = 0,
    keep_network: bool = True,
) -> Steps[RunResult]:
    """Train one run to its end, resuming from the newest usable checkpoint of its folder.

    Yields Started, then after each step a Stepped (at most every ``step_seconds``; None: never) or None, and EpochEnded
    after each epoch; several trainings may take turns on one device, each in a lane of ``engine``. Returns the result,
    which is also written to the folder; weights, logits and training accuracy only with ``keep_network``. A loss that
    is not finite ends the run as ``diverged``. If ``should_stop`` says so, writes a checkpoint, also in mid-epoch, and
    raises Stopped.
    """
    fit = set_up(recipe, seed, data, precision, engine, lane)
    damaged = resume(fit, folder)
    yield Started(fit.epochs_done, tuple(path.name for path in damaged))
    try:
        return (yield from _fit(fit, folder, should_stop, step_seconds, checkpoint_seconds, keep_network))
    except Stopped:
        checkpoint_fit(fit, folder)
        raise


def _fit(
    fit: Fit,
    folder: RunFolder,
    should_stop: ShouldStop,
    step_seconds: float | None,
    checkpoint_seconds: float,
    keep_network: bool,
) -> Steps[RunResult]:
    """All epochs that are left, and the end of the run."""
    recipe, split = fit.recipe, fit.data.split
    checkpointed = time.monotonic()
    metrics: dict[str, float] = {}
    while fit.epochs_done < recipe.epochs:
        line = yield from _epoch(fit, should_stop, step_seconds)
        epoch = line["epoch"]
        if not math.isfinite(line["train_loss"]):
            return _end(fit, folder, epoch, reason=f"the training loss was {line['train_loss']} in epoch {epoch}")
        if epoch == recipe.epochs:
            metrics = _final_metrics(fit, folder, should_stop, keep_network)
            if not math.isfinite(metrics[f"{split}_nll"]):  # the loss is taken before a step: the last one escapes it
                folder.logits.unlink(missing_ok=True)
                return _end(fit, folder, epoch, reason="the network's outputs were not finite after the last step")
            line |= {name: metrics[name] for name in (f"{split}_accuracy", f"{split}_nll")}
        folder.append_epoch(line)
        fit.epochs_done, fit.steps_done, fit.epoch_seconds = epoch, 0, 0.0
        if recipe.checkpoint_every and epoch % recipe.checkpoint_every == 0:
            save_weights(folder.weights_of_epoch(epoch), fit.evaluated, identity_of(fit, folder))
        if time.monotonic() - checkpointed >= checkpoint_seconds and epoch < recipe.epochs:
            checkpoint_fit(fit, folder)
            checkpointed = time.monotonic()
        yield EpochEnded(line)
    if keep_network:
        save_weights(folder.weights, fit.evaluated, identity_of(fit, folder))
    return _end(fit, folder, fit.epochs_done, metrics=metrics)


def _epoch(fit: Fit, should_stop: ShouldStop, step_seconds: float | None) -> Steps[dict[str, Any]]:
    """Train one epoch, evaluate if it is due, and give the line for the history."""
    loss, running = yield from train_epoch(fit, should_stop, step_seconds)
    epoch = fit.epochs_done + 1
    line: dict[str, Any] = {
        "epoch": epoch,
        "time_ms": int(time.time() * 1000),
        "train_loss": loss,
        "running_accuracy": running,
        "lr": fit.base_lr * float(fit.lr_factors[epoch * fit.num_steps - 1]),
        "images_per_second": len(fit.data.train_labels) / fit.epoch_seconds,
    }
    every = fit.recipe.eval_every
    if every and epoch % every == 0 and epoch < fit.recipe.epochs and math.isfinite(loss):
        with _evaluation(fit):
            logits = _predict(fit, fit.data.test_images, should_stop)
            labels = fit.data.test_labels.cpu()
            line[f"{fit.data.split}_accuracy"] = accuracy(logits, labels)
            line[f"{fit.data.split}_nll"] = negative_log_likelihood(logits, labels)
    return line


def _predict(fit: Fit, images: Tensor, should_stop: ShouldStop) -> Tensor:
    return predict_logits(
        fit.evaluated,
        images,
        fit.pipeline,
        fit.precision,
        flip_averaging=fit.recipe.flip_averaging,
        between=partial(stop_if_asked, should_stop),
    )


@contextmanager
def _evaluation(fit: Fit) -> Iterator[None]:
    """Count the time of the block, also of one that is left early."""
    begun = time.perf_counter()
    try:
        yield
    finally:
        fit.eval_seconds += time.perf_counter() - begun


def _final_metrics(fit: Fit, folder: RunFolder, should_stop: ShouldStop, keep_network: bool) -> dict[str, float]:
    """Headline metrics of the last epoch's network; its logits go to the folder where it is kept."""
    with _evaluation(fit):
        data, split = fit.data, fit.data.split
        logits, labels = _predict(fit, data.test_images, should_stop), data.test_labels.cpu()
        metrics = {
            f"{split}_accuracy": accuracy(logits, labels),
            f"{split}_nll": negative_log_likelihood(logits, labels),
            f"{split}_ece": expected_calibration_error(logits, labels),
        }
        if not keep_network:
            return metrics
        train = _predict(fit, data.train_images, should_stop)
        # the largest logit of each image becomes 0: the same softmax, and float16 keeps the order and cannot overflow
        kept = (logits - logits.amax(1, keepdim=True)).to(torch.float16)
        for path, values in ((folder.logits, kept), (folder.labels, labels)):
            with atomic(path) as temporary, temporary.open("wb") as file:
                np.save(file, values.numpy(), allow_pickle=False)
        return metrics | {"train_accuracy": accuracy(train, data.train_labels.cpu())}


def _end(
    fit: Fit, folder: RunFolder, epochs: int, *, metrics: Mapping[str, float] | None = None, reason: str = ""
) -> RunResult:
    """Write how the run ended: finished with its metrics, or diverged for a reason."""
    status: Status = "diverged" if metrics is None else "finished"
    result = RunResult(status, epochs, fit.train_seconds, fit.eval_seconds, dict(metrics or {}), reason)
    folder.write_result(result)
    return result
