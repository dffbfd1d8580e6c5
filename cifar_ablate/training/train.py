"""One run: a recipe, a seed and data in; a result, a history and weights in the run's folder out.

Set up, fit, evaluate. Training chooses nothing by the test set: the headline is the last epoch's network, and the test
curve is only written down.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from cifar_ablate.augment.pipeline import Pipeline, build_pipeline
from cifar_ablate.folder import RunFolder, RunResult, Status, atomic
from cifar_ablate.keys import key
from cifar_ablate.models.build import build_model
from cifar_ablate.registry import OPTIMIZERS, SCHEDULES
from cifar_ablate.spec.schema import Recipe
from cifar_ablate.training.batches import DeviceData, plan_epoch, slices
from cifar_ablate.training.checkpoint import load_checkpoint, save_checkpoint, save_weights
from cifar_ablate.training.evaluate import (
    accuracy,
    expected_calibration_error,
    negative_log_likelihood,
    precision_context,
    predict_logits,
)
from cifar_ablate.training.schedules import Curve

CHECKPOINT_SECONDS = 60.0
"""A checkpoint is written at the end of an epoch, when the last one is at least this old."""


class Watcher(Protocol):
    """What a training tells while it goes on."""

    def on_start(self, epochs_done: int) -> None:
        """Training starts, or goes on after ``epochs_done`` epochs of an earlier attempt."""

    def on_step(self, epoch: int, step: int, num_steps: int, loss: Callable[[], float]) -> None:
        """A step has been issued; calling ``loss`` waits for the device, so call it seldom."""

    def on_epoch(self, line: dict[str, Any]) -> None:
        """An epoch has ended and its line is in the folder's history."""


@dataclass
class Fit:
    """Everything one training holds between steps."""

    recipe: Recipe
    seed: int
    precision: str
    data: DeviceData
    model: nn.Module
    optimizer: torch.optim.Optimizer
    pipeline: Pipeline
    lr_factors: Curve
    epochs_done: int = 0
    train_seconds: float = 0.0
    eval_seconds: float = 0.0


def train_run(
    recipe: Recipe, seed: int, data: DeviceData, *, precision: str, folder: RunFolder, watcher: Watcher
) -> RunResult:
    """Train one run to its end, resuming from the folder's checkpoint where there is one.

    The result is also written to the folder. A loss that is not finite ends the run as ``diverged``.
    """
    fit = set_up(recipe, seed, data, precision)
    _resume(fit, folder)
    watcher.on_start(fit.epochs_done)
    checkpointed = time.monotonic()
    metrics: dict[str, float] = {}
    while fit.epochs_done < recipe.epochs:
        line = _epoch(fit, watcher)
        if not math.isfinite(line["train_loss"]):
            return _end(fit, folder, reason=f"the training loss was {line['train_loss']} in epoch {fit.epochs_done}")
        if fit.epochs_done == recipe.epochs:
            metrics = _final_metrics(fit, folder)
            if not math.isfinite(metrics["test_nll"]):  # the loss is taken before a step, so the last step escapes it
                folder.logits.unlink()
                return _end(fit, folder, reason="the network's outputs were not finite after the last step")
            line |= {name: metrics[name] for name in ("test_accuracy", "test_nll")}
        folder.append_epoch(line)
        if recipe.checkpoint_every and fit.epochs_done % recipe.checkpoint_every == 0:
            save_weights(folder.weights_of_epoch(fit.epochs_done), fit.model, _identity(fit, folder))
        if time.monotonic() - checkpointed >= CHECKPOINT_SECONDS and fit.epochs_done < recipe.epochs:
            checkpoint_fit(fit, folder)
            checkpointed = time.monotonic()
        watcher.on_epoch(line)
    save_weights(folder.weights, fit.model, _identity(fit, folder))
    return _end(fit, folder, metrics=metrics)


