"""How far differences move when the arms' recipes do: own best minus shared, over the same seeds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from cifar_ablate.analysis.engine import Weights, estimate, fit_arms
from cifar_ablate.analysis.types import Interval
from cifar_ablate.analysis.verdicts import MIN_DF

Sides = tuple[str, str, str, str]
"""Keys of the recipes of an arm and its reference, before; and of the two after."""


@dataclass(frozen=True)
class Move:
    """A difference after minus the same before, in points."""

    estimate: float
    ci95: Interval | None
    """Simultaneous over the family; None where both differences are of the same runs, or nothing varies."""

    @property
    def is_shown(self) -> bool:
        return self.ci95 is not None and (self.ci95[0] > 0 or self.ci95[1] < 0)


def moves(values: Mapping[str, pd.Series], sides: Sequence[Sides], *, alpha: float = 0.05) -> list[Move | None]:
    """The moves of some differences as one family; None where a recipe has too few runs for an interval.

    Args:
        values: Accuracies in percent by seed, of each recipe that has any. A recipe that stayed as it was has one key,
            so that its runs count once.
        sides: The recipes of each difference.
        alpha: Level of the family.
    """
    weights = [_weights(one) if all(len(values.get(key, ())) > 2 for key in one) else None for one in sides]
    asked = list({frozenset(one.items()): one for one in weights if one}.values())
    found: dict[frozenset[tuple[str, float]], Move | None] = {frozenset(): Move(0.0, None)}
    if asked:
        fit = fit_arms({key: values[key] for key in sorted({key for one in asked for key in one})})
        for one, move in zip(asked, estimate(fit, asked, alpha=alpha), strict=True):
            found[frozenset(one.items())] = Move(move.value, move.ci95) if fit.df >= MIN_DF else None
    return [None if one is None else found[frozenset(one.items())] for one in weights]


def _weights(sides: Sides) -> Weights:
    arm_before, reference_before, arm, reference = sides
    weights: Counter[str] = Counter()
    for key, weight in ((arm, 1), (reference, -1), (arm_before, -1), (reference_before, 1)):
        weights[key] += weight
    return {key: float(weight) for key, weight in weights.items() if weight}
