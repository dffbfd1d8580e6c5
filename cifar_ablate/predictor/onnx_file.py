"""Export a network to ONNX and compare the file with torch; the only module that writes ONNX."""

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
from torch import Tensor, nn

from cifar_ablate.errors import RecordError, not_written
from cifar_ablate.predictor.network import Predictor, normalisation, untrained

OPSET = 20
"""Version of the ONNX operator set."""
NUM_CHECKED = 1000
"""Number of images on which the file is compared with torch."""
TOLERANCE = 1e-4
"""Largest accepted difference between two probabilities."""


@dataclass(frozen=True)
class OnnxCheck:
    """Comparison of an ONNX file with torch, both in fp32."""

    num_images: int
    what: str
    """The images, in words."""
    num_same_class: int
    """Images to which both give the same class."""
    largest_difference: float
    """Largest difference between two probabilities."""

    def sentence(self) -> str:
        """The result in one sentence."""
        return (
            f"ONNX against torch (fp32) on {self.num_images:,} {self.what}: the same class for "
            f"{self.num_same_class:,}, probabilities at most {self.largest_difference:.1e} apart"
        )


class OnnxExport(nn.Module):
    """The network as ONNX files contain it: uint8 images [N, 3, H, W] to float32 probabilities [N, C], in fp32.

    Normalisation, flip averaging and softmax are inside. The convolutions are torch's own, without those that
    ``Predictor`` replaces on a CPU.
    """

    def __init__(self, predictor: Predictor) -> None:
        super().__init__()
        self.model = untrained(predictor.card)
        self.model.load_state_dict(predictor.model.state_dict())
        self.flip_averaging = predictor.card.preprocessing.flip_averaging
        mean, std = normalisation(predictor.card)
        self.mean, self.std = nn.Buffer(mean), nn.Buffer(std)

    def forward(self, images: Tensor) -> Tensor:
        pixels = (images.float() / 255 - self.mean) / self.std
        logits: Tensor = self.model(pixels)
        if self.flip_averaging:
            logits = (logits + self.model(pixels.flip(3))) / 2
        return logits.softmax(1)


def write_onnx(predictor: Predictor, path: Path, images: NDArray[np.uint8], what: str) -> OnnxCheck:
    """Export a network to ``path`` and compare the file with torch.

    Args:
        predictor: The network.
        path: ONNX file to write, with the input ``images`` (uint8 [N, 3, H, W]) and the output ``probabilities``
            (float32 [N, C]).
        images: uint8 [N, 3, H, W] for the comparison.
        what: Those images, in words.

    Raises:
        RecordError: The network cannot be exported, or the file gives other answers than torch.
        OutputError: ``path`` cannot be written.
    """
    network = OnnxExport(predictor).eval()
    size = predictor.image_size_px
    example = torch.zeros(2, 3, size, size, dtype=torch.uint8)
    said = io.StringIO()
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            warnings.simplefilter("ignore")  # the exporter warns about itself
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
    except Exception as error:  # the exporter raises many classes, depending on the network
        reason = str(error).strip().split("\n", 1)[0][:200]
        raise RecordError(f"network {predictor.card.network} cannot be written as ONNX ({reason})") from None
    return check_onnx(network, path, images, what)


def check_onnx(network: OnnxExport, path: Path, images: NDArray[np.uint8], what: str) -> OnnxCheck:
    """Compare an ONNX file with its network on uint8 images [N, 3, H, W]; raises RecordError if they differ."""
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
    checked = OnnxCheck(len(images), what, same, largest)
    if same < len(images) or not largest <= TOLERANCE:
        raise RecordError(f"the ONNX file does not answer as torch does. {checked.sentence()}; nothing was packaged")
    return checked
