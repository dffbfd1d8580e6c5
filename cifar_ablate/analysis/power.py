"""Spread between seeds, and what it allows: the noise floor, detectable differences, and the seeds they need.

Power is that of two-sided t tests, at 80%.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import median

import numpy as np
from scipy import special

from cifar_ablate.analysis.engine import MAX_JOINT, Joint, sidak, t_quantile, t_tail
from cifar_ablate.analysis.verdicts import Contrast

POWER = 0.8
MAX_SEEDS = 100_000
_NORMAL, _NORMAL_WEIGHTS = np.polynomial.hermite_e.hermegauss(48)
_UNIFORM, _UNIFORM_WEIGHTS = np.polynomial.legendre.leggauss(128)
"""Nodes and weights to integrate over a normal variable, and over [-1, 1]."""


def power_of(effect: float, num_seeds: float, alpha: float) -> float:
    """Power of a two-sided one-sample t test, from the noncentral t distribution.

    Args:
        effect: The difference divided by its standard deviation.
        num_seeds: Number of differences.
        alpha: Level of the test.
    """
    df, shift, critical = num_seeds - 1, effect * math.sqrt(num_seeds), t_quantile(alpha / 2, num_seeds - 1)
    inside, below = np.nan_to_num(special.nctdtr(df, shift, [critical, -critical]))  # scipy gives NaN instead of 0
    return float(1 - inside + below)


@lru_cache(maxsize=1024)  # arms of a balanced study share one standard error
def seeds_to_detect(points: float, sd: float, alpha: float) -> float:
    """Seeds per arm, at least 2, that detect a difference of ``points``; ``sd`` is that of one difference.

    Infinite if ``points`` is 0, or more than MAX_SEEDS would be needed.
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
    from scipy.optimize import brentq

    bounds = math.log(2), math.log(MAX_SEEDS)  # power is nearly linear in the logarithm, which saves steps
    return math.exp(brentq(lambda log: power_of(effect, math.exp(log), alpha) - POWER, *bounds, xtol=1e-6))


def sd_interval(sd: float, df: float, level: float = 0.8) -> tuple[float, float]:
    """Chi-square interval of a standard deviation."""
    tail = (1 - level) / 2
    low, high = (sd * math.sqrt(df / float(special.chdtri(df, one))) for one in (tail, 1 - tail))
    return low, high


def detectable(num_seeds: int, num_arms: int, sd: float, alpha: float = 0.05) -> float | None:
    """Points that a study of ``num_arms`` arms, one of them the baseline, detects with 80% power; None below 2 seeds.

    ``sd`` is the standard deviation of one run between seeds, in points. Seeds count as independent, so the difference
    of two runs has sqrt(2) times that.
    """
    df = (num_arms - 1) * (num_seeds - 1)
    if num_seeds < 2 or num_arms < 2:
        return None
    return errors_detected(against_one(num_arms - 1, df, alpha), df) * sd * math.sqrt(2 / num_seeds)


@lru_cache(maxsize=1024)
def errors_detected(critical: float, df: float) -> float:
    """Standard errors that a difference must have to be detected with 80% power (noncentral t with ``df``).

    ``critical`` is the half-width of the interval in standard errors.
    """
    return float(special.nctdtrinc(df, 1 - POWER, critical))


@lru_cache(maxsize=256)
def against_one(num: int, df: float, alpha: float) -> float:
    """Half-width in standard errors of the joint intervals of ``num`` arms against one reference, all with one spread.

    Their correlation is 1/2, so that ``Joint`` reduces to an integral over the reference's mean and the standard
    error (Dunnett 1955). Above MAX_JOINT it is Sidak's bound, as there.
    """
    if num == 1 or num > MAX_JOINT:
        return sidak(num, df, alpha)
    scale = np.sqrt(2 * special.chdtri(df, (1 + _UNIFORM) / 2) / df)[:, None]
    weights = np.outer(_UNIFORM_WEIGHTS / 2, _NORMAL_WEIGHTS / _NORMAL_WEIGHTS.sum())

    def log_tail(c: float) -> float:
        inside = special.ndtr(_NORMAL + c * scale) - special.ndtr(_NORMAL - c * scale)
        return math.log(1 - float((weights * inside**num).sum()))

    before, c = t_quantile(alpha / 2, df), t_quantile(alpha / 2 / num, df)  # of one arm, and Bonferroni's
    value, value_before = log_tail(c) - math.log(alpha), log_tail(before) - math.log(alpha)
    while abs(c - before) > 1e-7:  # the secant method; the logarithm is nearly linear
        c, before = c - value * (c - before) / (value - value_before), c
        value, value_before = log_tail(c) - math.log(alpha), value
    return c


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


