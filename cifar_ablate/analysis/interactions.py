"""Whether changes depend on each other, and whether differences depend on the recipes of the arms.

``interactions`` takes add-one and leave-one-out arms, or full factorials; ``moves`` takes arms before and after tuning.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import pandas as pd

from cifar_ablate.analysis.contrasts import arms_of
from cifar_ablate.analysis.engine import Weights, estimate, fit_arms
from cifar_ablate.analysis.sentences import count, interval, level_name, points
from cifar_ablate.analysis.verdicts import MIN_DF, Interval

Factors = Mapping[str, frozenset[str]]
"""The changes of each arm against the baseline, whose set is empty."""
_Designed = tuple[str, str, Weights]
"""Name, kind and weights of an effect."""


@dataclass(frozen=True)
class Effect:
    """A main effect or an interaction, in points, with simultaneous intervals over all effects of the design."""

    name: str
    kind: str
    """main effect, interaction, or order (added alone against removed from all)."""
    weights: Mapping[str, float]
    """Weights of the arms' means."""
    estimate: float
    ci95: Interval | None
    p_adjusted: float | None
    added: float | None
    """For kind order: points that the change adds to the baseline."""
    removed: float | None
    """For kind order: points that the change adds to all other changes."""
    sentence: str
    is_provisional: bool = False
    """Whether there are too few seeds for a verdict; the interval is still shown."""

    @property
    def is_shown(self) -> bool:
        return not self.is_provisional and _excludes_zero(self.ci95)


def _excludes_zero(ci95: Interval | None) -> bool:
    return ci95 is not None and (ci95[0] > 0 or ci95[1] < 0)


def is_ladder(factors: Factors) -> bool:
    """Whether some arm has several changes and the design cannot estimate how they depend on each other."""
    return any(len(changes) > 1 for changes in factors.values()) and not tells_effects(factors)


def tells_effects(factors: Factors) -> bool:
    """Whether arms with these changes, once all are trained, can estimate main effects or interactions."""
    return any(True for _ in _design(factors))


def interactions(frame: pd.DataFrame, factors: Factors, *, alpha: float = 0.05) -> tuple[Effect, ...]:
    """Every effect that the design can estimate, as one family; arms with fewer than two finished runs are left out.

    Args:
        frame: As for ``compare``; arms with a diverged run are left out.
        factors: The changes of each arm.

    Raises:
        UsageError: As for ``compare``.
    """
    values = {
        name: arm.finished
        for name, arm in sorted(arms_of(frame).items())
        if name in factors and not arm.num_diverged and arm.num >= 2
    }
    design = list(_design({arm: changes for arm, changes in factors.items() if arm in values}))
    if not design:
        return ()
    fit = fit_arms({arm: values[arm] for arm in sorted({arm for _, _, weights in design for arm in weights})})
    found = estimate(fit, [weights for _, _, weights in design], alpha=alpha)
    means = dict(zip(fit.arms, fit.means, strict=True))
    is_provisional = fit.df < MIN_DF or min(len(of_arm) for of_arm in fit.values.values()) <= 2
    basis = f"{level_name(alpha)} CI", count(len(design), "comparison")
    arm_of = {changes: arm for arm, changes in factors.items()}
    effects = []
    for (name, kind, weights), one in zip(design, found, strict=True):
        added = removed = None
        if kind == "order":
            everything = max((factors[arm] for arm in weights), key=len)
            added = float(means[arm_of[frozenset({name})]] - means[arm_of[frozenset()]])
            removed = float(means[arm_of[everything]] - means[arm_of[everything - {name}]])
        effect = Effect(name, kind, weights, one.value, one.ci95, one.p_adjusted, added, removed, "", is_provisional)
        effects.append(replace(effect, sentence=_sentence(effect, *basis)))
    return tuple(effects)


def _design(factors: Factors) -> Iterator[_Designed]:
    """Every effect that arms with these changes can estimate, each from the largest possible set of changes."""
    arm_of = {changes: arm for arm, changes in factors.items()}
    if frozenset() not in arm_of:
        return
    told: set[tuple[str, str]] = set()
    for everything in sorted(arm_of, key=lambda changes: (-len(changes), sorted(changes))):
        for name, kind, weights in _effects_within(everything, arm_of):
            if (name, kind) not in told:
                told.add((name, kind))
                yield name, kind, weights


