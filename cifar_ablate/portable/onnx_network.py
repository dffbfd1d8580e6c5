"""Run a packaged network with onnxruntime, from ``predictor.json`` and ``model.onnx``."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .answers import Answer, WarningBounds, answer
from .pictures import Picture

CARD, MODEL = "predictor.json", "model.onnx"


class OnnxNetwork:
    """A packaged network on the CPU.

    Args:
        folder: The packaged folder, with ``predictor.json`` and ``model.onnx``.

    Raises:
        ValueError: ``model.onnx`` does not have the SHA-256 that ``predictor.json`` states.
    """

    def __init__(self, folder: Path) -> None:
        import onnxruntime

        self.card: dict[str, Any] = json.loads((folder / CARD).read_text(encoding="utf-8"))
        path = folder / MODEL
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != self.card["sha256"][MODEL]:
                raise ValueError(f"{path} is not the file that {CARD} was written for (SHA-256); package it again")
        self.session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        self.usual = WarningBounds(**self.card["usual"])

    @property
    def image_size_px(self) -> int:
        """Height and width of the images that the network takes."""
        return int(self.card["preprocessing"]["image_size_px"])

    def probabilities(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Class probabilities: uint8 [N, 3, H, W] to float32 [N, C]."""
        found: NDArray[np.float32] = self.session.run(["probabilities"], {"images": images})[0]
        return found

    def answers(self, pictures: Sequence[Picture]) -> list[Answer]:
        """Answers for several images, computed as one batch."""
        rows = self.probabilities(np.stack([picture.pixels for picture in pictures]))
        return [
            answer(row, self.card["classes"], self.usual, picture.how)
            for row, picture in zip(rows, pictures, strict=True)
        ]

    def answer(self, picture: Picture) -> Answer:
        """Answer for one image."""
        return self.answers([picture])[0]
