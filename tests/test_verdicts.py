"""The worked example, number by number: what scipy answers, what ``compare`` answers, and every verdict."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from scipy import stats

from cifar_ablate.analysis import Contrast, Verdict, label
from cifar_ablate.analysis.contrasts import compare
from cifar_ablate.analysis.engine import Joint, estimate, fit_arms
from cifar_ablate.analysis.power import seeds_to_detect
from tests.accuracies import DIVERGED, WORKED, runs

ARMS = ("mixup", "cutmix", "aggr", "ls")
BASE = np.array(WORKED["base"])


def worked(margin: float = 0.2, alpha: float = 0.05) -> dict[str, Contrast]:
    found = compare(runs(WORKED), baseline="base", margin=margin, alpha=alpha)
    assert tuple(one.arm for one in found) == ARMS
    return {one.arm: one for one in found}


def test_paired_t_tests_with_holm_are_the_own_pairs_of_the_contrasts() -> None:
    mixup = stats.ttest_rel(WORKED["mixup"], BASE)
    assert mixup.statistic == pytest.approx(8.564654, abs=1e-6)
    assert mixup.pvalue == pytest.approx(0.00102056, abs=1e-8)
    interval = mixup.confidence_interval()
    assert (interval.low, interval.high) == pytest.approx((0.236539, 0.463461), abs=1e-6)
    aggr = stats.ttest_rel(WORKED["aggr"], BASE)
    assert (aggr.statistic, aggr.pvalue) == pytest.approx((-1.529990, 0.200761), abs=1e-6)
    raw = [stats.ttest_rel(WORKED[arm], BASE).pvalue for arm in ARMS]
    holm = [3 * raw[0], 4 * raw[1], 2 * raw[2], raw[3]]  # in the order of p: cutmix, mixup, aggr, ls
    assert holm == pytest.approx([0.003062, 0.000614, 0.401522, 0.577310], abs=1e-6)
    assert [one.own_p_holm for one in worked().values()] == pytest.approx(holm, rel=1e-9)


def test_with_unequal_seeds_the_own_pair_is_welchs() -> None:
    found = stats.ttest_ind(WORKED["aggr"][:3], BASE, equal_var=False)
    assert (found.statistic, found.df, found.pvalue) == pytest.approx((-1.485520, 2.349090, 0.257704), abs=1e-6)
    interval = found.confidence_interval()
    assert (interval.low, interval.high) == pytest.approx((-1.020980, 0.440980), abs=1e-6)
    (ours,) = compare(runs({"base": WORKED["base"], "aggr": WORKED["aggr"][:3]}), baseline="base")
    assert not ours.is_paired
    assert ours.own_p_holm == pytest.approx(found.pvalue, rel=1e-9)
    welch = (interval.high - interval.low) / 2 / stats.t.isf(0.025, found.df)
    assert ours.se == pytest.approx(welch, rel=1e-6)  # here the contrast's own error is the larger one


def test_without_pairing_and_guard_the_engine_is_dunnetts_test() -> None:
    found = stats.dunnett(*(WORKED[arm] for arm in ARMS), control=BASE, rng=np.random.default_rng(0))
    assert found.statistic == pytest.approx([3.501821, 5.863050, -2.481291, 0.380198], abs=1e-6)
    assert found.pvalue == pytest.approx([0.0078, 3e-5, 0.0705, 0.9861], abs=1e-3)
    joint = Joint(np.full((4, 4), 0.5) + 0.5 * np.eye(4), 20)
    assert joint.critical(0.05) == pytest.approx(2.6505, abs=1e-3)
    for statistic, p in zip(found.statistic, found.pvalue, strict=True):
        assert joint.tail(abs(statistic)) == pytest.approx(p, abs=1e-3)


def test_the_guarded_model_of_the_worked_example() -> None:
    found = worked()
    frame = runs(WORKED)
    fit = fit_arms({str(arm): rows.set_index("seed")["accuracy"] for arm, rows in frame.groupby("arm")})
    weights = np.array([float(arm == "mixup") - float(arm == "base") for arm in fit.arms])
    assert math.sqrt(weights @ fit.covariance @ weights) == pytest.approx(0.108979, abs=1e-6)
    own = [stats.sem(np.array(WORKED[arm]) - BASE) for arm in ARMS]
    assert own == pytest.approx([0.040866, 0.042024, 0.162093, 0.062722], abs=1e-6)
    assert [one.se for one in found.values()] == pytest.approx([0.108979, 0.108979, 0.162093, 0.108979], abs=1e-6)
    assert {one.df for one in found.values()} == {16}
    assert all(one.is_paired and one.num_comparisons == 4 for one in found.values())
    (first, *_) = estimate(fit, [{arm: 1.0, "base": -1.0} for arm in ARMS])
    assert first.critical == pytest.approx(2.7073, abs=1e-3)
    assert first.ci90 is not None
    assert (first.ci90[1] - first.value) / first.se == pytest.approx(2.3418, abs=1e-3)


def test_intervals_and_adjusted_p_of_the_worked_example() -> None:
    found = worked().values()
    expected = [(0.055, 0.645), (0.291, 0.881), (-0.687, 0.190), (-0.257, 0.333)]
    for one, bounds in zip(found, expected, strict=True):
        assert one.ci95 == pytest.approx(bounds, abs=1e-3)
    assert [one.p_adjusted for one in found] == pytest.approx([0.0183, 2e-4, 0.382, 0.990], abs=1e-3)
    assert [one.verdict for one in found] == [
        Verdict.BETTER,
        Verdict.BETTER,
        Verdict.NO_BETTER,
        Verdict.UNDECIDED,
    ]
    assert [one.estimate for one in found] == pytest.approx([0.35, 0.586, -0.248, 0.038])


def test_seeds_wanted_come_from_the_margin_and_not_from_the_difference() -> None:
    ls = worked()["ls"]
    assert ls.se is not None
    level = 2 * stats.t.sf(2.7073, 16)
    total = seeds_to_detect(0.2, ls.se * math.sqrt(5), level)
    assert total == pytest.approx(18.81, abs=0.02)
    assert ls.num_more_seeds == math.ceil(total) - 5 == 14
    assert ls.num_more_seeds_range is not None
    low, high = ls.num_more_seeds_range
    assert low < 14 < high
    shifted = compare(
        runs({arm: [a + 0.05 * (arm == "ls") for a in of_arm] for arm, of_arm in WORKED.items()}), baseline="base"
    )
    assert shifted[-1].num_more_seeds == 14


def test_a_family_of_one_within_its_margin_is_the_equivalence_test() -> None:
    def tost(arm: str, margin: float) -> float:
        """p of the two one-sided tests: the larger one."""
        differences = np.array(WORKED[arm]) - BASE
        above = stats.ttest_1samp(differences, -margin, alternative="greater")
        return float(max(above.pvalue, stats.ttest_1samp(differences, margin, alternative="less").pvalue))

    told = [tost(arm, margin) for arm, margin in (("ls", 0.3), ("ls", 0.2), ("mixup", 0.5))]
    assert told == pytest.approx([0.006975, 0.030572, 0.010690], abs=1e-6)
    pair = runs({"base": WORKED["base"], "ls": WORKED["ls"]})
    for margin in (0.3, 0.2, 0.18, 0.17, 0.1):
        (found,) = compare(pair, baseline="base", margin=margin)
        assert (found.verdict is Verdict.EQUIVALENT) == (tost("ls", margin) < 0.05), margin


def test_the_sentences_say_what_was_found_and_how_sure() -> None:
    found = worked()
    assert (
        found["mixup"].sentence
        == "mixup is better than base by 0.35 points (95% CI +0.06 to +0.64, 5 seeds, 4 comparisons)."
    )
    assert "aggr is not better than base by more than 0.2 points; not shown worse (90% CI" in found["aggr"].sentence
    assert "too close to call (95% CI −0.26 to +0.33, 5 seeds, 4 comparisons): about 14 more seeds" in (
        found["ls"].sentence
    )
    assert all(one.notes == () for one in found.values())


TIGHT = (94.00, 94.02, 94.04, 94.01, 94.03)
EVERY_VERDICT: dict[Verdict, Sequence[float]] = {
    Verdict.BETTER: (94.50, 94.53, 94.52, 94.51, 94.54),
    Verdict.WORSE: (93.50, 93.53, 93.52, 93.51, 93.54),
    Verdict.EQUIVALENT: (94.01, 94.03, 94.02, 94.02, 94.02),
    Verdict.NO_WORSE: (94.00, 94.32, 94.24, 93.91, 94.43),
    Verdict.NO_BETTER: (94.00, 93.72, 93.84, 94.11, 93.63),
    Verdict.UNDECIDED: (94.60, 93.42, 94.04, 93.51, 94.53),
    Verdict.PROVISIONAL: (94.50, 94.53),
    Verdict.SINGLE_RUN: (94.50,),
    Verdict.DIVERGED: (94.50, 94.53, DIVERGED, 94.51, 94.54),
}


@pytest.mark.parametrize("verdict", Verdict)
def test_every_verdict_is_reached(verdict: Verdict) -> None:
    arm = EVERY_VERDICT[verdict]
    (found,) = compare(runs({"base": TIGHT[: len(arm)], "arm": arm}), baseline="base")
    assert found.verdict is verdict
    assert found.sentence.endswith(".")
    assert "nan" not in found.sentence
    assert label(verdict)


@pytest.mark.parametrize(
    ("ci95", "ci90", "verdict"),
    [
        ((0.0, 1.0), (0.1, 0.9), Verdict.NO_WORSE),
        ((-1.0, 0.0), (-0.9, -0.1), Verdict.NO_BETTER),
        ((-0.3, 0.3), (-0.2, 0.2), Verdict.UNDECIDED),
        ((-0.3, 0.2), (-0.2, 0.1), Verdict.NO_BETTER),
        ((1e-9, 0.1), (1e-8, 0.09), Verdict.BETTER),
    ],
    ids=str,
)
def test_a_bound_that_is_touched_is_not_excluded(
    ci95: tuple[float, float], ci90: tuple[float, float], verdict: Verdict
) -> None:
    from cifar_ablate.analysis.verdicts import verdict_of

    assert verdict_of(ci95, ci90, 0.2) is verdict
