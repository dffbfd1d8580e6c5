"""Contrasts in words: one sentence each, with the interval, the seeds and the number of comparisons."""

from __future__ import annotations

from cifar_ablate.analysis.divergence import divergence_of, divergence_sentence
from cifar_ablate.analysis.verdicts import Contrast, Interval, Verdict


def points(value: float, *, like: Interval | None = None, signed: bool = True) -> str:
    """Points with two decimals, or with three if two would round the value or a bound of ``like`` to 0."""
    near = min((abs(bound) for bound in (like or (value,)) if bound), default=0.0)
    decimals = 3 if 0 < near < 0.005 else 2
    text = f"{value:+.{decimals}f}" if signed else f"{value:.{decimals}f}"
    return text.replace("-", "\N{MINUS SIGN}") if float(text) else f"{0:.{decimals}f}"


def interval(bounds: Interval) -> str:
    """Both bounds in points: ``+0.10 to +0.42``."""
    return f"{points(bounds[0], like=bounds)} to {points(bounds[1], like=bounds)}"


def count(number: int, noun: str) -> str:
    """``1 seed``, ``2 seeds``."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def in_points(number: float) -> str:
    """``0.2 points``, ``1 point``."""
    return f"{number:g} point" + ("" if number == 1 else "s")


def level_name(alpha: float) -> str:
    """``95%`` for 0.05, ``99.76%`` for 0.0024."""
    percent = 100 * (1 - alpha)
    text = f"{percent:.2f}" if percent < 99.99 else f"{percent:.6f}"
    return f"{text.rstrip('0').rstrip('.')}%"


def verdict_sentence(
    verdict: Verdict,
    arm: str,
    reference: str,
    estimate: float,
    ci95: Interval,
    ci90: Interval,
    *,
    margin: float,
    alpha: float,
    seeds: str,
    num_comparisons: int,
    more: tuple[int, tuple[int, int]] | None,
) -> str:
    """The verdict in a sentence without a full stop; ``more``: additional seeds per arm, and their range."""
    basis = f"{level_name(alpha)} CI {interval(ci95)}, {seeds}, {count(num_comparisons, 'comparison')}"
    narrow = f"{level_name(2 * alpha)} CI {interval(ci90)}, {seeds}, {count(num_comparisons, 'comparison')}"
    d = f"{margin:g}"
    if verdict in (Verdict.BETTER, Verdict.WORSE):
        size = points(abs(estimate), like=ci95, signed=False)
        said = f"{arm} is {verdict} than {reference} by {size} points ({basis})"
        return said + (f", but smaller than your margin of {d}" if -margin < ci90[0] and ci90[1] < margin else "")
    if verdict is Verdict.EQUIVALENT:
        return f"{arm} is within {in_points(margin)} of {reference} ({narrow})"
    if verdict is Verdict.PROVISIONAL:
        return (
            f"{arm} against {reference}: {points(estimate)} points ({basis}), provisional: too few seeds for a verdict"
        )
    tail = _more(more, d)
    if verdict is Verdict.NO_WORSE:
        return f"{arm} is no worse than {reference} by more than {in_points(margin)}; not shown better ({narrow}){tail}"
    if verdict is Verdict.NO_BETTER:
        return (
            f"{arm} is not better than {reference} by more than {in_points(margin)}; not shown worse ({narrow}){tail}"
        )
    return f"{arm} against {reference} is too close to call ({basis}){tail}"


def _more(more: tuple[int, tuple[int, int]] | None, d: str) -> str:
    if more is None:
        return ""
    number, (low, high) = more
    spread = f" (range {low:,} to {high:,})" if low != high else ""
    return f": about {count(number, 'more seed')} per arm to detect {d}{spread}"


def contrast_sentence(contrast: Contrast, margin: float) -> str:
    """The contrast and its verdict in a sentence."""
    arm, reference, found = contrast.arm, contrast.reference, contrast.estimate
    if divergence := divergence_of(contrast):
        return divergence_sentence(arm, reference, divergence, _conditional(contrast)) + "."
    if found is None:
        empty = reference if not contrast.num_seeds_reference else arm
        return f"{arm} cannot be compared with {reference} yet: {empty} has no finished run."
    if contrast.verdict is Verdict.SINGLE_RUN:
        return _single_run(contrast, found)
    if contrast.ci95 is None or contrast.ci90 is None:
        why = (
            "without a spread of the difference no interval can be given"
            if contrast.is_even_by_chance
            else "where nothing differs between seeds no interval can be given (is anything random in these runs?)"
        )
        return f"{arm} against {reference}: {points(found)} points, the same in every seed; {why}."
    more = contrast.num_more_seeds, contrast.num_more_seeds_range
    said = verdict_sentence(
        contrast.verdict,
        arm,
        reference,
        found,
        contrast.ci95,
        contrast.ci90,
        margin=margin,
        alpha=contrast.alpha,
        seeds=_seeds(contrast),
        num_comparisons=contrast.num_comparisons,
        more=(more[0], more[1]) if more[0] is not None and more[1] is not None else None,
    )
    return said + "."


def _seeds(contrast: Contrast) -> str:
    if contrast.num_seeds == contrast.num_seeds_reference:
        return count(contrast.num_seeds, "seed")
    return f"{contrast.num_seeds} and {contrast.num_seeds_reference} seeds"


def _single_run(contrast: Contrast, found: float) -> str:
    arm, reference = contrast.arm, contrast.reference
    if contrast.num_seeds == contrast.num_seeds_reference == 1:
        return (
            f"{arm} against {reference}, one run each: these two runs differ by {points(found)}; single runs cannot "
            "rank recipes."
        )
    alone = arm if contrast.num_seeds == 1 else reference
    return (
        f"{arm} against {reference}: {points(found)} points, but {alone} has one run only; single runs cannot rank "
        "recipes."
    )


def _conditional(contrast: Contrast) -> str:
    if contrast.estimate is None:
        return "no run is left to compare their accuracies"
    bounds = f" ({interval(contrast.ci95)}, these two arms alone)" if contrast.ci95 else ""
    return f"conditional on finishing, accuracies differ by {points(contrast.estimate)} points{bounds}"
