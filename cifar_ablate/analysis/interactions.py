"""Do changes depend on each other? Interactions from add-one and leave-one-out arms, effects from full factorials."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations

import pandas as pd

from cifar_ablate.analysis.engine import Weights, estimate, fit_arms
from cifar_ablate.analysis.sentences import count, interval, points
from cifar_ablate.analysis.types import Interval

Factors = Mapping[str, frozenset[str]]
"""For each arm, what it has changed against the baseline (whose set is empty)."""


@dataclass(frozen=True)
class Effect:
    """A main effect or an interaction, in points, with simultaneous intervals over all effects of the design."""

    name: str
    kind: str
    """main effect, interaction, or order (added alone against removed from all)."""
    weights: Mapping[str, float]
    """Of the arms' means."""
    estimate: float
    ci95: Interval | None
    p_adjusted: float | None
    added: float | None
    """For kind order: the change added alone to the baseline."""
    removed: float | None
    """For kind order: what the change brings on top of all others."""
    sentence: str

    @property
    def is_shown(self) -> bool:
        return self.ci95 is not None and (self.ci95[0] > 0 or self.ci95[1] < 0)


def is_ladder(factors: Factors) -> bool:
    """Some arm has several changes, and nothing in the design tells how they depend on each other."""
    return any(len(changes) > 1 for changes in factors.values()) and not any(True for _ in _design(factors))


def interactions(frame: pd.DataFrame, factors: Factors, *, alpha: float = 0.05) -> tuple[Effect, ...]:
    """Every effect that the design can tell, as one family; none where arms lack two finished runs.

    Args:
        frame: As for ``compare``; arms with a diverged run are left out.
        factors: What each arm has changed.
    """
    status = frame["status"] if "status" in frame else pd.Series("finished", index=frame.index)
    diverged = set(frame["arm"][status == "diverged"])
    values = {
        str(name): pd.Series(rows["accuracy"].to_numpy(float), index=rows["seed"].to_numpy())
        for name, rows in frame[status == "finished"].groupby("arm", sort=True)
        if name not in diverged and len(rows) >= 2 and name in factors
    }
    design = list(_design({arm: changes for arm, changes in factors.items() if arm in values}))
    if not design:
        return ()
    fit = fit_arms({arm: values[arm] for arm in sorted({arm for _, _, weights in design for arm in weights})})
    found = estimate(fit, [weights for _, _, weights in design], alpha=alpha)
    means = dict(zip(fit.arms, fit.means, strict=True))
    arm_of = {changes: arm for arm, changes in factors.items()}
    effects = []
    for (name, kind, weights), one in zip(design, found, strict=True):
        added = removed = None
        if kind == "order":
            everything = max((factors[arm] for arm in weights), key=len)
            added = float(means[arm_of[frozenset({name})]] - means[arm_of[frozenset()]])
            removed = float(means[arm_of[everything]] - means[arm_of[everything - {name}]])
        said = _sentence(name, kind, one.value, one.ci95, added, removed, count(len(design), "comparison"))
        effects.append(Effect(name, kind, weights, one.value, one.ci95, one.p_adjusted, added, removed, said))
    return tuple(effects)


def _design(factors: Factors) -> Iterator[tuple[str, str, Weights]]:
    """Name, kind and weights of every effect that arms with these changes can tell."""
    arm_of = {changes: arm for arm, changes in factors.items()}
    everything = max(arm_of, key=len, default=frozenset())
    if len(everything) < 2 or frozenset() not in arm_of:
        return
    names = sorted(everything)
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


def _sentence(
    name: str, kind: str, value: float, ci95: Interval | None, added: float | None, removed: float | None, family: str
) -> str:
    if ci95 is None:
        return f"{name}: {points(value)} points; no spread between seeds, so no interval."
    basis = f"95% CI {interval(ci95)}, {family}"
    is_shown = ci95[0] > 0 or ci95[1] < 0
    if kind == "main effect":
        return f"{name} changes accuracy by {points(value)} points, averaged over the others ({basis})."
    if kind == "interaction":
        tail = "they depend on each other" if is_shown else "no dependence shown"
        return f"{name}: with the one, the other is worth {points(value)} points more than without ({basis}); {tail}."
    both = f"{points(added or 0.0)} points alone, {points(removed or 0.0)} on top of all others"
    tail = "order-dependent" if is_shown else "no dependence on the others shown"
    return f"{name}: {both}; interaction {points(value)} ({basis}): {tail}."