@dataclass(frozen=True)
class NoiseFloor:
    """Differences in points that equal arms exceed in 1 of 20 studies with this spread and these seeds."""

    of_one: float
    """For one pair of equal arms."""
    of_one_range: tuple[float, float]
    """``of_one`` for the smallest and the largest standard error of a comparison."""
    of_largest: float
    """For the largest of all the family's comparisons, if all arms were equal."""
    num_comparisons: int
    num_seeds: tuple[int, int]
    """Fewest and most seeds of a comparison."""
    largest_claimed: float | None
    """Largest absolute difference with a verdict of better or worse."""
    smallest_claimed: float | None


def noise_floor(contrasts: Sequence[Contrast]) -> NoiseFloor | None:
    """The noise floor of one family, from the median standard error; None if no contrast has an interval.

    The largest difference is that of arms against one reference.
    """
    known = [one for one in contrasts if one.ci95 and one.se and one.df and one.estimate is not None]
    known = [one for one in known if not one.is_diverged]
    if not known:
        return None
    errors = [one.se for one in known if one.se is not None]
    df = min(one.df for one in known if one.df is not None)
    seeds = [min(one.num_seeds, one.num_seeds_reference) for one in known]
    claimed = [abs(one.estimate) for one in known if one.estimate is not None and one.verdict in ("better", "worse")]
    t = t_quantile(0.025, df)
    return NoiseFloor(
        of_one=t * median(errors),
        of_one_range=(t * min(errors), t * max(errors)),
        of_largest=against_one(len(known), df, 0.05) * median(errors),
        num_comparisons=len(known),
        num_seeds=(min(seeds), max(seeds)),
        largest_claimed=max(claimed, default=None),
        smallest_claimed=min(claimed, default=None),
    )


def _critical(contrast: Contrast) -> float:
    """Half-width of the contrast's interval in standard errors."""
    low, high = contrast.ci95 or (0.0, 0.0)
    return (high - low) / 2 / (contrast.se or 1.0)


def level_of_one(contrast: Contrast) -> float | None:
    """The level of this single comparison within its family; None without an interval."""
    if contrast.ci95 is None or not contrast.se or contrast.df is None:
        return None
    return 2 * t_tail(_critical(contrast), contrast.df)


def points_detected(contrast: Contrast) -> float | None:
    """The difference that these seeds detect with 80% power, at the contrast's spread and level; None if unknown."""
    if contrast.ci95 is None or not contrast.se or contrast.df is None:
        return None
    return errors_detected(round(_critical(contrast), 9), contrast.df) * contrast.se


def half_widths(contrasts: Sequence[Contrast], num_seeds: Sequence[int], alpha: float = 0.05) -> list[float]:
    """Half the width of a simultaneous interval at each number of seeds per arm, with the spread of these contrasts.

    The family counts as arms against one reference (correlation 1/2), and seeds as blocks. The critical value is
    integrated for three numbers; between them its share of Sidak's bound goes with 1 / (seeds - 1), to within 0.6%.
    """
    known = [one for one in contrasts if one.se and one.ci95]
    sd = median((one.se or 0.0) * min(one.num_seeds, one.num_seeds_reference) ** 0.5 for one in known)
    k = len(known)
    correlation = np.full((k, k), 0.5) + 0.5 * np.eye(k)
    anchors = sorted({2, 4, max(num_seeds)}, reverse=True)
    bounds = {num: sidak(k, k * (num - 1), alpha) for num in {*anchors, *num_seeds}}
    shares = [Joint(correlation, k * (num - 1)).critical(alpha) / bounds[num] for num in anchors]
    found = np.interp([1 / (num - 1) for num in num_seeds], [1 / (num - 1) for num in anchors], shares)
    return [float(share) * bounds[num] * sd / num**0.5 for share, num in zip(found, num_seeds, strict=True)]
