"""Sentences of ``plan`` about the planned seeds: the differences they detect, and the seeds that a margin needs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cifar_ablate.analysis.power import detectable, seeds_needed
from cifar_ablate.analysis.sentences import count
from cifar_ablate.analysis.verdicts import MIN_DF
from cifar_ablate.console import duration
from cifar_ablate.record.types import RecordedRun
from cifar_ablate.spec.schema import Study

PUBLISHED_SD = ((4, 0.56), (16, 0.19), (64, 0.15))
"""Epochs, and standard deviation of CIFAR-10 test accuracy between seeds, in points (arXiv 2304.01910)."""
MIN_SEEDS = 3
"""Minimum number of seeds for a verdict."""


@dataclass(frozen=True)
class SdEstimate:
    """Standard deviation of a run's test accuracy between seeds, in points, and its source."""

    sd: float
    source: str
    """Where ``sd`` comes from, in words."""
    is_recorded: bool
    """Whether it was computed from recorded test accuracies."""


def spread_of(study: Study, results: Sequence[RecordedRun], *, is_whole_cifar10: bool) -> SdEstimate:
    """From recorded runs if an arm has two of them, else as the study expects, else as published for CIFAR-10."""
    by_arm: dict[str, list[float]] = {}
    for run in results:
        if run.outcome == "finished":
            by_arm.setdefault(run.arm, []).append(run.metrics.get("test_accuracy", math.nan))
    arms = [np.array(by_arm[name]) for name in sorted(by_arm) if len(by_arm[name]) > 1]
    df = sum(len(arm) - 1 for arm in arms)
    squares = sum(float(((arm - arm.mean()) ** 2).sum()) for arm in arms)
    if squares > 0:
        num_runs = sum(map(len, arms))
        return SdEstimate(math.sqrt(squares / df), f"from {count(num_runs, 'recorded run')}, {df} df", is_recorded=True)
    if study.expected_sd is not None:
        return SdEstimate(study.expected_sd, "as the study expects it (expected_sd)", is_recorded=False)
    epochs = min(arm.recipe.epochs for arm in study.arms)
    known = np.log(np.array(PUBLISHED_SD))
    sd = float(np.exp(np.interp(np.log(epochs), known[:, 0], known[:, 1])))
    source = f"for {count(epochs, 'epoch')}, from what is published for 4, 16 and 64 of CIFAR-10, arXiv 2304.01910"
    if not is_whole_cifar10:
        source += "; that is the whole CIFAR-10, so it is likely too small here: state expected_sd"
    return SdEstimate(sd, source, is_recorded=False)


def decision_lines(study: Study, spread: SdEstimate, seconds_per_seed: float | None) -> list[str]:
    """The differences that the seeds of a study detect, and the seeds that its margin needs.

    Args:
        study: The study, with its seeds or looks and its margin.
        spread: Spread of one run between seeds.
        seconds_per_seed: Time for one more seed of every arm on this machine; None if unknown.
    """
    num_arms = len(study.arms)
    if num_arms == 1:
        return ["one arm: nothing is compared, so no number of seeds decides anything"]
    basis = f"{count(num_arms - 1, 'comparison')}, seed spread {spread.sd:.2f} points {spread.source}"
    lines = [f"{_detected(study, spread.sd)} ({basis})"]
    if study.margin == 0:
        return [*lines, "with a margin of 0 no number of seeds shows that nothing matters; state the margin you mean"]
    return [*lines, _needed(study, spread.sd, seconds_per_seed)]


def _detected(study: Study, sd: float) -> str:
    """The differences that the planned seeds, or each look alone, detect."""
    least = _fewest(len(study.arms))
    if not study.looks:
        num = len(study.seeds)
        if num < least:
            verb = "gives" if num == 1 else "give"
            return f"{count(num, 'seed')} {verb} no verdict: {count(len(study.arms), 'arm')} need at least {least}"
        return f"{num} seeds detect {_points(detectable(num, len(study.arms), sd))} at 80% power"
    from cifar_ablate.analysis.looks import spend

    said = []
    for look in spend(study.looks):
        found = detectable(look.num_seeds, len(study.arms), sd, look.alpha)
        said.append(f"{look.num_seeds} seeds {'nothing' if look.num_seeds < least else _points(found)}")
    return f"looks detect, each by itself at 80% power: {', '.join(said)}"


def _needed(study: Study, sd: float, seconds_per_seed: float | None) -> str:
    planned = len(study.seeds)
    found = seeds_needed(study.margin, len(study.arms), sd)
    margin = f"your margin of {study.margin:g}"
    if found is None:
        return f"{margin} needs more than 10,000 seeds; only a larger difference can be shown here"
    need = max(found, _fewest(len(study.arms)))
    if need <= planned:
        return f"{margin} needs about {count(need, 'seed')}, and {planned} are planned"
    more = f"{need - planned:,} more per arm"
    if seconds_per_seed is not None and math.isfinite(seconds_per_seed):
        more += f", about {duration((need - planned) * seconds_per_seed)} more here"
    return f"{margin} needs about {count(need, 'seed')}: {more}"


def _fewest(num_arms: int) -> int:
    """Minimum number of seeds for a verdict: MIN_SEEDS, and MIN_DF residual degrees of freedom."""
    return max(MIN_SEEDS, 1 + math.ceil(MIN_DF / (num_arms - 1)))


def _points(found: float | None) -> str:
    return "nothing" if found is None else f"{found:.2f} points"
