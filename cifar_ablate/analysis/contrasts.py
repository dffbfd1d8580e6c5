"""``compare``: every arm against its reference, as one family, with intervals, verdicts and sentences."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd
from scipy import stats

from cifar_ablate.analysis.arms import Arm, arms_of
from cifar_ablate.analysis.engine import ZERO, Estimate, estimate, fit_arms
from cifar_ablate.analysis.power import sd_interval, seeds_to_detect
from cifar_ablate.analysis.sentences import contrast_sentence
from cifar_ablate.analysis.types import Contrast, Verdict
from cifar_ablate.analysis.verdicts import MIN_DF, RULED, label, verdict_of
from cifar_ablate.errors import UsageError

OUTLIER_MADS = 5
"""A run further than so many scaled median absolute deviations from its arm's median is looked at without."""


def compare(
    frame: pd.DataFrame,
    *,
    baseline: str,
    references: Mapping[str, str] | None = None,
    margin: float = 0.2,
    alpha: float = 0.05,
    num_closed: int = 0,
) -> tuple[Contrast, ...]:
    """Every arm minus its reference; all contrasts of one call are one family.

    Args:
        frame: One row per run: ``arm``, ``seed``, ``accuracy`` (percent) and optionally ``status`` (finished or
            diverged; the accuracy of a diverged run is not looked at).
        baseline: The arm that all others are compared with, unless ``references`` is given.
        references: Maps each arm to compare to the arm it is compared with.
        margin: Smallest difference that matters, in points.
        alpha: Level of the family.
        num_closed: Contrasts of the family that an earlier look has closed. They count in the correction: which ones
            are left open was chosen by their size, and the largest of few is as large as the largest of all.

    Raises:
        UsageError: A column is missing, a run appears twice or without its accuracy, an arm is its own reference, or
            the margin or the level is none.
    """
    if not margin >= 0:
        raise UsageError(f"margin {margin:g}: give points, 0 or more")
    if not 0 < alpha < 0.5:
        raise UsageError(f"alpha {alpha:g}: give the family's level, above 0 and below 0.5")
    arms = arms_of(frame)
    pairs = dict(references) if references is not None else {arm: baseline for arm in arms if arm != baseline}
    if twice := [arm for arm, reference in pairs.items() if arm == reference]:
        raise UsageError(f"arm {twice[0]!r} is its own reference; name another one")
    for name in (*pairs, *pairs.values()):
        arms.setdefault(name, Arm(name, pd.Series(dtype=float), 0))
    contrasts = _family(arms, pairs, margin, alpha, num_closed)
    far = {name: outliers(arm.finished) for name, arm in arms.items()}
    return tuple(_with_outliers(contrast, far, arms, pairs, margin, num_closed) for contrast in contrasts)


def _family(
    arms: Mapping[str, Arm], pairs: Mapping[str, str], margin: float, alpha: float, num_closed: int
) -> list[Contrast]:
    """Contrasts of one family.

    Arms with fewer than two finished runs have no part in the model, and neither have those with a diverged one: what
    is left of them was selected, and would take the others' pairing and lend them its variance. They are estimated
    apart, each alone.
    """
    ready = [arm for arm, reference in pairs.items() if min(arms[arm].num, arms[reference].num) >= 2]
    whole = [arm for arm in ready if not arms[arm].num_diverged and not arms[pairs[arm]].num_diverged]
    found = _estimates(arms, {arm: pairs[arm] for arm in whole}, alpha, num_closed)
    for arm in ready:
        if arm not in whole:
            found |= _estimates(arms, {arm: pairs[arm]}, alpha)
    return [_contrast(arms[arm], arms[reference], found.get(arm), margin, alpha) for arm, reference in pairs.items()]


@dataclass(frozen=True)
class _Found:
    """An estimate with what is known of its family."""

    estimate: Estimate
    own_p: float | None
    is_paired: bool
    num_comparisons: int