def set_up(recipe: Recipe, seed: int, data: DeviceData, precision: str) -> Fit:
    """Network, optimizer, augmentations and learning-rate curve of a run before its first step."""
    model = build_model(
        recipe.model.name,
        recipe.model.kwargs(),
        num_classes=data.num_classes,
        image_size_px=data.image_size_px,
        init_seed=key(seed, "init"),
    )
    model = model.to(data.mean.device).to(memory_format=torch.channels_last)
    pipeline = build_pipeline(
        {name: part.kwargs() for name, part in recipe.augment.items()},
        mean=data.mean,
        std=data.std,
        num_classes=data.num_classes,
        label_smoothing=recipe.loss.label_smoothing,
    )
    steps_per_epoch = math.ceil(len(data.train_labels) / recipe.batch_size)
    schedule = SCHEDULES.bind(recipe.schedule.name, recipe.schedule.kwargs())
    return Fit(
        recipe,
        seed,
        precision,
        data,
        model,
        OPTIMIZERS.bind(recipe.optimizer.name, recipe.optimizer.kwargs())(model),
        pipeline,
        lr_factors=schedule(recipe.epochs * steps_per_epoch, steps_per_epoch),
    )


def _resume(fit: Fit, folder: RunFolder) -> None:
    progress = load_checkpoint(folder.checkpoint, fit.model, fit.optimizer)
    if progress is not None:
        fit.epochs_done = progress["epochs"]
        fit.train_seconds, fit.eval_seconds = progress["train_seconds"], progress["eval_seconds"]
    folder.keep_history(fit.epochs_done)


def checkpoint_fit(fit: Fit, folder: RunFolder) -> None:
    """Write the state from which the next epoch can be started again."""
    progress = {"epochs": fit.epochs_done, "train_seconds": fit.train_seconds, "eval_seconds": fit.eval_seconds}
    save_checkpoint(folder.checkpoint, fit.model, fit.optimizer, progress)


def _epoch(fit: Fit, watcher: Watcher) -> dict[str, Any]:
    """Train one epoch, evaluate if it is due, and give the line for the history."""
    begun = time.perf_counter()
    with torch.random.fork_rng(devices=_cuda_devices(fit.data.mean.device)):
        torch.manual_seed(key(fit.seed, "dropout", fit.epochs_done))  # dropout layers draw from torch's global stream
        loss, running = train_epoch(fit, watcher)
    seconds = time.perf_counter() - begun
    fit.epochs_done += 1
    fit.train_seconds += seconds
    num_steps = len(fit.lr_factors) // fit.recipe.epochs
    line: dict[str, Any] = {
        "epoch": fit.epochs_done,
        "time_ms": int(time.time() * 1000),
        "train_loss": loss,
        "running_accuracy": running,
        "lr": _base_lr(fit) * float(fit.lr_factors[fit.epochs_done * num_steps - 1]),
        "images_per_second": len(fit.data.train_labels) / seconds,
    }
    every = fit.recipe.eval_every
    if every and fit.epochs_done % every == 0 and fit.epochs_done < fit.recipe.epochs and math.isfinite(loss):
        begun = time.perf_counter()
        logits = predict_logits(fit.model, fit.data.test_images, fit.pipeline, fit.precision)
        labels = fit.data.test_labels.cpu()
        line["test_accuracy"] = accuracy(logits, labels)
        line["test_nll"] = negative_log_likelihood(logits, labels)
        fit.eval_seconds += time.perf_counter() - begun
    return line


