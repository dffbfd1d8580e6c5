"""One training between two steps: set up, kept in a checkpoint, and taken up again."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from cifar_ablate.augment.pipeline import Pipeline
from cifar_ablate.folder import RunFolder
from cifar_ablate.keys import key
from cifar_ablate.models.build import build_model
from cifar_ablate.registry import SCHEDULES
from cifar_ablate.spec.schema import Recipe
from cifar_ablate.training.batches import DeviceData
from cifar_ablate.training.checkpoint import Progress, load_checkpoint, save_checkpoint
from cifar_ablate.training.engine import Engine
from cifar_ablate.training.schedules import Curve
from cifar_ablate.training.step import Network, Stepper


@dataclass
class Fit:
    """Everything one training holds between steps."""

    recipe: Recipe
    seed: int
    stepper: Stepper
    lr_factors: Curve
    epochs_done: int = 0
    steps_done: int = 0
    """Of the epoch under way."""
    random_state: dict[str, Tensor] = field(default_factory=dict)
    """After a stop in the middle of an epoch: of torch's generators."""
    epoch_seconds: float = 0.0
    train_seconds: float = 0.0
    eval_seconds: float = 0.0
    reported: float = -math.inf
    """When a step was last reported, by the monotonic clock."""

    @property
    def network(self) -> Network:
        return self.stepper.network

    @property
    def model(self) -> nn.Module:
        return self.network.model

    @property
    def evaluated(self) -> nn.Module:
        """The network that is evaluated and kept: the one that is trained, or the average of its weights."""
        return self.model if self.network.average is None else self.network.average.model

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        return self.network.optimizer

    @property
    def pipeline(self) -> Pipeline:
        return self.network.pipeline

    @property
    def data(self) -> DeviceData:
        return self.network.data

    @property
    def precision(self) -> str:
        return self.network.precision

    @property
    def num_steps(self) -> int:
        """Steps of an epoch."""
        return len(self.lr_factors) // self.recipe.epochs

    @property
    def base_lr(self) -> float:
        """The recipe's learning rate, which the curve scales."""
        return float(self.recipe.optimizer.kwargs()["lr"])


def set_up(
    recipe: Recipe, seed: int, data: DeviceData, precision: str, engine: Engine | None = None, lane: int = 0
) -> Fit:
    """Network, optimizer, augmentations and learning-rate curve of a run before its first step.

    The network of an earlier run of this shape in the same lane of ``engine`` is set back and used again.
    """
    model = build_model(
        recipe.model.name,
        recipe.model.kwargs(),
        num_classes=data.num_classes,
        image_size_px=data.image_size_px,
        init_seed=key(seed, "init"),
    )
    stepper = (engine or Engine()).stepper(recipe, model, data, precision, lane)
    steps_per_epoch = math.ceil(len(data.train_labels) / recipe.batch_size)
    schedule = SCHEDULES.bind(recipe.schedule.name, recipe.schedule.kwargs())
    return Fit(recipe, seed, stepper, lr_factors=schedule(recipe.epochs * steps_per_epoch, steps_per_epoch))


def resume(fit: Fit, folder: RunFolder) -> list[Path]:
    """Go on from the newest usable checkpoint; those that are damaged are removed, and given back."""
    paths = (folder.checkpoint, folder.checkpoint_before)
    progress, damaged = load_checkpoint(paths, fit.model, fit.optimizer, max_epochs=len(folder.history()))
    if progress is not None:
        values = progress.values
        fit.epochs_done, fit.steps_done = values["epochs"], values["steps"]
        fit.train_seconds, fit.eval_seconds = values["train_seconds"], values["eval_seconds"]
        fit.epoch_seconds = values["epoch_seconds"]
        _restore(fit, progress.tensors)
    folder.keep_history(fit.epochs_done)
    for path in damaged:  # the next one would make it the one before, in the place of a whole one
        path.unlink()
    return damaged


def _restore(fit: Fit, tensors: Mapping[str, Tensor]) -> None:
    """Sums, random state and averaged weights of a checkpoint, into where a captured step looks for them."""
    for name, total in fit.stepper.sums.items():
        if name in tensors:
            total.copy_(tensors[name])
    fit.random_state = {name: value for name, value in tensors.items() if name.startswith("random_")}
    if fit.network.average is not None:
        prefix = "average/"
        state = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
        fit.network.average.model.load_state_dict(state)


def checkpoint_fit(fit: Fit, folder: RunFolder) -> None:
    """Write the state from which the next step can be taken again, bit for bit."""
    values = {
        "epochs": fit.epochs_done,
        "steps": fit.steps_done,
        "train_seconds": fit.train_seconds,
        "eval_seconds": fit.eval_seconds,
        "epoch_seconds": fit.epoch_seconds,
    }
    tensors = {**fit.stepper.sums, **fit.random_state} if fit.steps_done else {}
    if fit.network.average is not None:
        tensors |= {f"average/{name}": value for name, value in fit.network.average.model.state_dict().items()}
    progress = Progress(values, tensors)
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
