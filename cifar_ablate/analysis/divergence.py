"""Divergence is an outcome: its rate with an exact interval, and whether it exceeds the reference's."""

from __future__ import annotations

from dataclasses import dataclass

from cifar_ablate.analysis.verdicts import Contrast, Interval


@dataclass(frozen=True)
class DivergenceRate:
    """``count`` of ``num`` runs diverged, with the 95% Clopper-Pearson interval in percent."""

    count: int
    num: int
    ci95: Interval

    def __str__(self) -> str:
        return f"{self.count} of {self.num} ({self.ci95[0]:.0f}% to {self.ci95[1]:.0f}%)"


@dataclass(frozen=True)
class Divergence:
    """Rates of divergence of an arm and of its reference."""

    arm: DivergenceRate
    reference: DivergenceRate
    p: float | None
    """Two-sided p of equal rates (``scipy.stats.boschloo_exact``); None if one of the arms has no run."""


def divergence_of(contrast: Contrast) -> Divergence | None:
    """Rates of divergence of both arms; None if no run diverged."""
    if not contrast.is_diverged:
        return None
    arm = divergence_rate(contrast.num_diverged, contrast.num_diverged + contrast.num_seeds)
    num_reference = contrast.num_diverged_reference + contrast.num_seeds_reference
    reference = divergence_rate(contrast.num_diverged_reference, num_reference)
    return Divergence(arm, reference, divergence_p(arm, reference) if arm.num and reference.num else None)


def divergence_rate(num_diverged: int, num_runs: int) -> DivergenceRate:
    """Rate of divergence; without a run its interval is 0% to 100%."""
    low, high = clopper_pearson(num_diverged, num_runs)
    return DivergenceRate(num_diverged, num_runs, (100 * low, 100 * high))


def clopper_pearson(count: int, num: int, *, alpha: float = 0.05) -> Interval:
    """Exact interval of a proportion in [0, 1] (Clopper and Pearson 1934), from quantiles of the beta distribution."""
    from scipy import special

    low = special.betaincinv(count, num - count + 1, alpha / 2) if count else 0.0
    high = special.betaincinv(count + 1, num - count, 1 - alpha / 2) if count < num else 1.0
    return float(low), float(high)


def divergence_p(arm: DivergenceRate, reference: DivergenceRate) -> float:
    """Two-sided p of equal rates (``scipy.stats.boschloo_exact``)."""
    from scipy.stats import boschloo_exact

    table = [[arm.count, reference.count], [arm.num - arm.count, reference.num - reference.count]]
    if table[0] == [0, 0] or table[1] == [0, 0]:  # scipy returns NaN
        return 1.0
    return float(boschloo_exact(table).pvalue)


def divergence_sentence(arm: str, reference: str, found: Divergence, conditional: str) -> str:
    """Both rates in a sentence without a full stop; ``conditional`` states the difference among finished runs."""
    rate, other = found.arm, found.reference
    if not other.num:
        return f"{rate} runs of {arm} diverged, {reference} has no run (95% CI); {conditional}"
    if not rate.num:
        return f"{arm} has no run, {other} runs of {reference} diverged (95% CI); {conditional}"
    p = f"Boschloo's exact p {found.p:.2g}"
    return f"{rate} runs of {arm} diverged, {other} of {reference} (95% CI; {p}); {conditional}"
