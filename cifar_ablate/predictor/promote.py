"""``cifar-ablate promote``: an arm's network into MLflow's model registry, with all that is known of it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from cifar_ablate.errors import RecordError, UsageError
from cifar_ablate.predictor.best import Choice, best_arm
from cifar_ablate.predictor.card import CARD, WEIGHTS, Card, digest_of, fill
from cifar_ablate.predictor.from_run import arm_named, first_seed, from_run
from cifar_ablate.process import temporary_folder
from cifar_ablate.records import StudyRecord
from cifar_ablate.spec.schema import Recipe
from cifar_ablate.tracking import Tracking, noted
from cifar_ablate.tracking.models import CHAMPION, register

MAX_TAG = 4500
"""Characters; MLflow refuses tags of more than 5,000."""


@dataclass(frozen=True)
class Promoted:
    """What was registered."""

    name: str
    version: str
    alias: str
    card: Card


def promote(tracking: Tracking, label: str, arm: str | None, *, alias: str = CHAMPION) -> Promoted:
    """Register the network of an arm's first seed, and point the alias at it; ``arm`` None: the best by the verdicts.

    Raises UnknownNameError for a study or an arm that there is not, RecordError where the seed has no usable weights.
    """
    check_alias(alias)
    record = tracking.load(label)
    if arm is None:
        choice = best_arm(record, _costs(record))
        noted(tracking, record, "promote", f"{choice.arm} was chosen")
    else:
        choice = Choice(arm_named(record, arm), "")
    run = first_seed(record, choice.arm)
    with temporary_folder() as folder, temporary_folder() as downloads:
        trained = from_run(
            tracking, record, run, downloads, chosen=choice.sentence, by_test=arm is None, with_verdicts=True
        )
        fill(folder, trained.card, trained.weights)
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
    return Promoted(label, version, alias, trained.card)


def check_alias(alias: str) -> None:
    """Raise UsageError for a name that MLflow takes for something else."""
    if not re.fullmatch(r"[A-Za-z][\w.-]{0,200}", alias) or alias == "latest" or re.fullmatch(r"[vV]\d+", alias):
        raise UsageError(f"--alias {alias}: give letters, digits, dots and dashes; not `latest`, and no version number")


def _costs(record: StudyRecord) -> Any:
    """Multiply-adds of an arm's training, from its recipe: seconds would depend on what else ran beside it."""
    from cifar_ablate.models.build import count

    @cache
    def cost(arm: str) -> float:
        document = next(one for one in record.document["arms"] if one["name"] == arm)
        recipe = Recipe.model_validate(document["recipe"])
        size = int(
            recipe.data.kwargs().get("image_size", 32)
        )  # of the sources, folders of images alone have another one
        per_image = count(recipe.model.name, recipe.model.kwargs(), image_size_px=size).mult_adds
        return float(per_image * recipe.epochs * _num_train(document))

    return cost


def _num_train(document: Mapping[str, Any]) -> int:
    """Training images of an arm, from how the record describes its data."""
    found = re.search(r"([\d,]+)( of [\d,]+)? training images", str(document.get("data", "")))
    if found is None:
        raise RecordError(f"the record does not say how many images {document['name']!r} was trained on; name an --arm")
    return int(found[1].replace(",", ""))


def _tags(card: Card) -> dict[str, str]:
    """What the registry shows of a version; all values are text."""
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


def lines_of(promoted: Promoted) -> list[str]:
    """What the command says."""
    card = promoted.card
    lines = [f"{promoted.name} version {promoted.version} is {promoted.alias}: {card.headline()}"]
    if card.accuracy.choice:
        lines.append(card.accuracy.choice)
    if card.accuracy.is_chosen_on_test:
        lines.append("Its accuracy was among what it was chosen by, so it looks a little better than it is.")
    lines.append(f"Try it: cifar-ablate predict IMAGE --model {promoted.name}@{promoted.alias}, or cifar-ablate serve")
    return lines
