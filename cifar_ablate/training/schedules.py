"""Learning-rate schedules: each returns the factor on the optimizer's lr for every step of a run.

A schedule is a function ``(total_steps, steps_per_epoch, *, options) -> float64 [total_steps]``. It returns the whole
curve at once, so that it can be drawn, tested against torch's schedulers, and read by a captured step.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt

from cifar_ablate.fields import Fraction, NonNegativeFloat, PositiveFloat, PositiveInt, Probability
from cifar_ablate.registry import SCHEDULES

Curve = npt.NDArray[np.float64]
"""A value for each step, float64 [steps]."""


@SCHEDULES.register("constant")
def constant(total_steps: int, steps_per_epoch: int) -> Curve:
    """The same learning rate throughout."""
    return np.ones(total_steps)


@SCHEDULES.register("cosine")
def cosine(total_steps: int, steps_per_epoch: int, *, warmup: Fraction = 0.0, final: Probability = 0.0) -> Curve:
    """Half a cosine from 1 to ``final`` (arXiv 1608.03983), after a linear warm-up over a share of all steps."""
    rise, decay = _split(total_steps, warmup)
    return np.concatenate([rise, final + (1 - final) * 0.5 * (1 + np.cos(np.pi * decay))])


@SCHEDULES.register("linear")
def linear(total_steps: int, steps_per_epoch: int, *, warmup: Fraction = 0.0, final: Probability = 0.0) -> Curve:
    """A straight line from 1 to ``final``, after a linear warm-up over a share of all steps."""
    rise, decay = _split(total_steps, warmup)
    return np.concatenate([rise, 1 + (final - 1) * decay])


@SCHEDULES.register("step")
def step(total_steps: int, steps_per_epoch: int, *, every_epochs: PositiveInt, gamma: Probability = 0.1) -> Curve:
    """Multiply by ``gamma`` every ``every_epochs`` epochs (torch's StepLR)."""
    epochs = np.arange(total_steps) // steps_per_epoch
    return gamma ** (epochs // every_epochs).astype(np.float64)


@SCHEDULES.register("one-cycle")
def one_cycle(
    total_steps: int,
    steps_per_epoch: int,
    *,
    warmup: Fraction = 0.3,
    start: PositiveFloat = 0.04,
    final: NonNegativeFloat = 4e-6,
    shape: Literal["cos", "linear"] = "cos",
) -> Curve:
    """Up from ``start`` to 1 in the first ``warmup`` of all steps, then down to ``final`` (arXiv 1708.07120).

    The curve and defaults are those of torch's OneCycleLR: pct_start 0.3, start 1/25, final 1/25/1e4. Momentum is not
    cycled.
    """
    peak = warmup * total_steps - 1
    steps = np.arange(total_steps, dtype=np.float64)
    rising = np.ones(total_steps) if peak <= 0 else np.clip(steps / peak, 0, 1)
    falling = np.clip((steps - peak) / max(total_steps - 1 - peak, 1e-9), 0, 1)
    if shape == "cos":
        rising, falling = (0.5 * (1 - np.cos(np.pi * part)) for part in (rising, falling))
    return np.where(steps <= peak, start + (1 - start) * rising, 1 + (final - 1) * falling)


def _split(total_steps: int, warmup: float) -> tuple[Curve, Curve]:
    """Factors of the warm-up, and the progress of the decay in [0, 1) for each later step."""
    num_rise = round(warmup * total_steps)
    num_decay = total_steps - num_rise
    return np.arange(1, num_rise + 1) / max(num_rise, 1), np.arange(num_decay) / max(num_decay, 1)
