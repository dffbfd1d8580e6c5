"""How often a network warns of pictures that show none of its classes: ``python -m benchmarks.unlike [MODEL]``.

MODEL is what ``cifar-ablate predict --model`` takes; without it, the only champion in this folder. The test images of
its own data stand beside: of them, few shall be warned of.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from cifar_ablate.data import load_data
from cifar_ablate.portable.answers import entropies, warning_of
from cifar_ablate.predictor import Predictor, load
from cifar_ablate.predictor.load import test_images

NUM = 1000


def pictures(predictor: Predictor) -> Iterator[tuple[str, NDArray[np.uint8]]]:
    """Kinds of pictures, each uint8 [N, 3, H, W]."""
    size = predictor.image_size_px
    draws = np.random.default_rng(0)
    if (data := test_images(predictor.card, print)) is not None:
        yield f"test images of {data.name}", data.test_images
    yield "noise", draws.integers(0, 256, (NUM, 3, size, size), dtype=np.uint8)
    yield "one colour", draws.integers(0, 256, (NUM, 3, 1, 1), dtype=np.uint8).repeat(size, 2).repeat(size, 3)
    if size == 32 and predictor.card.origin.recipe["data"]["name"] != "digits":
        digits = load_data("digits", {})
        yield "handwritten digits", digits.train_images[:NUM]


def main() -> None:
    """Print the share of each kind that is warned of."""
    predictor = load(*sys.argv[1:2])
    print(predictor.card.headline())
    for kind, images in pictures(predictor):
        rows = predictor.probabilities(images)
        warned = [
            bool(warning_of(float(row.max()), float(entropy), predictor.card.usual))
            for row, entropy in zip(rows, entropies(rows), strict=True)
        ]
        print(f"{kind:28} {np.mean(warned):6.1%} of {len(images):,}")


if __name__ == "__main__":
    main()
