"""``compare``: every arm against its reference, as one family, with intervals, verdicts and sentences.

From top to bottom: the comparison, the runs of a table as arms, outlying runs, and all pairs of arms.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from numbers import Real

import numpy as np
import pandas as pd
from scipy import special

from cifar_ablate.analysis.engine import (
    ZERO,
    Array,
    Estimate,
    Weights,
    estimate,
    fit_arms,
    guarded,
    sidak,
    t_tail,
)
from cifar_ablate.analysis.power import sd_interval, seeds_to_detect
from cifar_ablate.analysis.sentences import contrast_sentence
from cifar_ablate.analysis.verdicts import MIN_DF, RULED, Contrast, Interval, Verdict, label, verdict_of
from cifar_ablate.errors import UsageError

LEVEL = 0.05
"""Default error level of a family."""
COLUMNS = ("arm", "seed", "accuracy")
OUTLIER_MADS = 5
"""A run is an outlier if it is this many scaled median absolute deviations from its arm's median."""
MIN_RUNS = 4
"""Minimum number of runs in which an outlier can be told."""


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
            diverged; the accuracy of a diverged run is ignored).
        baseline: The arm that all others are compared with, unless ``references`` is given.
        references: The reference of each arm that is compared.
        margin: Smallest difference that matters, in points.
        alpha: Error level of the family.
        num_closed: Contrasts of the family that an earlier look has closed. They count in the correction: the open
            ones were selected by size, so the largest of them is as large as the largest of all.

    Raises:
        UsageError: A column is missing, a run appears twice or without its accuracy, an arm is its own reference, or
            the margin or the level is out of range.
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
        arms.setdefault(name, ArmRuns(name, pd.Series(dtype=float), 0))
    contrasts = _family(arms, pairs, margin, alpha, num_closed)
    return with_outliers(contrasts, arms, margin, lambda left, name: _rough_estimates(left, pairs, name))


def _family(
    arms: Mapping[str, ArmRuns], pairs: Mapping[str, str], margin: float, alpha: float, num_closed: int
) -> list[Contrast]:
    """Contrasts of one family.

    Arms with fewer than two finished runs are not part of the model. Arms with a diverged run are not either: their
    finished runs are a selection, which would break the pairing of the others and change their variance. Each of them
    is estimated alone.
    """
    whole = _whole(arms, pairs)
    found = _estimates(arms, whole, alpha, num_closed)
    for arm, reference in pairs.items():
        if arm not in whole and min(arms[arm].num, arms[reference].num) >= 2:
            found |= _estimates(arms, {arm: reference}, alpha)
    return [_contrast(arms[arm], arms[reference], found.get(arm), margin, alpha) for arm, reference in pairs.items()]


def _whole(arms: Mapping[str, ArmRuns], pairs: Mapping[str, str]) -> dict[str, str]:
    """The pairs that are part of the model."""
    return {
        arm: reference
        for arm, reference in pairs.items()
        if all(arms[name].num >= 2 and not arms[name].num_diverged for name in (arm, reference))
    }


@dataclass(frozen=True)
class _InFamily:
    """An estimate with the facts of its family."""

    estimate: Estimate
    own_p: float | None
    is_paired: bool
    num_comparisons: int


def _estimates(
    arms: Mapping[str, ArmRuns], pairs: Mapping[str, str], alpha: float, num_closed: int = 0
) -> dict[str, _InFamily]:
    if not pairs:
        return {}
    fit = fit_arms(_finished(arms, pairs))
    estimates = estimate(fit, _weights(pairs), alpha=alpha, num_closed=num_closed)
    own = _own_tests(arms, pairs, is_paired=fit.is_paired)
    return {
        arm: _InFamily(one, own.get(arm), fit.is_paired, len(pairs) + num_closed)
        for arm, one in zip(pairs, estimates, strict=True)
    }


