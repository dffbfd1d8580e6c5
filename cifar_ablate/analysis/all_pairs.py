"""Every arm with every other one, as one family: for questions that no declared contrast answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import pandas as pd

from cifar_ablate.analysis.arms import arms_of
from cifar_ablate.analysis.contrasts import LEVEL
from cifar_ablate.analysis.engine import estimate, fit_arms
from cifar_ablate.analysis.types import Interval


@dataclass(frozen=True)
class Pair:
    """The difference of two arms, in points."""

    value: float
    ci95: Interval | None
    """Simultaneous over all pairs; None where no spread was seen."""
    ci90: Interval | None


def all_pairs(frame: pd.DataFrame, names: Sequence[str]) -> dict[tuple[str, str], Pair]:
    """Arm minus arm for every two of ``names``, both ways round: Tukey's family, from the model of ``compare``.

    Args:
        frame: As ``compare`` takes it; each of the arms has two finished runs or more.
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
    """Of the difference the other way round."""
    return None if interval is None else (-interval[1], -interval[0])
