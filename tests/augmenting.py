"""What the tests of augmentations share: small pipelines and images, and tests of laws."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import Tensor
from torch.nn import functional

from cifar_ablate.augment.base import Batch, Epoch, Mixer, Params, Transform, to_tensors
from cifar_ablate.augment.pipeline import Pipeline, build_pipeline
from cifar_ablate.registry import AUGMENTATIONS
from cifar_ablate.rng import generator

CPU = torch.device("cpu")
SIZE_PX = 16
NUM_CLASSES = 10
NUM_DRAWS = 100_000
"""For the law of a drawn parameter: a probability that is wrong by 0.01 then shows."""
SMALLEST_P_VALUE = 1e-3  # of a test with a fixed seed: it fails for a wrong law, never by chance


def epoch_of(num: int, size_px: int = 32, seed: int = 0, number: int = 0) -> Epoch:
    return Epoch(seed, number, np.arange(num), size_px)


def built(name: str, **options: Any) -> Transform | Mixer:
    augmentation: Transform | Mixer = AUGMENTATIONS.bind(name, options)()
    return augmentation


def pipeline(augment: Mapping[str, Mapping[str, Any]], *, label_smoothing: float = 0.0) -> Pipeline:
    mean, std = torch.tensor([0.4, 0.5, 0.6]).view(1, 3, 1, 1), torch.tensor([0.2, 0.25, 0.3]).view(1, 3, 1, 1)
    return build_pipeline(augment, mean=mean, std=std, num_classes=NUM_CLASSES, label_smoothing=label_smoothing)


def random_images(num: int, size_px: int = SIZE_PX, seed: int = 0) -> Tensor:
    return torch.rand(num, 3, size_px, size_px, generator=torch.Generator().manual_seed(seed))


def uint8_images(num: int, seed: int = 0) -> Tensor:
    shape = (num, 3, SIZE_PX, SIZE_PX)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def labels_of(num: int) -> Tensor:
    return torch.arange(num) % NUM_CLASSES


def drawn(
    augmentation: Transform | Mixer, num: int, size_px: int = SIZE_PX, seed: int = 0, **more: Tensor
) -> dict[str, Tensor]:
    arrays = augmentation.draw(generator(seed, "test"), epoch_of(num, size_px))
    params = to_tensors(arrays, CPU)
    if isinstance(augmentation, Mixer):
        params["chosen"] = torch.ones(num, dtype=torch.bool)
    return params | more


def applied(augmentation: Transform | Mixer, images: Tensor, params: Params) -> Batch:
    """One batch through an augmentation; the partner of each image is its mirror image in the batch."""
    targets = functional.one_hot(labels_of(len(images)), NUM_CLASSES).float()
    if isinstance(augmentation, Transform):
        return Batch(augmentation.apply(images, params), targets)
    return augmentation.apply(Batch(images, targets), Batch(images.flip(0), targets.flip(0)), params)


def law_of(augmentation: Transform | Mixer, num: int = NUM_DRAWS, size_px: int = 32) -> dict[str, np.ndarray]:
    """What an augmentation draws for so many images of an epoch, as NumPy arrays."""
    return augmentation.draw(generator(0, "test"), epoch_of(num, size_px))


def uniform_counts(values: np.ndarray, num_values: int) -> float:
    """p-value that integers in {0..num_values - 1} are uniform."""
    assert values.min() >= 0
    assert values.max() < num_values
    return float(stats.chisquare(np.bincount(values.ravel(), minlength=num_values)).pvalue)


def fits(values: np.ndarray, expected: Mapping[int, float]) -> float:
    """p-value that integers have the given probabilities; rare values (fewer than 5 expected) count as one."""
    assert set(np.unique(values).tolist()) <= expected.keys(), "a value that cannot be"
    found = dict(zip(*(part.tolist() for part in np.unique(values, return_counts=True)), strict=True))
    counts = np.array([found.get(value, 0) for value in expected])
    probability = np.array(list(expected.values()))
    assert abs(probability.sum() - 1) < 1e-9
    rare = probability * len(values) < 5
    counts = np.append(counts[~rare], counts[rare].sum())
    wanted = np.append(probability[~rare], probability[rare].sum()) * len(values)
    return float(stats.chisquare(counts[wanted > 0], wanted[wanted > 0]).pvalue)


def alike(ours: np.ndarray, theirs: np.ndarray) -> float:
    """p-value that two samples of integers (rows of them: taken together) have one law; rare rows count as one."""
    num_ours = len(ours)
    rows, which = np.unique(np.concatenate([ours, theirs]), axis=0, return_inverse=True)
    which = which.ravel()
    counts = np.stack([np.bincount(part, minlength=len(rows)) for part in (which[:num_ours], which[num_ours:])])
    rare = counts.sum(0) < 20
    table = np.concatenate([counts[:, ~rare], counts[:, rare].sum(1, keepdims=True)], axis=1)
    return float(stats.chi2_contingency(table[:, table.sum(0) > 0]).pvalue)


def independent(*drawn_values: np.ndarray) -> float:
    """p-value that these, all drawn for the same images, are independent of one another, pair by pair."""
    found = []
    for one, other in combinations(map(_binned, drawn_values), 2):
        table = np.zeros((one.max() + 1, other.max() + 1))
        np.add.at(table, (one, other), 1)
        found.append(float(stats.chi2_contingency(table).pvalue))
    return min(1.0, min(found) * len(found))


def _binned(values: np.ndarray, num_bins: int = 10) -> np.ndarray:
    """Integers from 0: the values themselves where there are few, else the tenth that each is in."""
    if len(np.unique(values)) > num_bins:
        values = np.digitize(values, np.quantile(values, np.arange(1, num_bins) / num_bins))
    return np.unique(values, return_inverse=True)[1].ravel()