def _finished(arms: Mapping[str, ArmRuns], pairs: Mapping[str, str]) -> dict[str, pd.Series]:
    return {name: arms[name].finished for name in sorted({*pairs, *pairs.values()})}


def _weights(pairs: Mapping[str, str]) -> list[Weights]:
    return [{arm: 1.0, reference: -1.0} for arm, reference in pairs.items()]


def _rough_estimates(arms: Mapping[str, ArmRuns], pairs: Mapping[str, str], name: str) -> dict[str, RoughEstimate]:
    """Estimates of all contrasts with the arm ``name`` (all for ""), without the family's intervals, which are slow."""
    whole = _whole(arms, pairs)
    asked = {arm: reference for arm, reference in whole.items() if name in ("", arm, reference)}
    if not asked:
        return {}
    fit = fit_arms(_finished(arms, whole))
    values, errors, _ = guarded(fit, _weights(asked))
    return {arm: RoughEstimate(float(v), float(e), fit.df) for arm, v, e in zip(asked, values, errors, strict=True)}


def _own_tests(arms: Mapping[str, ArmRuns], pairs: Mapping[str, str], *, is_paired: bool) -> dict[str, float]:
    """Holm-adjusted p of each pair's own t test; a pair without a spread has none."""
    raw = {}
    for arm, reference in pairs.items():
        a, b = (arms[name].finished.to_numpy(float) for name in (arm, reference))
        differences = a - b if is_paired else None
        spread = a.std(ddof=1) + b.std(ddof=1) if differences is None else differences.std(ddof=1)
        if spread > ZERO:
            raw[arm] = _welch_p(a, b) if differences is None else paired_p(differences)
    return dict(zip(raw, holm(list(raw.values())), strict=True))


def paired_p(differences: Array) -> float:
    """Two-sided p of the paired t test, from the differences [n]; they must not all be equal."""
    num = len(differences)
    return 2 * t_tail(abs(differences.mean()) / math.sqrt(differences.var(ddof=1) / num), num - 1)


def _welch_p(a: Array, b: Array) -> float:
    """Two-sided p of Welch's t test of two samples, of which one may have no spread."""
    parts = [one.var(ddof=1) / len(one) for one in (a, b)]
    df = sum(parts) ** 2 / sum(part**2 / (len(one) - 1) for part, one in zip(parts, (a, b), strict=True))
    return 2 * t_tail(abs(a.mean() - b.mean()) / math.sqrt(sum(parts)), df)


def holm(p: Sequence[float]) -> list[float]:
    """p values adjusted for the number of tests by Holm's step-down method (Holm 1979)."""
    order = np.argsort(p, kind="stable")
    adjusted = np.empty(len(p))
    factors = np.arange(len(p), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(np.asarray(p, float)[order] * factors), 1.0)
    return [float(one) for one in adjusted]


def _contrast(arm: ArmRuns, reference: ArmRuns, of_family: _InFamily | None, margin: float, alpha: float) -> Contrast:
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


def _verdict(arm: ArmRuns, reference: ArmRuns, found: Estimate | None, margin: float) -> Verdict:
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
    """Additional seeds per arm to detect the margin. They follow from the margin, never from the estimate."""
    if found is None or found.ci95 is None or verdict.is_decided or margin <= 0:
        return None, None
    level = 2 * t_tail(found.critical, found.df)
    sd = found.se * math.sqrt(num)
    total, low, high = (seeds_to_detect(margin, one, level) for one in (sd, *sd_interval(sd, found.df)))
    if not math.isfinite(high):
        return None, None
    extra = [max(math.ceil(one) - num, 1) for one in (total, low, high)]
    return extra[0], (extra[1], extra[2])


def _p_superior(arm: ArmRuns, reference: ArmRuns) -> float | None:
    if min(arm.num, reference.num) < 2:  # with one run it would be 0 or 1
        return None
    differences = np.subtract.outer(arm.finished.to_numpy(float), reference.finished.to_numpy(float))
    wins, ties = np.count_nonzero(differences > 0), np.count_nonzero(differences == 0)
    return float((wins + ties / 2) / differences.size)


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


