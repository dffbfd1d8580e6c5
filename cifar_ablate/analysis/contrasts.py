"""``compare``: every arm against its reference, as one family, with intervals, verdicts and sentences."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd
from scipy import stats

from cifar_ablate.analysis.arms import Arm, arms_of
from cifar_ablate.analysis.engine import ZERO, Estimate, Weights, estimate, fit_arms, guarded
from cifar_ablate.analysis.outliers import Rough, with_outliers
from cifar_ablate.analysis.power import sd_interval, seeds_to_detect
from cifar_ablate.analysis.sentences import contrast_sentence
from cifar_ablate.analysis.types import Contrast, Verdict
from cifar_ablate.analysis.verdicts import MIN_DF, RULED, verdict_of
from cifar_ablate.errors import UsageError

LEVEL = 0.05
"""Of a family, where nothing else is said."""


def compare(
    frame: pd.DataFrame,
    *,
    baseline: str,
    references: Mapping[str, str] | None = None,
    margin: float = 0.2,
    alpha: float = LEVEL,
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
    return with_outliers(contrasts, arms, margin, lambda left, name: _rough(left, pairs, name))


def _family(
    arms: Mapping[str, Arm], pairs: Mapping[str, str], margin: float, alpha: float, num_closed: int
) -> list[Contrast]:
    """Contrasts of one family.

    Arms with fewer than two finished runs have no part in the model, and neither have those with a diverged one: what
    is left of them was selected, and would take the others' pairing and lend them its variance. They are estimated
    apart, each alone.
    """
    whole = _whole(arms, pairs)
    found = _estimates(arms, whole, alpha, num_closed)
    for arm, reference in pairs.items():
        if arm not in whole and min(arms[arm].num, arms[reference].num) >= 2:
            found |= _estimates(arms, {arm: reference}, alpha)
    return [_contrast(arms[arm], arms[reference], found.get(arm), margin, alpha) for arm, reference in pairs.items()]


def _whole(arms: Mapping[str, Arm], pairs: Mapping[str, str]) -> dict[str, str]:
    """The pairs that are in the model."""
    return {
        arm: reference
        for arm, reference in pairs.items()
        if all(arms[name].num >= 2 and not arms[name].num_diverged for name in (arm, reference))
    }


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
    fit = fit_arms(_finished(arms, pairs))
    estimates = estimate(fit, _weights(pairs), alpha=alpha, num_closed=num_closed)
    own = _own_tests(arms, pairs, is_paired=fit.is_paired)
    return {
        arm: _Found(one, own.get(arm), fit.is_paired, len(pairs) + num_closed)
        for arm, one in zip(pairs, estimates, strict=True)
    }


def _finished(arms: Mapping[str, Arm], pairs: Mapping[str, str]) -> dict[str, pd.Series]:
    return {name: arms[name].finished for name in sorted({*pairs, *pairs.values()})}


def _weights(pairs: Mapping[str, str]) -> list[Weights]:
    return [{arm: 1.0, reference: -1.0} for arm, reference in pairs.items()]


def _rough(arms: Mapping[str, Arm], pairs: Mapping[str, str], name: str) -> dict[str, Rough]:
    """Estimates of what touches the arm ``name`` (of all, for ""), without what takes long: the family's intervals."""
    whole = _whole(arms, pairs)
    asked = {arm: reference for arm, reference in whole.items() if name in ("", arm, reference)}
    if not asked:
        return {}
    fit = fit_arms(_finished(arms, whole))
    values, errors, _ = guarded(fit, _weights(asked))
    return {arm: Rough(float(v), float(e), fit.df) for arm, v, e in zip(asked, values, errors, strict=True)}


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
        level = "" if contrast.alpha == LEVEL else f", and the level of this look is {contrast.alpha:.2g}"
        notes.append(
            f"depends on pooling across arms: the two arms alone have p {own_p:.2g} (t test, Holm), the model of all "
            f"arms {p:.2g}{level}"
        )
    return tuple(notes)
