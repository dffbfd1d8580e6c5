"""Sampling and pruning algorithms by name: which values a trial gets, and which trials end early. All are Optuna's.

A sampler is a function ``(seed, *, options) -> BaseSampler``; it is called anew for each trial, with the trial's seed.
A pruner is a function ``(num_epochs, *, options) -> BasePruner``; ``num_epochs`` is the number of epochs of a whole
trial. The seeds of a trial are trained one after the other, and its epochs are numbered through all of them.

Optuna is imported inside the functions: studies name these algorithms, and must load without it.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from cifar_ablate.fields import Fraction, NonNegativeInt, PositiveInt
from cifar_ablate.registry import PRUNERS, SAMPLERS

if TYPE_CHECKING:
    from optuna.pruners import BasePruner
    from optuna.samplers import BaseSampler
else:
    BasePruner = BaseSampler = Any


@SAMPLERS.register("tpe")
def tpe(seed: int, *, startup_trials: PositiveInt = 10, candidates: PositiveInt = 24) -> BaseSampler:
    """Tree-structured Parzen estimator, multivariate, after ``startup_trials`` at random (Optuna's TPESampler)."""
    from optuna.samplers import TPESampler

    return TPESampler(n_startup_trials=startup_trials, n_ei_candidates=candidates, seed=seed)


@SAMPLERS.register("gp")
def gp(seed: int, *, startup_trials: PositiveInt = 10) -> BaseSampler:
    """Gaussian process with log expected improvement: for few, long trials (Optuna's GPSampler; 0.1 s per trial)."""
    from optuna.samplers import GPSampler

    return GPSampler(n_startup_trials=startup_trials, seed=seed, warn_independent_sampling=False)


@SAMPLERS.register("random")
def random(seed: int) -> BaseSampler:
    """Every value at random, independently: the reference for other samplers (Bergstra and Bengio, JMLR 2012)."""
    from optuna.samplers import RandomSampler

    return RandomSampler(seed=seed)


@SAMPLERS.register("grid")
def grid(seed: int) -> BaseSampler:
    """Every combination once, in random order; numbers need a step (Optuna's BruteForceSampler)."""
    from optuna.exceptions import ExperimentalWarning
    from optuna.samplers import BruteForceSampler

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)  # Optuna's GridSampler does not support conditions
        return BruteForceSampler(seed=seed)


@PRUNERS.register("median")
def median(
    num_epochs: int,
    *,
    startup_trials: NonNegativeInt = 5,
    warmup: Fraction = 0.1,
    every_epochs: PositiveInt = 1,
) -> BasePruner:
    """Prune a trial whose best epoch so far is below the median of the others at this epoch (Optuna's MedianPruner).

    The first ``startup_trials`` trials are not pruned. ``warmup`` is the share of a trial's epochs (rounded up) before
    it can be pruned, checked every ``every_epochs``: a share, so that a profile with fewer epochs prunes alike. A
    schedule that lowers the learning rate late looks bad early and needs a longer warm-up.
    """
    from optuna.pruners import MedianPruner

    num_warmup = _num_epochs(warmup, num_epochs)
    return MedianPruner(n_startup_trials=startup_trials, n_warmup_steps=num_warmup, interval_steps=every_epochs)


@PRUNERS.register("hyperband")
def hyperband(
    num_epochs: int, *, min_epochs: PositiveInt = 1, reduction_factor: Annotated[int, Field(ge=2)] = 3
) -> BasePruner:
    """Successive halving in several brackets (arXiv 1603.06560): rungs at ``min_epochs`` times powers of the factor.

    At a rung, one trial in ``reduction_factor`` goes on (Optuna's HyperbandPruner).
    """
    from optuna.pruners import HyperbandPruner

    return HyperbandPruner(
        min_resource=min_epochs, max_resource=max(num_epochs, min_epochs), reduction_factor=reduction_factor
    )


@PRUNERS.register("none")
def none(num_epochs: int) -> BasePruner:
    """Train every trial to its last epoch."""
    from optuna.pruners import NopPruner

    return NopPruner()


def can_prune(name: str, options: Mapping[str, Any], num_epochs: int) -> bool:
    """Whether the pruner is asked before the last epoch. True for ``none`` and for pruners that are not built in."""
    first = {"median": _num_epochs(options.get("warmup", 0), num_epochs), "hyperband": options.get("min_epochs", 1)}
    return name not in first or max(1, int(first[name])) < num_epochs


def _num_epochs(share: float, num_epochs: int) -> int:
    """A share of the epochs, rounded up, without rounding errors of products such as 0.7 * 10."""
    return math.ceil(round(share * num_epochs, 6))
