"""Simulated studies, and what the analysis said of each: one function per study, from a setting and a generator."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from cifar_ablate.analysis import Contrast, Verdict
from cifar_ablate.analysis.contrasts import compare
from cifar_ablate.analysis.engine import Joint
from cifar_ablate.analysis.images import new_image_interval
from cifar_ablate.analysis.looks import take_looks

SHOWN = (Verdict.BETTER, Verdict.WORSE)
LOOKS = (5, 8, 12)


@dataclass(frozen=True)
class Setting:
    """A study whose truth is known: normal accuracies around 94%, in steps of one of 10,000 test images."""

    name: str
    num_seeds: int
    means: tuple[float, ...] = (0.0, 0.0, 0.0, 0.0)
    """Of the arms, in points above the baseline."""
    sds: tuple[float, ...] = (0.22, 0.22, 0.22, 0.22, 0.22)
    """Between seeds, in points: the baseline's, then the arms'."""
    correlation: float = 0.0
    """Between the accuracies of two arms on one seed."""
    num_missing: int = 0
    """Seeds that the last arm lacks, so that nothing is paired."""
    margin: float = 0.0


Outcome = dict[str, float]
"""What one study came to: each value is averaged over studies."""


def draw(setting: Setting, num_seeds: int, rng: np.random.Generator) -> pd.DataFrame:
    """One row per run, as ``compare`` wants them."""
    means, sds = np.array([0.0, *setting.means]), np.array(setting.sds)
    shared, own = rng.standard_normal(num_seeds), rng.standard_normal((len(means), num_seeds))
    noise = np.sqrt(setting.correlation) * shared + np.sqrt(1 - setting.correlation) * own
    accuracy = np.round(94 + means[:, None] + sds[:, None] * noise, 2)
    names = ["base", *(f"arm{i}" for i in range(1, len(means)))]
    frame = pd.DataFrame(
        {
            "arm": np.repeat(names, num_seeds),
            "seed": np.tile(np.arange(num_seeds), len(names)),
            "accuracy": accuracy.ravel(),
        }
    )
    return frame.iloc[: len(frame) - setting.num_missing]


def truth_of(setting: Setting) -> dict[str, float]:
    return {f"arm{i}": mean for i, mean in enumerate(setting.means, start=1)}


def _false_difference(contrasts: tuple[Contrast, ...], truth: dict[str, float]) -> bool:
    return any(one.verdict in SHOWN and truth[one.arm] == 0 for one in contrasts)


def one_family(setting: Setting, rng: np.random.Generator) -> Outcome:
    """A study of equal arms with all its seeds, through ``compare``."""
    contrasts = compare(draw(setting, setting.num_seeds, rng), baseline="base", margin=setting.margin)
    return {"family error": float(_false_difference(contrasts, truth_of(setting)))}


def one_power(setting: Setting, rng: np.random.Generator) -> Outcome:
    """A study whose arms differ: do all intervals hold the truth, and which differences are shown?"""
    truth = truth_of(setting)
    contrasts = compare(draw(setting, setting.num_seeds, rng), baseline="base", margin=setting.margin)
    covered = [one.ci95 is not None and one.ci95[0] <= truth[one.arm] <= one.ci95[1] for one in contrasts]
    found = {"all four 95% intervals cover": float(all(covered))}
    return found | {
        f"{truth[one.arm]:g} points are shown": float(one.verdict in SHOWN) for one in contrasts if truth[one.arm]
    }


def one_margin(setting: Setting, rng: np.random.Generator) -> Outcome:
    """A study in which every arm differs by exactly the margin: is one called equivalent?"""
    contrasts = compare(draw(setting, setting.num_seeds, rng), baseline="base", margin=setting.margin)
    return {"an arm is called within the margin": float(any(one.verdict is Verdict.EQUIVALENT for one in contrasts))}


def one_with_looks(setting: Setting, rng: np.random.Generator) -> Outcome:
    """A study with looks at 5, 8 and 12 seeds, through ``take_looks``; only runs that were asked for are counted."""
    truth = truth_of(setting)
    family = dict.fromkeys(truth, "base")
    frame = draw(setting, LOOKS[-1], rng)
    taken = take_looks(frame, looks=LOOKS, seeds=range(LOOKS[-1]), families=[family], margin=setting.margin)
    found: Outcome = {"runs": float(sum(taken.wanted.values()))}
    for one in taken.families[0]:
        if truth[one.arm]:
            found[f"{truth[one.arm]:g} points are shown"] = float(one.verdict in SHOWN)
    found["family error"] = float(_false_difference(taken.families[0], truth))
    return found


def one_peeking(setting: Setting, rng: np.random.Generator, looks: tuple[int, ...] = LOOKS) -> Outcome:
    """The same seeds, looked at with the whole alpha each time, until something shows."""
    frame = draw(setting, looks[-1], rng)
    for num_seeds in looks:
        contrasts = compare(frame[frame["seed"] < num_seeds], baseline="base", margin=setting.margin)
        if _false_difference(contrasts, truth_of(setting)):
            return {"family error": 1.0}
    return {"family error": 0.0}


def one_peeking_always(setting: Setting, rng: np.random.Generator) -> Outcome:
    """Peeking after each seed from the third to the twelfth."""
    return one_peeking(setting, rng, tuple(range(3, 13)))


NUM_IMAGES = 2000


def one_of_images(setting: Setting, rng: np.random.Generator) -> Outcome:
    """Two arms on seeds and images drawn anew: does each interval hold the difference on all seeds and images?

    Probit: image i has a difficulty, the arm changes it image by image, seeds shift a run as a whole, and what is left
    is noise of image and run.
    """
    ease, spread, of_arm, of_seed = 1.2, 1.5, 0.4, 0.02
    shift = 0.1
    image = rng.normal(ease, spread, NUM_IMAGES)
    changed = image + rng.normal(shift, of_arm, NUM_IMAGES)
    correct = [
        mean + rng.normal(0, of_seed, (setting.num_seeds, 1)) + rng.standard_normal((setting.num_seeds, NUM_IMAGES)) > 0
        for mean in (image, changed)
    ]
    total = 1 + spread**2 + of_seed**2
    truth = 100 * (stats.norm.cdf((ease + shift) / np.sqrt(total + of_arm**2)) - stats.norm.cdf(ease / np.sqrt(total)))
    found = new_image_interval(correct[0], correct[1])
    assert found is not None
    d = 100 * (correct[1].mean(1) - correct[0].mean(1))
    half = stats.t.isf(0.025, len(d) - 1) * d.std(ddof=1) / np.sqrt(len(d))
    return {
        "new-image interval covers": float(found.ci[0] <= truth <= found.ci[1]),
        "width of the new-image interval, points": found.ci[1] - found.ci[0],
        "paired t interval over seeds covers": float(abs(d.mean() - truth) <= half),
    }


def single_runs(studies: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """One run each, sd 0.25: what a table without seeds claims."""
    base, arms = rng.normal(0, 0.25, studies), rng.normal(0, 0.25, (4, studies))
    return {
        "an equal arm looks 0.4 points better": arms[0] - base >= 0.4,
        "the best of four equal arms looks 0.4 points better": arms.max(0) - base >= 0.4,
        "a true gain of 0.2 points has the wrong sign": arms[0] + 0.2 - base < 0,
    }


def plain_tests(setting: Setting, studies: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Family error of usual tests on equal arms; and what the one that keeps its level shows."""
    n, sds = setting.num_seeds, np.array(setting.sds)
    data = rng.standard_normal((studies, len(sds), n)) * sds[:, None]
    d = data[:, 1:] - data[:, :1]
    paired = np.abs(d.mean(2)) / (d.std(2, ddof=1) / np.sqrt(n))
    df = len(sds) * (n - 1)
    pooled = np.sqrt(data.var(2, ddof=1).mean(1) * 2 / n)
    k = len(sds) - 1
    dunnett = Joint(0.5 * (np.eye(k) + 1), df).critical(0.05)
    bonferroni = stats.t.isf(0.025 / k, n - 1)
    gain = (d[:, 0].mean(1) + 0.4) / (d[:, 0].std(1, ddof=1) / np.sqrt(n))
    return {
        "paired t tests, uncorrected: family error": (paired > stats.t.isf(0.025, n - 1)).any(1),
        "Dunnett: family error": (np.abs(d.mean(2)).max(1) / pooled) > dunnett,
        "paired t tests, Bonferroni: family error": (paired > bonferroni).any(1),
        "paired t tests, Bonferroni: 0.4 points are shown": gain > bonferroni,
    }


def bootstrap_covers(num_seeds: int, studies: int, rng: np.random.Generator, num_resamples: int = 1000) -> np.ndarray:
    """Does the 95% percentile bootstrap of one arm's paired differences hold their true mean?"""
    found = []
    for _ in range(studies):
        d = rng.standard_normal(num_seeds)
        low, high = np.percentile(rng.choice(d, (num_resamples, num_seeds)).mean(1), [2.5, 97.5])
        found.append(low <= 0 <= high)
    return np.array(found)
