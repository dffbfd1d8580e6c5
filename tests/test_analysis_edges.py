"""What ``compare`` says where there is too little, too much or nothing: a sentence each, never NaN or a traceback."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from cifar_ablate.analysis import Contrast, Verdict
from cifar_ablate.analysis.contrasts import compare
from cifar_ablate.analysis.divergence import divergence_p, divergence_rate
from cifar_ablate.analysis.engine import Joint
from cifar_ablate.analysis.power import against_one, half_widths
from cifar_ablate.errors import UsageError
from tests.accuracies import DIVERGED, WORKED, runs

FIVE = (94.02, 93.81, 94.11, 93.90, 94.06)
OTHER = (94.05, 93.99, 94.02, 94.08, 93.95)


def one(arms: Mapping[str, Sequence[float | None]], margin: float = 0.2) -> Contrast:
    """The only contrast of ``arm`` with ``base``, with no NaN anywhere."""
    (found,) = compare(runs(arms), baseline="base", references={"arm": "base"}, margin=margin)
    for field in fields(found):
        value = getattr(found, field.name)
        for number in value if isinstance(value, tuple) else (value,):
            assert not isinstance(number, float) or math.isfinite(number), field.name
    assert found.sentence.endswith(".")
    assert "nan" not in found.sentence
    assert "None" not in found.sentence
    return found


def test_one_run_each_never_has_a_verdict() -> None:
    found = one({"base": [94.02], "arm": [94.42]})
    assert found.verdict is Verdict.SINGLE_RUN
    assert found.sentence == (
        "arm against base, one run each: these two runs differ by +0.40; single runs cannot rank recipes."
    )
    assert found.ci95 is found.p_adjusted is found.sd is found.num_more_seeds is None


@pytest.mark.parametrize(("base", "arm", "alone"), [([94.02], FIVE, "base"), (FIVE, [94.42], "arm")])
def test_one_run_against_several_never_has_a_verdict(base: Sequence[float], arm: Sequence[float], alone: str) -> None:
    found = one({"base": base, "arm": arm})
    assert found.verdict is Verdict.SINGLE_RUN
    assert f"{alone} has one run only" in found.sentence


def test_two_seeds_have_an_interval_and_no_verdict_however_large_the_difference() -> None:
    found = one({"base": [94.0, 94.1], "arm": [97.0, 97.101]})
    assert found.verdict is Verdict.PROVISIONAL
    assert found.ci95 is not None
    assert found.ci95[0] > 0
    assert found.sentence.endswith("provisional: too few seeds for a verdict.")


def test_two_seeds_of_many_arms_have_no_verdict_though_the_model_has_freedom_enough() -> None:
    found = compare(runs({arm: of_arm[:2] for arm, of_arm in WORKED.items()}), baseline="base")
    assert {c.df for c in found} == {4}
    assert {c.verdict for c in found} == {Verdict.PROVISIONAL}


def test_less_than_four_degrees_of_freedom_give_no_verdict() -> None:
    found = one({"base": FIVE[:3], "arm": [97.0, 97.1, 97.2]})
    assert found.df == 2
    assert found.verdict is Verdict.PROVISIONAL
    assert one({"base": FIVE, "arm": [97.0, 97.1, 97.2, 97.0, 97.1]}).verdict is Verdict.BETTER


def test_a_diverged_run_is_the_verdict_and_accuracy_is_conditional_on_finishing() -> None:
    found = one({"base": FIVE, "arm": [94.5, DIVERGED, 94.6, 94.4, DIVERGED]})
    assert found.verdict is Verdict.DIVERGED
    assert (found.num_seeds, found.num_diverged, found.num_diverged_reference) == (3, 2, 0)
    assert found.sentence.startswith("2 of 5 (5% to 85%) runs of arm diverged, 0 of 5 (0% to 52%) of base")
    assert "conditional on finishing, accuracies differ by +0.52 points (" in found.sentence


def test_the_arithmetic_of_divergence_is_clopper_pearsons_and_boschloos() -> None:
    low, high = divergence_rate(2, 5).ci95
    told = stats.binomtest(2, 5).proportion_ci(method="exact")
    assert (low, high) == pytest.approx((100 * told.low, 100 * told.high))
    p = stats.boschloo_exact([[2, 0], [3, 5]]).pvalue
    assert divergence_p(divergence_rate(2, 5), divergence_rate(0, 5)) == pytest.approx(p)


@pytest.mark.parametrize("base", [FIVE, [DIVERGED] * 5], ids=["finished reference", "diverged reference"])
def test_an_arm_that_always_diverged_has_no_accuracy_and_says_so(base: Sequence[float]) -> None:
    found = one({"base": base, "arm": [DIVERGED] * 5})
    assert found.verdict is Verdict.DIVERGED
    assert found.estimate is None
    assert "5 of 5 (48% to 100%) runs of arm diverged" in found.sentence
    assert found.sentence.endswith("no run is left to compare their accuracies.")


def test_a_diverged_reference_leaves_no_verdict_to_any_arm() -> None:
    found = compare(runs({"base": [94.0, DIVERGED, 94.1, 94.2], "a": OTHER[:4], "b": FIVE[:4]}), baseline="base")
    assert {c.verdict for c in found} == {Verdict.DIVERGED}
    assert all("1 of 4 (1% to 81%) of base" in c.sentence for c in found)


def test_an_arm_that_diverged_while_its_reference_never_ran_says_both() -> None:
    found = one({"arm": [94.5, DIVERGED, 94.6]})
    assert found.verdict is Verdict.DIVERGED
    assert "1 of 3 (1% to 91%) runs of arm diverged, base has no run" in found.sentence


def test_a_diverged_arm_changes_nothing_for_the_others() -> None:
    others = {"base": FIVE, "a": OTHER, "b": [94.41, 94.20, 94.37, 94.15, 94.52]}
    alone = compare(runs(others), baseline="base")
    beside = compare(runs({**others, "c": [90.0, DIVERGED, 99.0, 80.0, 94.0]}), baseline="base")
    assert beside[:2] == alone


def test_an_outlier_is_kept_and_a_verdict_that_rests_on_it_says_so() -> None:
    quiet = [94.00, 94.02, 93.99, 94.01, 94.00, 94.02, 93.98, 94.01]
    found = one({"base": quiet, "arm": [94.02, 94.03, 94.01, 94.02, 94.01, 94.04, 94.00, 91.0]})
    assert found.estimate == pytest.approx(94.0 - 3 + sum((2, 3, 1, 2, 1, 4, 0)) / 800 + 2.625 - 94.00375, abs=1e-2)
    assert found.verdict is not Verdict.BETTER
    (note,) = [note for note in found.notes if note.startswith("rests on one run")]
    assert note == "rests on one run: without seed 7 of arm, an outlier, it would be better"


def test_an_outlier_that_decides_nothing_is_not_mentioned() -> None:
    quiet = [94.00, 94.02, 93.99, 94.01, 94.00, 94.02, 93.98, 94.01]
    found = one({"base": quiet, "arm": [97.0, 97.02, 97.01, 96.99, 97.0, 97.03, 97.01, 97.5]})
    assert found.verdict is Verdict.BETTER
    assert found.notes == ()


def test_a_difference_smaller_than_the_margin_says_so() -> None:
    found = one({"base": [94.00, 94.02, 94.04, 94.01, 94.03], "arm": [94.10, 94.13, 94.13, 94.11, 94.14]})
    assert found.verdict is Verdict.BETTER
    assert found.notes == ("smaller than your margin of 0.2",)
    assert found.sentence.endswith("but smaller than your margin of 0.2.")


def test_a_verdict_that_only_the_pooled_model_gives_says_so() -> None:
    arms = {"base": FIVE, "arm": [94.30, 94.51, 94.21, 94.56, 94.36]}
    others = {f"quiet{i}": [a + 0.01 * ((i + j) % 3) for j, a in enumerate(FIVE)] for i in range(6)}
    alone, pooled = one(arms), compare(runs({**arms, **others}), baseline="base")[0]
    assert pooled.p_adjusted is not None
    assert pooled.own_p_holm is not None
    assert (pooled.p_adjusted < 0.05) is not (pooled.own_p_holm < 0.05)
    assert any(note.startswith("depends on pooling across arms: the two arms alone have p") for note in pooled.notes)
    assert not any(note.startswith("depends on pooling") for note in alone.notes)


@pytest.mark.parametrize(
    "arms",
    [
        {"base": FIVE, "arm": [a + 0.25 for a in FIVE]},
        {"base": FIVE, "arm": FIVE},
        {"base": [94.0] * 5, "arm": [94.2] * 5},
        {"base": [94.0] * 5, "arm": [94.0] * 5},
        {"base": [94.0] * 5, "arm": [94.2] * 4},
    ],
    ids=["shifted", "same bits", "constant", "constant and equal", "constant, unequal seeds"],
)
def test_no_spread_gives_no_interval_and_asks_whether_anything_is_random(
    arms: Mapping[str, Sequence[float]],
) -> None:
    found = one(arms)
    assert found.verdict is Verdict.PROVISIONAL
    assert found.ci95 is None
    assert found.sentence.endswith("no interval can be given (is anything random in these runs?).")


def test_one_arm_without_spread_is_compared_all_the_same() -> None:
    found = one({"base": [94.2] * 5, "arm": [94.3, 94.4, 94.5, 94.2]})
    assert not found.is_paired
    assert found.ci95 is not None
    told = stats.ttest_ind([94.3, 94.4, 94.5, 94.2], [94.2, 94.2, 94.2, 94.2 + 1e-9], equal_var=False)
    assert found.own_p_holm == pytest.approx(told.pvalue, rel=1e-3)


@pytest.mark.parametrize(("arms", "empty"), [({"arm": OTHER}, "base"), ({"base": FIVE}, "arm"), ({}, "base")])
def test_an_arm_without_runs_cannot_be_compared_yet(arms: Mapping[str, Sequence[float]], empty: str) -> None:
    found = one(arms)
    assert found.verdict is Verdict.PROVISIONAL
    assert found.sentence == f"arm cannot be compared with base yet: {empty} has no finished run."


def test_one_arm_only_leaves_nothing_to_compare() -> None:
    assert compare(runs({"base": FIVE}), baseline="base") == ()


def test_unequal_seeds_are_compared_as_independent_and_both_numbers_are_told() -> None:
    found = one({"base": FIVE, "arm": [None, *OTHER[1:]]})
    assert not found.is_paired
    assert found.df == 7
    assert "4 and 5 seeds" in found.sentence


def test_a_margin_of_zero_asks_for_a_difference_and_for_no_number_of_seeds() -> None:
    found = one({"base": FIVE, "arm": OTHER}, margin=0)
    assert found.verdict is Verdict.UNDECIDED
    assert found.num_more_seeds is None
    assert "more seed" not in found.sentence


def test_a_perfect_reference_has_no_relative_error() -> None:
    found = one({"base": [100.0] * 5, "arm": [100.0, 100.0, 99.9, 100.0, 100.0]})
    assert found.error_change is None
    assert one({"base": [90.0] * 5, "arm": [91.0] * 5}).error_change == pytest.approx(-10)


GOOD = runs({"base": FIVE, "arm": OTHER})


def but(column: str, value: object, row: int = 2) -> pd.DataFrame:
    """Good runs, but one value."""
    changed = GOOD.astype({column: object})
    changed.loc[row, column] = value
    return changed


@pytest.mark.parametrize(
    ("frame", "options", "said"),
    [
        (GOOD.drop(columns="seed"), {}, "compare needs a column 'seed'; this frame has arm, accuracy, status"),
        (but("seed", 0), {}, "arm 'base' has seed 0 twice; give one row per run"),
        (GOOD, {"references": {"arm": "arm"}}, "arm 'arm' is its own reference; name another one"),
        (but("accuracy", math.nan), {}, "arm 'base' seed 2 is finished and has no accuracy"),
        (but("accuracy", None), {}, "arm 'base' seed 2 is finished and has no accuracy"),
        (but("accuracy", "high"), {}, "arm 'base' seed 2 is finished and its accuracy is 'high', not a number"),
        (but("status", "killed"), {}, "status 'killed': a run is finished or diverged; leave the others out"),
        (but("arm", None), {}, "row 2 has no arm; each run needs its arm and seed"),
        (but("seed", None), {}, "row 2 has no seed; each run needs its arm and seed"),
        (GOOD, {"margin": -0.1}, "margin -0.1: give points, 0 or more"),
        (GOOD, {"margin": math.nan}, "margin nan: give points, 0 or more"),
        (GOOD, {"alpha": 0.5}, "alpha 0.5: give the family's level, above 0 and below 0.5"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_input_is_one_sentence_with_its_cure(frame: pd.DataFrame, options: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError) as refused:
        compare(frame, baseline="base", **options)
    assert str(refused.value) == said


def test_a_difference_that_is_the_same_by_chance_is_not_blamed_on_the_seed() -> None:
    found = one({"base": [88.0, 93.5], "arm": [55.5, 61.0]})
    assert found.verdict is Verdict.PROVISIONAL
    assert found.ci95 is None
    assert found.sentence.endswith("in every seed; without a spread of the difference no interval can be given.")


def test_the_curve_of_widths_is_within_its_tolerance_of_integrating_every_point() -> None:
    arms = {"base": FIVE, "arm": OTHER, "other": [94.4, 94.2, 94.4, 94.1, 94.5]}
    found = compare(runs(arms), baseline="base")
    nums = [2, 3, 4, 5, 8, 13, 20, 50]
    widths = half_widths(found, nums)
    both = np.array([[1.0, 0.5], [0.5, 1.0]])
    exact = [Joint(both, 2 * (num - 1)).critical(0.05) / num**0.5 for num in nums]
    shares = np.array(widths) / exact
    assert shares == pytest.approx(shares[0], rel=0.006)


@pytest.mark.parametrize("num", [1, 2, 4, 10, 29, 40])
@pytest.mark.parametrize("seeds", [2, 5, 200])
def test_arms_against_one_reference_need_no_random_integral(num: int, seeds: int) -> None:
    joint = Joint(np.full((num, num), 0.5) + 0.5 * np.eye(num), num * (seeds - 1))
    if num * (seeds - 1) > 1:
        assert against_one(num, joint.df, 0.05) == pytest.approx(joint.critical(0.05), rel=1e-3)


def test_the_exact_integral_is_dunnetts_table() -> None:
    """Two-sided 5% points of 4 and 2 treatments against a control (Dunnett 1964, table II)."""
    assert against_one(4, 20, 0.05) == pytest.approx(2.65, abs=0.005)
    assert against_one(2, 10, 0.05) == pytest.approx(2.57, abs=0.005)
