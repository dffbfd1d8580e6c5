"""What statsmodels 0.15.0 computed from the same inputs, which a few lines of numpy compute here."""

from __future__ import annotations

import math

import numpy as np
import pytest

from cifar_ablate.analysis.contrasts import holm
from cifar_ablate.analysis.divergence import clopper_pearson
from cifar_ablate.analysis.engine import fit_arms
from cifar_ablate.analysis.images import benjamini_hochberg, mcnemar, new_image_interval
from cifar_ablate.analysis.power import power_of, seeds_to_detect
from cifar_ablate.predictor.load import wilson
from tests.accuracies import WORKED, runs

P_VALUES = [0.04, 0.001, 0.02, 0.3, 0.02, 0.9, 0.012]


@pytest.mark.parametrize(
    ("is_paired", "df", "differences", "errors"),
    [
        (True, 16, (0.35, 0.586, -0.248, 0.038), (0.1089788970397471,) * 4),
        (False, 19, (0.35, 0.586, -0.248, 0.055), (*(0.10194941986360767,) * 3, 0.10813368918538724)),
    ],
    ids=["accuracy ~ 0 + C(arm) + C(seed)", "accuracy ~ 0 + C(arm)"],
)
def test_ordinary_least_squares(
    is_paired: bool, df: int, differences: tuple[float, ...], errors: tuple[float, ...]
) -> None:
    frame = runs(WORKED) if is_paired else runs(WORKED).iloc[:-1]
    fit = fit_arms({str(arm): rows.set_index("seed")["accuracy"] for arm, rows in frame.groupby("arm", sort=False)})
    assert (fit.is_paired, fit.df) == (is_paired, df)
    for arm, difference, error in zip(("mixup", "cutmix", "aggr", "ls"), differences, errors, strict=True):
        weights = np.array([float(name == arm) - float(name == "base") for name in fit.arms])
        assert weights @ fit.means == pytest.approx(difference, abs=1e-9)
        assert math.sqrt(weights @ fit.covariance @ weights) == pytest.approx(error, rel=1e-9)


def test_holm() -> None:
    assert holm(P_VALUES) == pytest.approx([0.12, 0.007, 0.1, 0.6, 0.1, 0.9, 0.072], rel=1e-9)
    assert holm([]) == []


@pytest.mark.parametrize(
    ("alpha", "shown"), [(0.2, "1110101"), (0.05, "0110101"), (0.01, "0100000"), (1e-4, "0000000")]
)
def test_benjamini_and_hochberg(alpha: float, shown: str) -> None:
    assert benjamini_hochberg(np.array(P_VALUES), alpha).tolist() == [one == "1" for one in shown]


@pytest.mark.parametrize(
    ("effect", "num", "alpha", "power"),
    [
        (0.5, 5, 0.05, 0.140516689990298),
        (1.0, 8, 0.05, 0.6808339582062661),
        (2.0, 3, 0.05, 0.4707494312784346),
        (0.1, 400, 0.05, 0.51408646022485),
        (1.3, 4.5, 0.0024, 0.051899775129498976),
    ],
)
def test_power(effect: float, num: float, alpha: float, power: float) -> None:
    assert power_of(effect, num, alpha) == pytest.approx(power, rel=1e-9)


@pytest.mark.parametrize(
    ("effect", "alpha", "seeds"),
    [(0.3, 0.05, 89.14936472045834), (1.0, 0.01, 15.08070208589992), (0.05, 0.05, 3141.4654741036425)],
)
def test_seeds_to_detect(effect: float, alpha: float, seeds: float) -> None:
    assert seeds_to_detect(effect, 1.0, alpha) == pytest.approx(seeds, rel=1e-4)


@pytest.mark.parametrize(
    ("count", "num", "exact", "score"),
    [
        (0, 5, (0.0, 0.5218237501049815), (0.0, 0.43448246478317487)),
        (1, 5, (0.0050507633794680575, 0.7164179361180896), (0.036224108632430196, 0.6244653702374748)),
        (3, 8, (0.08523341413725354, 0.7551367836334484), (0.13684428582359737, 0.6942576053973728)),
        (5, 5, (0.4781762498950185, 1.0), (0.5655175352168252, 1.0)),
        (17, 400, (0.024949619202114758, 0.06717611443869687), (0.026701694991131113, 0.0670020543247502)),
    ],
)
def test_intervals_of_a_proportion(
    count: int, num: int, exact: tuple[float, float], score: tuple[float, float]
) -> None:
    assert clopper_pearson(count, num) == pytest.approx(exact, rel=1e-9)
    assert wilson(count, num, alpha=0.05) == pytest.approx(score, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize(
    ("only_a", "only_b", "p"), [(221, 260, 0.08305079282798479), (3, 9, 0.14599609375), (0, 0, 1.0), (4, 4, 1.0)]
)
def test_mcnemar(only_a: int, only_b: int, p: float) -> None:
    a = np.array([True] * only_a + [False] * only_b + [True, False])
    b = np.array([False] * only_a + [True] * only_b + [True, False])
    assert mcnemar(a, b) == pytest.approx(p, rel=1e-9)


def test_mean_squares_of_the_analysis_of_variance() -> None:
    rng = np.random.default_rng(0)
    found = new_image_interval(rng.random((4, 12)) < 0.6, rng.random((4, 12)) < 0.8)
    assert found is not None
    told = (167.824074074074, 102.58838383838388, 88.90993265993264)
    assert (found.seed, found.image, found.residual) == pytest.approx(told, rel=1e-9)
