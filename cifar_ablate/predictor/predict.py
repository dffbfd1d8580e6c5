"""``cifar-ablate predict``: answers for many image files, as a table or as JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from cifar_ablate.errors import DataError
from cifar_ablate.portable.answers import Answer
from cifar_ablate.portable.pictures import SUFFIXES, Picture
from cifar_ablate.predictor.network import Predictor

BATCH_SIZE = 250
"""Images decoded and predicted at a time."""


@dataclass(frozen=True)
class Prediction:
    """The answer for one file, or the reason why there is none."""

    path: Path
    answer: Answer | None
    error: str = ""
    """Why the file cannot be used; empty if it has an answer."""


def find_pictures(paths: Sequence[Path]) -> list[Path]:
    """The named files, and all images in and below the named folders, by name.

    Raises DataError for a folder without images.
    """
    found: list[Path] = []
    for path in paths:
        if not path.is_dir():
            found.append(path)
            continue
        inside = sorted(one for one in path.rglob("*") if one.is_file() and one.suffix.lower() in SUFFIXES)
        if not inside:
            raise DataError(f"there is no image in {path} ({', '.join(SUFFIXES)}); name an image, or its folder")
        found += inside
    return found


def predict_files(
    predictor: Predictor, paths: Iterable[Path], on_done: Callable[[int], None] = lambda num: None
) -> Iterator[Prediction]:
    """Predict files in their order; one that cannot be used gives a ``Prediction`` with an error.

    ``on_done`` is called with 1 after each file is decoded.
    """
    left = iter(paths)
    while chunk := list(islice(left, BATCH_SIZE)):
        pictures: list[Picture | DataError] = []
        for path in chunk:
            try:
                pictures.append(predictor.picture(path, name=shown(path)))
            except DataError as error:
                pictures.append(error)
            on_done(1)
        answers = iter(predictor.answers([one for one in pictures if isinstance(one, Picture)]))
        for path, picture in zip(chunk, pictures, strict=True):
            if isinstance(picture, Picture):
                yield Prediction(path, next(answers))
            else:
                yield Prediction(path, None, str(picture))


def as_json(predictor: Predictor, predicted: Sequence[Prediction], top: int) -> str:
    """One JSON document with the network, and every file with its answer or its error."""
    card = predictor.card
    network = {
        "study": card.origin.study,
        "arm": card.origin.arm,
        "seed": card.origin.seed,
        "run_id": card.origin.run_id,
        "test_accuracy": card.accuracy.percent,
        "chosen_on_test_set": card.accuracy.is_chosen_on_test,
    }
    files = [
        {"path": str(one.path), **(one.answer.as_dict(top) if one.answer else {"error": one.error})}
        for one in predicted
    ]
    return json.dumps({"network": network, "pictures": files}, indent=1, ensure_ascii=False) + "\n"


def table_of(predicted: Sequence[Prediction], top: int) -> Iterator[str]:
    """Lines of a table: per file its name, the likeliest classes with their probabilities, and any warning."""
    width = max((len(shown(one.path)) for one in predicted), default=0)
    for one in predicted:
        if one.answer is None:
            yield f"{shown(one.path):{width}}  error"
            continue
        listed = "  ".join(f"{name} {value:.1%}" for name, value in one.answer.classes[:top])
        yield f"{shown(one.path):{width}}  {listed}  ({one.answer.how})"
        if one.answer.warning:
            yield f"{'':{width}}  ! {one.answer.warning}"


def shown(path: Path) -> str:
    """A file name for the terminal, with unprintable characters escaped."""
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in str(path))


def failures(predicted: Sequence[Prediction]) -> list[str]:
    """Error messages of the files without an answer."""
    return [one.error for one in predicted if one.answer is None]