def _estimates(
    arms: Mapping[str, Arm], pairs: Mapping[str, str], alpha: float, num_closed: int = 0
) -> dict[str, _Found]:
    if not pairs:
        return {}
    in_model = sorted({*pairs, *pairs.values()})
    fit = fit_arms({name: arms[name].finished for name in in_model})
    weights = [{arm: 1.0, reference: -1.0} for arm, reference in pairs.items()]
    estimates = estimate(fit, weights, alpha=alpha, num_closed=num_closed)
    own = _own_tests(arms, pairs, is_paired=fit.is_paired)
    return {
        arm: _Found(one, own.get(arm), fit.is_paired, len(pairs) + num_closed)
        for arm, one in zip(pairs, estimates, strict=True)
    }


def _own_tests(arms: Mapping[str, Arm], pairs: Mapping[str, str], *, is_paired: bool) -> dict[str, float]:
    """Holm-adjusted p of each pair's own t test; empty where one of them has no spread."""
    from statsmodels.stats.multitest import multipletests

    raw = {}
    for arm, reference in pairs.items():
        a, b = arms[arm].finished, arms[reference].finished
        spread = (a - b).std(ddof=1) if is_paired else a.std(ddof=1) + b.std(ddof=1)
        if spread > ZERO:
            test = stats.ttest_rel(a, b.loc[a.index]) if is_paired else _welch(a, b)
            raw[arm] = float(test.pvalue)
    if not raw:
        return {}
    return dict(zip(raw, map(float, multipletests(list(raw.values()), method="holm")[1]), strict=True))


def _welch(a: pd.Series, b: pd.Series) -> Any:
    """scipy's, from the moments: from the runs it warns where one of the arms has no spread."""
    moments = [(float(one.mean()), float(one.std(ddof=1)), len(one)) for one in (a, b)]
    return stats.ttest_ind_from_stats(*moments[0], *moments[1], equal_var=False)


def _contrast(arm: Arm, reference: Arm, of_family: _Found | None, margin: float, alpha: float) -> Contrast:
    found = of_family.estimate if of_family else None
    mean, mean_reference = (float(one.finished.mean()) if one.num else None for one in (arm, reference))
    difference = None if mean is None or mean_reference is None else mean - mean_reference
    verdict = _verdict(arm, reference, found, margin)
    more, more_range = _more_seeds(found, min(arm.num, reference.num), margin, verdict)
    contrast = Contrast(
        arm=arm.name,
        reference=reference.name,
        num_seeds=arm.num,
        num_seeds_reference=reference.num,
        estimate=difference,
        ci95=found.ci95 if found else None,
        ci90=found.ci90 if found else None,
        p_adjusted=found.p_adjusted if found else None,
        se=found.se if found else None,
        df=found.df if found else None,
        p_superior=_p_superior(arm, reference),
        sd=float(arm.finished.std(ddof=1)) if arm.num > 1 else None,
        error_change=_error_change(difference, mean_reference),
        verdict=verdict,
        num_more_seeds=more,
        num_more_seeds_range=more_range,
        alpha=alpha,
        num_comparisons=of_family.num_comparisons if of_family else 0,
        is_paired=bool(of_family and of_family.is_paired),
        own_p_holm=of_family.own_p if of_family else None,
        num_diverged=arm.num_diverged,
        num_diverged_reference=reference.num_diverged,
        notes=(),
        sentence="",
    )
    return replace(contrast, notes=_notes(contrast, margin), sentence=contrast_sentence(contrast, margin))


def _verdict(arm: Arm, reference: Arm, found: Estimate | None, margin: float) -> Verdict:
    num = min(arm.num, reference.num)
    if arm.num_diverged or reference.num_diverged:
        return Verdict.DIVERGED
    if num == 1:
        return Verdict.SINGLE_RUN
    if found is None or found.ci95 is None or found.ci90 is None or num == 2 or found.df < MIN_DF:
        return Verdict.PROVISIONAL
    return verdict_of(found.ci95, found.ci90, margin)


