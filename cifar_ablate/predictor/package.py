"""``cifar-ablate package``: a folder that runs anywhere, without this program."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from importlib.resources import as_file, files
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cifar_ablate.data import DataSet
from cifar_ablate.errors import OutputError, UsageError, not_written
from cifar_ablate.folder import write_atomically
from cifar_ablate.predictor.around import test_images, write_examples
from cifar_ablate.predictor.card import WEIGHTS, Card, digest_of, fill
from cifar_ablate.predictor.from_run import Trained
from cifar_ablate.predictor.load import located
from cifar_ablate.predictor.model_card import about_page, model_card
from cifar_ablate.predictor.network import Predictor
from cifar_ablate.predictor.onnx_file import NUM_CHECKED, Checked, write_onnx
from cifar_ablate.process import temporary_folder

MODEL = "model.onnx"
RUNTIME = ("numpy", "pillow", "onnxruntime")
"""What a packaged network needs; with a page, gradio too."""


@dataclass(frozen=True)
class Packaged:
    """What was written."""

    folder: Path
    card: Card
    checked: Checked
    has_page: bool
    notes: tuple[str, ...]


def package(folder: Path, *, model: str | None = None, run: str | None = None, space: bool = False) -> Packaged:
    """Write the folder whole or not at all; raises as ``load``, OutputError, and UsageError where it is not empty."""
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
    return Packaged(folder, card, checked, space, tuple(notes))


def lines_of(packaged: Packaged) -> list[str]:
    """What the command says."""
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


def _fill(place: Path, found: Trained) -> Card:
    """Weights, card, and the files that need no network of ours."""
    digests = {WEIGHTS: found.card.sha256[WEIGHTS], MODEL: digest_of(place / MODEL)}
    card = found.card.model_copy(update={"sha256": digests})
    fill(place, card, found.weights)
    here = files("cifar_ablate.predictor")
    with as_file(here / "portable") as portable:
        shutil.copytree(portable, place / "portable", ignore=shutil.ignore_patterns("__pycache__"))
    return card


def _describe(place: Path, card: Card, checked: Checked, *, space: bool) -> None:
    templates = files("cifar_ablate.predictor") / "templates"
    names = ("predict.py", "app.py") if space else ("predict.py",)
    for name in names:
        write_atomically(place / name, (templates / name).read_text(encoding="utf-8"))
    if not space:
        (place / "portable" / "page.py").unlink()
    else:
        write_atomically(place / "ABOUT.md", about_page(card))
    libraries = [*RUNTIME, "gradio"] if space else RUNTIME
    gradio = version("gradio") if space else None
    write_atomically(place / "requirements.txt", "".join(f"{_pinned(name)}\n" for name in libraries))
    text = model_card(card, checked=checked.sentence(), gradio=gradio)
    write_atomically(place / "README.md", text)


def _pinned(name: str) -> str:
    """Any later release of the major version that it was packaged with."""
    found = version(name)
    return f"{name}>={found},<{int(found.split('.', maxsplit=1)[0]) + 1}"


@contextmanager
def _written_at(folder: Path) -> Iterator[Path]:
    """A folder beside ``folder`` that takes its place only if the block succeeds."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with temporary_folder(within=folder.parent, prefix=f".{folder.name}.") as place:
            inside = place / "folder"
            inside.mkdir()
            yield inside
            if not folder.exists():
                inside.replace(folder)
                return
            for path in list(inside.iterdir()):  # it may be the folder that somebody is in
                path.replace(folder / path.name)
    except OutputError:
        raise
    except OSError as error:
        raise not_written(folder, error) from None
