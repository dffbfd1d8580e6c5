"""From probabilities to what is said: the likeliest classes, and whether the picture is like what is known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

USUAL_SHARE = 0.95
"""Of the test images, how many are to pass as usual."""


@dataclass(frozen=True)
class Usual:
    """How sure a network is of images like those it was tested on."""

    min_confidence: float
    """Of its first class, a probability."""
    max_entropy: float
    """Of its probabilities, in nats."""
    share: float
    """Of the test images, how many pass both, as measured."""


@dataclass(frozen=True)
class Answer:
    """What a network says of one picture."""

    classes: tuple[tuple[str, float], ...]
    """Every class with its probability, the likeliest first."""
    entropy: float
    """In nats."""
    warning: str
    """Why not to trust it; empty where there is no reason."""
    how: str = ""
    """How the picture was brought to the network's size."""

    @property
    def label(self) -> str:
        """The likeliest class."""
        return self.classes[0][0]

    @property
    def probability(self) -> float:
        """Of the likeliest class."""
        return self.classes[0][1]

    def as_dict(self, top: int | None = None) -> dict[str, Any]:
        """For JSON; ``top`` classes at most."""
        return {
            "label": self.label,
            "probability": round(self.probability, 6),
            "classes": {name: round(value, 6) for name, value in self.classes[:top]},
            "entropy": round(self.entropy, 6),
            "warning": self.warning,
            "how": self.how,
        }


def calibrate(probabilities: NDArray[np.floating[Any]]) -> Usual:
    """What is usual, from the probabilities [images, classes] of the test images.

    Half of what may be unusual goes to each of the two bounds, so that both together pass at least ``USUAL_SHARE``.
    """
    tail = (1 - USUAL_SHARE) / 2
    confidence, entropy = probabilities.max(1), entropies(probabilities)
    low = float(np.quantile(confidence, tail, method="lower"))
    high = float(np.quantile(entropy, 1 - tail, method="higher"))
    return Usual(low, high, float(((confidence >= low) & (entropy <= high)).mean()))


def entropies(probabilities: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """In nats, [images], of probabilities [images, classes]."""
    values = np.clip(probabilities.astype(np.float64), 1e-300, 1)
    found: NDArray[np.float64] = -(values * np.log(values)).sum(1)
    return found


def softmax(logits: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Probabilities [images, classes] of logits."""
    shifted = logits.astype(np.float64) - logits.max(1, keepdims=True)
    powers = np.exp(shifted)
    found: NDArray[np.float64] = powers / powers.sum(1, keepdims=True)
    return found


def answer(probabilities: NDArray[np.floating[Any]], classes: Sequence[str], usual: Usual, how: str) -> Answer:
    """Of one picture: probabilities [classes]."""
    order = np.argsort(-probabilities, kind="stable")
    entropy = float(entropies(probabilities[None])[0])
    ranked = tuple((classes[index], float(probabilities[index])) for index in order)
    return Answer(ranked, entropy, warning_of(ranked[0][1], entropy, usual), how)


def warning_of(confidence: float, entropy: float, usual: Usual) -> str:
    """One sentence where the network is less sure than of nearly all test images; else nothing."""
    if confidence >= usual.min_confidence and entropy <= usual.max_entropy:
        return ""
    if confidence < usual.min_confidence:
        measure = f"its probability of {confidence:.0%} is below {usual.min_confidence:.0%}"
    else:
        measure = f"its entropy of {entropy:.2f} nats is above {usual.max_entropy:.2f}"
    return (
        f"Less sure than of nearly all test images: {measure}, a bound that {usual.share:.1%} of them keep. "
        "The picture may show none of the classes, or be unlike what the network was trained on."
    )
