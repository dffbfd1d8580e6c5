"""A small study on digits, trained once, and pictures to show to its networks."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from urllib.parse import unquote, urlparse

import mlflow
import numpy as np
from PIL import Image

from cifar_ablate.data import load_data
from cifar_ablate.data.types import DataSet
from tests.comparing import runs_of

LABEL = "shapes"
STUDY = """
    study: shapes
    question: Does a larger step help a tiny network on digits?
    seeds: 4
    recipe:
      data: digits
      train_size: 500
      model: {name: resnet18-compact, width: 8}
      epochs: 3
      batch_size: 25
      optimizer: {name: sgd, lr: 0.0005}
    arms:
      baseline:
      larger: {optimizer: {lr: 0.02, momentum: 0.9}}
      larger and longer: {epochs: 4, optimizer: {lr: 0.02, momentum: 0.9}}
"""


def train(folder: Path) -> None:
    """Run the study as a user would, in a folder of its own."""
    (folder / "shapes.yaml").write_text(textwrap.dedent(STUDY), encoding="utf-8")
    environment = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
    command = [sys.executable, "-m", "cifar_ablate.cli", "run", "shapes.yaml"]
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@cache
def digits() -> DataSet:
    """The data that the networks were trained on."""
    return load_data("digits", {})


def run_of(arm: str, seed: int = 0) -> str:
    """MLflow's id of a run of the study."""
    (found,) = [
        run
        for run in runs_of(LABEL)
        if run.data.tags["ablate.arm"] == arm and run.data.tags["ablate.seed"] == str(seed)
    ]
    return str(found.info.run_id)


def artifact(run_id: str, name: str) -> Path:
    """A file of a run, where it is."""
    return Path(unquote(urlparse(mlflow.MlflowClient().get_run(run_id).info.artifact_uri).path)) / name


def picture(index: int = 0) -> Image.Image:
    """A test image."""
    return Image.fromarray(np.ascontiguousarray(digits().test_images[index].transpose(1, 2, 0)))


def content(image: Image.Image, format: str = "PNG", **options: object) -> bytes:
    """An image as a file's content."""
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


@contextmanager
def altered(path: Path, at: int) -> Iterator[None]:
    """One byte of a file is another one in the block."""
    before = path.read_bytes()
    path.write_bytes(before[:at] + bytes([before[at] ^ 1]) + before[at + 1 :])
    try:
        yield
    finally:
        path.write_bytes(before)
