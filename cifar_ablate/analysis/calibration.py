"""Do confidences mean what they say? Reliability over equal bins (Guo et al. 2017, 15 bins)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

NUM_BINS = 15


@dataclass(frozen=True)
class Bin:
    """Predictions of about one confidence; shares in [0, 1]."""

    confidence: float
    """Mean over the bin."""
    accuracy: float
    num: int


def reliability(
    confidence: npt.NDArray[np.float64], correct: npt.NDArray[np.bool_], num_bins: int = NUM_BINS
) -> tuple[Bin, ...]:
    """Bins of equal width that hold a prediction. Both arguments: [predictions], of one run or of several together."""
    index = np.clip((confidence * num_bins).astype(int), 0, num_bins - 1)
    num = np.bincount(index, minlength=num_bins)
    total_confidence = np.bincount(index, weights=confidence, minlength=num_bins)
    total_correct = np.bincount(index, weights=correct, minlength=num_bins)
    return tuple(
        Bin(float(total_confidence[i] / num[i]), float(total_correct[i] / num[i]), int(num[i]))
        for i in range(num_bins)
        if num[i]
    )


def expected_calibration_error(bins: tuple[Bin, ...]) -> float:
    """Mean distance of confidence from accuracy, weighted by the bins' sizes."""
    total = sum(one.num for one in bins)
    return sum(one.num / total * abs(one.confidence - one.accuracy) for one in bins) if total else 0.0
