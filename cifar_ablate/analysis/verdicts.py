"""The rule from an interval to a verdict. The interval is the verdict; the first rule that holds:

1. The 95% interval excludes 0: better or worse.
2. The 90% interval lies within the margin: equivalent.
3. Its lower bound is above minus the margin: no worse.
4. Its upper bound is below the margin: no better.
5. Otherwise: too close to call.
"""

from __future__ import annotations

from cifar_ablate.analysis.types import Interval, Verdict

MIN_DF = 4
"""With fewer residual degrees of freedom, or two seeds, an interval is shown and no verdict given."""


RULED = frozenset(set(Verdict) - {Verdict.PROVISIONAL, Verdict.SINGLE_RUN, Verdict.DIVERGED})
"""Verdicts that the rules give."""


def verdict_of(ci95: Interval, ci90: Interval, margin: float) -> Verdict:
    """The verdict of a difference in points with its intervals, by the first rule that holds."""
    if ci95[0] > 0:
        return Verdict.BETTER
    if ci95[1] < 0:
        return Verdict.WORSE
    if -margin < ci90[0] and ci90[1] < margin:
        return Verdict.EQUIVALENT
    if ci90[0] > -margin:
        return Verdict.NO_WORSE
    if ci90[1] < margin:
        return Verdict.NO_BETTER
    return Verdict.UNDECIDED


_LABELS = {
    Verdict.BETTER: "better",
    Verdict.WORSE: "worse",
    Verdict.EQUIVALENT: "equivalent",
    Verdict.NO_WORSE: "no worse",
    Verdict.NO_BETTER: "not better",
    Verdict.UNDECIDED: "too close to call",
    Verdict.PROVISIONAL: "provisional",
    Verdict.SINGLE_RUN: "single run",
    Verdict.DIVERGED: "diverged",
}


def label(verdict: Verdict) -> str:
    """The verdict in a word or four, for tables."""
    return _LABELS[verdict]
