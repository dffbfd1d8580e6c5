"""The noise floor: what equal arms would show, and how intervals shrink with seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np
from scipy import stats

from cifar_ablate.analysis.engine import Joint, sidak
from cifar_ablate.analysis.power import errors_detected
from cifar_ablate.analysis.types import Contrast


@dataclass(frozen=True)
class NoiseFloor:
    """Differences that equal arms exceed in 1 of 20 studies with this spread and these seeds, in points."""

    of_one: float
    """One pair of equal arms."""
    of_one_range: tuple[float, float]
    """The same for the quietest and for the noisiest comparison."""
    of_largest: float
    """The largest of all the family's comparisons, if all arms were equal."""
    num_comparisons: int
    num_seeds: tuple[int, int]
    """Fewest and most seeds of a comparison."""
    largest_claimed: float | None
    """Largest absolute difference that was given a verdict of better or worse."""
    smallest_claimed: float | None


def noise_floor(contrasts: Sequence[Contrast]) -> NoiseFloor | None:
    """Of one family, from the median standard error of its contrasts; None where none has an interval.

    The largest is taken over arms against one reference (correlation 1/2).
    """
    known = [one for one in contrasts if one.ci95 and one.se and one.df and one.estimate is not None]
    known = [one for one in known if not one.is_diverged]
    if not known:
        return None
    errors = [one.se for one in known if one.se is not None]
    df = min(one.df for one in known if one.df is not None)
    critical = _against_one(len(known), df).critical(0.05)
    seeds = [min(one.num_seeds, one.num_seeds_reference) for one in known]
    claimed = [abs(one.estimate) for one in known if one.estimate is not None and one.verdict in ("better", "worse")]
    t = float(stats.t.isf(0.025, df))
    return NoiseFloor(
        of_one=t * median(errors),
        of_one_range=(t * min(errors), t * max(errors)),
        of_largest=critical * median(errors),
        num_comparisons=len(known),
        num_seeds=(min(seeds), max(seeds)),
        largest_claimed=max(claimed, default=None),
        smallest_claimed=min(claimed, default=None),
    )


def _critical(contrast: Contrast) -> float:
    """The multiple of the standard error that the contrast's interval reaches."""
    low, high = contrast.ci95 or (0.0, 0.0)
    return (high - low) / 2 / (contrast.se or 1.0)


def level_of_one(contrast: Contrast) -> float | None:
    """The level at which this comparison was made within its family; None without an interval."""
    if contrast.ci95 is None or not contrast.se or contrast.df is None:
        return None
    return float(2 * stats.t.sf(_critical(contrast), contrast.df))


def points_detected(contrast: Contrast) -> float | None:
    """The difference that these seeds show with 80% power, with the contrast's own spread and level; None unknown."""
    if contrast.ci95 is None or not contrast.se or contrast.df is None:
        return None
    return errors_detected(round(_critical(contrast), 9), contrast.df) * contrast.se


def half_widths(contrasts: Sequence[Contrast], num_seeds: Sequence[int], alpha: float = 0.05) -> list[float]:
    """Half the width of a simultaneous interval at each number of seeds per arm, with the spread of these contrasts.

    The family is taken as arms against one reference (correlation 1/2), seeds as blocks. The critical value is
    integrated for three numbers; between them its share of Sidak's bound goes with 1 / (seeds - 1), to within 0.6%.
    """
    known = [one for one in contrasts if one.se and one.ci95]
    sd = median((one.se or 0.0) * min(one.num_seeds, one.num_seeds_reference) ** 0.5 for one in known)
    k = len(known)
    anchors = sorted({2, 4, max(num_seeds)}, reverse=True)
    shares = [_against_one(k, k * (num - 1)).critical(alpha) / sidak(k, k * (num - 1), alpha) for num in anchors]
    found = np.interp([1 / (num - 1) for num in num_seeds], [1 / (num - 1) for num in anchors], shares)
    return [
        float(share) * sidak(k, k * (num - 1), alpha) * sd / num**0.5
        for share, num in zip(found, num_seeds, strict=True)
    ]


def _against_one(num_arms: int, df: float) -> Joint:
    """So many arms against one reference, all with one spread."""
    return Joint(np.full((num_arms, num_arms), 0.5) + 0.5 * np.eye(num_arms), df)
