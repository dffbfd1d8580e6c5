"""One linear model for all arms, and simultaneous intervals for pre-declared contrasts of their means.

Each contrast takes the larger of its pooled and its own standard error. This guards against arms with unequal
variances: less augmentation means more spread between seeds (arXiv 2304.01910).
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from scipy import special

if TYPE_CHECKING:  # 0.3 s to import
    import pandas as pd

Array = npt.NDArray[np.float64]
Weights = Mapping[str, float]
"""Weights of arms' means, such as {arm: 1, reference: -1}."""

MAX_JOINT = 30
"""Maximum number of contrasts to integrate together. A larger family would take minutes and gets Sidak's bound."""
ZERO = 1e-9
"""Standard errors below this, in points, are rounding errors: accuracies change in steps of one image."""
_SEED = 0
_DECIMALS = 10
"""Decimals of a correlation that are kept; the others are rounding errors."""


@dataclass(frozen=True)
class ArmMeans:
    """Means of the arms as the linear model estimates them, with their covariance."""

    arms: tuple[str, ...]
    means: Array
    """[arms], percent."""
    covariance: Array
    """[arms, arms]."""
    df: float
    """Residual degrees of freedom."""
    is_paired: bool
    values: Mapping[str, pd.Series]
    """Accuracy by seed, for each arm."""


@dataclass(frozen=True)
class Estimate:
    """One contrast with its simultaneous intervals; bounds and p are None if runs show no spread."""

    value: float
    se: float
    df: float
    ci95: tuple[float, float] | None
    ci90: tuple[float, float] | None
    p_adjusted: float | None
    critical: float
    """Half-width of ``ci95`` in standard errors."""


def fit_arms(values: Mapping[str, pd.Series]) -> ArmMeans:
    """Ordinary least squares of accuracy on arm, and on seed if all arms have the same seeds.

    Args:
        values: Accuracies in percent of each arm, indexed by seed in increasing order; at least two for each arm.
    """
    arms = tuple(values)
    seed_sets = {frozenset(of_arm.index) for of_arm in values.values()}
    is_paired = len(seed_sets) == 1
    accuracy = np.concatenate([of_arm.to_numpy(float) for of_arm in values.values()])
    arm_of = np.repeat(np.arange(len(arms)), [len(of_arm) for of_arm in values.values()])
    # the columns of the formula "accuracy ~ 0 + C(arm) + C(seed)"
    columns = (arm_of[:, None] == np.arange(len(arms))).astype(float)
    if is_paired:
        seed_of = np.concatenate([of_arm.index.to_numpy() for of_arm in values.values()])
        columns = np.hstack([columns, seed_of[:, None] == np.unique(seed_of)[1:]])
    orthogonal, triangular = np.linalg.qr(columns)
    residuals = accuracy - orthogonal @ (orthogonal.T @ accuracy)
    df = float(len(accuracy) - columns.shape[1])
    inverse = np.linalg.inv(triangular)
    covariance = residuals @ residuals / df * (inverse @ inverse.T)[: len(arms), : len(arms)]
    means = np.array([of_arm.mean() for of_arm in values.values()])
    return ArmMeans(arms, means, covariance, df, is_paired, values)


def own_se(fit: ArmMeans, weights: Weights) -> float:
    """Standard error from the contrast's own arms alone: of the differences by seed, or Welch's if not paired."""
    parts = [(weight, fit.values[arm].to_numpy(float)) for arm, weight in weights.items()]
    if fit.is_paired:  # all arms have their values in the order of the same seeds
        differences = np.sum([weight * values for weight, values in parts], axis=0)
        return float(np.std(differences, ddof=1) / np.sqrt(len(differences)))
    return float(np.sqrt(sum(weight**2 * values.var(ddof=1) / len(values) for weight, values in parts)))


def guarded(fit: ArmMeans, contrasts: Sequence[Weights]) -> tuple[Array, Array, Array]:
    """Values [n], guarded standard errors [n] and pooled covariance [n, n] of n contrasts."""
    matrix = np.array([[weights.get(arm, 0.0) for arm in fit.arms] for weights in contrasts])
    covariance = matrix @ fit.covariance @ matrix.T
    pooled = np.sqrt(np.clip(np.diag(covariance), 0, None))
    errors = np.array([max(p, own_se(fit, weights)) for p, weights in zip(pooled, contrasts, strict=True)])
    return matrix @ fit.means, errors, covariance