def _more_seeds(
    found: Estimate | None, num: int, margin: float, verdict: Verdict
) -> tuple[int | None, tuple[int, int] | None]:
    """Seeds per arm to detect the margin; from the margin, never from the observed difference."""
    if found is None or found.ci95 is None or verdict.is_decided or margin <= 0:
        return None, None
    level = float(2 * stats.t.sf(found.critical, found.df))
    sd = found.se * math.sqrt(num)
    total, low, high = (seeds_to_detect(margin, one, level) for one in (sd, *sd_interval(sd, found.df)))
    if not math.isfinite(high):
        return None, None
    extra = [max(math.ceil(one) - num, 1) for one in (total, low, high)]
    return extra[0], (extra[1], extra[2])


def _p_superior(arm: Arm, reference: Arm) -> float | None:
    if min(arm.num, reference.num) < 2:  # of two runs it would be 0 or 1
        return None
    u = stats.mannwhitneyu(arm.finished, reference.finished, method="asymptotic").statistic
    return float(u) / (arm.num * reference.num)


def _error_change(difference: float | None, mean_reference: float | None) -> float | None:
    if difference is None or mean_reference is None or mean_reference >= 100:
        return None
    return -100 * difference / (100 - mean_reference)


def _notes(contrast: Contrast, margin: float) -> tuple[str, ...]:
    notes = []
    if contrast.verdict in (Verdict.BETTER, Verdict.WORSE):
        low, high = contrast.ci90 or (0.0, 0.0)
        if -margin < low and high < margin:
            notes.append(f"smaller than your margin of {margin:g}")
    p, own_p = contrast.p_adjusted, contrast.own_p_holm
    if p is None or own_p is None or contrast.verdict not in RULED:
        return tuple(notes)
    if (p < contrast.alpha) != (own_p < contrast.alpha):
        notes.append(
            f"depends on pooling across arms: the two arms alone have p {own_p:.2g} (t test, Holm), the model of all "
            f"arms {p:.2g}"
        )
    return tuple(notes)


def _with_outliers(
    contrast: Contrast,
    far: Mapping[str, list[int]],
    arms: Mapping[str, Arm],
    pairs: Mapping[str, str],
    margin: float,
    num_closed: int,
) -> Contrast:
    """The contrast, with a note where its verdict rests on one outlying run. Nothing is ever deleted."""
    if contrast.verdict not in RULED:
        return contrast
    for name in (contrast.arm, contrast.reference):
        for seed in far[name]:
            without = _verdict_without(contrast, name, seed, arms, pairs, margin, num_closed)
            if without is not None and without is not contrast.verdict:
                note = f"rests on one run: without seed {seed} of {name}, an outlier, it would be {label(without)}"
                return replace(contrast, notes=(*contrast.notes, note))
    return contrast


def _verdict_without(
    contrast: Contrast,
    name: str,
    seed: int,
    arms: Mapping[str, Arm],
    pairs: Mapping[str, str],
    margin: float,
    num_closed: int,
) -> Verdict | None:
    """The rules' verdict without one run; where seeds are blocks, without that seed in all arms."""
    dropped = arms if contrast.is_paired else (name,)
    left = {
        arm.name: replace(arm, finished=arm.finished.drop(seed)) if arm.name in dropped else arm
        for arm in arms.values()
        if not contrast.is_paired or seed in arm.finished.index
    }
    kept = {arm: reference for arm, reference in pairs.items() if arm in left and reference in left}
    again = next(one for one in _family(left, kept, margin, contrast.alpha, num_closed) if one.arm == contrast.arm)
    return verdict_of(again.ci95, again.ci90, margin) if again.ci95 and again.ci90 else None


def outliers(accuracy: pd.Series) -> list[int]:
    """Seeds whose accuracy lies over 5 scaled MAD (scipy) from the arm's median; none under 4 runs."""
    if len(accuracy) < 4:
        return []
    mad = float(stats.median_abs_deviation(accuracy, scale="normal"))
    if mad <= ZERO:
        return []
    far = (accuracy - accuracy.median()).abs() > OUTLIER_MADS * mad
    return [int(seed) for seed in accuracy.index[far]]
