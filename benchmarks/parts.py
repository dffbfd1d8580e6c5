"""What the loops of `peers.py` share: images in memory, torchvision's augmentations, evaluation, and a clock."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import Dataset
from torchvision import transforms
from torchvision.transforms import v2

from benchmarks.task import AUGMENT, channel_statistics
from cifar_ablate.data import DataSet


class ArrayImages(Dataset[tuple[Any, int]]):
    """Images in memory, as torchvision.datasets.CIFAR10 has them: uint8 [N, H, W, 3], each made a PIL image."""

    def __init__(self, images: Any, labels: Any, transform: Callable[[Any], Any] | None = None) -> None:
        self.images, self.labels, self.transform = images.transpose(0, 2, 3, 1).copy(), labels.tolist(), transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        image = Image.fromarray(self.images[index])
        return (image if self.transform is None else self.transform(image)), self.labels[index]


@dataclass
class Clock:
    """Watches a loop from outside, so that the loop's code stays a loop."""

    say: Callable[[dict[str, Any]], None]
    max_steps: int | None = None
    """So many steps of each run are taken, and the rest left out; None: all."""
    first_step: float | None = None
    """Time of day when the first batch of all was there."""
    seed: int = 0
    steps: int = 0
    lines: list[dict[str, Any]] = field(default_factory=list)
    _mark: float = 0.0
    _images: int = 0

    def start_run(self, seed: int) -> None:
        self.seed, self.steps = seed, 0

    def epochs(self, num: int) -> Iterator[int]:
        """Numbers of epochs, from 1, until the steps run out."""
        for epoch in range(1, num + 1):
            if self.steps != self.max_steps:
                yield epoch

    def batches(self, loader: Iterable[tuple[Tensor, Tensor]]) -> Iterator[tuple[int, Tensor, Tensor]]:
        """The batches of an epoch with the number of their step in the run, from 0."""
        self._mark, self._images = time.perf_counter(), 0
        for images, labels in loader:
            if self.steps == self.max_steps:
                return
            if self.first_step is None:
                self.first_step = time.time()
            self._images += len(images)
            self.steps += 1
            yield self.steps - 1, images, labels

    def trained(self, epoch: int, total_loss: Tensor | float) -> None:
        """An epoch's steps are issued; `total_loss` sums over its images, and is waited for."""
        loss = float(total_loss) / self._images
        seconds = time.perf_counter() - self._mark
        line = {"event": "epoch", "seed": self.seed, "epoch": epoch, "images": self._images, "loss": loss}
        self.lines.append(line | {"train_seconds": seconds, "eval_seconds": 0.0, "test_accuracy": None})
        self._mark = time.perf_counter()

    def evaluated(self, num_right: int, num: int) -> None:
        line = self.lines[-1]
        line |= {"eval_seconds": time.perf_counter() - self._mark, "test_accuracy": 100 * num_right / num}

    def epoch_ended(self) -> None:
        self.say(self.lines[-1])


def pil_augmentations() -> list[Any]:
    """Flip and affine by torchvision on PIL images; each image has draws of its own."""
    flip, affine = AUGMENT["hflip"], AUGMENT["affine"]
    warp = transforms.RandomAffine(
        affine["degrees"],
        translate=(affine["translate"], affine["translate"]),
        scale=tuple(affine["scale"]),
        interpolation=transforms.InterpolationMode(affine["interpolation"]),
    )
    return [transforms.RandomHorizontalFlip(flip["p"]), transforms.RandomApply([warp], affine["p"])]


def to_normalised(data: DataSet) -> Any:
    """PIL image to a float tensor, normalised with the statistics of the training images."""
    return transforms.Compose([transforms.ToTensor(), transforms.Normalize(*channel_statistics(data.train_images))])


def mixing(data: DataSet, how: str) -> Any:
    """MixUp or CutMix with equal chances: by torchvision, one draw and one lambda for a whole batch, or by timm, for
    each image."""
    if how == "per-image":
        from timm.data import Mixup  # noqa: TID251  a comparison with timm

        alphas = AUGMENT["mixup"]["alpha"], AUGMENT["cutmix"]["alpha"]
        return Mixup(*alphas, mode="elem", label_smoothing=0.0, num_classes=data.num_classes)
    return v2.RandomChoice(
        [
            v2.MixUp(alpha=AUGMENT["mixup"]["alpha"], num_classes=data.num_classes),
            v2.CutMix(alpha=AUGMENT["cutmix"]["alpha"], num_classes=data.num_classes),
        ]
    )


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = float(rate)


def fast_cuda_settings() -> None:
    torch.backends.cudnn.benchmark = True
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.allow_tf32 = True


@torch.no_grad()
def count_right(
    model: nn.Module,
    loader: Iterable[tuple[Tensor, Tensor]],
    device: torch.device,
    precision: str,
    *,
    channels_last: bool = False,
) -> int:
    """Right predictions over a test loader, waited for once."""
    model.eval()
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    num_right = torch.zeros((), dtype=torch.long, device=device)
    for images, labels in loader:
        batch = images.to(device, non_blocking=True).contiguous(memory_format=memory_format)
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            predicted = model(batch).argmax(1)
        num_right += (predicted == labels.to(device, non_blocking=True)).sum()
    return int(num_right)
