"""The only door to ONNX: a network as a file for other runtimes, checked against torch before it is kept."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from cifar_ablate.errors import RecordError, not_written
from cifar_ablate.predictor.network import Portable, Predictor

OPSET = 20
NUM_CHECKED = 1000
TOLERANCE = 1e-4
"""Largest difference of a probability."""


@dataclass(frozen=True)
class Checked:
    """How an ONNX file compares with torch, both in fp32."""

    num_images: int
    what: str
    """The images, in words."""
    num_same_class: int
    largest_difference: float
    """Of a probability."""

    def sentence(self) -> str:
        """For people."""
        return (
            f"ONNX against torch (fp32) on {self.num_images:,} {self.what}: the same class for "
            f"{self.num_same_class:,}, probabilities at most {self.largest_difference:.1e} apart"
        )


def write_onnx(predictor: Predictor, path: Path, images: NDArray[np.uint8], what: str) -> Checked:
    """Write ``path`` (``images`` uint8 [N, 3, H, W] to ``probabilities`` float32 [N, classes]), and check it.

    Raises RecordError where the network cannot be written as ONNX, or the file does not answer as torch does.
    """
    network = Portable(predictor).eval()
    size = predictor.image_size_px
    example = torch.zeros(2, 3, size, size, dtype=torch.uint8)
    said = io.StringIO()
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            warnings.simplefilter("ignore")  # of the exporter, about its own parts
            torch.onnx.export(
                network,
                (example,),
                str(path),
                input_names=["images"],
                output_names=["probabilities"],
                dynamic_shapes=({0: torch.export.Dim("num_images", min=1)},),
                opset_version=OPSET,
                dynamo=True,
                external_data=False,
                verbose=False,
            )
    except OSError as error:
        raise not_written(path, error) from None
    except Exception as error:  # whatever a network of another library meets in the exporter
        reason = str(error).strip().split("\n", 1)[0][:200]
        raise RecordError(f"network {predictor.card.network} cannot be written as ONNX ({reason})") from None
    return check_onnx(network, path, images, what)


def check_onnx(network: Portable, path: Path, images: NDArray[np.uint8], what: str) -> Checked:
    """Compare a file with the network that it was made of; raises RecordError where they differ."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    same, largest = 0, 0.0
    for start in range(0, len(images), 100):
        batch = images[start : start + 100]
        with torch.no_grad():
            expected = network(torch.from_numpy(batch)).numpy()
        found = session.run(["probabilities"], {"images": batch})[0]
        same += int((found.argmax(1) == expected.argmax(1)).sum())
        largest = max(largest, float(np.abs(found - expected).max()))
    checked = Checked(len(images), what, same, largest)
    if same < len(images) or not largest <= TOLERANCE:
        raise RecordError(f"the ONNX file does not answer as torch does. {checked.sentence()}; nothing was packaged")
    return checked
