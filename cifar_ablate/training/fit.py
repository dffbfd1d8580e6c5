"""One training between two steps: set up, kept in a checkpoint, and taken up again."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from cifar_ablate.augment.pipeline import Pipeline, build_pipeline
from cifar_ablate.folder import RunFolder
from cifar_ablate.keys import key
from cifar_ablate.models.build import build_model
from cifar_ablate.registry import OPTIMIZERS, SCHEDULES
from cifar_ablate.spec.schema import Recipe
from cifar_ablate.training.batches import DeviceData
from cifar_ablate.training.checkpoint import Progress, load_checkpoint, save_checkpoint
from cifar_ablate.training.schedules import Curve


@dataclass
class Fit:
    """Everything one training holds between steps."""

    recipe: Recipe
    seed: int
    precision: str
    data: DeviceData
    model: nn.Module
    optimizer: torch.optim.Optimizer
    pipeline: Pipeline
    lr_factors: Curve
    epochs_done: int = 0
    steps_done: int = 0
    """Of the epoch under way."""
    sums: dict[str, Tensor] = field(default_factory=dict)
    """Of the epoch under way, on the device: loss and num_right, float32 []; and after a stop its random state."""
    epoch_seconds: float = 0.0
    train_seconds: float = 0.0
    eval_seconds: float = 0.0

    @property
    def num_steps(self) -> int:
        """Steps of an epoch."""
        return len(self.lr_factors) // self.recipe.epochs

    @property
    def base_lr(self) -> float:
        """The recipe's learning rate, which the curve scales."""
        return float(self.recipe.optimizer.kwargs()["lr"])


def set_up(recipe: Recipe, seed: int, data: DeviceData, precision: str) -> Fit:
    """Network, optimizer, augmentations and learning-rate curve of a run before its first step."""
    model = build_model(
        recipe.model.name,
        recipe.model.kwargs(),
        num_classes=data.num_classes,
        image_size_px=data.image_size_px,
        init_seed=key(seed, "init"),
    )
    model = model.to(data.mean.device).to(memory_format=torch.channels_last)
    pipeline = build_pipeline(
        {name: part.kwargs() for name, part in recipe.augment.items()},
        mean=data.mean,
        std=data.std,
        num_classes=data.num_classes,
        label_smoothing=recipe.loss.label_smoothing,
    )
    steps_per_epoch = math.ceil(len(data.train_labels) / recipe.batch_size)
    schedule = SCHEDULES.bind(recipe.schedule.name, recipe.schedule.kwargs())
    return Fit(
        recipe,
        seed,
        precision,
        data,
        model,
        OPTIMIZERS.bind(recipe.optimizer.name, recipe.optimizer.kwargs())(model),
        pipeline,
        lr_factors=schedule(recipe.epochs * steps_per_epoch, steps_per_epoch),
    )


def resume(fit: Fit, folder: RunFolder) -> list[Path]:
    """Go on from the newest usable checkpoint; those that are damaged are removed, and given back."""
    paths = (folder.checkpoint, folder.checkpoint_before)
    progress, damaged = load_checkpoint(paths, fit.model, fit.optimizer, max_epochs=len(folder.history()))
    if progress is not None:
        values, device = progress.values, fit.data.mean.device
        fit.epochs_done, fit.steps_done = values["epochs"], values["steps"]
        fit.train_seconds, fit.eval_seconds = values["train_seconds"], values["eval_seconds"]
        fit.epoch_seconds = values["epoch_seconds"]
        fit.sums = {
            name: value if name.startswith("random_") else value.to(device) for name, value in progress.tensors.items()
        }
    folder.keep_history(fit.epochs_done)
    for path in damaged:  # the next one would make it the one before, in the place of a whole one
        path.unlink()
    return damaged


def checkpoint_fit(fit: Fit, folder: RunFolder) -> None:
    """Write the state from which the next step can be taken again, bit for bit."""
    values = {
        "epochs": fit.epochs_done,
        "steps": fit.steps_done,
        "train_seconds": fit.train_seconds,
        "eval_seconds": fit.eval_seconds,
        "epoch_seconds": fit.epoch_seconds,
    }
    progress = Progress(values, fit.sums if fit.steps_done else {})
    save_checkpoint(folder.checkpoint, folder.checkpoint_before, fit.model, fit.optimizer, progress)


def identity_of(fit: Fit, folder: RunFolder) -> dict[str, str]:
    """What a reader of the weights needs to use them without the data: network, preprocessing, where they are from."""
    preprocessing = {
        "image_size_px": fit.data.image_size_px,
        "mean": fit.data.mean.flatten().tolist(),
        "std": fit.data.std.flatten().tolist(),
    }
    return {
        "fingerprint": folder.fingerprint,
        "seed": str(fit.seed),
        "epoch": str(fit.epochs_done),
        "model": json.dumps(fit.recipe.model.as_dict()),
        "num_classes": str(fit.data.num_classes),
        "preprocessing": json.dumps(preprocessing),
    }
