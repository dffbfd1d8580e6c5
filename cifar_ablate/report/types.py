"""The numbers and sentences of a report, before any format. Formats render them and do no arithmetic.

Accuracies are of the last epoch, in percent; differences are in points.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cifar_ablate.analysis import Contrast
from cifar_ablate.analysis.divergence import Divergence
from cifar_ablate.analysis.images import Bin, NewImageInterval
from cifar_ablate.analysis.interactions import Effect
from cifar_ablate.analysis.power import NoiseFloor
from cifar_ablate.analysis.verdicts import Interval
from cifar_ablate.records import LedgerEntry
from cifar_ablate.spec.schema import Published

if TYPE_CHECKING:  # whose types are made of these
    from cifar_ablate.report.tuning_types import TuningReport


@dataclass(frozen=True)
class Spread:
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
    """Of the test images, in nats."""
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
    """From its parent, in words."""
    epochs: int
    num_planned: int
    outcomes: Mapping[str, int]
    """Runs by outcome."""
    test_accuracy: Spread | None
    train_accuracy: Spread | None
    outlying_seeds: tuple[int, ...]
    """Of runs over 5 scaled MAD from the arm's median."""
    sd_floor: float | None
    """Seed spread in points that independent flips of images alone would give; None without predictions."""
    is_sd_lucky: bool
    """The seed spread is so far under its floor that chance is the likelier cause."""
    is_flip_averaged: bool
    """Accuracies are of the mean of an image and its mirror image: test-time augmentation."""
    is_weight_averaged: bool
    """They are of an exponential moving average of the weights."""
    train_seconds: float | None
    """Mean over the finished runs."""

    @property
    def num_finished(self) -> int:
        return self.outcomes.get("finished", 0)

    @property
    def num_ended(self) -> int:
        """With a result: divergence is one."""
        return self.num_finished + self.outcomes.get("diverged", 0)

    @property
    def num_started(self) -> int:
        return sum(self.outcomes.values())


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A contrast with what needs more than accuracies: new images, and what differs between the two arms."""

    contrast: Contrast
    differs: tuple[str, ...]
    """Between the arm and its reference, in words; with more than one, the effect is confounded."""
    tuned: tuple[str, ...]
    """Between the two in fields that were searched for each arm; no confounds."""
    new_images: NewImageInterval | None
    """At the level of one comparison of the family; None without predictions or under 3 seeds."""
    detectable: float | None
    """Points that these seeds show with 80% power, with the contrast's own spread and level."""
    mcnemar_p: float | None
    """McNemar's exact test of two single networks on the same images; None with more runs."""
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
    """A published figure beside ours."""

    arm: str
    published: Published
    measured: Spread | None
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
    """Kept by Benjamini and Hochberg over all arms and classes at 5%."""


@dataclass(frozen=True)
class Calibration:
    """How far confidences can be taken at their word, over the arm's finished runs."""

    arm: str
    nll: Spread | None
    ece: Spread | None
    bins: tuple[Bin, ...]
    """Reliability of all runs together; empty where confidences were not recorded."""


@dataclass(frozen=True)
class WidthCurve:
    """Half the width of a simultaneous 95% interval, by seeds per arm, with the spread seen here."""

    num_seeds: tuple[int, ...]
    half_widths: tuple[float, ...]
    """Points."""
    test_set_floor: float | None
    """Half the width of an interval for new images that is left with any number of seeds; None if not known."""
    now: int
    """Seeds per arm at present."""


MAX_ARMS = 40
"""More arms than that are no figure."""
Curve = tuple[tuple[int, float], ...]
"""Points (epoch, test accuracy in percent)."""


@dataclass(frozen=True, kw_only=True)
class Reproduce:
    """How to get the same numbers again."""

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
    """Recorded under an overlay, so published figures are not about these recipes."""
    question: str
    data: tuple[str, ...]
    """What the arms were trained and tested on, each described once."""
    baseline: str
    seeds: tuple[int, ...]
    looks: tuple[int, ...]
    precision: tuple[str, ...]
    margin: float
    rows: tuple[ArmRow, ...]
    runs: tuple[RunRow, ...]
    missing: tuple[str, ...]
    """Runs that the study wants at present and that have no result: "arm seed"."""
    families: tuple[Family, ...]
    noise_floors: Mapping[str, NoiseFloor | None]
    """By the family's name."""
    noise_text: str
    interactions: tuple[Effect, ...]
    interaction_note: str
    """Why interactions cannot be told, where they cannot; else empty."""
    next_steps: tuple[str, ...]
    class_effects: tuple[ClassEffect, ...]
    classes_text: str
    calibration: tuple[Calibration, ...]
    published: tuple[PublishedRow, ...]
    width: WidthCurve | None
    curves: Mapping[str, Mapping[int, Curve]]
    """Test accuracy by epoch, for each arm and seed."""
    must_know: tuple[tuple[str, str], ...]
    """What the reader must know: a keyword and its text."""
    ledger: tuple[LedgerEntry, ...]
    """When the test set was looked at, the margin set, and looks taken."""
    reproduce: Reproduce
    tuning: TuningReport | None
    """Beside the shared recipe, where each arm stands at its own best; None where nothing was tuned."""


@dataclass(frozen=True)
class Report:
    """Everything a format needs."""

    studies: tuple[StudyReport, ...]


@dataclass(frozen=True)
class Figure:
    """A drawn figure."""

    name: str
    """Of its file, without the ending; of letters, digits and dashes."""
    title: str
    caption: str
    """What is seen, for those who cannot see it, too."""
    svg: str


@dataclass(frozen=True)
class Rendered:
    """A report in one format, with the files that belong beside it."""

    text: str
    files: Mapping[str, str]
    """Content by path, relative to the folder of the report."""
