"""What is trained in a comparison, said once for all contenders: network, images, augmentation law, optimizer, rates.

A difference in time means nothing unless the same work is done, so everything that decides a training stands here and
nothing of it in a contender: `peers.py` takes it as a `Task`, and `contenders.py` writes it down as a study.
"""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import nn

from cifar_ablate.data import DataSet, load_data
from cifar_ablate.data.canonical import stratified_order
from cifar_ablate.device import find_device
from cifar_ablate.models.build import build_model
from cifar_ablate.rng import derive_seed
from cifar_ablate.training.schedules import linear

MODELS = ("resnet18-compact", "resnet18")
AUGMENT: Mapping[str, Mapping[str, Any]] = {
    "affine": {"p": 0.2, "degrees": 15, "translate": 0.1, "scale": [0.9, 1.1], "interpolation": "bilinear"},
    "hflip": {"p": 0.2},
    "mixup": {"alpha": 0.2},
    "cutmix": {"alpha": 1.0},
}
"""The law of the arm +cutmix of experiments/readme-augmentation.yaml (a test compares the two)."""
MOMENTUM = 0.9
WEIGHT_DECAY = 5e-4
WARMUP = 0.2
TEST_ORDER_SEED = 0
"""Of the class-balanced order whose first images are the reduced test set."""


@dataclass(frozen=True)
class Task:
    """Everything that decides the trainings of a comparison."""

    model: str = MODELS[0]
    width: int | None = None
    """Channels of the stem; None: the network as published."""
    data: str = "digits"
    """A folder or tar of train/<class>/* and test/<class>/*, or the name of a data set."""
    images: int | None = None
    """Training images, the class-balanced subset that `train_size` gives; None: all."""
    test_images: int | None = None
    """Test images, class-balanced; None: all."""
    epochs: int = 5
    seeds: int = 1
    """Runs, with the seeds from 0."""
    batch_size: int = 128
    lr: float = 0.1
    """Largest learning rate of the curve."""
    precision: str = "auto"
    """auto: fp32 for the plain loop, else bf16 where the device computes in it; fp32 or bf16 for all."""
    mixing: str = "library"
    """Of the plain and the fair loop: library, torchvision's one draw for a batch; per-image, as in a study."""
    eval_every: int = 1
    """Epochs between two evaluations; 0: only after the last, which is always evaluated."""

    def evaluates(self, epoch: int) -> bool:
        """Is the network evaluated after this epoch (from 1)?"""
        return epoch == self.epochs or (self.eval_every > 0 and epoch % self.eval_every == 0)

    def num_evaluations(self) -> int:
        """Evaluations of one run."""
        return sum(self.evaluates(epoch) for epoch in range(1, self.epochs + 1))

    def model_options(self) -> dict[str, int]:
        return {} if self.width is None else {"width": self.width}

    def source(self) -> dict[str, str]:
        """The data as a study names them."""
        if Path(self.data).exists():
            return {"name": "image_folder", "path": str(Path(self.data).absolute())}
        return {"name": self.data}

    def rates(self, num_images: int) -> npt.NDArray[np.float64]:
        """Learning rate of each step of a run; the last batch of an epoch may be partial."""
        steps = math.ceil(num_images / self.batch_size)
        return self.lr * linear(self.epochs * steps, steps, warmup=WARMUP)

    def network(self, seed: int, data: DataSet) -> nn.Module:
        """The network with the initial weights that `cifar-ablate run` gives this seed."""
        return build_model(
            self.model,
            self.model_options(),
            num_classes=data.num_classes,
            image_size_px=data.image_size_px,
            init_seed=derive_seed(seed, "init"),
        )


def load(task: Task, root: Path | None = None) -> DataSet:
    """The images of a task; decoded ones are kept in `root`, so that contenders read one file, in the same time."""
    options = task.source()
    data = load_data(options.pop("name"), options, train_size=task.images, root=root)
    return data if task.test_images is None else with_fewer_tests(data, task.test_images)


def with_fewer_tests(data: DataSet, num: int) -> DataSet:
    """The same data with a class-balanced subset of the test images."""
    if not 0 < num <= len(data.test_labels):
        raise SystemExit(f"--test-images {num}: there are {len(data.test_labels)} test images")
    keep = np.sort(stratified_order(data.test_labels, TEST_ORDER_SEED)[:num])
    return replace(data, test_images=data.test_images[keep], test_labels=data.test_labels[keep])


def channel_statistics(images: npt.NDArray[np.uint8]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel of uint8 [N, C, H, W], scaled to [0, 1]."""
    values = np.arange(256) / 255
    shares = [np.bincount(images[:, c].reshape(-1), minlength=256) / images[:, c].size for c in range(images.shape[1])]
    means = [float(share @ values) for share in shares]
    stds = [float(np.sqrt(share @ (values - mean) ** 2)) for share, mean in zip(shares, means, strict=True)]
    return tuple(means), tuple(stds)


def resolve(precision: str) -> str:
    """The precision that `auto` means for a careful user: bf16 where the device computes in it, as in a study."""
    return find_device("auto").resolve(precision)


def two_cores() -> list[int]:
    """Two cores that this process may use."""
    found = sorted(os.sched_getaffinity(0))[:2]
    if len(found) < 2:
        raise SystemExit("two ways are measured at the same moment: this takes two cores")
    return found


def add_task_options(parser: argparse.ArgumentParser, defaults: Task) -> None:
    """An option for each field of a task, but the model."""
    add = parser.add_argument
    add("--width", type=int, default=defaults.width, help="channels of the stem (default: as published)")
    add("--data", default=defaults.data, metavar="DIR|NAME", help="image folder, tar of one, digits, cifar10")
    add("--images", type=int, default=defaults.images, help="training images, class-balanced (default: all)")
    add("--test-images", type=int, default=defaults.test_images, help="test images, class-balanced (default: all)")
    add("--epochs", type=int, default=defaults.epochs)
    add("--batch-size", type=int, default=defaults.batch_size)
    add("--lr", type=float, default=defaults.lr, help="largest learning rate of the curve")
    add("--precision", choices=("auto", "fp32", "bf16"), default=defaults.precision)
    add("--mixing", choices=("library", "per-image"), default=defaults.mixing, help="of the plain and the fair loop")
    add("--eval-every", type=int, default=defaults.eval_every, help="epochs; 0: only at the end")


def task_of(chosen: argparse.Namespace, **fields: Any) -> Task:
    """The task that the options describe; `fields` are added to them."""
    known = {name: getattr(chosen, name) for name in Task.__dataclass_fields__ if hasattr(chosen, name)}
    return Task(**{**known, **fields})
