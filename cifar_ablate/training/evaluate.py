"""Predictions without augmentation, and the metrics of the headline."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn
from torch.nn import functional

from cifar_ablate.augment.pipeline import Pipeline
from cifar_ablate.training.batches import slices

EVAL_BATCH = {"cpu": 250, "cuda": 2000, "mps": 500}
NUM_BINS = 15
"""Equal-width confidence bins of the expected calibration error (Guo et al., arXiv 1706.04599)."""


def precision_context(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """Autocast to bf16, or nothing for fp32."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")


@torch.no_grad()
def predict_logits(
    model: nn.Module,
    images: Tensor,
    pipeline: Pipeline,
    precision: str,
    *,
    flip_averaging: bool = False,
    between: Callable[[], None] = lambda: None,
) -> Tensor:
    """Logits float32 [N, C], on the CPU, of uint8 images [N, 3, H, W], in evaluation mode (then as it was).

    ``flip_averaging``: the mean of the logits of an image and of its mirror image. ``between``
    is called before each batch, and may raise to leave early.
    """
    was_training = model.training
    model.eval()
    parts = []
    try:
        for rows in slices(len(images), EVAL_BATCH.get(images.device.type, 250)):
            between()
            batch = pipeline.clean(images[rows]).contiguous(memory_format=torch.channels_last)
            with precision_context(images.device, precision):
                logits = model(batch).float()
                if flip_averaging:
                    logits = (logits + model(batch.flip(3)).float()) / 2
            parts.append(logits)
    finally:
        model.train(was_training)
    return torch.cat(parts).cpu()  # metrics are computed in float64, which not every device has


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Share of right predictions, in percent."""
    return 100 * (logits.argmax(1) == labels).double().mean().item()


def negative_log_likelihood(logits: Tensor, labels: Tensor) -> float:
    """Mean of -log p(label), in nats."""
    return functional.cross_entropy(logits.double(), labels).item()


def expected_calibration_error(logits: Tensor, labels: Tensor) -> float:
    """Mean gap between confidence and accuracy over 15 equal-width bins, weighted by their share, in [0, 1]."""
    confidence, predicted = logits.double().softmax(1).max(1)
    right = (predicted == labels).double()
    bins = (confidence * NUM_BINS).long().clamp(max=NUM_BINS - 1)
    gap = torch.zeros(NUM_BINS, dtype=torch.float64, device=logits.device).index_add_(0, bins, confidence - right)
    return (gap.abs().sum() / len(labels)).item()
