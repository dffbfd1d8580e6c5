"""What the analysis answers with: frozen values, ready to be shown."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

Interval = tuple[float, float]
"""Lower and upper bound."""


class Verdict(StrEnum):
    """What an interval says of a difference; the rule is in ``verdicts.py``."""

    BETTER = "better"
    WORSE = "worse"
    EQUIVALENT = "equivalent"
    NO_WORSE = "no_worse"
    NO_BETTER = "no_better"
    UNDECIDED = "undecided"
    PROVISIONAL = "provisional"
    """An interval at most: too few seeds, or no spread between them."""
    SINGLE_RUN = "single_run"
    DIVERGED = "diverged"

    @property
    def is_decided(self) -> bool:
        """More seeds are not wanted: a difference was shown, or that there is none that matters, or a divergence."""
        return self in (Verdict.BETTER, Verdict.WORSE, Verdict.EQUIVALENT, Verdict.DIVERGED)


@dataclass(frozen=True, kw_only=True)
class Contrast:
    """An arm minus its reference over seeds: test accuracy in points, with simultaneous intervals of its family.

    What cannot be estimated is None, never NaN.
    """

    arm: str
    reference: str
    num_seeds: int
    """Finished runs that the arm brings."""
    num_seeds_reference: int
    estimate: float | None
    """Difference of the means over seeds, in points."""
    ci95: Interval | None
    """At level 1 - alpha, simultaneous over the family: 95% unless the call says otherwise."""
    ci90: Interval | None
    """At level 1 - 2 alpha, likewise."""
    p_adjusted: float | None
    """For the family; single-step, from the same distribution as the intervals."""
    se: float | None
    """Guarded: the larger one of the pooled and of the contrast's own standard error, in points."""
    df: float | None
    p_superior: float | None
    """Probability that one run of the arm beats one run of the reference (ties count half)."""
    sd: float | None
    """Standard deviation of the arm's accuracy over seeds (ddof 1), in points."""
    error_change: float | None
    """Relative change of the mean test error in percent: -10 is a tenth of the errors less."""
    verdict: Verdict
    num_more_seeds: int | None
    """Per arm, to detect the margin with 80% power; None where nothing is open, or the margin is 0."""
    num_more_seeds_range: tuple[int, int] | None
    """The same for the ends of the 80% interval of the standard deviation."""
    alpha: float
    """Of the family."""
    num_comparisons: int
    """Size of the family."""
    is_paired: bool
    """Seeds are blocks of the model; otherwise arms with unequal seeds are compared as independent."""
    own_p_holm: float | None
    """Sensitivity: the paired (or Welch's) t test of these two arms alone, Holm-adjusted over the family."""
    num_diverged: int
    num_diverged_reference: int
    notes: tuple[str, ...]
    """What weakens the verdict, in words."""
    sentence: str
    look: int | None = None
    """Seeds of the pre-declared look at which it stands; None in a study without looks."""

    @property
    def is_even_by_chance(self) -> bool:
        """Two seeds that differ, by the same in both arms: no spread of the difference, and nothing to suspect."""
        return self.ci95 is None and self.num_seeds == 2 and (self.sd or 0.0) > 1e-9

    @property
    def is_diverged(self) -> bool:
        """A run of the arm or of its reference diverged."""
        return bool(self.num_diverged or self.num_diverged_reference)
