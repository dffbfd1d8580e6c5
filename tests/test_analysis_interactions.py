"""Interactions, ladders and factorials; and how many seeds a difference needs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from scipy import stats

from cifar_ablate.analysis.engine import Joint, estimate, fit_arms
from cifar_ablate.analysis.interactions import Effect, Factors, interactions, is_ladder
from cifar_ablate.analysis.power import detectable, power_of, sd_interval, seeds_needed, seeds_to_detect
from cifar_ablate.errors import UsageError
from tests.accuracies import DIVERGED, runs

RNG = np.random.default_rng(8)


def noisy(mean: float, num: int = 5, sd: float = 0.1) -> tuple[float, ...]:
    return tuple(mean + sd * RNG.standard_normal(num))


NONE: frozenset[str] = frozenset()
X, Y, Z = frozenset("x"), frozenset("y"), frozenset("z")
SQUARE: Factors = {"base": NONE, "x": X, "y": Y, "xy": X | Y}
ARMS = {"base": noisy(94.0), "x": noisy(94.5), "y": noisy(94.4), "xy": noisy(94.5)}


def effects(arms: Mapping[str, Sequence[float | None]], factors: Factors) -> dict[tuple[str, str], Effect]:
    return {(one.name, one.kind): one for one in interactions(runs(arms), factors)}


def test_a_square_tells_both_main_effects_and_the_interaction_as_one_family() -> None:
    found = effects(ARMS, SQUARE)
    mean = {arm: float(np.mean(of_arm)) for arm, of_arm in ARMS.items()}
    assert set(found) == {("x", "main effect"), ("y", "main effect"), ("x x y", "interaction")}
    assert found["x", "main effect"].estimate == pytest.approx((mean["x"] - mean["base"] + mean["xy"] - mean["y"]) / 2)
    both = found["x x y", "interaction"]
    assert both.estimate == pytest.approx(mean["xy"] - mean["x"] - mean["y"] + mean["base"])
    assert both.is_shown
    assert both.sentence.endswith("3 comparisons); they depend on each other.")


def test_orthogonal_effects_are_corrected_as_independent_numerators_over_one_error() -> None:
    found = effects(ARMS, SQUARE)["x x y", "interaction"]
    assert found.ci95 is not None
    fit = fit_arms({arm: one.set_index("seed")["accuracy"] for arm, one in runs(ARMS).groupby("arm")})
    (alone,) = estimate(fit, [found.weights])
    critical = (found.ci95[1] - found.estimate) / alone.se
    assert critical == pytest.approx(Joint(np.eye(3), 12).critical(0.05), abs=1e-3)
    assert stats.t.isf(0.025, 12) < critical <= stats.t.isf((1 - 0.95 ** (1 / 3)) / 2, 12) + 1e-3


def test_a_cube_tells_three_effects_and_three_interactions() -> None:
    names = {"base": NONE, "x": X, "y": Y, "z": Z, "xy": X | Y, "xz": X | Z, "yz": Y | Z, "xyz": X | Y | Z}
    arms = {arm: noisy(94 + 0.5 * len(changes), sd=0.05) for arm, changes in names.items()}
    found = effects(arms, names)
    assert [name for name, _ in found] == ["x", "y", "z", "x x y", "x x z", "y x z"]
    for (_, kind), one in found.items():
        assert one.estimate == pytest.approx(0.5 if kind == "main effect" else 0.0, abs=0.15)
        assert one.is_shown == (kind == "main effect")


def test_added_alone_against_removed_from_all_is_an_interaction() -> None:
    factors = {"base": NONE, "x": X, "all": X | Y | Z, "no x": Y | Z}
    arms = {"base": noisy(94.0), "x": noisy(95.0), "all": noisy(95.5), "no x": noisy(95.4)}
    ((key, one),) = effects(arms, factors).items()
    mean = {arm: float(np.mean(of_arm)) for arm, of_arm in arms.items()}
    assert key == ("x", "order")
    assert one.added == pytest.approx(mean["x"] - mean["base"])
    assert one.removed == pytest.approx(mean["all"] - mean["no x"])
    assert one.estimate == pytest.approx((one.removed or 0) - (one.added or 0))
    assert one.sentence.endswith("order-dependent.")


def test_a_ladder_tells_nothing_and_is_known_as_one() -> None:
    ladder = {"base": NONE, "x": X, "xy": X | Y, "xyz": X | Y | Z}
    assert is_ladder(ladder)
    assert effects({arm: noisy(94) for arm in ladder}, ladder) == {}
    assert not is_ladder(SQUARE)
    assert not is_ladder({"base": NONE, "x": X, "y": Y})


def test_a_square_inside_a_larger_design_is_found() -> None:
    on_top = {**SQUARE, "xyz": X | Y | Z}
    assert not is_ladder(on_top)
    assert ("x x y", "interaction") in effects({**ARMS, "xyz": noisy(94.6)}, on_top)
    two = {**SQUARE, "z": Z, "xz": X | Z}
    found = effects({**ARMS, "z": noisy(94.2), "xz": noisy(94.7)}, two)
    assert {name for name, kind in found if kind == "interaction"} == {"x x y", "x x z"}


def test_two_seeds_show_an_interval_and_decide_nothing() -> None:
    found = effects({arm: of_arm[:2] for arm, of_arm in ARMS.items()}, SQUARE)
    assert len(found) == 3
    for one in found.values():
        assert one.ci95 is not None
        assert not one.is_shown
        assert one.sentence.endswith("; provisional: too few seeds for a verdict.")


def test_the_level_is_the_one_that_was_asked_for() -> None:
    found = interactions(runs(ARMS), SQUARE, alpha=0.01)
    assert all("99% CI" in one.sentence for one in found)


def test_an_arm_that_diverged_or_ran_once_tells_no_interaction() -> None:
    assert effects({**ARMS, "xy": (94.0, DIVERGED, 94.1)}, SQUARE) == {}
    assert effects({**ARMS, "xy": (94.0,)}, SQUARE) == {}
    assert effects({}, SQUARE) == {}


def test_without_spread_there_is_no_interval() -> None:
    found = effects(dict.fromkeys(SQUARE, (94.0, 94.1, 94.2)), SQUARE)
    assert all(one.ci95 is None and not one.is_shown for one in found.values())
    assert all("no spread between seeds, so no interval" in one.sentence for one in found.values())


def test_a_table_that_lacks_a_column_is_refused() -> None:
    with pytest.raises(UsageError, match="needs a column 'accuracy'"):
        interactions(runs(ARMS).drop(columns="accuracy"), SQUARE)


@pytest.mark.parametrize("num", [2, 3, 5])
@pytest.mark.parametrize("effect", [5.33, 12.0, 100.0])
def test_power_of_a_huge_effect_is_a_number(effect: float, num: int) -> None:
    assert 0.3 < power_of(effect, num, 0.05) <= 1


def test_seeds_to_detect_have_their_ends() -> None:
    assert seeds_to_detect(0.0, 0.2, 0.05) == math.inf
    assert seeds_to_detect(1e-9, 0.2, 0.05) == math.inf
    assert seeds_to_detect(0.2, 0.0, 0.05) == 2
    assert seeds_to_detect(100.0, 0.2, 0.05) == 2


def test_the_interval_of_a_standard_deviation_is_chi_squares() -> None:
    low, high = sd_interval(0.2, 16)
    assert stats.chi2.cdf(16 * (0.2 / low) ** 2, 16) == pytest.approx(0.9)
    assert stats.chi2.cdf(16 * (0.2 / high) ** 2, 16) == pytest.approx(0.1)


def test_what_planned_seeds_detect_and_what_seeds_it_takes_agree() -> None:
    found = detectable(5, 5, 0.25)
    assert found is not None
    assert seeds_needed(found + 1e-6, 5, 0.25) == 5
    assert seeds_needed(found - 1e-3, 5, 0.25) == 6
    more = detectable(10, 5, 0.25)
    assert more is not None
    assert more < found
    assert detectable(1, 5, 0.25) is None
    assert detectable(5, 1, 0.25) is None
    assert seeds_needed(0.0, 5, 0.25) is None
    assert seeds_needed(1e-4, 5, 0.25) is None
