"""The inner loop: one epoch of steps, which can be left between two of them."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor

from cifar_ablate.keys import key
from cifar_ablate.training.events import Stepped, Steps
from cifar_ablate.training.fit import Fit

ShouldStop = Callable[[], bool]
"""Asked after every step and before every evaluated batch; True: write a checkpoint and raise Stopped."""


def never() -> bool:
    """The answer of a training that nothing stops."""
    return False


class Stopped(Exception):  # noqa: N818  no error: what was asked for
    """Training was asked to stop; where it stood is in the folder's checkpoint."""


def train_epoch(
    fit: Fit, should_stop: ShouldStop = never, step_seconds: float | None = None
) -> Steps[tuple[float, float]]:
    """Take the remaining steps of an epoch; return its mean loss and running accuracy (percent, on augmented images).

    Yields Stepped at most every ``step_seconds`` (None: never), and None after the other steps. Waits for the device
    only to read a loss that is reported, and after the last step. Raises Stopped between two steps if asked to stop.
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
            yield from _steps(fit, should_stop, step_seconds)
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


def _steps(fit: Fit, should_stop: ShouldStop, step_seconds: float | None) -> Steps[None]:
    first = fit.epochs_done * fit.num_steps
    rates = fit.base_lr * fit.lr_factors[first : first + fit.num_steps]
    fit.stepper.load_epoch(fit.seed, fit.epochs_done, rates, fit.steps_done)
    fit.model.train()
    for step in range(fit.steps_done, fit.num_steps):
        fit.stepper(step)
        fit.steps_done = step + 1
        if step_seconds is not None and time.monotonic() - fit.reported >= step_seconds:
            fit.reported = time.monotonic()
            yield Stepped(fit.epochs_done + 1, step + 1, fit.num_steps, fit.stepper.glance())
        else:
            yield None
        stop_if_asked(should_stop)


def stop_if_asked(should_stop: ShouldStop) -> None:
    if should_stop():
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