def train_epoch(fit: Fit, watcher: Watcher) -> tuple[float, float]:
    """All steps of one epoch; gives the mean loss and the running accuracy (percent, on augmented images).

    The device is waited for once, at the end.
    """
    data, device = fit.data, fit.data.mean.device
    num, batch_size = len(data.train_labels), fit.recipe.batch_size
    epoch = plan_epoch(fit.seed, fit.epochs_done, data)
    order, draws = torch.from_numpy(epoch.order).to(device), fit.pipeline.draw_epoch(epoch, device)
    num_steps = math.ceil(num / batch_size)
    total_loss, num_right = torch.zeros((), device=device), torch.zeros((), device=device)
    base_lr = _base_lr(fit)
    fit.model.train()
    for step, rows in enumerate(slices(num, batch_size)):
        lr = base_lr * float(fit.lr_factors[fit.epochs_done * num_steps + step])
        for group in fit.optimizer.param_groups:
            group["lr"] = lr
        picked = order[rows]
        batch = fit.pipeline(data.train_images[picked], data.train_labels[picked], draws, rows.start)
        loss, logits = train_step(fit, batch.images, batch.targets)
        total_loss += loss * len(picked)
        num_right += (logits.argmax(1) == batch.targets.argmax(1)).sum()
        watcher.on_step(fit.epochs_done + 1, step + 1, num_steps, loss.item)
    return (total_loss / num).item(), (100 * num_right / num).item()


def train_step(fit: Fit, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """One step of the optimizer on images float32 [B, 3, H, W] and soft targets [B, C]; gives loss and logits."""
    with precision_context(images.device, fit.precision):
        logits = fit.model(images.contiguous(memory_format=torch.channels_last))
    logits = logits.float()
    loss = functional.cross_entropy(logits, targets)
    fit.optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    fit.optimizer.step()
    return loss.detach(), logits.detach()


def _final_metrics(fit: Fit, folder: RunFolder) -> dict[str, float]:
    """Headline metrics of the last epoch's network; the test logits go to the folder."""
    begun = time.perf_counter()
    data = fit.data
    test = predict_logits(fit.model, data.test_images, fit.pipeline, fit.precision)
    train = predict_logits(fit.model, data.train_images, fit.pipeline, fit.precision)
    labels = data.test_labels.cpu()
    # the largest logit of each image becomes 0: the same softmax, and float16 keeps the order and cannot overflow
    kept = (test - test.amax(1, keepdim=True)).to(torch.float16)
    for path, values in ((folder.logits, kept), (folder.labels, labels)):
        with atomic(path) as temporary, temporary.open("wb") as file:
            np.save(file, values.numpy(), allow_pickle=False)
    metrics = {
        "test_accuracy": accuracy(test, labels),
        "test_nll": negative_log_likelihood(test, labels),
        "test_ece": expected_calibration_error(test, labels),
        "train_accuracy": accuracy(train, data.train_labels.cpu()),
    }
    fit.eval_seconds += time.perf_counter() - begun
    return metrics


def _end(fit: Fit, folder: RunFolder, *, metrics: Mapping[str, float] | None = None, reason: str = "") -> RunResult:
    """Write how the run ended: finished with its metrics, or diverged for a reason."""
    status: Status = "diverged" if metrics is None else "finished"
    result = RunResult(status, fit.epochs_done, fit.train_seconds, fit.eval_seconds, dict(metrics or {}), reason)
    folder.write_result(result)
    return result


def _base_lr(fit: Fit) -> float:
    return float(fit.recipe.optimizer.kwargs()["lr"])


def _identity(fit: Fit, folder: RunFolder) -> dict[str, str]:
    """What a reader of the weights needs to use them without the data: network, preprocessing, where they are from."""
    preprocessing = {
        "image_size_px": fit.data.image_size_px,
        "mean": fit.data.mean.flatten().tolist(),
        "std": fit.data.std.flatten().tolist(),
    }
    return {
        "fingerprint": folder.fingerprint,
        "seed": str(fit.seed),
        "epoch": str(fit.epochs_done),
        "model": json.dumps(fit.recipe.model.as_dict()),
        "num_classes": str(fit.data.num_classes),
        "preprocessing": json.dumps(preprocessing),
    }


def _cuda_devices(device: torch.device) -> list[torch.device]:
    return [device] if device.type == "cuda" else []
