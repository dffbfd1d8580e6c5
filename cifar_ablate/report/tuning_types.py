"""What a report says of a study whose arms stand each at its own best values, before any format."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from cifar_ablate.analysis import Contrast
from cifar_ablate.analysis.moves import Move
from cifar_ablate.report.types import Spread
from cifar_ablate.spec.schema import TunedArm


class Change(StrEnum):
    """What becomes of a verdict on a shared recipe once each arm has its own best one."""

    STANDS = "stands"
    """The same verdict."""
    REVERSED = "reversed"
    """Better becomes worse, or worse better."""
    LOST = "lost"
    """A difference that is no longer shown."""
    FOUND = "found"
    """A difference that was not shown before."""
    SETTLED = "settled"
    """It was open, and the arms are within the margin of each other."""
    OPENED = "opened"
    """They were within the margin of each other, and it is open."""
    TRAINS = "trains"
    """Runs diverged with the shared recipe only."""
    DIVERGES = "diverges"
    """Runs diverge with the own best recipe only."""
    OPEN = "open"
    """Another verdict, and open in both: no difference was shown, nor that there is none that matters."""
    UNKNOWN = "unknown"
    """One of the two has no verdict, or is not at hand."""

    @property
    def is_flip(self) -> bool:
        """Would one do something else now?"""
        return self not in (Change.STANDS, Change.OPEN, Change.UNKNOWN)


@dataclass(frozen=True, kw_only=True)
class TunedComparison:
    """A comparison with the shared recipe, and the same with each arm's own best."""

    family: str
    arm: str
    reference: str
    shared: Contrast | None
    """None where its record is not at hand, or does not have this comparison."""
    own_best: Contrast
    change: Change
    move: Move | None
    """How far the difference itself moved; None where that cannot be said."""
    text: str


@dataclass(frozen=True, kw_only=True)
class TunedArmRow:
    """What tuning cost and found for an arm. Validation accuracies are in percent."""

    name: str
    tuned: TunedArm | None
    """If None, the arm stands as it was written."""
    shared_test: Spread | None
    """Test accuracy over seeds with the shared recipe."""
    own_best_test: Spread | None
    """The same with the arm's own best one."""


@dataclass(frozen=True, kw_only=True)
class TuningReport:
    """The shared recipe beside each arm's own best one."""

    study: str
    """Whose arms were tuned."""
    shared: str
    """Label of its record."""
    is_at_hand: bool
    """If not, only the own best recipes are shown."""
    fields: Mapping[str, str]
    """What was searched, in words, by field."""
    sampler: str
    pruner: str
    seeds: int
    """For each trial."""
    val_fraction: float
    data: str
    date: str
    arms: tuple[TunedArmRow, ...]
    comparisons: tuple[TunedComparison, ...]
    unlike: tuple[str, ...]
    """In what the two records differ beside the values that were searched."""
    budgets: tuple[str, ...]
    """In what the searches of the arms were unequal."""
    missing: str
    """How the shared recipe's record is made, where it is not at hand; else empty. `Code` stands in backquotes."""
    sentences: tuple[str, ...]
    """What was searched, which verdicts flip, unequal budgets, unlike records, and what only the test columns say."""

    @property
    def flips(self) -> tuple[TunedComparison, ...]:
        """Comparisons on which one would do something else now."""
        return tuple(one for one in self.comparisons if one.change.is_flip)