@dataclass(frozen=True)
class ArmRuns:
    """The runs of an arm."""

    name: str
    finished: pd.Series
    """Accuracy in percent of the finished runs, indexed by seed in increasing order."""
    num_diverged: int

    @property
    def num(self) -> int:
        """Number of finished runs."""
        return len(self.finished)


def arms_of(frame: pd.DataFrame) -> dict[str, ArmRuns]:
    """Arms by name, in order of appearance; raises UsageError as ``checked``."""
    frame = checked(frame)
    finished: dict[str, dict[Hashable, float]] = {}
    num_diverged: dict[str, int] = {}
    for name, seed, accuracy, status in zip(*(frame[one] for one in (*COLUMNS, "status")), strict=True):
        of_arm = finished.setdefault(str(name), {})
        if status == "finished":
            of_arm[seed] = float(accuracy)
        else:
            num_diverged[str(name)] = num_diverged.get(str(name), 0) + 1
    return {
        name: ArmRuns(name, pd.Series(of_arm, dtype=float).sort_index(), num_diverged.get(name, 0))
        for name, of_arm in finished.items()
    }


def checked(frame: pd.DataFrame) -> pd.DataFrame:
    """The table with a column ``status``, which is finished if it was missing.

    Raises:
        UsageError: A column is missing, or a run's arm, seed or accuracy; a run appears twice; a status is unknown.
    """
    for column in COLUMNS:
        if column not in frame:
            raise UsageError(f"compare needs a column {column!r}; this frame has {', '.join(map(str, frame.columns))}")
    for column in ("arm", "seed"):
        if (lacks := frame[column].isna()).any():
            raise UsageError(f"row {frame.index[lacks][0]} has no {column}; each run needs its arm and seed")
    if (twice := frame.duplicated(["arm", "seed"])).any():
        row = frame[twice].iloc[0]
        raise UsageError(f"arm {row['arm']!r} has seed {row['seed']} twice; give one row per run")
    frame = frame if "status" in frame else frame.assign(status="finished")
    if unknown := set(frame["status"]) - {"finished", "diverged"}:
        raise UsageError(
            f"status {sorted(map(str, unknown))[0]!r}: a run is finished or diverged; leave the others out"
        )
    finished = frame[frame["status"] == "finished"]
    for arm, seed, accuracy in zip(finished["arm"], finished["seed"], finished["accuracy"], strict=True):
        _check_accuracy(arm, seed, accuracy)
    return frame


def _check_accuracy(arm: Hashable, seed: Hashable, accuracy: object) -> None:
    if accuracy is None or (isinstance(accuracy, Real) and not math.isfinite(accuracy)):
        raise UsageError(f"arm {arm!r} seed {seed} is finished and has no accuracy")
    if not isinstance(accuracy, Real):
        raise UsageError(f"arm {arm!r} seed {seed} is finished and its accuracy is {accuracy!r}, not a number")


@dataclass(frozen=True)
class RoughEstimate:
    """A difference in points with its guarded standard error, without intervals."""

    value: float
    se: float
    df: float


Estimates = Callable[[Mapping[str, ArmRuns], str], Mapping[str, RoughEstimate]]
"""``(arms, name)`` to estimates by compared arm: of the contrasts with the arm ``name``, or of all for ""."""


def outliers(accuracy: pd.Series) -> list[int]:
    """Seeds whose accuracy is more than OUTLIER_MADS scaled MAD from the median; none with fewer than MIN_RUNS runs.

    Args:
        accuracy: Accuracies in percent of an arm's finished runs, indexed by seed.
    """
    if len(accuracy) < MIN_RUNS:
        return []
    distances = (accuracy - accuracy.median()).abs()
    mad = float(distances.median() / special.ndtri(0.75))  # estimates the standard deviation of normal values
    if mad <= ZERO:
        return []
    far = distances > OUTLIER_MADS * mad
    return [int(seed) for seed in accuracy.index[far]]


