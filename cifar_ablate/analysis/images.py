"""Per-image outcomes: differences on new images, the smallest plausible seed spread, classes, and calibration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import special

from cifar_ablate.analysis.contrasts import paired_p
from cifar_ablate.analysis.engine import ZERO, t_quantile
from cifar_ablate.analysis.verdicts import Contrast, Interval
from cifar_ablate.errors import UsageError

Correct = npt.NDArray[np.bool_]
"""[seeds, images]: whether the image was classified correctly."""
MIN_SEEDS = 3
_LUCKY = 0.05
NUM_BINS = 15
"""Default number of bins of a reliability diagram (Guo et al. 2017)."""


@dataclass(frozen=True)
class NewImageInterval:
    """Difference in accuracy on new images of the same kind, in points; its variances are in points squared.

    It adds the sampling of the test images to the randomness of the seeds.
    """

    estimate: float
    ci: Interval
    alpha: float
    num_seeds: int
    df: float
    """Degrees of freedom by Satterthwaite, at least seeds - 1."""
    variance: float
    """Variance of the estimate, after the floor."""
    seed: float
    """Mean square of seeds divided by seeds x images; ``image`` and ``residual`` likewise."""
    image: float
    residual: float

    @property
    def excludes_zero(self) -> bool:
        return self.ci[0] > 0 or self.ci[1] < 0

    def has_fewer_seeds(self, contrast: Contrast) -> bool:
        """Whether it has fewer seeds than the contrast: it takes only those that both arms share."""
        return self.num_seeds != max(contrast.num_seeds, contrast.num_seeds_reference)


def new_image_interval(correct_a: Correct, correct_b: Correct, *, alpha: float = 0.05) -> NewImageInterval | None:
    """Interval of accuracy(b) - accuracy(a) on new seeds and new images; None for fewer than 3 seeds or 2 images.

    Seeds and images are crossed random effects: V = (MS_seed + MS_image - MS_residual) / (S N), and at least
    MS_image / (S N), the variance of the images' means over N.

    Args:
        correct_a: [seeds, images], rows by seed.
        correct_b: The same seeds and images, in the same order.

    Raises:
        UsageError: The two have different shapes.
    """
    if correct_a.shape != correct_b.shape:
        raise UsageError(f"both arms need the same seeds and images, not {correct_a.shape} and {correct_b.shape}")
    d = 100 * (correct_b.astype(np.float64) - correct_a.astype(np.float64))
    num_seeds, num_images = d.shape
    if num_seeds < MIN_SEEDS or num_images < 2:
        return None
    by_seed, by_image, mean = d.mean(1), d.mean(0), float(d.mean())
    df = np.array([num_seeds - 1, num_images - 1, (num_seeds - 1) * (num_images - 1)], dtype=float)
    ss_seed = num_images * float(((by_seed - mean) ** 2).sum())
    ss_image = num_seeds * float(((by_image - mean) ** 2).sum())
    ss_residual = max(float(((d - mean) ** 2).sum()) - ss_seed - ss_image, 0.0)
    parts = np.array([ss_seed, ss_image, ss_residual]) / df / d.size
    variance = max(float(parts[0] + parts[1] - parts[2]), float(parts[1]))
    scale = float((parts**2 / df).sum())
    df_of_estimate = max(variance**2 / scale if scale > 0 else 0.0, num_seeds - 1.0)
    half = t_quantile(alpha / 2, df_of_estimate) * variance**0.5
    return NewImageInterval(
        mean, (mean - half, mean + half), alpha, num_seeds, df_of_estimate, variance, *(float(part) for part in parts)
    )


def flip_floor(correct: Correct) -> float | None:
    """Standard deviation of accuracy over seeds, in points, if images flip independently; None below 2 seeds."""
    if len(correct) < 2:
        return None
    return float(100 * np.sqrt(correct.astype(np.float64).var(0, ddof=1).sum()) / correct.shape[1])


def is_luckily_small(sd: float, floor: float, num_seeds: int) -> bool:
    """Whether a seed spread is so far below the flip floor that chance is the likelier cause (chi-square, 5%)."""
    return floor > 0 and bool(special.chdtr(num_seeds - 1, (num_seeds - 1) * (sd / floor) ** 2) < _LUCKY)


def mcnemar(correct_a: npt.NDArray[np.bool_], correct_b: npt.NDArray[np.bool_]) -> float:
    """Exact two-sided p of McNemar's test for two networks on the same images [images]. It does not compare recipes.

    Raises:
        UsageError: The two have different numbers of images.
    """
    if correct_a.shape != correct_b.shape:
        raise UsageError(f"both networks need the same images, not {len(correct_a)} and {len(correct_b)}")
    only_a, only_b = (int((one & ~other).sum()) for one, other in ((correct_a, correct_b), (correct_b, correct_a)))
    return min(1.0, 2 * float(special.bdtr(min(only_a, only_b), only_a + only_b, 0.5)))


def class_effects(
    correct: Mapping[str, Mapping[int, npt.NDArray[np.bool_]]],
    labels: npt.NDArray[np.int64],
    references: Mapping[str, str],
    *,
    alpha: float = 0.05,
) -> pd.DataFrame:
    """Per-class differences of accuracy over shared seeds, all arms and classes as one family.

    Args:
        correct: Whether each image was classified correctly [images], by arm and seed.
        labels: Classes of the images [images].
        references: The reference of each arm.
        alpha: False discovery rate.

    Returns:
        One row per arm and class: ``arm``, ``label``, ``estimate`` (points), ``p`` (paired t test; NaN if seeds do not
        differ) and ``is_shown`` (``benjamini_hochberg``).
    """
    rows: list[dict[str, object]] = []
    names = np.unique(labels)
    classes = [labels == label for label in names]
    for arm, reference in references.items():
        seeds = sorted(correct.get(arm, {}).keys() & correct.get(reference, {}).keys())
        if len(seeds) < 2:
            continue
        d = np.stack([correct[arm][s].astype(np.float64) - correct[reference][s].astype(np.float64) for s in seeds])
        of_class = 100 * np.stack([d[:, members].mean(1) for members in classes], axis=1)
        varies = of_class.std(0, ddof=1) > ZERO
        p = np.full(len(classes), np.nan)
        p[varies] = [paired_p(differences) for differences in of_class[:, varies].T]
        for label, estimate, of_label in zip(names, of_class.mean(0), p, strict=True):
            rows.append({"arm": arm, "label": int(label), "estimate": float(estimate), "p": float(of_label)})
    found = pd.DataFrame(rows, columns=["arm", "label", "estimate", "p"])
    tested = found["p"].notna().to_numpy()
    shown = np.zeros(len(found), bool)
    if tested.any():
        shown[tested] = benjamini_hochberg(found["p"][tested].to_numpy(float), alpha)
    return found.assign(is_shown=shown)


def benjamini_hochberg(p: npt.NDArray[np.float64], alpha: float) -> npt.NDArray[np.bool_]:
    """Which p values [n] are significant at a false discovery rate of ``alpha`` (Benjamini and Hochberg 1995)."""
    order = np.argsort(p, kind="stable")
    passing = np.flatnonzero(p[order] <= alpha * np.arange(1, len(p) + 1) / len(p))
    found = np.zeros(len(p), bool)
    found[order[: passing[-1] + 1 if len(passing) else 0]] = True
    return found


@dataclass(frozen=True)
class Bin:
    """Predictions with similar confidence; confidence and accuracy are in [0, 1]."""

    confidence: float
    """Mean confidence of the bin."""
    accuracy: float
    num: int


def reliability(
    confidence: npt.NDArray[np.float64], correct: npt.NDArray[np.bool_], num_bins: int = NUM_BINS
) -> tuple[Bin, ...]:
    """Nonempty bins of equal width (Guo et al. 2017); both arrays are [predictions], of one or several runs."""
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
    """Mean distance between confidence and accuracy, weighted by the sizes of the bins."""
    total = sum(one.num for one in bins)
    return sum(one.num / total * abs(one.confidence - one.accuracy) for one in bins) if total else 0.0
