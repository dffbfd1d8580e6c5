"""``cifar-ablate promote``: choose an arm by the verdicts, and register its network in MLflow's model registry."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from cifar_ablate.analysis import Contrast
from cifar_ablate.analysis.contrasts import Pair, all_pairs, mirrored
from cifar_ablate.analysis.verdicts import Interval, Verdict
from cifar_ablate.errors import RecordError, UsageError
from cifar_ablate.predictor.card import CARD, WEIGHTS, Card, digest_of, write_card
from cifar_ablate.predictor.load import arm_named, files_of_run, first_seed
from cifar_ablate.process import temporary_folder
from cifar_ablate.record.mlflow_models import CHAMPION, register
from cifar_ablate.record.mlflow_store import Tracking, noted
from cifar_ablate.record.types import StudyRecord
from cifar_ablate.report.recorded_study import RecordedStudy
from cifar_ablate.spec.schema import Recipe

MAX_TAG = 4500
"""Maximum characters of a tag; MLflow refuses more than 5,000."""
COST_TOLERANCE = 1.02
"""Largest ratio of two training costs that count as equal."""


@dataclass(frozen=True)
class Promotion:
    """A registered model version."""

    name: str
    version: str
    alias: str
    card: Card


def promote(tracking: Tracking, label: str, arm: str | None, *, alias: str = CHAMPION) -> Promotion:
    """Register the network of an arm's first seed in MLflow's model registry, and point an alias at it.

    Args:
        tracking: The store of the study and of the registry.
        label: Label of the study's variant, which becomes the name of the registered model.
        arm: Name of the arm; None: the best by the verdicts (``best_arm``).
        alias: Alias of the new version.

    Raises:
        UnknownNameError: There is no such study or arm.
        RecordError: The first seed has no usable weights, or no verdict can name an arm best.
        UsageError: MLflow gives the alias another meaning.
    """
    check_alias(alias)
    record = tracking.load(label)
    if arm is None:
        choice = best_arm(record, _costs(record))
        noted(tracking, record, "promote", f"{choice.arm} was chosen")
    else:
        choice = ArmChoice(arm_named(record, arm), "")
    run = first_seed(record, choice.arm)
    with temporary_folder() as folder, temporary_folder() as downloads:
        trained = files_of_run(
            tracking, record, run, downloads, chosen=choice.sentence, by_test=arm is None, with_verdicts=True
        )
        write_card(folder, trained.card, trained.weights)
        version = register(
            tracking,
            label,
            run.run_id,
            folder,
            digest=digest_of(folder / CARD),
            alias=alias,
            tags=_tags(trained.card),
            description=_description(trained.card),
            question=str(record.document["question"]),
        )
    return Promotion(label, version, alias, trained.card)


def check_alias(alias: str) -> None:
    """Raise UsageError for an alias that MLflow refuses or gives another meaning."""
    if not re.fullmatch(r"[A-Za-z][\w.-]{0,200}", alias) or alias == "latest" or re.fullmatch(r"[vV]\d+", alias):
        raise UsageError(f"--alias {alias}: give letters, digits, dots and dashes; not `latest`, and no version number")


def _costs(record: StudyRecord) -> Callable[[str], float]:
    """Training cost of an arm in multiply-adds; seconds would depend on what else the machine did."""
    from cifar_ablate.models.build import count

    @cache
    def cost(arm: str) -> float:
        document = next(one for one in record.document["arms"] if one["name"] == arm)
        recipe = Recipe.model_validate(document["recipe"])
        size = int(recipe.data.kwargs().get("image_size", 32))  # only image_folder has another size
        per_image = count(recipe.model.name, recipe.model.kwargs(), image_size_px=size).mult_adds
        return float(per_image * recipe.epochs * _num_train(document))

    return cost


def _num_train(document: Mapping[str, Any]) -> int:
    """Number of an arm's training images, from the description of its data in the record."""
    found = re.search(r"([\d,]+)( of [\d,]+)? training images", str(document.get("data", "")))
    if found is None:
        raise RecordError(f"the record does not say how many images {document['name']!r} was trained on; name an --arm")
    return int(found[1].replace(",", ""))


def _tags(card: Card) -> dict[str, str]:
    """Tags of the registered version, as text."""
    of, worth = card.origin, card.accuracy
    values: Mapping[str, Any] = {
        "study": of.study,
        "arm": of.arm,
        "seed": of.seed,
        "fingerprint": of.fingerprint,
        "data": of.data,
        "data_digest": of.data_digest,
        "test_accuracy": f"{worth.percent:.4f}",
        "test_accuracy_ci95": f"{worth.interval[0]:.2f} to {worth.interval[1]:.2f}",
        "chosen_on_test_set": str(worth.is_chosen_on_test).lower(),
        "classes": json.dumps(card.classes),
        "recipe": json.dumps(of.recipe),
        "sha256": card.sha256[WEIGHTS],
    }
    if worth.over_seeds is not None:
        low, high = worth.over_seeds.interval
        values = {**values, "mean_over_seeds": f"{worth.over_seeds.mean:.4f}", "mean_ci95": f"{low:.2f} to {high:.2f}"}
    return {f"ablate.{name}": str(value)[:MAX_TAG] for name, value in values.items()}


def _description(card: Card) -> str:
    of, worth = card.origin, card.accuracy
    lines = [card.headline() + "."]
    if worth.over_seeds is not None:
        spread = worth.over_seeds
        low, high = spread.interval
        lines.append(f"Mean over {spread.num_seeds} seeds {spread.mean:.2f}% (95% CI {low:.2f} to {high:.2f}).")
    if worth.choice:
        lines.append(worth.choice)
    lines.append(f"Data: {of.data}. Always the study's first seed, never the luckiest.")
    return "\n\n".join(lines)