def with_outliers(
    contrasts: list[Contrast], arms: Mapping[str, ArmRuns], margin: float, estimates: Estimates
) -> tuple[Contrast, ...]:
    """The contrasts of a family, each with a note if its verdict depends on one outlying run."""
    far = {name: outliers(arm.finished) for name, arm in arms.items()}
    # one fit for each run left out, not for each contrast: with 100 arms these took half a minute
    known: dict[tuple[str, int], Mapping[str, RoughEstimate]] = {}

    def without(contrast: Contrast, name: str, seed: int) -> RoughEstimate | None:
        key = ("" if contrast.is_paired else name), seed
        if key not in known:
            known[key] = estimates(_without(arms, key[0], seed), key[0])
        return known[key].get(contrast.arm)

    def noted(contrast: Contrast) -> Contrast:
        for name in (contrast.arm, contrast.reference) if contrast.verdict in RULED else ():
            for seed in far[name]:
                found = without(contrast, name, seed)
                verdict = None if found is None else _verdict_by(found, contrast, margin)
                if verdict is not None and verdict is not contrast.verdict:
                    note = f"rests on one run: without seed {seed} of {name}, an outlier, it would be {label(verdict)}"
                    return replace(contrast, notes=(*contrast.notes, note))
        return contrast

    return tuple(map(noted, contrasts))


def _verdict_by(found: RoughEstimate, contrast: Contrast, margin: float) -> Verdict | None:
    """The verdict by another estimate, with the critical value of the family scaled to its degrees of freedom.

    A new integral for each run left out would take a minute for 30 arms.
    """
    if contrast.ci95 is None or contrast.ci90 is None or not contrast.se or contrast.df is None or found.df < 1:
        return None
    bounds = []
    for ci, alpha in ((contrast.ci95, contrast.alpha), (contrast.ci90, 2 * contrast.alpha)):
        less = [sidak(contrast.num_comparisons, df, alpha) for df in (found.df, contrast.df)]
        half = (ci[1] - ci[0]) / 2 / contrast.se * less[0] / less[1] * found.se
        bounds.append((found.value - half, found.value + half))
    return verdict_of(bounds[0], bounds[1], margin)


def _without(arms: Mapping[str, ArmRuns], name: str, seed: int) -> dict[str, ArmRuns]:
    """The arms without one run of ``name``; for "", without that seed in all arms, since seeds are blocks."""
    return {
        arm.name: replace(arm, finished=arm.finished.drop(seed))
        if seed in arm.finished.index and name in ("", arm.name)
        else arm
        for arm in arms.values()
    }


@dataclass(frozen=True)
class Pair:
    """The difference of two arms, in points."""

    value: float
    ci95: Interval | None
    """Simultaneous over all pairs; None if runs show no spread."""
    ci90: Interval | None


def all_pairs(frame: pd.DataFrame, names: Sequence[str]) -> dict[tuple[str, str], Pair]:
    """Arm minus arm for every ordered pair of ``names`` as one family (Tukey's), by the model of ``compare``.

    Args:
        frame: As for ``compare``; each of the arms has at least two finished runs.
        names: The arms.
    """
    arms = arms_of(frame)
    pairs = list(combinations(sorted(names), 2))
    if not pairs:
        return {}
    fit = fit_arms({name: arms[name].finished for name in sorted(names)})
    found = estimate(fit, [{one: 1.0, other: -1.0} for one, other in pairs], alpha=LEVEL)
    there = {pair: Pair(one.value, one.ci95, one.ci90) for pair, one in zip(pairs, found, strict=True)}
    back = {(b, a): Pair(-one.value, mirrored(one.ci95), mirrored(one.ci90)) for (a, b), one in there.items()}
    return there | back


def mirrored(interval: Interval | None) -> Interval | None:
    """The interval of minus the difference."""
    return None if interval is None else (-interval[1], -interval[0])
