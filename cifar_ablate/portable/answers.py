"""From class probabilities to an answer: the ranked classes, and a warning where the network is unusually unsure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

USUAL_SHARE = 0.95
"""Smallest share of the test images that must pass without a warning."""


@dataclass(frozen=True)
class WarningBounds:
    """Bounds on confidence and entropy, calibrated on the test images; an image outside of them gets a warning."""

    min_confidence: float
    """Smallest usual probability of the first class."""
    max_entropy: float
    """Largest usual entropy of the probabilities, in nats."""
    share: float
    """Measured share of the test images within both bounds."""


@dataclass(frozen=True)
class Answer:
    """What a network predicts for one image."""

    classes: tuple[tuple[str, float], ...]
    """Every class with its probability, the likeliest first."""
    entropy: float
    """Entropy of the probabilities, in nats."""
    warning: str
    """Why the answer is less reliable than usual; empty if it is not."""
    how: str = ""
    """How the image was converted and resized."""

    @property
    def label(self) -> str:
        """The likeliest class."""
        return self.classes[0][0]

    @property
    def probability(self) -> float:
        """Probability of the likeliest class."""
        return self.classes[0][1]

    def as_dict(self, top: int | None = None) -> dict[str, Any]:
        """The answer as JSON values, with the ``top`` likeliest classes (None: all)."""
        return {
            "label": self.label,
            "probability": round(self.probability, 6),
            "classes": {name: round(value, 6) for name, value in self.classes[:top]},
            "entropy": round(self.entropy, 6),
            "warning": self.warning,
            "how": self.how,
        }


def calibrate(probabilities: NDArray[np.floating[Any]]) -> WarningBounds:
    """Bounds within which at least ``USUAL_SHARE`` of the test images lie.

    Args:
        probabilities: float [N, C] of the test images.

    Each of the two bounds excludes half of the remaining share, so that together they exclude at most all of it.
    """
    tail = (1 - USUAL_SHARE) / 2
    confidence, entropy = probabilities.max(1), entropies(probabilities)
    low = float(np.quantile(confidence, tail, method="lower"))
    high = float(np.quantile(entropy, 1 - tail, method="higher"))
    return WarningBounds(low, high, float(((confidence >= low) & (entropy <= high)).mean()))


def entropies(probabilities: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Entropy in nats of each row: float [N, C] to float64 [N]."""
    values = np.clip(probabilities.astype(np.float64), 1e-300, 1)
    found: NDArray[np.float64] = -(values * np.log(values)).sum(1)
    return found


def softmax(logits: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Softmax over classes: float [N, C] to float64 [N, C]."""
    powers = np.exp(logits.astype(np.float64) - logits.max(1, keepdims=True))
    found: NDArray[np.float64] = powers / powers.sum(1, keepdims=True)
    return found


def answer(probabilities: NDArray[np.floating[Any]], classes: Sequence[str], usual: WarningBounds, how: str) -> Answer:
    """The answer for one image, from its probabilities [C] in the order of ``classes``."""
    order = np.argsort(-probabilities, kind="stable")
    entropy = float(entropies(probabilities[None])[0])
    ranked = tuple((classes[index], float(probabilities[index])) for index in order)
    return Answer(ranked, entropy, warning_of(ranked[0][1], entropy, usual), how)


def warning_of(confidence: float, entropy: float, usual: WarningBounds) -> str:
    """A warning if the confidence or the entropy is outside of the usual bounds, else an empty string."""
    if confidence >= usual.min_confidence and entropy <= usual.max_entropy:
        return ""
    if confidence < usual.min_confidence:
        measure = f"its probability of {confidence:.0%} is below {usual.min_confidence:.0%}"
    else:
        measure = f"its entropy of {entropy:.2f} nats is above {usual.max_entropy:.2f}"
    return (
        f"Less sure than of nearly all test images: {measure}, a bound that {usual.share:.1%} of them keep. "
        "The image may show none of the classes, or be unlike the training images."
    )
