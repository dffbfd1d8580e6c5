"""The inner loop: one epoch of steps, which can be left between two of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from cifar_ablate.keys import key
from cifar_ablate.training.batches import plan_epoch, slices
from cifar_ablate.training.evaluate import precision_context
from cifar_ablate.training.fit import Fit


class Watcher(Protocol):
    """What a training tells while it goes on, and asks."""

    def on_start(self, epochs_done: int, damaged: Sequence[Path]) -> None:
        """Training starts, or goes on after ``epochs_done`` epochs; ``damaged`` checkpoints were passed over."""

    def on_step(self, epoch: int, step: int, num_steps: int, loss: Callable[[], float]) -> None:
        """A step has been issued; calling ``loss`` waits for the device, so call it seldom."""

    def on_epoch(self, line: dict[str, Any]) -> None:
        """An epoch has ended and its line is in the folder's history."""

    def should_stop(self) -> bool:
        """Asked after every step and before every batch that is evaluated; True: checkpoint and raise Stopped."""


class Stopped(Exception):  # noqa: N818  no error: what was asked for
    """Training was asked to stop; where it stood is in the folder's checkpoint."""


def train_epoch(fit: Fit, watcher: Watcher) -> tuple[float, float]:
    """The steps that are left of an epoch; gives its mean loss and running accuracy (percent, on augmented images).

    The device is waited for once, at the end. Raises Stopped between two steps where the watcher asks for it.
    """
    device = fit.data.mean.device
    num = len(fit.data.train_labels)
    if not fit.steps_done:
        fit.sums = {name: torch.zeros((), device=device) for name in ("loss", "num_right")}
    begun = time.perf_counter()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        _set_random_state(fit, device)
        try:
            _steps(fit, watcher)
            loss, running = (fit.sums["loss"] / num).item(), (100 * fit.sums["num_right"] / num).item()
        except Stopped:
            fit.sums["loss"].item()  # the device is waited for: the clock is read next
            fit.sums |= _random_state(device)
            raise
        finally:
            seconds = time.perf_counter() - begun
            fit.epoch_seconds += seconds
            fit.train_seconds += seconds
    return loss, running


def _steps(fit: Fit, watcher: Watcher) -> None:
    data, device = fit.data, fit.data.mean.device
    epoch = plan_epoch(fit.seed, fit.epochs_done, data)
    order, draws = torch.from_numpy(epoch.order).to(device), fit.pipeline.draw_epoch(epoch, device)
    base_lr = fit.base_lr
    fit.model.train()
    for step, rows in enumerate(slices(len(data.train_labels), fit.recipe.batch_size)):
        if step < fit.steps_done:
            continue
        lr = base_lr * float(fit.lr_factors[fit.epochs_done * fit.num_steps + step])
        for group in fit.optimizer.param_groups:
            group["lr"] = lr
        picked = order[rows]
        batch = fit.pipeline(data.train_images[picked], data.train_labels[picked], draws, rows.start)
        loss, logits = train_step(fit, batch.images, batch.targets)
        fit.sums["loss"] += loss * len(picked)
        fit.sums["num_right"] += (logits.argmax(1) == batch.targets.argmax(1)).sum()
        fit.steps_done = step + 1
        watcher.on_step(fit.epochs_done + 1, step + 1, fit.num_steps, loss.item)
        stop_if_asked(watcher)


def stop_if_asked(watcher: Watcher) -> None:
    if watcher.should_stop():
        raise Stopped


def _set_random_state(fit: Fit, device: torch.device) -> None:
    """Dropout layers draw from torch's global stream: seeded for each epoch, taken up again in the middle of one."""
    torch.manual_seed(key(fit.seed, "dropout", fit.epochs_done))
    if "random_cpu" in fit.sums:
        torch.set_rng_state(fit.sums.pop("random_cpu"))
    if "random_cuda" in fit.sums and device.type == "cuda":
        torch.cuda.set_rng_state(fit.sums.pop("random_cuda"), device)


def _random_state(device: torch.device) -> dict[str, Tensor]:
    state = {"random_cpu": torch.get_rng_state()}
    return state | ({"random_cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {})


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
