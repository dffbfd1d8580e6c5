"""Runs far from their arm's others: never removed, and named where a verdict would be another one without them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import pandas as pd
from scipy import stats

from cifar_ablate.analysis.arms import Arm
from cifar_ablate.analysis.engine import ZERO, sidak
from cifar_ablate.analysis.types import Contrast, Verdict
from cifar_ablate.analysis.verdicts import RULED, label, verdict_of

OUTLIER_MADS = 5
"""A run further than so many scaled median absolute deviations from its arm's median is looked at without."""
MIN_RUNS = 4


@dataclass(frozen=True)
class Rough:
    """A difference in points with its guarded standard error."""

    value: float
    se: float
    df: float


Estimates = Callable[[Mapping[str, Arm], str], Mapping[str, Rough]]
"""Of a family, by compared arm, from these arms; of what touches one arm, or of all for ""."""


def outliers(accuracy: pd.Series) -> list[int]:
    """Seeds whose accuracy lies over 5 scaled MAD (scipy) from the arm's median; none under 4 runs.

    Args:
        accuracy: Of an arm's finished runs, in percent, indexed by seed.
    """
    if len(accuracy) < MIN_RUNS:
        return []
    mad = float(stats.median_abs_deviation(accuracy, scale="normal"))
    if mad <= ZERO:
        return []
    far = (accuracy - accuracy.median()).abs() > OUTLIER_MADS * mad
    return [int(seed) for seed in accuracy.index[far]]


def with_outliers(
    contrasts: list[Contrast], arms: Mapping[str, Arm], margin: float, estimates: Estimates
) -> tuple[Contrast, ...]:
    """The contrasts of a family, with a note where a verdict rests on one outlying run."""
    far = {name: outliers(arm.finished) for name, arm in arms.items()}
    # one fit for each run left out, not one for each contrast: of 100 arms these took half a minute
    known: dict[tuple[str, int], Mapping[str, Rough]] = {}

    def without(contrast: Contrast, name: str, seed: int) -> Rough | None:
        key = ("" if contrast.is_paired else name), seed
        if key not in known:
            known[key] = estimates(_without(arms, key[0], seed), key[0])
        return known[key].get(contrast.arm)

    def noted(contrast: Contrast) -> Contrast:
        for name in (contrast.arm, contrast.reference) if contrast.verdict in RULED else ():
            for seed in far[name]:
                found = without(contrast, name, seed)
                verdict = None if found is None else _verdict(contrast, found, margin)
                if verdict is not None and verdict is not contrast.verdict:
                    note = f"rests on one run: without seed {seed} of {name}, an outlier, it would be {label(verdict)}"
                    return replace(contrast, notes=(*contrast.notes, note))
        return contrast

    return tuple(map(noted, contrasts))


def _verdict(contrast: Contrast, found: Rough, margin: float) -> Verdict | None:
    """Of another estimate. The multiple of its standard error is the family's, for the degrees of freedom left.

    Integrated anew for each run left out it took a minute for 30 arms.
    """
    if contrast.ci95 is None or contrast.ci90 is None or not contrast.se or contrast.df is None or found.df < 1:
        return None
    bounds = []
    for ci, alpha in ((contrast.ci95, contrast.alpha), (contrast.ci90, 2 * contrast.alpha)):
        less = [sidak(contrast.num_comparisons, df, alpha) for df in (found.df, contrast.df)]
        half = (ci[1] - ci[0]) / 2 / contrast.se * less[0] / less[1] * found.se
        bounds.append((found.value - half, found.value + half))
    return verdict_of(bounds[0], bounds[1], margin)


def _without(arms: Mapping[str, Arm], name: str, seed: int) -> dict[str, Arm]:
    """The arms without one run of ``name``; of "", without that seed in all: seeds are blocks there."""
    return {
        arm.name: replace(arm, finished=arm.finished.drop(seed))
        if seed in arm.finished.index and name in ("", arm.name)
        else arm
        for arm in arms.values()
    }
