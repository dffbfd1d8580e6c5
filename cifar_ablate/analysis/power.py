"""How many seeds a difference needs, and what planned seeds detect: two-sided t tests at 80% power (statsmodels)."""

from __future__ import annotations

import math
import warnings
from functools import lru_cache

import numpy as np
from scipy import optimize, stats

from cifar_ablate.analysis.engine import Joint

POWER = 0.8
MAX_SEEDS = 100_000


def power_of(effect: float, num_seeds: float, alpha: float) -> float:
    """Power of a two-sided one-sample t test; ``effect`` is the difference over its standard deviation.

    statsmodels' ``TTestPower`` gives NaN for large effects with few seeds (5.33 with 3), and the noncentral t is used.
    """
    from statsmodels.stats.power import TTestPower

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = float(TTestPower().power(effect, num_seeds, alpha))
    if math.isfinite(found):
        return found
    critical = stats.t.isf(alpha / 2, num_seeds - 1)
    found = float(stats.nct.sf(critical, num_seeds - 1, effect * math.sqrt(num_seeds)))
    return found if math.isfinite(found) else 1.0


@lru_cache(maxsize=1024)  # the arms of a balanced study have one standard error: 39 contrasts ask the same
def seeds_to_detect(points: float, sd: float, alpha: float) -> float:
    """Seeds per arm, at least 2, at which a difference of ``points`` is detected; ``sd`` is that of one difference.

    Infinite where ``points`` is 0, or more than 100,000 would be needed.
    """
    if points <= 0:
        return math.inf
    if sd <= 0:
        return 2.0
    effect = points / sd
    if power_of(effect, 2, alpha) >= POWER:
        return 2.0
    if power_of(effect, MAX_SEEDS, alpha) < POWER:
        return math.inf
    bounds = math.log(2), math.log(MAX_SEEDS)  # in logarithms the power is a straight enough line for ten steps
    return math.exp(optimize.brentq(lambda log: power_of(effect, math.exp(log), alpha) - POWER, *bounds, xtol=1e-6))


def sd_interval(sd: float, df: float, level: float = 0.8) -> tuple[float, float]:
    """Chi-square interval of a standard deviation."""
    tail = (1 - level) / 2
    return (
        sd * math.sqrt(df / float(stats.chi2.isf(tail, df))),
        sd * math.sqrt(df / float(stats.chi2.isf(1 - tail, df))),
    )


def detectable(num_seeds: int, num_arms: int, sd: float, alpha: float = 0.05) -> float | None:
    """Points that a study of ``num_arms`` arms against one baseline detects with 80% power; None below 2 seeds.

    ``sd`` is the standard deviation of one run between seeds, in points; seeds are taken for independent, so the
    difference of two runs has sqrt(2) of it.
    """
    df = (num_arms - 1) * (num_seeds - 1)
    if num_seeds < 2 or num_arms < 2:
        return None
    num = num_arms - 1  # comparisons, all with one baseline: correlation 1/2
    critical = Joint(np.full((num, num), 0.5) + 0.5 * np.eye(num), df).critical(alpha)
    return errors_detected(critical, df) * sd * math.sqrt(2 / num_seeds)


@lru_cache(maxsize=1024)
def errors_detected(critical: float, df: float) -> float:
    """How many standard errors a difference must have to be shown in 80% of studies (noncentral t, the model's df).

    ``critical`` is the multiple of the standard error at which intervals end.
    """

    def power(size: float) -> float:
        return float(np.nan_to_num(stats.nct.sf(critical, df, size), nan=1.0))

    return float(optimize.brentq(lambda size: power(size) - POWER, 0.0, 4 * critical + 40, xtol=1e-6))


def seeds_needed(points: float, num_arms: int, sd: float, alpha: float = 0.05, *, most: int = 10_000) -> int | None:
    """The fewest seeds per arm with which such a study detects ``points``; None above ``most``."""
    if points <= 0:
        return None

    def suffices(num_seeds: int) -> bool:
        found = detectable(num_seeds, num_arms, sd, alpha)
        return found is not None and found <= points

    low, high = 1, 2
    while not suffices(high):
        low, high = high, 2 * high
        if low >= most:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if suffices(middle) else (middle, high)
    return high
