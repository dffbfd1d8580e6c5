"""What is told beside a network where its study and its data are at hand: verdicts, examples, what it is worth."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from cifar_ablate.analysis.sentences import count
from cifar_ablate.data import DataSet, load_data
from cifar_ablate.errors import AblateError
from cifar_ablate.predictor.card import Card
from cifar_ablate.records import StudyRecord
from cifar_ablate.report.formats.markdown import escape
from cifar_ablate.spec.schema import Recipe
from cifar_ablate.tracking import Tracking, existing

NUM_EXAMPLES = 10


def about(card: Card) -> str:
    """Which network it is and what it is worth, as markdown."""
    of, worth = card.origin, card.accuracy
    low, high = worth.interval
    lines = [
        f"**Study** {escape(of.study)}, **arm** {escape(of.arm)}, **seed** {of.seed} ({count(of.epochs, 'epoch')}): "
        f"**{worth.percent:.2f}%** of {worth.num_images:,} test images right (95% CI {low:.2f} to {high:.2f})."
    ]
    if worth.over_seeds is not None:
        spread = worth.over_seeds
        low, high = spread.interval
        lines.append(f"Its arm over {spread.num_seeds} seeds: {spread.mean:.2f}% (95% CI {low:.2f} to {high:.2f}).")
    if worth.choice:
        lines.append(escape(worth.choice))
    lines.append(f"Data: {escape(of.data)}.")
    return " ".join(lines)


def record_of(card: Card) -> tuple[StudyRecord | None, Tracking | None]:
    """The study that the network is from, where its record is at hand."""
    try:
        tracking = existing()
        record = tracking.load(card.origin.study)
    except AblateError:  # a packaged folder elsewhere
        return None, None
    is_it = any(run.run_id == card.origin.run_id for run in record.runs)  # and not another study of that name
    return (record, tracking) if is_it else (None, None)


def test_images(card: Card, say: Callable[[str], None]) -> DataSet | None:
    """The data that the network was trained and tested on; None, and why, where they are not here."""
    try:
        recipe = Recipe.model_validate(card.origin.recipe)
        data = load_data(recipe.data.name, recipe.data.kwargs(), train_size=recipe.train_size)
    except (AblateError, ValueError) as error:
        say(f"without test images: {error}")
        return None
    if data.digest != card.origin.data_digest:
        say("without test images: the data here are not those that the network was trained on")
        return None
    return data


def write_examples(data: DataSet, folder: Path) -> list[Path]:
    """Pictures of the first test image of each class, ten at most."""
    paths = []
    for label, name in list(enumerate(data.classes))[:NUM_EXAMPLES]:
        index = int(np.flatnonzero(data.test_labels == label)[0])
        path = folder / f"{label}-{_file_name(name)}.png"
        Image.fromarray(np.ascontiguousarray(data.test_images[index].transpose(1, 2, 0))).save(path)
        paths.append(path)
    return paths


def _file_name(text: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in text)[:40]
