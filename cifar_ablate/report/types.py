"""The numbers and sentences of a report, before any format. Formats render them and do no arithmetic.

Accuracies are of the last epoch, in percent; differences are in points.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from cifar_ablate.analysis import Contrast
from cifar_ablate.analysis.divergence import Divergence
from cifar_ablate.analysis.images import Bin, NewImageInterval
from cifar_ablate.analysis.interactions import Effect, Move
from cifar_ablate.analysis.power import NoiseFloor
from cifar_ablate.analysis.verdicts import Interval
from cifar_ablate.record.types import LedgerEntry
from cifar_ablate.spec.schema import Published, TunedArm


@dataclass(frozen=True)
class MeanSd:
    """Mean and standard deviation (ddof 1; None for one value) over seeds."""

    mean: float
    sd: float | None
    num: int


@dataclass(frozen=True, kw_only=True)
class RunRow:
    """One run."""

    arm: str
    seed: int
    outcome: str
    """finished, diverged, failed, killed or running."""
    reason: str
    run_id: str
    fingerprint: str
    test_accuracy: float | None
    train_accuracy: float | None
    nll: float | None
    """Negative log-likelihood per test image, in nats."""
    ece: float | None
    """Expected calibration error on the test images, in [0, 1]."""
    train_seconds: float | None


@dataclass(frozen=True, kw_only=True)
class ArmRow:
    """One arm of a study."""

    name: str
    parent: str | None
    """The arm that it was written against; None for the baseline."""
    differs: tuple[str, ...]
    """Differences from its parent, in words."""
    epochs: int
    num_planned: int
    outcomes: Mapping[str, int]
    """Runs by outcome."""
    test_accuracy: MeanSd | None
    train_accuracy: MeanSd | None
    outlying_seeds: tuple[int, ...]
    """Seeds of runs over 5 scaled MAD from the arm's median."""
    sd_floor: float | None
    """Seed spread in points that independent flips of single images alone would give; None without predictions."""
    is_sd_lucky: bool
    """The seed spread is far below its floor, most likely by chance."""
    is_flip_averaged: bool
    """Accuracies are of the mean of an image and its mirror image: test-time augmentation."""
    is_weight_averaged: bool
    """Accuracies are of an exponential moving average of the weights."""
    train_seconds: float | None
    """Mean over the finished runs."""

    @property
    def num_finished(self) -> int:
        return self.outcomes.get("finished", 0)

    @property
    def num_ended(self) -> int:
        """Runs with a result: finished or diverged."""
        return self.num_finished + self.outcomes.get("diverged", 0)

    @property
    def num_started(self) -> int:
        return sum(self.outcomes.values())


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A contrast, with its interval for new images and what differs between the two arms."""

    contrast: Contrast
    differs: tuple[str, ...]
    """Differences between the arm and its reference, in words; with more than one, the effect is confounded."""
    tuned: tuple[str, ...]
    """Differences in fields that were searched for each arm; they do not confound."""
    new_images: NewImageInterval | None
    """At the level of one comparison of the family; None without predictions or under 3 seeds."""
    detectable: float | None
    """Points that these seeds detect with 80% power, at the contrast's own spread and level."""
    mcnemar_p: float | None
    """p of McNemar's exact test of two single networks on the same images; None with more runs."""
    divergence: Divergence | None
    """How often runs diverged; None where none did."""
    text: str
    """The verdict in full sentences."""

    @property
    def is_confounded(self) -> bool:
        return len(self.differs) > 1


@dataclass(frozen=True)
class Family:
    """Contrasts that share one level."""

    name: str
    """"against the baseline" or "against the parent arm"."""
    comparisons: tuple[Comparison, ...]


@dataclass(frozen=True, kw_only=True)
class PublishedRow:
    """A published figure and ours."""

    arm: str
    published: Published
    measured: MeanSd | None
    mean_interval: Interval | None
    """95% interval of the mean over seeds (t)."""
    run_interval: Interval | None
    """95% prediction interval of one more run."""
    difference: float | None
    """Measured mean minus published, in points."""
    text: str


@dataclass(frozen=True)
class ClassEffect:
    """An arm against its reference on the images of one class."""

    arm: str
    reference: str
    class_name: str
    estimate: float
    """Points."""
    p: float | None
    is_shown: bool
    """Significant by Benjamini and Hochberg over all arms and classes at 5%."""


@dataclass(frozen=True)
class Calibration:
    """Calibration on the test images, over the arm's finished runs."""

    arm: str
    nll: MeanSd | None
    ece: MeanSd | None
    bins: tuple[Bin, ...]
    """Reliability bins of all runs together; empty where confidences were not recorded."""


@dataclass(frozen=True)
class WidthCurve:
    """Half the width of a simultaneous 95% interval by seeds per arm, at the observed spread."""

    num_seeds: tuple[int, ...]
    half_widths: tuple[float, ...]
    """Points."""
    test_set_floor: float | None
    """The same for new images with infinitely many seeds; None if not known."""
    now: int
    """Present seeds per arm."""


