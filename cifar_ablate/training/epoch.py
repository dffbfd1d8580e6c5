"""The inner loop: one epoch of steps, which can be left between two of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from cifar_ablate.keys import key
from cifar_ablate.training.fit import Fit

Result = TypeVar("Result")
Steps = Generator[None, None, Result]
"""Work that can be left and taken up between two steps, so that several trainings may take turns on one device."""


def finish(steps: Steps[Result]) -> Result:
    """Take all steps, one after the other; gives what they come to."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]


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


def train_epoch(fit: Fit, watcher: Watcher) -> Steps[tuple[float, float]]:
    """The steps that are left of an epoch; gives its mean loss and running accuracy (percent, on augmented images).

    Nothing is waited for on the device before the last step. Raises Stopped between two steps where the watcher asks
    for it.
    """
    device, sums = fit.data.mean.device, fit.stepper.sums
    num = len(fit.data.train_labels)
    if not fit.steps_done:
        for total in sums.values():
            total.zero_()
    begun = time.perf_counter()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        _set_random_state(fit, device)
        try:
            yield from _steps(fit, watcher)
            loss, running = (sums["loss"] / num).item(), (100 * sums["num_right"] / num).item()
        except Stopped:
            sums["loss"].item()  # the device is waited for: the clock is read next
            fit.random_state = _random_state(device)
            raise
        finally:
            seconds = time.perf_counter() - begun
            fit.epoch_seconds += seconds
            fit.train_seconds += seconds
    return loss, running


def _steps(fit: Fit, watcher: Watcher) -> Steps[None]:
    first = fit.epochs_done * fit.num_steps
    rates = fit.base_lr * fit.lr_factors[first : first + fit.num_steps]
    fit.stepper.load_epoch(fit.seed, fit.epochs_done, rates, fit.steps_done)
    fit.model.train()
    for step in range(fit.steps_done, fit.num_steps):
        fit.stepper(step)
        fit.steps_done = step + 1
        watcher.on_step(fit.epochs_done + 1, step + 1, fit.num_steps, fit.stepper.glance)
        stop_if_asked(watcher)
        yield


def stop_if_asked(watcher: Watcher) -> None:
    if watcher.should_stop():
        raise Stopped


def _set_random_state(fit: Fit, device: torch.device) -> None:
    """Dropout layers draw from torch's global stream: seeded for each epoch, taken up again in the middle of one."""
    torch.manual_seed(key(fit.seed, "dropout", fit.epochs_done))
    state, fit.random_state = fit.random_state, {}
    if "random_cpu" in state:
        torch.set_rng_state(state["random_cpu"])
    if "random_cuda" in state and device.type == "cuda":
        torch.cuda.set_rng_state(state["random_cuda"], device)


def _random_state(device: torch.device) -> dict[str, Tensor]:
    state = {"random_cpu": torch.get_rng_state()}
    return state | ({"random_cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {})
