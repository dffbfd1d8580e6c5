"""Verdicts, the rule that gives them, and the contrasts that carry them.

The interval is the verdict. The first rule that holds decides:

1. The 95% interval excludes 0: better or worse.
2. The 90% interval lies within the margin: equivalent.
3. The lower bound of the 90% interval is above minus the margin: no worse.
4. The upper bound of the 90% interval is below the margin: no better.
5. Otherwise: too close to call.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

Interval = tuple[float, float]
"""Lower and upper bound."""

MIN_DF = 4
"""Minimum residual degrees of freedom for a verdict. Below it, and with two seeds, only the interval is shown."""


class Verdict(StrEnum):
    """What an interval says about a difference."""

    BETTER = "better"
    WORSE = "worse"
    EQUIVALENT = "equivalent"
    NO_WORSE = "no_worse"
    NO_BETTER = "no_better"
    UNDECIDED = "undecided"
    PROVISIONAL = "provisional"
    """No verdict: there are too few seeds, or no spread between them."""
    SINGLE_RUN = "single_run"
    DIVERGED = "diverged"

    @property
    def is_decided(self) -> bool:
        """Whether more seeds are unnecessary: a difference, its absence, or a divergence has been shown."""
        return self in (Verdict.BETTER, Verdict.WORSE, Verdict.EQUIVALENT, Verdict.DIVERGED)


RULED = frozenset(set(Verdict) - {Verdict.PROVISIONAL, Verdict.SINGLE_RUN, Verdict.DIVERGED})
"""Verdicts that follow from the rules above."""

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
    """The verdict in one to four words, for tables."""
    return _LABELS[verdict]


def verdict_of(ci95: Interval, ci90: Interval, margin: float) -> Verdict:
    """The verdict on a difference by the first rule that holds; intervals and margin are in points."""
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


@dataclass(frozen=True, kw_only=True)
class Contrast:
    """An arm minus its reference over seeds: test accuracy in points, with the simultaneous intervals of its family.

    What cannot be estimated is None, never NaN.
    """

    arm: str
    reference: str
    num_seeds: int
    """Finished runs of the arm."""
    num_seeds_reference: int
    estimate: float | None
    """Difference of the means over seeds, in points."""
    ci95: Interval | None
    """Interval at level 1 - alpha, simultaneous over the family; 95% by default."""
    ci90: Interval | None
    """Interval at level 1 - 2 alpha, simultaneous over the family; 90% by default."""
    p_adjusted: float | None
    """p value adjusted for the family: single-step, from the same distribution as the intervals."""
    se: float | None
    """Standard error in points: the larger of the pooled one and of the contrast's own."""
    df: float | None
    """Residual degrees of freedom of the model."""
    p_superior: float | None
    """Probability that one run of the arm beats one run of the reference; ties count half."""
    sd: float | None
    """Standard deviation of the arm's accuracy over seeds (ddof 1), in points."""
    error_change: float | None
    """Relative change of the mean test error in percent: -10 means a tenth fewer errors."""
    verdict: Verdict
    num_more_seeds: int | None
    """Additional seeds per arm to detect the margin with 80% power; None if nothing is open, or the margin is 0."""
    num_more_seeds_range: tuple[int, int] | None
    """``num_more_seeds`` at both ends of the 80% interval of the standard deviation."""
    alpha: float
    """Error level of the family."""
    num_comparisons: int
    """Number of contrasts in the family."""
    is_paired: bool
    """Whether seeds are blocks of the model; arms with unequal seeds are compared as independent samples."""
    own_p_holm: float | None
    """Sensitivity check: p of the paired (or Welch's) t test of these two arms alone, Holm-adjusted over the family."""
    num_diverged: int
    num_diverged_reference: int
    notes: tuple[str, ...]
    """Sentences about what weakens the verdict."""
    sentence: str
    look: int | None = None
    """Number of seeds of the pre-declared look that gave this contrast; None in a study without looks."""

    @property
    def is_even_by_chance(self) -> bool:
        """Whether both arms change equally between their two seeds: the difference has no spread, but runs do."""
        return self.ci95 is None and self.num_seeds == 2 and (self.sd or 0.0) > 1e-9

    @property
    def is_diverged(self) -> bool:
        """Whether a run of the arm or of its reference diverged."""
        return bool(self.num_diverged or self.num_diverged_reference)
