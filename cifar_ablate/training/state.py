"""The state of one training between two steps: set up, written to a checkpoint, and restored from it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from cifar_ablate.augment.pipeline import Pipeline
from cifar_ablate.models.build import build_model
from cifar_ablate.record.folder import RunFolder
from cifar_ablate.registry import SCHEDULES
from cifar_ablate.rng import derive_seed
from cifar_ablate.spec.schema import Recipe
from cifar_ablate.training.batches import DeviceData
from cifar_ablate.training.checkpoint import Progress, load_checkpoint, save_checkpoint
from cifar_ablate.training.engine import Engine
from cifar_ablate.training.schedules import Curve
from cifar_ablate.training.step import TrainSetup, TrainStep


@dataclass
class TrainState:
    """Everything that one training holds between two steps."""

    recipe: Recipe
    seed: int
    train_step: TrainStep
    lr_factors: Curve
    """Factor on the recipe's learning rate for each step of the run, float64 [steps]."""
    epochs_done: int = 0
    steps_done: int = 0
    """Number of steps done in the current epoch."""
    random_state: dict[str, Tensor] = field(default_factory=dict)
    """State of torch's generators after a stop in mid-epoch, uint8; else empty."""
    epoch_seconds: float = 0.0
    """Training time of the current epoch, including earlier attempts."""
    train_seconds: float = 0.0
    eval_seconds: float = 0.0
    reported: float = -math.inf
    """Time of the last Stepped, by the monotonic clock."""

    @property
    def setup(self) -> TrainSetup:
        return self.train_step.setup

    @property
    def model(self) -> nn.Module:
        return self.setup.model

    @property
    def evaluated(self) -> nn.Module:
        """The network that is evaluated and kept: the average of the weights if there is one, else the trained one."""
        return self.model if self.setup.average is None else self.setup.average.model

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        return self.setup.optimizer

    @property
    def pipeline(self) -> Pipeline:
        return self.setup.pipeline

    @property
    def data(self) -> DeviceData:
        return self.setup.data

    @property
    def precision(self) -> str:
        return self.setup.precision

    @property
    def num_steps(self) -> int:
        """Number of steps in an epoch."""
        return len(self.lr_factors) // self.recipe.epochs

    @property
    def base_lr(self) -> float:
        """The recipe's learning rate, which ``lr_factors`` multiply."""
        return float(self.recipe.optimizer.kwargs()["lr"])


def set_up(
    recipe: Recipe, seed: int, data: DeviceData, precision: str, engine: Engine | None = None, stream: int = 0
) -> TrainState:
    """The state of a run before its first step: network, optimizer, augmentations and learning-rate curve.

    Reuses the network of an earlier run of the same shape on the same ``stream`` of ``engine``.
    """
    model = build_model(
        recipe.model.name,
        recipe.model.kwargs(),
        num_classes=data.num_classes,
        image_size_px=data.image_size_px,
        init_seed=derive_seed(seed, "init"),
    )
    train_step = (engine or Engine()).train_step(recipe, model, data, precision, stream)
    steps_per_epoch = math.ceil(len(data.train_labels) / recipe.batch_size)
    schedule = SCHEDULES.bind(recipe.schedule.name, recipe.schedule.kwargs())
    return TrainState(recipe, seed, train_step, lr_factors=schedule(recipe.epochs * steps_per_epoch, steps_per_epoch))


def resume(state: TrainState, folder: RunFolder) -> list[Path]:
    """Restore the newest usable checkpoint of ``folder``; remove the damaged ones and return their paths."""
    paths = (folder.checkpoint, folder.checkpoint_before)
    progress, damaged = load_checkpoint(paths, state.model, state.optimizer, max_epochs=len(folder.history()))
    if progress is not None:
        values = progress.values
        state.epochs_done, state.steps_done = values["epochs"], values["steps"]
        state.train_seconds, state.eval_seconds = values["train_seconds"], values["eval_seconds"]
        state.epoch_seconds = values["epoch_seconds"]
        _restore(state, progress.tensors)
    folder.keep_history(state.epochs_done)
    for path in damaged:  # the next checkpoint would move a damaged file over the older one that is intact
        path.unlink()
    return damaged


def _restore(state: TrainState, tensors: Mapping[str, Tensor]) -> None:
    """Copy sums, random state and averaged weights of a checkpoint into the tensors that a captured step reads."""
    for name, total in state.train_step.sums.items():
        if name in tensors:
            total.copy_(tensors[name])
    state.random_state = {name: value for name, value in tensors.items() if name.startswith("random_")}
    if state.setup.average is not None:
        prefix = "average/"
        averaged = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
        state.setup.average.model.load_state_dict(averaged)


def write_checkpoint(state: TrainState, folder: RunFolder) -> None:
    """Write a checkpoint from which training continues bit for bit; raises OutputError if the disk refuses."""
    values = {
        "epochs": state.epochs_done,
        "steps": state.steps_done,
        "train_seconds": state.train_seconds,
        "eval_seconds": state.eval_seconds,
        "epoch_seconds": state.epoch_seconds,
    }
    tensors = {**state.train_step.sums, **state.random_state} if state.steps_done else {}
    if state.setup.average is not None:
        tensors |= {f"average/{name}": value for name, value in state.setup.average.model.state_dict().items()}
    progress = Progress(values, tensors)
    save_checkpoint(folder.checkpoint, folder.checkpoint_before, state.model, state.optimizer, progress)


def weights_metadata(state: TrainState, folder: RunFolder) -> dict[str, str]:
    """What it takes to use the weights without the data: network, classes, preprocessing; and where they come from.

    ``preprocessing`` is JSON: the image size in pixels, and the mean and standard deviation of each channel of images
    in [0, 1].
    """
    preprocessing = {
        "image_size_px": state.data.image_size_px,
        "mean": state.data.mean.flatten().tolist(),
        "std": state.data.std.flatten().tolist(),
    }
    return {
        "fingerprint": folder.fingerprint,
        "seed": str(state.seed),
        "epoch": str(state.epochs_done),
        "model": json.dumps(state.recipe.model.as_dict()),
        "num_classes": str(state.data.num_classes),
        "preprocessing": json.dumps(preprocessing),
    }
