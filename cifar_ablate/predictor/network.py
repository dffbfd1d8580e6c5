"""A trained network as a callable: pictures in, probabilities out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from cifar_ablate.augment.pipeline import Pipeline
from cifar_ablate.errors import DataError, RecordError
from cifar_ablate.models.build import build_model
from cifar_ablate.predictor.card import Card
from cifar_ablate.portable.answers import Answer, answer, softmax
from cifar_ablate.portable.pictures import Picture, PictureError, open_picture
from cifar_ablate.training.checkpoint import load_weights
from cifar_ablate.training.engine import on_device
from cifar_ablate.training.evaluate import predict_logits

Source = str | Path | bytes | Image.Image | NDArray[Any]
"""A path, the content of a file, a PIL image, or an array uint8 [H, W], [H, W, 3] or [H, W, 4]."""


class Predictor:
    """A trained network with everything that belongs to it; what ``load`` gives.

    It computes as its run was evaluated: in that run's precision, and with flip averaging where the recipe says so.
    """

    def __init__(self, card: Card, weights: Path, *, device: str = "cpu") -> None:
        """Raises RecordError where the weights are damaged, altered, or of another network."""
        self.card, self.device = card, torch.device(device)
        self.model = on_device(_network(card, weights), self.device)
        self._pipeline = _without_augmentations(card, self.device)

    @property
    def classes(self) -> tuple[str, ...]:
        """By label."""
        return tuple(self.card.classes)

    @property
    def image_size_px(self) -> int:
        return self.card.preprocessing.image_size_px

    def __call__(self, source: Source) -> Answer:
        """Classes with their probabilities for one picture, of any common format and size.

        Raises DataError where it is no picture, or none that can be used.
        """
        return self.answer(self.picture(source))

    def picture(self, source: Source, *, name: str = "") -> Picture:
        """The picture as the network takes it; raises DataError."""
        try:
            return open_picture(source, self.image_size_px, name=name)
        except PictureError as error:
            raise DataError(str(error)) from None

    def answer(self, picture: Picture) -> Answer:
        """Of a picture that was brought to the network's size."""
        return self.answers([picture])[0]

    def answers(self, pictures: Sequence[Picture]) -> list[Answer]:
        """Of several pictures, in one pass."""
        if not pictures:
            return []
        probabilities = self.probabilities(np.stack([picture.pixels for picture in pictures]))
        return [
            answer(row, self.classes, self.card.usual, picture.how)
            for row, picture in zip(probabilities, pictures, strict=True)
        ]

    def probabilities(self, images: NDArray[np.uint8]) -> NDArray[np.float64]:
        """float64 [N, classes] of uint8 images [N, 3, H, W] of the network's own size; raises DataError."""
        size = self.image_size_px
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != (3, size, size):
            raise DataError(
                f"images are {images.dtype} {list(images.shape)}; give uint8 [N, 3, {size}, {size}], or call the "
                "predictor with one picture of any size"
            )
        return softmax(self.logits(torch.from_numpy(images)).numpy())

    def logits(self, images: Tensor) -> Tensor:
        """float32 [N, classes] of uint8 images [N, 3, H, W], as the run computed its test predictions."""
        return predict_logits(
            self.model,
            images.to(self.device),
            self._pipeline,
            self.card.origin.precision,
            flip_averaging=self.card.preprocessing.flip_averaging,
        )


class Portable(nn.Module):
    """uint8 images [B, 3, H, W] to probabilities float32 [B, classes], in fp32: what ONNX files hold."""

    def __init__(self, predictor: Predictor) -> None:
        super().__init__()
        self.model = plain_network(predictor)
        self.flip_averaging = predictor.card.preprocessing.flip_averaging
        mean, std = _scale(predictor.card)
        self.mean, self.std = nn.Buffer(mean), nn.Buffer(std)

    def forward(self, images: Tensor) -> Tensor:
        pixels = (images.float() / 255 - self.mean) / self.std
        logits: Tensor = self.model(pixels)
        if self.flip_averaging:
            logits = (logits + self.model(pixels.flip(3))) / 2
        return logits.softmax(1)


def plain_network(predictor: Predictor) -> nn.Module:
    """The network on a CPU as it was written, without our convolutions, in evaluation mode."""
    card = predictor.card
    model = _fresh(card)
    model.load_state_dict(predictor.model.state_dict())
    return model.eval()


def _network(card: Card, weights: Path) -> nn.Module:
    tensors, metadata = load_weights(weights)
    if metadata.get("fingerprint") != card.origin.fingerprint:
        raise RecordError(
            f"{weights} is of the training {metadata.get('fingerprint', 'of nobody')}, not of "
            f"{card.origin.fingerprint}; package or promote it again"
        )
    model = _fresh(card)
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        reason = str(error).strip().split("\n", 1)[0]
        raise RecordError(f"{weights} does not fit the network {card.network} ({reason})") from None
    return model.eval()


def _fresh(card: Card) -> nn.Module:
    options = {name: value for name, value in card.network.items() if name != "name"}
    size, num = card.preprocessing.image_size_px, len(card.classes)
    return build_model(card.network["name"], options, num_classes=num, image_size_px=size, init_seed=0)


def _scale(card: Card) -> tuple[Tensor, Tensor]:
    one = card.preprocessing
    mean, std = (torch.tensor(values, dtype=torch.float32).view(1, 3, 1, 1) for values in (one.mean, one.std))
    return mean, std


def _without_augmentations(card: Card, device: torch.device) -> Pipeline:
    mean, std = _scale(card)
    return Pipeline((), (), (), mean.to(device), std.to(device), len(card.classes), 0.0)
