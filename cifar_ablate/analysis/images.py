"""What per-image outcomes add: would it hold on new images, how small can a seed spread be, which classes changed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import stats

from cifar_ablate.analysis.engine import ZERO
from cifar_ablate.analysis.types import Contrast, Interval
from cifar_ablate.errors import UsageError

Correct = npt.NDArray[np.bool_]
"""[seeds, images]: was the image classified correctly?"""
MIN_SEEDS = 3
_LUCKY = 0.05


@dataclass(frozen=True)
class NewImageInterval:
    """Difference in accuracy on new images of the same kind: test-set sampling beside the seeds. Points, points^2."""

    estimate: float
    ci: Interval
    alpha: float
    num_seeds: int
    df: float
    """Satterthwaite's, at least seeds - 1."""
    variance: float
    """Of the estimate, after the floor."""
    seed: float
    """Mean square of seeds over seeds x images; ``image`` and ``residual`` likewise."""
    image: float
    residual: float

    @property
    def excludes_zero(self) -> bool:
        return self.ci[0] > 0 or self.ci[1] < 0

    def has_fewer_seeds(self, contrast: Contrast) -> bool:
        """Than the contrast: it takes those that both arms share."""
        return self.num_seeds != max(contrast.num_seeds, contrast.num_seeds_reference)


def new_image_interval(correct_a: Correct, correct_b: Correct, *, alpha: float = 0.05) -> NewImageInterval | None:
    """Interval of accuracy(b) - accuracy(a) on new seeds and new images; None under 3 seeds or 2 images.

    Seeds and images are crossed random effects: V = (MS_seed + MS_image - MS_residual) / (S N), floored at the variance
    of the images' means over N (which is MS_image / (S N)).

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
    half = float(stats.t.isf(alpha / 2, df_of_estimate)) * variance**0.5
    return NewImageInterval(
        mean, (mean - half, mean + half), alpha, num_seeds, df_of_estimate, variance, *(float(part) for part in parts)
    )


def flip_floor(correct: Correct) -> float | None:
    """Standard deviation in points that accuracy has over seeds if images flip independently; None under 2 seeds."""
    if len(correct) < 2:
        return None
    return float(100 * np.sqrt(correct.astype(np.float64).var(0, ddof=1).sum()) / correct.shape[1])


def is_luckily_small(sd: float, floor: float, num_seeds: int) -> bool:
    """Is an observed seed spread so far under the flip floor that chance is the likelier cause (chi-square, 5%)?"""
    return floor > 0 and bool(stats.chi2.cdf((num_seeds - 1) * (sd / floor) ** 2, num_seeds - 1) < _LUCKY)


def mcnemar(correct_a: npt.NDArray[np.bool_], correct_b: npt.NDArray[np.bool_]) -> float:
    """Exact p of McNemar's test for two networks on the same images: it ranks these two, and no recipes.

    Raises:
        UsageError: The two have different numbers of images.
    """
    from statsmodels.stats.contingency_tables import mcnemar as test

    if correct_a.shape != correct_b.shape:
        raise UsageError(f"both networks need the same images, not {len(correct_a)} and {len(correct_b)}")
    a, b = correct_a.astype(bool), correct_b.astype(bool)
    table = [[int((a & b).sum()), int((a & ~b).sum())], [int((~a & b).sum()), int((~a & ~b).sum())]]
    return float(test(table, exact=True).pvalue)


def class_effects(
    correct: Mapping[str, Mapping[int, npt.NDArray[np.bool_]]],
    labels: npt.NDArray[np.int64],
    references: Mapping[str, str],
    *,
    alpha: float = 0.05,
) -> pd.DataFrame:
    """Per-class differences of accuracy over shared seeds, all arms and classes as one family.

    Args:
        correct: For each arm and seed, [images].
        labels: [images].
        references: Arm to reference.

    Returns:
        One row per arm and class: ``arm``, ``label``, ``estimate`` (points), ``p`` (paired t test; NaN where seeds do
        not differ) and ``is_shown``: kept by Benjamini and Hochberg at ``alpha``.
    """
    from statsmodels.stats.multitest import multipletests

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
        p[varies] = stats.ttest_1samp(of_class[:, varies], 0).pvalue if varies.any() else []
        for label, estimate, of_label in zip(names, of_class.mean(0), p, strict=True):
            rows.append({"arm": arm, "label": int(label), "estimate": float(estimate), "p": float(of_label)})
    found = pd.DataFrame(rows, columns=["arm", "label", "estimate", "p"])
    tested = found["p"].notna().to_numpy()
    shown = np.zeros(len(found), bool)
    if tested.any():
        shown[tested] = multipletests(found["p"][tested], alpha=alpha, method="fdr_bh")[0]
    return found.assign(is_shown=shown)
