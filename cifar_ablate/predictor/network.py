"""A trained network as a callable that takes images and returns answers."""

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
from cifar_ablate.portable.answers import Answer, answer, softmax
from cifar_ablate.portable.pictures import Picture, PictureError, open_picture
from cifar_ablate.predictor.card import Card
from cifar_ablate.training.checkpoint import load_weights
from cifar_ablate.training.engine import on_device
from cifar_ablate.training.evaluate import predict_logits

Source = str | Path | bytes | Image.Image | NDArray[Any]
"""A path, the content of a file, a PIL image, or an array uint8 [H, W], [H, W, 3] or [H, W, 4]."""


class Predictor:
    """A trained network with its preprocessing; ``load`` returns one.

    It computes as its run was evaluated: in that run's precision, with flip averaging if the recipe has it.

    Args:
        card: Preprocessing, classes and provenance of the network.
        weights: Its weights in safetensors format.
        device: Device of the network, such as ``cpu`` or ``cuda``.

    Raises:
        RecordError: The weights are damaged, altered, or of another network.
    """

    def __init__(self, card: Card, weights: Path, *, device: str = "cpu") -> None:
        self.card, self.device = card, torch.device(device)
        self.model = on_device(_trained(card, weights), self.device)
        self._pipeline = _without_augmentations(card, self.device)

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, by label."""
        return tuple(self.card.classes)

    @property
    def image_size_px(self) -> int:
        """Height and width of the images that the network takes."""
        return self.card.preprocessing.image_size_px

    def __call__(self, source: Source) -> Answer:
        """Answer for one image of any common format and size; raises DataError if it cannot be used."""
        return self.answer(self.picture(source))

    def picture(self, source: Source, *, name: str = "") -> Picture:
        """Decode an image and bring it to the network's size; raises DataError if it cannot be used.

        ``name`` is what error messages call it; a path is its own name.
        """
        try:
            return open_picture(source, self.image_size_px, name=name)
        except PictureError as error:
            raise DataError(str(error)) from None

    def answer(self, picture: Picture) -> Answer:
        """Answer for an image at the network's size."""
        return self.answers([picture])[0]

    def answers(self, pictures: Sequence[Picture]) -> list[Answer]:
        """Answers for several images at the network's size, computed as one batch."""
        if not pictures:
            return []
        probabilities = self.probabilities(np.stack([picture.pixels for picture in pictures]))
        return [
            answer(row, self.classes, self.card.usual, picture.how)
            for row, picture in zip(probabilities, pictures, strict=True)
        ]

    def probabilities(self, images: NDArray[np.uint8]) -> NDArray[np.float64]:
        """Class probabilities: uint8 [N, 3, H, W] at the network's size to float64 [N, C].

        Raises DataError for another dtype or shape.
        """
        size = self.image_size_px
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != (3, size, size):
            raise DataError(
                f"images are {images.dtype} {list(images.shape)}; give uint8 [N, 3, {size}, {size}], or call the "
                "predictor with one image of any size"
            )
        return softmax(self.logits(torch.from_numpy(images)).numpy())

    def logits(self, images: Tensor) -> Tensor:
        """Logits, computed as the run computed its test predictions: uint8 [N, 3, H, W] to float32 [N, C]."""
        return predict_logits(
            self.model,
            images.to(self.device),
            self._pipeline,
            self.card.origin.precision,
            flip_averaging=self.card.preprocessing.flip_averaging,
        )


def _trained(card: Card, weights: Path) -> nn.Module:
    tensors, metadata = load_weights(weights)
    if metadata.get("fingerprint") != card.origin.fingerprint:
        raise RecordError(
            f"{weights} is of the run {metadata.get('fingerprint', 'unknown')}, not of "
            f"{card.origin.fingerprint}; package or promote it again"
        )
    model = untrained(card)
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        reason = str(error).strip().split("\n", 1)[0]
        raise RecordError(f"{weights} does not fit the network {card.network} ({reason})") from None
    return model.eval()


def untrained(card: Card) -> nn.Module:
    """The network of a card with initial weights, on the CPU."""
    options = {name: value for name, value in card.network.items() if name != "name"}
    size, num = card.preprocessing.image_size_px, len(card.classes)
    return build_model(card.network["name"], options, num_classes=num, image_size_px=size, init_seed=0)


def normalisation(card: Card) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the RGB channels: float32 [1, 3, 1, 1]."""
    one = card.preprocessing
    mean, std = (torch.tensor(values, dtype=torch.float32).view(1, 3, 1, 1) for values in (one.mean, one.std))
    return mean, std


def _without_augmentations(card: Card, device: torch.device) -> Pipeline:
    mean, std = normalisation(card)
    return Pipeline((), (), (), mean.to(device), std.to(device), len(card.classes), 0.0)