def lines_of(promoted: Promotion) -> list[str]:
    """Lines that the command prints."""
    card = promoted.card
    lines = [f"{promoted.name} version {promoted.version} is {promoted.alias}: {card.headline()}"]
    if card.accuracy.choice:
        lines.append(card.accuracy.choice)
    if card.accuracy.is_chosen_on_test:
        lines.append("The arm was chosen by this accuracy among others, so the accuracy is slightly optimistic.")
    lines.append(f"Try it: cifar-ablate predict IMAGE --model {promoted.name}@{promoted.alias}, or cifar-ablate serve")
    return lines


@dataclass(frozen=True)
class ArmChoice:
    """The chosen arm."""

    arm: str
    sentence: str
    """How it was chosen, in words; empty if the user named it."""


def best_arm(record: StudyRecord, cost: Callable[[str], float]) -> ArmChoice:
    """Choose an arm by the study's verdicts; the cheapest of those that are not shown to be worse than another.

    An arm is excluded if a verdict says that another one is better. A choice is needed even where a verdict would wait
    for more seeds, so an arm is also excluded if another one is above it by the report's 90% interval (unless that lies
    within the margin) or, since the report does not compare all arms with each other, if the arm with the highest mean
    is above it by the 90% interval of all pairs. The remaining arms are tied.

    Args:
        record: The study with its runs.
        cost: Training cost of an arm by its name, in any unit.

    Raises:
        RecordError: There are no verdicts.
    """
    study = RecordedStudy(record, record.current())
    verdicts = [one for family in study.compared.families.values() for one in family]
    arms, margin = _judged(record, verdicts), float(record.document["margin"])
    pairs = all_pairs(study.frame, arms)
    by_verdict = _beaten(verdicts)
    left = [arm for arm in arms if arm not in by_verdict | _below(verdicts, margin)]
    leader = next(arm for arm in left if all(pairs[arm, other].value >= 0 for other in left if other != arm))
    tied = [arm for arm in left if arm == leader or not _is_above(pairs[leader, arm].ci90, margin)]
    chosen = _cheapest(tied, leader, cost, pairs)
    by = f"The verdicts of {record.label}"
    if set(arms) - set(tied) - by_verdict:
        by += ", and intervals at 90% between its arms,"
    sentences = [_choice(by, chosen, tied, leader, cost, pairs), *_left_out(record, arms), "Chosen on this test set."]
    return ArmChoice(chosen, " ".join(sentences))


def _judged(record: StudyRecord, verdicts: Sequence[Contrast]) -> list[str]:
    """Arms with a verdict: they have enough seeds, and none of them diverged."""
    open_kinds = (Verdict.SINGLE_RUN, Verdict.PROVISIONAL, Verdict.DIVERGED)
    judged = {name for one in verdicts if one.verdict not in open_kinds for name in (one.arm, one.reference)}
    found = [arm["name"] for arm in record.document["arms"] if arm["name"] in judged]
    if not found:
        raise RecordError(
            f"{record.label}: no verdict yet could name an arm best; run more seeds, or name one with --arm"
        )
    return found


def _beaten(verdicts: Sequence[Contrast]) -> set[str]:
    """Arms that are worse than another one by a verdict."""
    worse = {one.arm for one in verdicts if one.verdict is Verdict.WORSE}
    return worse | {one.reference for one in verdicts if one.verdict is Verdict.BETTER}


def _below(verdicts: Sequence[Contrast], margin: float) -> set[str]:
    """Arms that are below another one by their 90% interval."""
    found = {one.reference for one in verdicts if _is_above(one.ci90, margin)}
    return found | {one.arm for one in verdicts if _is_above(mirrored(one.ci90), margin)}


def _is_above(interval: Interval | None, margin: float) -> bool:
    """Whether an interval lies above 0, and not entirely within the margin."""
    return interval is not None and interval[0] > 0 and interval[1] >= margin


def _cheapest(
    tied: Sequence[str], leader: str, cost: Callable[[str], float], pairs: Mapping[tuple[str, str], Pair]
) -> str:
    """The arm with the lowest cost; among equal costs, that with the highest mean."""
    lowest = min(cost(arm) for arm in tied)
    cheap = [arm for arm in tied if cost(arm) <= lowest * COST_TOLERANCE]
    return min(cheap, key=lambda arm: 0.0 if arm == leader else pairs[leader, arm].value)


def _choice(
    by: str,
    chosen: str,
    tied: Sequence[str],
    leader: str,
    cost: Callable[[str], float],
    pairs: Mapping[tuple[str, str], Pair],
) -> str:
    if len(tied) == 1:
        return f"{by} name {chosen} best."
    others = _listed([arm for arm in tied if arm != chosen])
    if max(map(cost, tied)) <= min(map(cost, tied)) * COST_TOLERANCE:
        why = "they cost the same, and its mean is the highest"
    elif chosen == leader:
        why = "its mean is the highest, and it costs no more than they do"
    else:
        pair = pairs[leader, chosen]
        interval = "" if pair.ci95 is None else f", 95% CI {_points(pair.ci95[0])} to {_points(pair.ci95[1])}"
        why = (
            f"it is the cheapest to train; the mean of {leader} is higher, which is not shown to be more than chance "
            f"({_points(pair.value)}{interval})"
        )
    return f"{by} do not tell {chosen} from {others}; {chosen} was chosen because {why}."


def _left_out(record: StudyRecord, judged: Sequence[str]) -> list[str]:
    names = [arm["name"] for arm in record.document["arms"] if arm["name"] not in judged]
    return [f"Not judged, because of too few seeds or of diverged runs: {_listed(names)}."] if names else []


def _points(value: float) -> str:
    return f"{value:+.2f}".replace("-", "−")


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