def _effects_within(everything: frozenset[str], arm_of: Mapping[frozenset[str], str]) -> Iterator[_Designed]:
    """Effects of these changes: a full factorial if every combination is an arm, else add-one and leave-one-out."""
    names = sorted(everything)
    if len(names) < 2:
        return
    subsets = (
        [frozenset(some) for size in range(len(names) + 1) for some in combinations(names, size)]
        if len(names) <= 10
        else []
    )
    if subsets and all(some in arm_of for some in subsets):
        half = len(subsets) / 2
        for name in names:
            yield name, "main effect", {arm_of[s]: (1 if name in s else -1) / half for s in subsets}
        for a, b in combinations(names, 2):
            signs = {s: (1 if a in s else -1) * (1 if b in s else -1) for s in subsets}
            yield f"{a} x {b}", "interaction", {arm_of[s]: sign / (half / 2) for s, sign in signs.items()}
        return
    for name in names:
        alone, without = frozenset({name}), everything - {name}
        if alone in arm_of and without in arm_of and alone != without:
            yield (
                name,
                "order",
                {arm_of[everything]: 1.0, arm_of[without]: -1.0, arm_of[alone]: -1.0, arm_of[frozenset()]: 1.0},
            )


def _sentence(effect: Effect, level: str, family: str) -> str:
    name, ci95 = effect.name, effect.ci95
    value = points(effect.estimate)
    if ci95 is None:
        return f"{name}: {value} points; no spread between seeds, so no interval."
    basis = f"{level} {interval(ci95)}, {family}"
    provisional = "provisional: too few seeds for a verdict" if effect.is_provisional else None
    if effect.kind == "main effect":
        said = f"{name} changes accuracy by {value} points, averaged over the others ({basis})"
        return said + (f"; {provisional}." if provisional else ".")
    if effect.kind == "interaction":
        tail = provisional or ("they depend on each other" if effect.is_shown else "no dependence shown")
        return f"{name}: with the one, the other is worth {value} points more than without ({basis}); {tail}."
    both = f"{points(effect.added or 0.0)} points alone, {points(effect.removed or 0.0)} on top of all others"
    tail = provisional or ("order-dependent" if effect.is_shown else "no dependence on the others shown")
    return f"{name}: {both}; interaction {value} ({basis}); {tail}."


Sides = tuple[str, str, str, str]
"""Keys of four recipes: arm and reference before, arm and reference after."""


@dataclass(frozen=True)
class Move:
    """A difference after a change of recipes minus the difference before, in points."""

    estimate: float
    ci95: Interval | None
    """Simultaneous over the family; None if both differences come from the same runs, or runs show no spread."""

    @property
    def is_shown(self) -> bool:
        return _excludes_zero(self.ci95)


def moves(values: Mapping[str, pd.Series], sides: Sequence[Sides], *, alpha: float = 0.05) -> list[Move | None]:
    """The moves of differences as one family; None for a recipe with too few runs for an interval.

    Args:
        values: Accuracies in percent, indexed by seed, of each recipe that has runs. A recipe that did not change has
            the same key before and after, so that its runs count once.
        sides: The recipes of each difference.
        alpha: Error level of the family.
    """
    weights = [_move_weights(one) if all(len(values.get(key, ())) > 2 for key in one) else None for one in sides]
    asked = list({frozenset(one.items()): one for one in weights if one}.values())
    found: dict[frozenset[tuple[str, float]], Move | None] = {frozenset(): Move(0.0, None)}
    if asked:
        fit = fit_arms({key: values[key] for key in sorted({key for one in asked for key in one})})
        for one, move in zip(asked, estimate(fit, asked, alpha=alpha), strict=True):
            found[frozenset(one.items())] = Move(move.value, move.ci95) if fit.df >= MIN_DF else None
    return [None if one is None else found[frozenset(one.items())] for one in weights]


def _move_weights(sides: Sides) -> Weights:
    arm_before, reference_before, arm, reference = sides
    weights: Counter[str] = Counter()
    for key, weight in ((arm, 1), (reference, -1), (arm_before, -1), (reference_before, 1)):
        weights[key] += weight
    return {key: float(weight) for key, weight in weights.items() if weight}
