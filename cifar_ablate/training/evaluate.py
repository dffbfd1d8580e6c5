"""Predictions without augmentation, and the headline metrics."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn
from torch.nn import functional

from cifar_ablate.augment.pipeline import Pipeline
from cifar_ablate.training.batches import slices

EVAL_BATCH = {"cpu": 250, "cuda": 2000, "mps": 500}
"""Number of images in an evaluated batch, by kind of device."""
NUM_BINS = 15
"""Number of equal-width confidence bins of the expected calibration error (15 in Guo et al., arXiv 1706.04599)."""


def precision_context(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """Autocast to bf16; no effect for fp32."""
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
    """Logits of images in evaluation mode; the model's mode is restored afterwards.

    Args:
        model: On the device of ``images``.
        images: uint8 [N, 3, H, W], not normalised.
        pipeline: Normalises them.
        precision: fp32 or bf16.
        flip_averaging: Average the logits of each image and its mirror image.
        between: Called before each batch; may raise to stop early.

    Returns:
        float32 [N, C] on the CPU.
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
    return torch.cat(parts).cpu()  # the metrics use float64, which not every device supports


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Share of right predictions in percent; logits [N, C], labels int64 [N]."""
    return 100 * (logits.argmax(1) == labels).double().mean().item()


def negative_log_likelihood(logits: Tensor, labels: Tensor) -> float:
    """Mean of -log p(label) in nats; logits [N, C], labels int64 [N]."""
    return functional.cross_entropy(logits.double(), labels).item()


def expected_calibration_error(logits: Tensor, labels: Tensor) -> float:
    """Gap between confidence and accuracy in [0, 1], averaged over NUM_BINS bins weighted by their number of images.

    Equation 3 of Guo et al., arXiv 1706.04599; logits [N, C], labels int64 [N].
    """
    confidence, predicted = logits.double().softmax(1).max(1)
    right = (predicted == labels).double()
    bins = (confidence * NUM_BINS).long().clamp(max=NUM_BINS - 1)
    gap = torch.zeros(NUM_BINS, dtype=torch.float64, device=logits.device).index_add_(0, bins, confidence - right)
    return (gap.abs().sum() / len(labels)).item()
