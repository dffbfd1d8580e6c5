"""What must not matter does not: the order of rows, names, a constant, the unit, which arm is called the reference."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from cifar_ablate.analysis import Contrast, Verdict
from cifar_ablate.analysis.contrasts import compare
from tests.accuracies import DIVERGED, runs

STEADY = settings(
    max_examples=16,
    derandomize=True,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.generate],  # to shrink a failing study takes minutes
)
MIRROR = {
    Verdict.BETTER: Verdict.WORSE,
    Verdict.WORSE: Verdict.BETTER,
    Verdict.NO_WORSE: Verdict.NO_BETTER,
    Verdict.NO_BETTER: Verdict.NO_WORSE,
}
ARMS = ("base", "one", "two", "three")


@st.composite
def studies(draw: st.DrawFn) -> pd.DataFrame:
    """A baseline and up to three arms; some lack runs, some diverged, some have no spread."""
    num_seeds, num_arms = draw(st.integers(1, 6)), draw(st.integers(2, 4))
    arms = {}
    for arm in ARMS[:num_arms]:
        center, spread = draw(st.integers(9000, 9600)), draw(st.sampled_from([0, 3, 20, 60]))
        of_arm: list[float | None] = [(center + draw(st.integers(-spread, spread))) / 100 for _ in range(num_seeds)]
        what = draw(st.sampled_from(["whole"] * 5 + ["lacks", "diverged"]))
        if what != "whole":
            of_arm[draw(st.integers(0, num_seeds - 1))] = None if what == "lacks" else DIVERGED
        arms[arm] = of_arm
    return runs(arms)


def of(frame: pd.DataFrame, references: Mapping[str, str], margin: float = 0.2) -> dict[str, Contrast]:
    return {one.arm: one for one in compare(frame, baseline="", references=references, margin=margin)}


def against_base(frame: pd.DataFrame) -> dict[str, str]:
    return {arm: "base" for arm in ARMS[1:] if arm in set(frame["arm"])}


def assert_alike(a: Contrast, b: Contrast, *, scale: float = 1.0, sign: int = 1) -> None:
    """b is a in another unit, or mirrored."""
    assert b.verdict is (a.verdict if sign == 1 else MIRROR.get(a.verdict, a.verdict))
    assert b.num_more_seeds == a.num_more_seeds
    for name in ("estimate", "ci95", "ci90", "se"):
        one, other = getattr(a, name), getattr(b, name)
        assert (one is None) == (other is None), name
        if one is None:
            continue
        factor = scale * (1 if name == "se" else sign)
        expected = np.sort(factor * np.atleast_1d(one))
        # the joint integral is quasi-random: its third digit knows the order of arms
        close = 1e-3 * (expected[-1] - expected[0]) + 1e-9
        assert np.atleast_1d(other) == pytest.approx(expected, rel=0, abs=close), name
    if a.p_adjusted is not None:
        assert b.p_adjusted == pytest.approx(a.p_adjusted, abs=1e-3)


@STEADY
@given(studies(), st.randoms(use_true_random=False))
def test_the_order_of_rows_does_not_matter(frame: pd.DataFrame, random: np.random.Generator) -> None:
    order = list(range(len(frame)))
    random.shuffle(order)
    before, after = of(frame, against_base(frame)), of(frame.iloc[order], against_base(frame))
    for arm, one in before.items():
        assert_alike(one, after[arm])
        assert after[arm].sentence == one.sentence


@STEADY
@given(studies(), st.permutations(["a", "b", "c", "d"]))
def test_what_arms_are_called_does_not_matter(frame: pd.DataFrame, names: list[str]) -> None:
    called = dict(zip(ARMS, names, strict=True))
    before = of(frame, against_base(frame))
    after = of(
        frame.assign(arm=frame["arm"].map(called)),
        {called[arm]: called[reference] for arm, reference in against_base(frame).items()},
    )
    for arm, one in before.items():
        assert_alike(one, after[called[arm]])


@STEADY
@given(studies(), st.sampled_from([-40.0, -0.37, 2.5]))
def test_a_constant_on_all_accuracies_does_not_matter(frame: pd.DataFrame, constant: float) -> None:
    before = of(frame, against_base(frame))
    after = of(frame.assign(accuracy=frame["accuracy"] + constant), against_base(frame))
    for arm, one in before.items():
        assert_alike(one, after[arm])


@STEADY
@given(studies(), st.sampled_from([0.01, 0.5, 10.0]))
def test_the_unit_of_accuracies_and_margin_does_not_matter(frame: pd.DataFrame, scale: float) -> None:
    before = of(frame, against_base(frame))
    after = of(frame.assign(accuracy=frame["accuracy"] * scale), against_base(frame), margin=0.2 * scale)
    for arm, one in before.items():
        assert_alike(one, after[arm], scale=scale)


@STEADY
@given(studies())
def test_swapping_arm_and_reference_mirrors_the_verdict(frame: pd.DataFrame) -> None:
    names = [arm for arm in ARMS if arm in set(frame["arm"])]
    chain = dict(zip(names[1:], names[:-1], strict=True))
    before, after = of(frame, chain), of(frame, {reference: arm for arm, reference in chain.items()})
    for arm, reference in chain.items():
        one, other = before[arm], after[reference]
        assert_alike(one, other, sign=-1)
        assert (one.p_superior is None) == (other.p_superior is None)
        if one.p_superior is not None:
            assert other.p_superior == pytest.approx(1 - one.p_superior)


@STEADY
@given(studies(), st.lists(st.floats(0, 5), min_size=2, max_size=2).map(sorted))
def test_more_margin_never_takes_back_an_equivalence_or_a_difference(frame: pd.DataFrame, margins: list[float]) -> None:
    small, large = (of(frame, against_base(frame), margin) for margin in margins)
    rank = {Verdict.UNDECIDED: 0, Verdict.NO_BETTER: 1, Verdict.NO_WORSE: 1, Verdict.EQUIVALENT: 2}
    for arm, one in small.items():
        other = large[arm].verdict
        assert (one.ci95, one.p_adjusted) == (large[arm].ci95, large[arm].p_adjusted)
        if one.verdict in rank:
            assert rank[other] >= rank[one.verdict]
        else:
            assert other is one.verdict


@STEADY
@given(studies())
def test_nothing_is_ever_nan_and_every_sentence_ends(frame: pd.DataFrame) -> None:
    for one in of(frame, against_base(frame)).values():
        numbers = [one.estimate, one.se, one.df, one.sd, one.p_adjusted, one.own_p_holm, one.p_superior]
        numbers += [*(one.ci95 or ()), *(one.ci90 or ()), one.error_change]
        assert all(number is None or np.isfinite(number) for number in numbers)
        assert one.sentence.endswith(".")
        assert "nan" not in one.sentence