class Change(StrEnum):
    """How a verdict with the shared recipe compares with the one at each arm's own best."""

    STANDS = "stands"
    """The same verdict."""
    REVERSED = "reversed"
    """Better becomes worse, or worse better."""
    LOST = "lost"
    """A difference is no longer shown."""
    FOUND = "found"
    """A difference is shown that was not shown before."""
    SETTLED = "settled"
    """It was open; now the arms are within the margin of each other."""
    OPENED = "opened"
    """The arms were within the margin of each other; now it is open."""
    TRAINS = "trains"
    """Runs diverged with the shared recipe only."""
    DIVERGES = "diverges"
    """Runs diverge with the own best recipe only."""
    OPEN = "open"
    """Two different verdicts, both open: neither a difference nor its absence is shown."""
    UNKNOWN = "unknown"
    """One of the two has no verdict or no record."""

    @property
    def is_flip(self) -> bool:
        """Is the decision another one than with the shared recipe?"""
        return self not in (Change.STANDS, Change.OPEN, Change.UNKNOWN)


@dataclass(frozen=True, kw_only=True)
class TunedComparison:
    """A comparison with the shared recipe, and the same with each arm's own best."""

    family: str
    arm: str
    reference: str
    shared: Contrast | None
    """None where its record is missing or does not have this comparison."""
    own_best: Contrast
    change: Change
    move: Move | None
    """By how much the difference moved; None where that is not known."""
    text: str


@dataclass(frozen=True, kw_only=True)
class TunedArmRow:
    """What tuning cost and found for an arm. Validation accuracies are in percent."""

    name: str
    tuned: TunedArm | None
    """None for an arm that was not tuned."""
    shared_test: MeanSd | None
    """Test accuracy over seeds with the shared recipe."""
    own_best_test: MeanSd | None
    """The same with the arm's own best one."""


@dataclass(frozen=True, kw_only=True)
class TuningReport:
    """Each comparison with the shared recipe and with each arm's own best one."""

    study: str
    """Name of the study whose arms were tuned."""
    shared: str
    """Label of its record."""
    is_at_hand: bool
    """Was the record of the shared recipe found? If not, only own best recipes are shown."""
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
    """Differences between the two records other than the values that were searched."""
    budgets: tuple[str, ...]
    """Ways in which the searches of the arms were unequal."""
    missing: str
    """How to make the missing record of the shared recipe; empty where it was found. Holds `code` in backquotes."""
    sentences: tuple[str, ...]
    """What was searched, which verdicts flip, unequal budgets, unlike records, and what only the test columns say."""

    @property
    def flips(self) -> tuple[TunedComparison, ...]:
        """Comparisons whose decision changes."""
        return tuple(one for one in self.comparisons if one.change.is_flip)


MAX_ARMS = 40
"""With more arms no figure is drawn."""
Curve = tuple[tuple[int, float], ...]
"""Points (epoch, test accuracy in percent)."""


@dataclass(frozen=True, kw_only=True)
class Reproduce:
    """Commands, commits, versions and data that give the same numbers."""

    commands: tuple[str, ...]
    commits: tuple[str, ...]
    versions: tuple[str, ...]
    """One line for each environment that runs were trained in."""
    data_digests: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class StudyReport:
    """One study's variant."""

    label: str
    is_variant: bool
    """Recorded under an overlay: published figures are of other recipes."""
    question: str
    data: tuple[str, ...]
    """Descriptions of the arms' data, without repetition."""
    baseline: str
    seeds: tuple[int, ...]
    looks: tuple[int, ...]
    precision: tuple[str, ...]
    margin: float
    rows: tuple[ArmRow, ...]
    runs: tuple[RunRow, ...]
    missing: tuple[str, ...]
    """Planned runs without a result: "arm seed N"."""
    families: tuple[Family, ...]
    noise_floors: Mapping[str, NoiseFloor | None]
    """By the family's name."""
    noise_text: str
    interactions: tuple[Effect, ...]
    interaction_note: str
    """Why interactions are not estimated; else empty."""
    next_steps: tuple[str, ...]
    class_effects: tuple[ClassEffect, ...]
    classes_text: str
    calibration: tuple[Calibration, ...]
    published: tuple[PublishedRow, ...]
    width: WidthCurve | None
    curves: Mapping[str, Mapping[int, Curve]]
    """Test accuracy by epoch, for each arm and seed."""
    must_know: tuple[tuple[str, str], ...]
    """Caveats: a keyword and its text."""
    ledger: tuple[LedgerEntry, ...]
    """When the test set was read, the margin set, and looks taken."""
    reproduce: Reproduce
    tuning: TuningReport | None
    """Comparison with the shared recipe; None where nothing was tuned."""


@dataclass(frozen=True)
class Report:
    """Everything a format needs."""

    studies: tuple[StudyReport, ...]
