"""``predictor.json``: classes, preprocessing, provenance and accuracy of a network, readable without its record."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PositiveFloat, ValidationError

from cifar_ablate.errors import RecordError, not_written
from cifar_ablate.portable.answers import WarningBounds
from cifar_ablate.record.folder import write_atomically

CARD, WEIGHTS = "predictor.json", "weights.safetensors"
"""File names in a folder from which ``load`` can load."""
FORMAT = 1
"""Version of ``predictor.json``. Raise it when older programs can no longer read the file."""

Interval = tuple[float, float]


def _named(network: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(network.get("name"), str):
        raise ValueError("has no name")
    return network


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Preprocessing(_Frozen):
    """How an image becomes the input of the network."""

    image_size_px: Annotated[int, Field(ge=1, le=4096)]
    """Height and width: the shorter side is resized (bilinear, antialiased), and the centre is cropped."""
    mean: Annotated[list[float], Field(min_length=3, max_length=3)]
    """Subtracted from the RGB channels in [0, 1]."""
    std: Annotated[list[PositiveFloat], Field(min_length=3, max_length=3)]
    """Divides the channels after that."""
    flip_averaging: bool = False
    """Average the logits of an image and of its mirror image."""


class Provenance(_Frozen):
    """The run that trained the weights."""

    study: str
    """Label of the study's variant."""
    arm: str
    seed: int
    run_id: str
    """MLflow run id."""
    fingerprint: str
    epochs: int
    precision: Literal["fp32", "bf16"]
    """Precision in which the run was evaluated."""
    data: str
    """The data in words (``DataSet.describe``)."""
    data_digest: str
    recipe: dict[str, Any]


class SeedSpread(_Frozen):
    """Test accuracy of the arm over its seeds, in percent."""

    mean: float
    sd: float
    num_seeds: int
    interval: Interval
    """95% confidence interval of the mean over seeds (Student's t)."""


class Accuracy(_Frozen):
    """Test accuracy of the network, in percent."""

    percent: float
    """Accuracy of this network on all test images."""
    num_images: int
    interval: Interval
    """95% confidence interval for new images of the same distribution (Wilson)."""
    over_seeds: SeedSpread | None = None
    """None with fewer than three seeds, or if one of them diverged."""
    is_chosen_on_test: bool = False
    """Whether the arm was chosen by its accuracy on these test images, which makes the accuracy optimistic."""
    choice: str = ""
    """How the arm was chosen, in words."""


class Card(_Frozen):
    """Everything about a network except its weights."""

    format: int = FORMAT
    network: Annotated[dict[str, Any], AfterValidator(_named)]
    """Name and options of the model."""
    classes: Annotated[list[str], Field(min_length=2)]
    """Class names, by label."""
    preprocessing: Preprocessing
    origin: Provenance
    accuracy: Accuracy
    usual: WarningBounds
    """Bounds on confidence and entropy, calibrated on the test images."""
    question: str = ""
    """Question of the study."""
    verdicts: list[str] = []
    """Verdicts of the study on the arm at the time when the card was written."""
    sha256: dict[str, str]
    """SHA-256 of the files beside the card, by name."""

    def headline(self) -> str:
        """The network and its test accuracy in one line."""
        one, of = self.accuracy, self.origin
        low, high = one.interval
        text = (
            f"{of.study}, arm {of.arm}, seed {of.seed}: {one.percent:.2f}% of {one.num_images:,} test images "
            f"(95% CI {low:.2f} to {high:.2f})"
        )
        return f"{text}; chosen on this test set" if one.is_chosen_on_test else text

    def about(self) -> str:
        """The network, its accuracy and its data as a paragraph of markdown."""
        from cifar_ablate.analysis.sentences import count  # imports SciPy, which a prediction does not need
        from cifar_ablate.report.formats.markdown import escape

        of, accuracy = self.origin, self.accuracy
        low, high = accuracy.interval
        lines = [
            f"**Study** {escape(of.study)}, **arm** {escape(of.arm)}, **seed** {of.seed} "
            f"({count(of.epochs, 'epoch')}): **{accuracy.percent:.2f}%** of {accuracy.num_images:,} test images right "
            f"(95% CI {low:.2f} to {high:.2f})."
        ]
        if accuracy.over_seeds is not None:
            spread = accuracy.over_seeds
            low, high = spread.interval
            lines.append(f"Its arm over {spread.num_seeds} seeds: {spread.mean:.2f}% (95% CI {low:.2f} to {high:.2f}).")
        if accuracy.choice:
            lines.append(escape(accuracy.choice))
        lines.append(f"Data: {escape(of.data)}.")
        return " ".join(lines)


def write_card(folder: Path, card: Card, weights: Path) -> None:
    """Write the card and a copy of the weights into a folder from which ``load`` can load; raises OutputError."""
    try:
        shutil.copyfile(weights, folder / WEIGHTS)
    except OSError as error:
        raise not_written(folder / WEIGHTS, error) from None
    write_atomically(folder / CARD, json.dumps(card.model_dump(mode="json"), indent=1, ensure_ascii=False) + "\n")


def read_card(folder: Path) -> Card:
    """Read the card in a folder; raises RecordError if it is missing, damaged or of a newer version."""
    path = folder / CARD
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        raise RecordError(f"{folder} has no {CARD}; name a folder that `cifar-ablate package` wrote") from None
    except ValueError:
        raise RecordError(f"{path} is damaged; package or promote it again") from None
    if isinstance(values, Mapping) and isinstance(values.get("format"), int) and values["format"] > FORMAT:
        raise RecordError(f"{path} was written by a newer cifar-ablate; use that one")
    try:
        return Card.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise RecordError(f"{path} is damaged ({where}: {first['msg']}); package or promote it again") from None


def check_files(card: Card, folder: Path) -> None:
    """Raise RecordError if a file that the card names is missing or has another SHA-256."""
    for name, expected in card.sha256.items():
        path = folder / name
        if Path(name).name != name:
            raise RecordError(f"{folder / CARD} names a file outside of its folder ({name}); package it again")
        if not path.is_file():
            raise RecordError(f"{path} is missing; package or promote it again")
        if digest_of(path) != expected:
            raise RecordError(
                f"{path} is not the file that {CARD} was written for (SHA-256); package or promote it again"
            )


def digest_of(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
