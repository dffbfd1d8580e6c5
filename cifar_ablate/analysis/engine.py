"""One linear model for all arms, and simultaneous intervals for any pre-declared contrasts of their means.

The guard, the larger one of the pooled and of the contrast's own standard error, is what survives arms with unequal
variances: less augmentation means more spread between seeds (arXiv 2304.01910).
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import linalg, optimize, stats

Array = npt.NDArray[np.float64]
Weights = Mapping[str, float]
"""Weights of arms' means, such as {arm: 1, reference: -1}."""

MAX_JOINT = 30
"""So many contrasts are integrated together; above, one correlation for all would take minutes, and Sidak's holds."""
ZERO = 1e-9
"""Standard errors below it, in points, are rounding: accuracies come in steps of one image."""
_SEED = 0
_DECIMALS = 10
"""Of a correlation: what is beyond is rounding."""


@dataclass(frozen=True)
class Fit:
    """Arms' means with their covariance."""

    arms: tuple[str, ...]
    means: Array
    """[arms], percent."""
    covariance: Array
    """[arms, arms]."""
    df: float
    """Of the residuals."""
    is_paired: bool
    values: Mapping[str, pd.Series]
    """Accuracy by seed, for each arm."""


@dataclass(frozen=True)
class Estimate:
    """One contrast with its simultaneous intervals; bounds and p are None where no spread was seen."""

    value: float
    se: float
    df: float
    ci95: tuple[float, float] | None
    ci90: tuple[float, float] | None
    p_adjusted: float | None
    critical: float
    """Multiple of the standard error at level 1 - alpha."""


def fit_arms(values: Mapping[str, pd.Series]) -> Fit:
    """Ordinary least squares of accuracy on arm, and on seed where all arms have the same seeds.

    Args:
        values: For each arm its accuracies in percent, by seed, increasing; at least two each. (statsmodels' OLS.)
    """
    from statsmodels.regression.linear_model import OLS

    arms = tuple(values)
    seed_sets = {frozenset(of_arm.index) for of_arm in values.values()}
    is_paired = len(seed_sets) == 1
    accuracy = np.concatenate([of_arm.to_numpy(float) for of_arm in values.values()])
    arm_of = np.repeat(np.arange(len(arms)), [len(of_arm) for of_arm in values.values()])
    # the columns of the formula "accuracy ~ 0 + C(arm) + C(seed)", which takes ten times as long to read as to solve
    columns = arm_of[:, None] == np.arange(len(arms))
    if is_paired:
        seed_of = np.concatenate([of_arm.index.to_numpy() for of_arm in values.values()])
        columns = np.hstack([columns, seed_of[:, None] == np.unique(seed_of)[1:]])
    fitted = OLS(accuracy, columns.astype(float)).fit(method="qr")
    covariance = np.asarray(fitted.cov_params())[: len(arms), : len(arms)]
    means = np.array([of_arm.mean() for of_arm in values.values()])
    return Fit(arms, means, covariance, float(fitted.df_resid), is_paired, values)


def own_se(fit: Fit, weights: Weights) -> float:
    """Standard error from the contrast's own arms alone: of the per-seed differences, or Welch's."""
    parts = [(weight, fit.values[arm].to_numpy(float)) for arm, weight in weights.items()]
    if fit.is_paired:  # every arm's values stand in the order of the same seeds
        return float(stats.sem(np.sum([weight * values for weight, values in parts], axis=0)))
    return float(np.sqrt(sum(weight**2 * values.var(ddof=1) / len(values) for weight, values in parts)))


def guarded(fit: Fit, contrasts: Sequence[Weights]) -> tuple[Array, Array, Array]:
    """Values [n], guarded standard errors [n] and pooled covariance [n, n] of n contrasts."""
    matrix = np.array([[weights.get(arm, 0.0) for arm in fit.arms] for weights in contrasts])
    covariance = matrix @ fit.covariance @ matrix.T
    pooled = np.sqrt(np.clip(np.diag(covariance), 0, None))
    errors = np.array([max(p, own_se(fit, weights)) for p, weights in zip(pooled, contrasts, strict=True)])
    return matrix @ fit.means, errors, covariance


def estimate(fit: Fit, contrasts: Sequence[Weights], *, alpha: float = 0.05, num_closed: int = 0) -> list[Estimate]:
    """Guarded estimates of contrasts as one family, with intervals at levels 1 - alpha and 1 - 2 alpha.

    ``num_closed`` more contrasts, whose arms are not in the model, count as independent of all: wide enough whatever
    they were (Sidak).
    """
    values, errors, covariance = guarded(fit, contrasts)
    pooled = np.sqrt(np.clip(np.diag(covariance), 0, None))
    if (pooled <= ZERO).any() or fit.df < 1:
        return [
            Estimate(float(v), float(e), fit.df, None, None, None, float("nan"))
            for v, e in zip(values, errors, strict=True)
        ]
    # the integral is quasi-random; in an order that labels do not decide, renaming an arm changes no digit
    order = np.lexsort((errors, values))
    correlation = (covariance / np.outer(pooled, pooled))[np.ix_(order, order)]
    joint = Joint(linalg.block_diag(correlation, np.eye(num_closed)) if num_closed else correlation, fit.df)
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
    """The largest absolute value of several t statistics (scipy's multivariate t; Sidak's bound for very many)."""

    def __init__(self, correlation: Array, df: float) -> None:
        self.correlation = np.ascontiguousarray(np.round(correlation, _DECIMALS))
        self.df, self.num = df, len(correlation)

    def tail(self, c: float) -> float:
        """P(the largest |t| exceeds c)."""
        if self.num == 1:
            return float(2 * stats.t.sf(c, self.df))
        if self.num > MAX_JOINT:
            with np.errstate(divide="ignore"):  # of c 0, log1p(-1)
                return float(-np.expm1(self.num * np.log1p(-2 * stats.t.sf(c, self.df))))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            inside = stats.multivariate_t(shape=self.correlation, df=self.df, allow_singular=True).cdf(
                np.full(self.num, c), lower_limit=np.full(self.num, -c), random_state=np.random.default_rng(_SEED)
            )
        return float(np.clip(1 - inside, 0, 1))

    def critical(self, alpha: float) -> float:
        """The c that the largest |t| exceeds with probability alpha."""
        return _critical(self.correlation.tobytes(), self.num, self.df, alpha)


def sidak(num: int, df: float, alpha: float) -> float:
    """What the largest of so many independent |t| exceeds with probability alpha."""
    return float(stats.t.isf(-np.expm1(np.log1p(-alpha) / num) / 2, df))


@lru_cache(maxsize=256)
def _critical(correlation: bytes, num: int, df: float, alpha: float) -> float:
    """As ``Joint.critical``; studies of one shape share it, and it takes 30 integrals."""
    joint = Joint(np.frombuffer(correlation).reshape(num, num), df)
    alone = float(stats.t.isf(alpha / 2, df))
    if num == 1:
        return alone
    bonferroni = float(stats.t.isf(alpha / 2 / num, df))
    if joint.tail(bonferroni) >= alpha:  # by rounding, where contrasts hardly depend on each other
        return bonferroni
    return float(optimize.brentq(lambda c: joint.tail(c) - alpha, 0.9 * alone, bonferroni, xtol=1e-5))
