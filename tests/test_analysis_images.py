"""Per-image outcomes: McNemar, crossed variances, the flip floor, classes, and whether confidences are right."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from cifar_ablate.analysis.images import (
    class_effects,
    expected_calibration_error,
    flip_floor,
    is_luckily_small,
    mcnemar,
    new_image_interval,
    reliability,
)
from cifar_ablate.errors import UsageError

A = np.array([[int(bit) for bit in row] for row in ("11101101", "11001111", "11101001")], dtype=bool)
B = np.array([[int(bit) for bit in row] for row in ("11111101", "11101111", "11111101")], dtype=bool)


def test_mcnemar_is_the_exact_binomial_of_the_images_on_which_two_networks_differ() -> None:
    a = np.array([True] * 221 + [False] * 260 + [True] * 500)
    b = np.array([False] * 221 + [True] * 260 + [True] * 500)
    assert mcnemar(a, b) == pytest.approx(0.0830508, abs=1e-7)
    assert mcnemar(a, b) == pytest.approx(stats.binomtest(221, 481).pvalue)
    assert mcnemar(a, a) == 1
    with pytest.raises(UsageError, match="both networks need the same images, not 981 and 980"):
        mcnemar(a, b[1:])


def test_seeds_and_images_are_crossed() -> None:
    found = new_image_interval(A, B)
    assert found is not None
    assert found.estimate == pytest.approx(16.66667, abs=1e-5)
    assert found.seed == pytest.approx(1e4 * 0.00173611, abs=1e-4)
    assert found.image == pytest.approx(1e4 * 0.00793651, abs=1e-4)
    assert found.residual == pytest.approx(1e4 * 0.00570437, abs=1e-4)
    assert found.seed + found.image - found.residual < found.image
    assert found.variance == pytest.approx(1e4 * 0.00793651, abs=1e-4)
    image_means = 100 * (B.astype(float) - A).mean(0)
    assert found.variance == pytest.approx(image_means.var(ddof=1) / 8)
    half = stats.t.isf(0.025, found.df) * found.variance**0.5
    assert found.ci == pytest.approx((found.estimate - half, found.estimate + half))
    assert not found.excludes_zero
    assert found.df >= 2


def test_swapping_the_arms_mirrors_the_interval() -> None:
    one, other = new_image_interval(A, B), new_image_interval(B, A)
    assert one is not None
    assert other is not None
    assert other.ci == pytest.approx((-one.ci[1], -one.ci[0]))


def test_a_difference_on_every_seed_and_on_many_images_holds_on_new_ones() -> None:
    rng = np.random.default_rng(1)
    easy = rng.random(2000)
    a, b = (easy + rng.normal(0, 0.05, (5, 2000)) > cut for cut in (0.12, 0.06))
    found = new_image_interval(a, b)
    assert found is not None
    assert found.ci[0] < 6 < found.ci[1]
    assert found.excludes_zero
    narrow = new_image_interval(a, b, alpha=0.1)
    assert narrow is not None
    assert narrow.ci[0] > found.ci[0]


def test_too_few_seeds_or_images_have_no_interval() -> None:
    assert new_image_interval(A[:2], B[:2]) is None
    assert new_image_interval(A[:, :1], B[:, :1]) is None
    assert new_image_interval(A[:0], B[:0]) is None
    with pytest.raises(UsageError, match=r"need the same seeds and images, not \(3, 8\) and \(2, 8\)"):
        new_image_interval(A, B[:2])


def test_equal_predictions_have_an_interval_of_no_width_and_exclude_nothing() -> None:
    found = new_image_interval(A, A)
    assert found is not None
    assert (found.estimate, found.ci, found.excludes_zero) == (0, (0, 0), False)


def test_the_flip_floor_is_what_independent_flips_leave_of_a_seed_spread() -> None:
    floor = flip_floor(A)
    assert floor == pytest.approx(12.5)
    assert flip_floor(A[:1]) is None
    rng = np.random.default_rng(2)
    images = rng.random((400, 500)) < rng.random(500)
    assert flip_floor(images) == pytest.approx(100 * images.mean(1).std(ddof=1), rel=0.1)


def test_a_seed_spread_far_under_its_floor_is_luck() -> None:
    assert is_luckily_small(0.02, 0.2, 5)
    assert not is_luckily_small(0.15, 0.2, 5)
    assert not is_luckily_small(0.0, 0.0, 5)


def test_classes_are_one_family_under_benjamini_and_hochberg() -> None:
    rng = np.random.default_rng(3)
    labels = np.repeat(np.arange(4), 100)
    base = {seed: rng.random(400) < 0.8 for seed in range(5)}
    arm = {seed: np.where(labels == 2, rng.random(400) < 0.97, base[seed]) for seed in (4, 3, 2, 1, 0)}
    same = dict(base)
    found = class_effects({"base": base, "arm": arm, "same": same}, labels, {"arm": "base", "same": "base"})
    assert list(found["arm"]) == ["arm"] * 4 + ["same"] * 4
    assert list(found["is_shown"]) == [False, False, True, False] + [False] * 4
    tested = found[found["p"].notna()]
    assert list(tested["label"]) == [2]
    d = [100 * (arm[s][labels == 2].mean() - base[s][labels == 2].mean()) for s in range(5)]
    assert tested["estimate"].item() == pytest.approx(np.mean(d))
    assert tested["p"].item() == pytest.approx(stats.ttest_1samp(d, 0).pvalue)


def test_many_classes_are_corrected_together() -> None:
    rng = np.random.default_rng(4)
    labels = np.repeat(np.arange(10), 100)
    arms = {name: {seed: rng.random(1000) < 0.8 for seed in range(5)} for name in ("base", "arm")}
    found = class_effects(arms, labels, {"arm": "base"}, alpha=0.2)
    told = stats.false_discovery_control(found["p"]) <= 0.2
    assert list(found["is_shown"]) == list(told)
    assert class_effects({}, labels, {"arm": "base"}).empty


def test_reliability_counts_every_prediction_in_one_bin() -> None:
    confidence = np.array([0.0, 0.05, 0.06, 0.07, 0.5, 0.99, 1.0])
    correct = np.array([False, False, True, True, False, True, True])
    bins = reliability(confidence, correct)
    assert [one.num for one in bins] == [3, 1, 1, 2]
    assert [one.accuracy for one in bins] == pytest.approx([1 / 3, 1, 0, 1])
    expected = 3 / 7 * abs(np.mean(confidence[:3]) - 1 / 3) + (0.93 + 0.5 + 2 * 0.005) / 7
    assert expected_calibration_error(bins) == pytest.approx(expected)
    assert expected_calibration_error(()) == 0


def test_confidences_that_mean_what_they_say_have_hardly_an_error() -> None:
    rng = np.random.default_rng(5)
    confidence = rng.uniform(0.1, 1, 200_000)
    honest = rng.random(200_000) < confidence
    assert expected_calibration_error(reliability(confidence, honest)) < 0.01
    boasting = rng.random(200_000) < confidence - 0.1
    assert expected_calibration_error(reliability(confidence, boasting)) == pytest.approx(0.1, abs=0.01)
