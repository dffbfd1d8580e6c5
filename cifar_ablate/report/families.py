"""The two families of comparisons, with looks, intervals for new images, and confounds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from cifar_ablate.analysis import Contrast, Verdict
from cifar_ablate.analysis.divergence import divergence_of
from cifar_ablate.analysis.images import NewImageInterval, mcnemar, new_image_interval
from cifar_ablate.analysis.interactions import Effect, interactions, is_ladder, tells_effects
from cifar_ablate.analysis.looks import LooksTaken
from cifar_ablate.analysis.power import level_of_one, points_detected
from cifar_ablate.analysis.sentences import interval
from cifar_ablate.record.types import LedgerEntry
from cifar_ablate.report.recorded_study import RecordedStudy
from cifar_ablate.report.tuned import RecipeDifferences, between, own_best_sentence
from cifar_ablate.report.types import Comparison, Family

ADDED = " Seeds were added after verdicts had been read: the interval is too narrow."
LADDER = (
    "Some arms add several changes on top of each other. Whether one of them helps only together with another cannot "
    "be told from such a ladder: add an arm with each change alone."
)
NOT_WITH_LOOKS = (
    "Interactions are not tested in a study with looks: its arms end with unequal seeds, and no part of the error rate "
    "of 5% is left for them."
)


@dataclass(frozen=True)
class Families:
    """All contrasts of a study."""

    families: tuple[Family, ...]
    looks: LooksTaken | None
    """None in a study without looks."""

    @property
    def comparisons(self) -> Iterator[Comparison]:
        return (one for family in self.families for one in family.comparisons)


def all_families(study: RecordedStudy) -> Families:
    """Every contrast of the study's families, as of its last look."""
    return Families(
        tuple(
            Family(name, tuple(_comparison(study, contrast) for contrast in of_family))
            for name, of_family in study.compared.families.items()
        ),
        study.compared.looks,
    )


def seeds_added(study: RecordedStudy) -> LedgerEntry | None:
    """The last reading of verdicts with fewer seeds planned than now, in a study without looks; None for none."""
    read = [one for one in study.record.ledger if one.kind == "verdicts" and one.num_runs and one.detail.isdigit()]
    fewer = [one for one in read if int(one.detail) < len(study.document["seeds"])]
    return max(fewer, key=lambda one: int(one.detail)) if fewer and not study.looks else None


def _comparison(study: RecordedStudy, contrast: Contrast) -> Comparison:
    found = between(study, contrast.reference, contrast.arm)
    new_images, p = _new_images(study, contrast), _mcnemar_p(study, contrast)
    return Comparison(
        contrast=contrast,
        differs=tuple(map(str, found.changes)),
        tuned=tuple(map(str, found.tuned)),
        new_images=new_images,
        detectable=points_detected(contrast),
        mcnemar_p=p,
        divergence=divergence_of(contrast),
        text=_text(contrast, new_images, p)
        + _due_to(study, contrast, found)
        + (ADDED if contrast.ci95 and seeds_added(study) else ""),
    )


def _new_images(study: RecordedStudy, contrast: Contrast) -> NewImageInterval | None:
    level = level_of_one(contrast)
    mine, other = study.correct.get(contrast.arm, {}), study.correct.get(contrast.reference, {})
    seeds = sorted(mine.keys() & other.keys() & used_seeds(study, contrast))
    if level is None or len(seeds) < 3:
        return None
    return new_image_interval(
        np.stack([other[seed] for seed in seeds]), np.stack([mine[seed] for seed in seeds]), alpha=level
    )


def used_seeds(study: RecordedStudy, contrast: Contrast) -> set[int]:
    """The seeds that a contrast uses: those of its look, or all."""
    seeds = study.document["seeds"]
    return set(seeds[: contrast.look] if contrast.look else seeds)


def _text(contrast: Contrast, new_images: NewImageInterval | None, mcnemar_p: float | None) -> str:
    said = contrast.sentence
    if contrast.verdict in (Verdict.BETTER, Verdict.WORSE):
        said = f"{said.removesuffix('.')}; {_on_new_images(contrast, new_images)}."
    if mcnemar_p is not None:
        said += f" These two networks on these images: McNemar's exact p {mcnemar_p:.2g}."
    if contrast.look and contrast.verdict.is_decided:
        how = "Closed, since a run diverged," if contrast.is_diverged else "Decided"
        said += f" {how} at the look at {contrast.look} seeds."
    for note in contrast.notes:
        said += f" {note[0].upper()}{note[1:]}." if not note.startswith("smaller than") else ""
    return said


def _due_to(study: RecordedStudy, contrast: Contrast, found: RecipeDifferences) -> str:
    """Causes of the difference, after a space; empty where there is nothing to say."""
    if contrast.estimate is None:
        return ""
    own_best = own_best_sentence(study, contrast.arm, contrast.reference, found)
    said = f" {own_best}" if own_best else ""
    if len(found.changes) < 2:
        return said
    keys = ", ".join(one.key for one in found.changes)
    return (
        f" {contrast.arm} differs from {contrast.reference} in {len(found.changes)} things ({keys}): the difference "
        f"cannot be put down to any one of them.{said}"
    )


def _on_new_images(contrast: Contrast, new_images: NewImageInterval | None) -> str:
    if new_images is None:
        return "shown for this test set only"
    is_shown = new_images.excludes_zero and (new_images.estimate > 0) == ((contrast.estimate or 0) > 0)
    seeds = f", from the {new_images.num_seeds} shared seeds" if new_images.has_fewer_seeds(contrast) else ""
    if is_shown:
        return f"on new images too ({interval(new_images.ci)}{seeds})"
    return f"shown for this test set only (on new images {interval(new_images.ci)}{seeds})"


def _mcnemar_p(study: RecordedStudy, contrast: Contrast) -> float | None:
    """McNemar's exact test where both have one run: it ranks two networks, not their recipes."""
    mine, other = study.correct.get(contrast.arm, {}), study.correct.get(contrast.reference, {})
    if contrast.verdict is not Verdict.SINGLE_RUN or len(mine) != 1 or len(other) != 1:
        return None
    return mcnemar(next(iter(other.values())), next(iter(mine.values())))


def interactions_of(study: RecordedStudy) -> tuple[tuple[Effect, ...], str]:
    """Effects that the design can estimate, and a note where it can not."""
    factors = _factors(study)
    if is_ladder(factors):
        return (), LADDER
    if study.looks:
        return (), NOT_WITH_LOOKS if tells_effects(factors) else ""
    return interactions(study.frame, factors), ""


def _factors(study: RecordedStudy) -> dict[str, frozenset[str]]:
    """The changes of each arm, without tuned values; of arms that differ in nothing else only the first one."""
    baseline = study.document["baseline"]
    changes = {name: between(study, baseline, name).changes for name in [baseline, *study.arms]}
    meanings: dict[str, set[str]] = {}
    for one in (one for of_arm in changes.values() for one in of_arm):
        meanings.setdefault(one.key, set()).add(str(one))
    factors: dict[str, frozenset[str]] = {}
    for name, of_arm in changes.items():
        own = frozenset(one.key if len(meanings[one.key]) == 1 else str(one) for one in of_arm)
        if own not in factors.values():
            factors[name] = own
    return factors