def estimate(
    fit: ArmMeans, contrasts: Sequence[Weights], *, alpha: float = 0.05, num_closed: int = 0
) -> list[Estimate]:
    """Guarded estimates of contrasts as one family, with intervals at levels 1 - alpha and 1 - 2 alpha.

    ``num_closed`` more contrasts, whose arms are not in the model, count as independent of all others. By Sidak's
    inequality this is wide enough for any dependence.
    """
    values, errors, covariance = guarded(fit, contrasts)
    pooled = np.sqrt(np.clip(np.diag(covariance), 0, None))
    if (pooled <= ZERO).any() or fit.df < 1:
        return [
            Estimate(float(v), float(e), fit.df, None, None, None, float("nan"))
            for v, e in zip(values, errors, strict=True)
        ]
    # the integral is quasi-random: with an order that does not depend on names, renaming an arm changes no digit
    order = np.lexsort((errors, values))
    correlation = (covariance / np.outer(pooled, pooled))[np.ix_(order, order)]
    whole = np.eye(len(correlation) + num_closed)
    whole[: len(correlation), : len(correlation)] = correlation
    joint = Joint(whole, fit.df)
    c95, c90 = joint.critical(alpha), joint.critical(2 * alpha)
    return [
        Estimate(
            float(value),
            float(se),
            fit.df,
            (float(value - c95 * se), float(value + c95 * se)),
            (float(value - c90 * se), float(value + c90 * se)),
            joint.tail(abs(value) / se),
            c95,
        )
        for value, se in zip(values, errors, strict=True)
    ]


class Joint:
    """Distribution of the largest absolute value of several t statistics.

    Up to MAX_JOINT statistics it is scipy's multivariate t, above that Sidak's bound.
    """

    def __init__(self, correlation: Array, df: float) -> None:
        self.correlation = np.ascontiguousarray(np.round(correlation, _DECIMALS))
        self.df, self.num = df, len(correlation)

    def tail(self, c: float) -> float:
        """P(the largest |t| exceeds c)."""
        if self.num == 1:
            return 2 * t_tail(c, self.df)
        if self.num > MAX_JOINT:
            with np.errstate(divide="ignore"):  # for c = 0, log1p(-1)
                return float(-np.expm1(self.num * np.log1p(-2 * t_tail(c, self.df))))
        from scipy.stats import multivariate_t  # 0.5 s to import, which only larger families need

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            inside = multivariate_t(shape=self.correlation, df=self.df, allow_singular=True).cdf(
                np.full(self.num, c), lower_limit=np.full(self.num, -c), random_state=np.random.default_rng(_SEED)
            )
        return float(np.clip(1 - inside, 0, 1))

    def critical(self, alpha: float) -> float:
        """The c that the largest |t| exceeds with probability alpha."""
        return _critical(self.correlation.tobytes(), self.num, self.df, alpha)


def t_tail(t: float, df: float) -> float:
    """P(T > t) of Student's t."""
    return float(special.stdtr(df, -t))


def t_quantile(tail: float, df: float) -> float:
    """The t that Student's T exceeds with probability ``tail``."""
    return float(-special.stdtrit(df, tail))


def sidak(num: int, df: float, alpha: float) -> float:
    """What the largest of ``num`` independent |t| exceeds with probability alpha."""
    return t_quantile(-np.expm1(np.log1p(-alpha) / num) / 2, df)


@lru_cache(maxsize=256)
def _critical(correlation: bytes, num: int, df: float, alpha: float) -> float:
    """``Joint.critical``, cached: studies of one shape share it, and it takes 30 integrals."""
    joint = Joint(np.frombuffer(correlation).reshape(num, num), df)
    alone = t_quantile(alpha / 2, df)
    if num == 1:
        return alone
    bonferroni = t_quantile(alpha / 2 / num, df)
    if joint.tail(bonferroni) >= alpha:  # by rounding, if contrasts hardly depend on each other
        return bonferroni
    from scipy.optimize import brentq

    return float(brentq(lambda c: joint.tail(c) - alpha, 0.9 * alone, bonferroni, xtol=1e-5))
