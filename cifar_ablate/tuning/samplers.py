"""Samplers by name: which values a trial gets. Optuna's own; ours is that each trial draws from its own seed.

A sampler is a function ``(seed, *, options) -> BaseSampler``, called anew for each trial.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

from cifar_ablate.fields import PositiveInt
from cifar_ablate.registry import SAMPLERS

if TYPE_CHECKING:  # loading a study shall not wait for Optuna
    from optuna.samplers import BaseSampler
else:
    BaseSampler = Any


@SAMPLERS.register("tpe")
def tpe(seed: int, *, startup_trials: PositiveInt = 10, candidates: PositiveInt = 24) -> BaseSampler:
    """Tree-structured Parzen estimator, multivariate, after ``startup_trials`` at random (Optuna's TPESampler)."""
    from optuna.samplers import TPESampler

    return TPESampler(n_startup_trials=startup_trials, n_ei_candidates=candidates, seed=seed)


@SAMPLERS.register("gp")
def gp(seed: int, *, startup_trials: PositiveInt = 10) -> BaseSampler:
    """Gaussian process with log expected improvement: for few, long trials (Optuna's GPSampler; 0.1 s a trial)."""
    from optuna.samplers import GPSampler

    return GPSampler(n_startup_trials=startup_trials, seed=seed, warn_independent_sampling=False)


@SAMPLERS.register("random")
def random(seed: int) -> BaseSampler:
    """Every value independently at random: what other samplers have to beat (Bergstra and Bengio, JMLR 2012)."""
    from optuna.samplers import RandomSampler

    return RandomSampler(seed=seed)


@SAMPLERS.register("grid")
def grid(seed: int) -> BaseSampler:
    """Every combination once, in random order; numbers need a step (Optuna's BruteForceSampler)."""
    from optuna.exceptions import ExperimentalWarning
    from optuna.samplers import BruteForceSampler

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)  # its own GridSampler knows no conditions
        return BruteForceSampler(seed=seed)
