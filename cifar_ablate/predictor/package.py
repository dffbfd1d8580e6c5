"""``cifar-ablate package``: a folder with a network that runs without this program, and its model card."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData, SpaceCard, SpaceCardData
from numpy.typing import NDArray

from cifar_ablate.analysis.sentences import count
from cifar_ablate.data import DataSet
from cifar_ablate.errors import OutputError, UsageError, not_written
from cifar_ablate.predictor.card import WEIGHTS, Card, digest_of, write_card
from cifar_ablate.predictor.load import NetworkFiles, located, test_images, write_examples
from cifar_ablate.predictor.network import Predictor
from cifar_ablate.predictor.onnx_file import NUM_CHECKED, OnnxCheck, write_onnx
from cifar_ablate.process import temporary_folder
from cifar_ablate.record.folder import write_atomically
from cifar_ablate.report.formats.markdown import escape

MODEL = "model.onnx"
RUNTIME = ("numpy", "pillow", "onnxruntime")
"""Libraries that a package needs; with a page, it needs gradio, too."""
TEMPLATES = files("cifar_ablate.predictor") / "templates"


@dataclass(frozen=True)
class PackageResult:
    """A package that was written."""

    folder: Path
    card: Card
    checked: OnnxCheck
    has_page: bool
    notes: tuple[str, ...]
    """Remarks for the user, such as missing test images."""


def package(folder: Path, *, model: str | None = None, run: str | None = None, space: bool = False) -> PackageResult:
    """Write a package of a network, whole or not at all.

    Args:
        folder: A new or empty folder.
        model: As for ``load``.
        run: As for ``load``.
        space: Add a page and the metadata of a Hugging Face Space.

    Raises:
        UsageError: The folder is not empty; otherwise as ``load``.
        OutputError: The folder cannot be written.
        RecordError: The network cannot be exported to ONNX.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} is there already; name a new or an empty folder")
    notes: list[str] = []
    with located(model, run=run, with_verdicts=True) as found, _written_at(folder.absolute()) as place:
        predictor = Predictor(found.card, found.weights)
        data = test_images(found.card, notes.append)
        images, what = _images(data, predictor.image_size_px)
        checked = write_onnx(predictor, place / MODEL, images, what)
        card = _fill(place, found)
        if space and data is not None:
            (place / "examples").mkdir()
            write_examples(data, place / "examples")
        _describe(place, card, checked, space=space)
    return PackageResult(folder, card, checked, space, tuple(notes))


def lines_of(packaged: PackageResult) -> list[str]:
    """Lines that the command prints."""
    size = sum(path.stat().st_size for path in packaged.folder.rglob("*") if path.is_file())
    lines = [f"{packaged.folder}: {packaged.card.headline()}, {size / 1e6:.1f} MB", packaged.checked.sentence()]
    lines += packaged.notes
    start = "python app.py" if packaged.has_page else "python predict.py IMAGE"
    lines.append(f"There: pip install -r requirements.txt && {start}")
    return lines


def _images(data: DataSet | None, size_px: int) -> tuple[NDArray[np.uint8], str]:
    if data is not None:
        images = np.ascontiguousarray(data.test_images[:NUM_CHECKED])
        return images, f"test images of {data.name}"
    shape = (NUM_CHECKED, 3, size_px, size_px)
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8), "images of noise (the data are not here)"


def _fill(place: Path, found: NetworkFiles) -> Card:
    """Write the weights, the card and ``portable/``."""
    digests = {WEIGHTS: found.card.sha256[WEIGHTS], MODEL: digest_of(place / MODEL)}
    card = found.card.model_copy(update={"sha256": digests})
    write_card(place, card, found.weights)
    with as_file(files("cifar_ablate.portable")) as portable:
        shutil.copytree(portable, place / "portable", ignore=shutil.ignore_patterns("__pycache__"))
    return card


def _describe(place: Path, card: Card, checked: OnnxCheck, *, space: bool) -> None:
    """Write the scripts, the requirements and the model card."""
    names = ("predict.py", "app.py") if space else ("predict.py",)
    for name in names:
        write_atomically(place / name, (TEMPLATES / name).read_text(encoding="utf-8"))
    if not space:
        (place / "portable" / "page.py").unlink()
    else:
        write_atomically(place / "ABOUT.md", card.about() + "\n")
    libraries = [*RUNTIME, "gradio"] if space else RUNTIME
    write_atomically(place / "requirements.txt", "".join(f"{_pinned(name)}\n" for name in libraries))
    write_atomically(place / "README.md", _model_card(card, checked, has_page=space))


def _model_card(card: Card, checked: OnnxCheck, *, has_page: bool) -> str:
    """README.md with the metadata that the Hugging Face Hub reads (its docs: "Model Cards", "Spaces")."""
    values: dict[str, Any] = {
        "template_str": (TEMPLATES / "model_card.md").read_text(encoding="utf-8"),
        "card": card,
        "checked": checked.sentence(),
        "has_page": has_page,
        "recipe": yaml.safe_dump(card.origin.recipe, sort_keys=False, allow_unicode=True),
        "escape": escape,
        "count": count,
    }
    title = f"{card.origin.study} {card.origin.arm}"[:60]
    if has_page:
        python = f"{sys.version_info.major}.{sys.version_info.minor}"  # a Space's default is too old for recent numpy
        space = SpaceCardData(
            title=title, sdk="gradio", sdk_version=version("gradio"), python_version=python, app_file="app.py"
        )
        return f"{SpaceCard.from_template(space, **values)}\n"
    accuracy = EvalResult(
        task_type="image-classification",
        dataset_type=str(card.origin.recipe["data"]["name"]),
        dataset_name=card.origin.data,
        metric_type="accuracy",
        metric_name="Test accuracy, %",
        metric_value=round(card.accuracy.percent, 2),
    )
    model = ModelCardData(
        title=title,
        library_name="onnx",
        pipeline_tag="image-classification",
        tags=["cifar-ablate"],
        model_name=title,
        eval_results=[accuracy],
    )
    return f"{ModelCard.from_template(model, **values)}\n"


def _pinned(name: str) -> str:
    """A requirement for the installed version or a later one with the same major version."""
    found = version(name)
    return f"{name}>={found},<{int(found.split('.', maxsplit=1)[0]) + 1}"


@contextmanager
def _written_at(folder: Path) -> Iterator[Path]:
    """A temporary folder that becomes ``folder`` if the block succeeds."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with temporary_folder(within=folder.parent, prefix=f".{folder.name}.") as place:
            inside = place / "folder"
            inside.mkdir()
            yield inside
            if not folder.exists():
                inside.replace(folder)
                return
            for path in list(inside.iterdir()):  # an empty folder may be somebody's current folder
                path.replace(folder / path.name)
    except OutputError:
        raise
    except OSError as error:
        raise not_written(folder, error) from None
