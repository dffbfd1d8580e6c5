"""Divergence is an outcome: how often, with an exact interval, and whether more often than in the reference."""

from __future__ import annotations

from dataclasses import dataclass

from cifar_ablate.analysis.types import Contrast, Interval


@dataclass(frozen=True)
class Rate:
    """``count`` of ``num`` runs, with the Clopper-Pearson interval in percent."""

    count: int
    num: int
    ci95: Interval

    def __str__(self) -> str:
        return f"{self.count} of {self.num} ({self.ci95[0]:.0f}% to {self.ci95[1]:.0f}%)"


@dataclass(frozen=True)
class Divergence:
    """Rates of an arm and of its reference."""

    arm: Rate
    reference: Rate
    p: float | None
    """Of equal rates, two-sided (scipy's ``boschloo_exact``); None where one of them has no run."""


def divergence_of(contrast: Contrast) -> Divergence | None:
    """How often the runs of both diverged; None where none did."""
    if not contrast.is_diverged:
        return None
    arm = divergence_rate(contrast.num_diverged, contrast.num_diverged + contrast.num_seeds)
    num_reference = contrast.num_diverged_reference + contrast.num_seeds_reference
    reference = divergence_rate(contrast.num_diverged_reference, num_reference)
    return Divergence(arm, reference, divergence_p(arm, reference) if arm.num and reference.num else None)


def divergence_rate(num_diverged: int, num_runs: int) -> Rate:
    """Rate of divergence (statsmodels' ``proportion_confint(method="beta")``)."""
    from statsmodels.stats.proportion import proportion_confint

    if not num_runs:  # nothing is known
        return Rate(0, 0, (0.0, 100.0))
    low, high = proportion_confint(num_diverged, num_runs, method="beta")
    return Rate(num_diverged, num_runs, (100 * float(low), 100 * float(high)))


def divergence_p(arm: Rate, reference: Rate) -> float:
    """Two-sided p of equal rates (scipy's ``boschloo_exact``)."""
    from scipy.stats import boschloo_exact

    table = [[arm.count, reference.count], [arm.num - arm.count, reference.num - reference.count]]
    if table[0] == [0, 0] or table[1] == [0, 0]:  # scipy gives NaN
        return 1.0
    return float(boschloo_exact(table).pvalue)


def divergence_sentence(arm: str, reference: str, found: Divergence, conditional: str) -> str:
    """What happened, in a sentence without its full stop; ``conditional`` is the difference among finished runs."""
    rate, other = found.arm, found.reference
    if not other.num:
        return f"{rate} runs of {arm} diverged, {reference} has no run (95% CI); {conditional}"
    if not rate.num:
        return f"{arm} has no run, {other} runs of {reference} diverged (95% CI); {conditional}"
    p = f"Boschloo's exact p {found.p:.2g}"
    return f"{rate} runs of {arm} diverged, {other} of {reference} (95% CI; {p}); {conditional}"
