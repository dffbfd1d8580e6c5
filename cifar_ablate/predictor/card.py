"""What a network brings along to be used, and to be judged, without the record it comes from: ``predictor.json``."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PositiveFloat, ValidationError

from cifar_ablate.errors import RecordError, not_written
from cifar_ablate.folder import write_atomically
from cifar_ablate.portable.answers import Usual

CARD, WEIGHTS = "predictor.json", "weights.safetensors"
"""Names of the two files of a network that can be used."""
FORMAT = 1
"""Raised when ``predictor.json`` can no longer be read as before."""

Interval = tuple[float, float]


def _named(network: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(network.get("name"), str):
        raise ValueError("has no name")
    return network


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Preprocessing(_Frozen):
    """From a picture to what the network takes."""

    image_size_px: Annotated[int, Field(ge=1, le=4096)]
    """Height and width; others are resized on their shorter side (bilinear, antialiased), and cut to the centre."""
    mean: Annotated[list[float], Field(min_length=3, max_length=3)]
    """Of RGB channels in [0, 1]; subtracted."""
    std: Annotated[list[PositiveFloat], Field(min_length=3, max_length=3)]
    """Divided by, after that."""
    flip_averaging: bool = False
    """Logits are the mean of those of a picture and of its mirror image."""


class Origin(_Frozen):
    """Which training the weights are from."""

    study: str
    """Label of the study's variant."""
    arm: str
    seed: int
    run_id: str
    """Of MLflow."""
    fingerprint: str
    epochs: int
    precision: Literal["fp32", "bf16"]
    """As it was evaluated: fp32 or bf16."""
    data: str
    """The data, named for what they are."""
    data_digest: str
    recipe: dict[str, Any]


class Spread(_Frozen):
    """Test accuracy of the arm over its seeds, in percent."""

    mean: float
    sd: float
    num_seeds: int
    interval: Interval
    """95%, of the mean over seeds (Student's t)."""


class Accuracy(_Frozen):
    """What the network is worth, in percent."""

    percent: float
    """Of this network, on all test images."""
    num_images: int
    interval: Interval
    """95%, for new images like these (Wilson)."""
    over_seeds: Spread | None = None
    """None with fewer than three seeds, or where one has diverged."""
    is_chosen_on_test: bool = False
    """The arm was chosen because of its accuracy on these test images: it looks a little better than it is."""
    choice: str = ""
    """How the arm was chosen, in words."""


class Card(_Frozen):
    """Everything about a network but its weights."""

    format: int = FORMAT
    network: Annotated[dict[str, Any], AfterValidator(_named)]
    """Name and options of the model."""
    classes: Annotated[list[str], Field(min_length=2)]
    """By label."""
    preprocessing: Preprocessing
    origin: Origin
    accuracy: Accuracy
    usual: Usual
    """How sure the network is of its test images."""
    question: str = ""
    """Of the study."""
    verdicts: list[str] = []
    """What the study said of the arm when the card was written."""
    sha256: dict[str, str]
    """Of the files beside it, by name."""

    def headline(self) -> str:
        """Which network it is, and what it is worth, in one line."""
        one, of = self.accuracy, self.origin
        low, high = one.interval
        text = (
            f"{of.study}, arm {of.arm}, seed {of.seed}: {one.percent:.2f}% of {one.num_images:,} test images "
            f"(95% CI {low:.2f} to {high:.2f})"
        )
        return f"{text}; chosen on this test set" if one.is_chosen_on_test else text


def fill(folder: Path, card: Card, weights: Path) -> None:
    """Write the card and the weights, from which ``load`` can load; raises OutputError."""
    try:
        shutil.copyfile(weights, folder / WEIGHTS)
    except OSError as error:
        raise not_written(folder / WEIGHTS, error) from None
    write_atomically(folder / CARD, json.dumps(card.model_dump(mode="json"), indent=1, ensure_ascii=False) + "\n")


def read_card(folder: Path) -> Card:
    """Of a folder; raises RecordError where there is none, or it is damaged or of a newer program."""
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
    """Raise RecordError where a file beside the card is missing, or not the one that it was written for."""
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
