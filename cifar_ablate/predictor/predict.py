"""``cifar-ablate predict``: many pictures through one network, told as a table or as JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from cifar_ablate.errors import DataError
from cifar_ablate.predictor.network import Predictor
from cifar_ablate.portable.answers import Answer
from cifar_ablate.portable.pictures import SUFFIXES, Picture

AT_A_TIME = 250
"""Pictures in memory."""


@dataclass(frozen=True)
class Predicted:
    """What became of one file: an answer, or why there is none."""

    path: Path
    answer: Answer | None
    error: str = ""


def find_pictures(paths: Sequence[Path]) -> list[Path]:
    """The files named, and of a folder all pictures in it and below, by name; raises DataError for an empty folder."""
    found: list[Path] = []
    for path in paths:
        if not path.is_dir():
            found.append(path)
            continue
        inside = sorted(one for one in path.rglob("*") if one.is_file() and one.suffix.lower() in SUFFIXES)
        if not inside:
            raise DataError(f"there is no picture in {path} ({', '.join(SUFFIXES)}); name a picture, or its folder")
        found += inside
    return found


def predict_files(
    predictor: Predictor, paths: Iterable[Path], on_done: Callable[[int], None] = lambda num: None
) -> Iterator[Predicted]:
    """Answers in the order of the files; one that is no picture does not keep the others from theirs."""
    left = iter(paths)
    while chunk := list(islice(left, AT_A_TIME)):
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
                yield Predicted(path, next(answers))
            else:
                yield Predicted(path, None, str(picture))


def as_json(predictor: Predictor, predicted: Sequence[Predicted], top: int) -> str:
    """One document: the network, and every file with its answer or its error."""
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


def table_of(predicted: Sequence[Predicted], top: int) -> Iterator[str]:
    """A line for each picture: its name, the likeliest classes with their probabilities, and what is to be said."""
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
    """A name as a terminal may show it: what is not printable would be taken for a command."""
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in str(path))


def failures(predicted: Sequence[Predicted]) -> list[str]:
    """Why files have no answer."""
    return [one.error for one in predicted if one.answer is None]
