"""The loops that a user would write instead of a study, each as plain code, and a command that trains one of them.

    python -m benchmarks.peers --loop plain|fair|timm --model resnet18 --data DIR --images 5000 --epochs 5 --seeds 4

It prints one JSON line per epoch and one with the totals. All loops train the task of `task.py`: the same network with
the same initial weights for a seed, SGD with Nesterov momentum 0.9 and weight decay 5e-4 on all parameters, the same
learning rate in each step, the same batch size with the last partial batch kept, and the same augmentations with the
same probabilities. That is what makes the times comparable. What cannot be the same:

- The order of the images and all draws come from each library's own generators.
- Image operations are PIL's on 8 bits, ours are on floats: an affine image differs by rounding.
- `plain` and `fair`: torchvision's MixUp and CutMix draw one lambda, and which of the two, for a whole batch, and pair
  an image with its neighbour. timm draws for each image (mode elem), as we do, and pairs with the mirrored batch;
  --mixing per-image has these two loops do it by timm's Mixup, for a comparison of accuracies under one law.
- timm mixes on a CUDA device's host in 8 bits, as its train script does.

Seeds are trained one after the other in one process, as a hand-written loop does, so imports and data are paid once.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import psutil
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader
from torchvision import transforms

from benchmarks.parts import (
    ArrayImages,
    Clock,
    count_right,
    fast_cuda_settings,
    mixing,
    pil_augmentations,
    set_rate,
    to_normalised,
)
from benchmarks.task import (
    AUGMENT,
    MODELS,
    MOMENTUM,
    WEIGHT_DECAY,
    Task,
    add_task_options,
    channel_statistics,
    load,
    resolve,
    task_of,
)
from cifar_ablate.data import DataSet
from cifar_ablate.device import find_device, num_cores

PLAIN_WORKERS = 2
EVAL_BATCH = 500
PACKAGES = ("torch", "torchvision", "timm", "pillow", "numpy")


def plain(task: Task, data: DataSet, seed: int, clock: Clock, workers: int | None = None) -> None:
    """(a) What everyone starts from: fp32, PIL transforms, a DataLoader with two workers, torch's default threads."""
    device = find_device("auto").torch
    precision = "bf16" if task.precision == "bf16" else "fp32"
    torch.manual_seed(seed)
    num_workers = PLAIN_WORKERS if workers is None else workers
    options: dict[str, Any] = {"num_workers": num_workers, "persistent_workers": num_workers > 0}
    clean = to_normalised(data)
    augment = transforms.Compose([*pil_augmentations(), clean])
    train_images = ArrayImages(data.train_images, data.train_labels, augment)
    train = DataLoader(train_images, task.batch_size, shuffle=True, **options)
    test = DataLoader(ArrayImages(data.test_images, data.test_labels, clean), EVAL_BATCH, **options)
    mix = mixing(data, task.mixing)
    model = task.network(seed, data).to(device)
    optimizer = plain_optimizer(model, task)
    rates = task.rates(len(data.train_labels))

    for epoch in clock.epochs(task.epochs):
        model.train()
        total = 0.0
        for step, images, labels in clock.batches(train):
            set_rate(optimizer, rates[step])
            mixed, targets = mix(images.to(device), labels.to(device))
            with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
                loss = plain_step(model, optimizer, mixed, targets)
            total += loss.item() * len(images)
        clock.trained(epoch, total)
        if task.evaluates(epoch):
            clock.evaluated(count_right(model, test, device, precision), len(data.test_labels))
        clock.epoch_ended()


def plain_optimizer(model: nn.Module, task: Task, *, fused: bool | None = None) -> torch.optim.Optimizer:
    return torch.optim.SGD(
        model.parameters(), lr=task.lr, momentum=MOMENTUM, nesterov=True, weight_decay=WEIGHT_DECAY, fused=fused
    )


def plain_step(model: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, targets: Tensor) -> Tensor:
    """Forward, cross-entropy, backward, SGD; gives the loss."""
    loss = functional.cross_entropy(model(images), targets)
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return loss.detach()


def fair(task: Task, data: DataSet, seed: int, clock: Clock, workers: int | None = None) -> None:
    """(b) The same by a careful user.

    bf16 autocast where the device computes in it, channels_last, fused SGD, a worker on each core, copies that do not
    block, no waiting for the device within an epoch; on CUDA also pinned memory, TF32 and cudnn.benchmark.
    """
    device, precision = find_device("auto").torch, resolve(task.precision)
    on_cuda = device.type == "cuda"
    fast_cuda_settings()
    torch.manual_seed(seed)
    num_workers = num_cores() if workers is None else workers
    options: dict[str, Any] = {"num_workers": num_workers, "persistent_workers": num_workers > 0, "pin_memory": on_cuda}
    clean = to_normalised(data)
    augment = transforms.Compose([*pil_augmentations(), clean])
    train_images = ArrayImages(data.train_images, data.train_labels, augment)
    train = DataLoader(train_images, task.batch_size, shuffle=True, **options)
    test = DataLoader(ArrayImages(data.test_images, data.test_labels, clean), EVAL_BATCH, **options)
    mix = mixing(data, task.mixing)
    model = task.network(seed, data).to(device).to(memory_format=torch.channels_last)
    optimizer = plain_optimizer(model, task, fused=True)
    rates = task.rates(len(data.train_labels))

    for epoch in clock.epochs(task.epochs):
        model.train()
        total = torch.zeros((), device=device)
        for step, images, labels in clock.batches(train):
            set_rate(optimizer, rates[step])
            images = images.to(device, non_blocking=True, memory_format=torch.channels_last)  # noqa: PLW2901
            mixed, targets = mix(images, labels.to(device, non_blocking=True))
            with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
                logits = model(mixed.contiguous(memory_format=torch.channels_last))
                loss = functional.cross_entropy(logits, targets)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            total += loss.detach() * len(images)
        clock.trained(epoch, total)
        if task.evaluates(epoch):
            clock.evaluated(count_right(model, test, device, precision, channels_last=True), len(data.test_labels))
        clock.epoch_ended()


def timm(task: Task, data: DataSet, seed: int, clock: Clock, workers: int | None = None) -> None:
    """(c) timm's machinery in the order of its train script: loader, Mixup, optimizer, loss, autocast, channels_last.

    The data set object is what `timm.data.create_dataset("torch/cifar10")` gives: PIL images from memory. Three things
    are set against timm's defaults, so that the same training is done: its transforms have no affine with a
    probability, so the loader's data set gets torchvision's; its loader drops the last partial batch, so that is
    switched off; its optimizers spare biases and norms from weight decay, so `filter_bias_and_bn` is off. Mixup needs
    even batches.
    """
    from timm.data import FastCollateMixup, Mixup  # noqa: TID251  a comparison with timm
    from timm.loss import SoftTargetCrossEntropy  # noqa: TID251
    from timm.optim import create_optimizer_v2  # noqa: TID251
    from timm.utils import random_seed  # noqa: TID251

    device, precision = find_device("auto").torch, resolve(task.precision)
    prefetch = device.type == "cuda"
    fast_cuda_settings()
    random_seed(seed)
    mixing_options: dict[str, Any] = {
        "mixup_alpha": AUGMENT["mixup"]["alpha"],
        "cutmix_alpha": AUGMENT["cutmix"]["alpha"],
        "mode": "elem",
        "label_smoothing": 0.0,
        "num_classes": data.num_classes,
    }
    mixup = None if prefetch else Mixup(**mixing_options)
    collate = FastCollateMixup(**mixing_options) if prefetch else None
    train, test = timm_loaders(task, data, device, collate, num_cores() if workers is None else workers)
    model = task.network(seed, data).to(device).to(memory_format=torch.channels_last)
    optimizer = create_optimizer_v2(
        model, opt="sgd", lr=task.lr, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY, filter_bias_and_bn=False
    )
    loss_of = SoftTargetCrossEntropy()
    rates = task.rates(len(data.train_labels))

    for epoch in clock.epochs(task.epochs):
        model.train()
        total = torch.zeros((), device=device)
        for step, images, labels in clock.batches(train):
            set_rate(optimizer, rates[step])
            targets = labels
            if mixup is not None:
                images, targets = mixup(images.to(device), labels.to(device))  # noqa: PLW2901
            images = images.contiguous(memory_format=torch.channels_last)  # noqa: PLW2901
            with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
                loss = loss_of(model(images), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.detach() * len(images)
        clock.trained(epoch, total)
        if task.evaluates(epoch):
            clock.evaluated(count_right(model, test, device, precision, channels_last=True), len(data.test_labels))
        clock.epoch_ended()


def timm_loaders(task: Task, data: DataSet, device: torch.device, collate: Any, num_workers: int) -> tuple[Any, Any]:
    """Training and test loader of timm; under its prefetcher, images stay 8 bits until they are on the device."""
    from timm.data import create_loader  # noqa: TID251
    from timm.data.transforms import ToNumpy  # noqa: TID251

    num = len(data.train_labels)
    if num % 2 or task.batch_size % 2:
        raise SystemExit(
            f"{num} images in batches of {task.batch_size}: timm's Mixup takes even batches; make both even"
        )
    prefetch = device.type == "cuda"
    mean, std = channel_statistics(data.train_images)
    size = (3, data.image_size_px, data.image_size_px)
    shared: dict[str, Any] = {
        "input_size": size,
        "mean": mean,
        "std": std,
        "num_workers": num_workers,
        "use_prefetcher": prefetch,
        "pin_memory": prefetch,
        "device": device,
    }
    train_images = ArrayImages(data.train_images, data.train_labels)
    test_images = ArrayImages(data.test_images, data.test_labels)
    train = create_loader(train_images, batch_size=task.batch_size, is_training=True, collate_fn=collate, **shared)
    test = create_loader(test_images, batch_size=EVAL_BATCH, **shared)
    last = ToNumpy() if prefetch else to_normalised(data)
    train_images.transform = transforms.Compose([*pil_augmentations(), last])
    test_images.transform = last
    (train.loader if prefetch else train).batch_sampler.drop_last = False
    return train, test


LOOPS: dict[str, Callable[..., None]] = {"plain": plain, "fair": fair, "timm": timm}


def train_all(
    loop: str, task: Task, *, workers: int | None, max_steps: int | None, say: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    """Train every seed of a task with a loop; gives the totals, after `say` has heard of each epoch."""
    started = psutil.Process().create_time()
    data = load(task)
    clock = Clock(say, max_steps)
    for seed in range(task.seeds):
        clock.start_run(seed)
        LOOPS[loop](task, data, seed, clock, workers)
    last = {line["seed"]: line["test_accuracy"] for line in clock.lines}
    return {
        "event": "total",
        "loop": loop,
        "model": task.model,
        "images": data.describe() if max_steps is None else f"{data.describe()}; only {max_steps} steps of each run",
        "first_step_time": clock.first_step,
        "cold_seconds": (clock.first_step or time.time()) - started,
        "wall_seconds": time.time() - started,
        "train_seconds": sum(line["train_seconds"] for line in clock.lines),
        "eval_seconds": sum(line["eval_seconds"] for line in clock.lines),
        "num_images": len(data.train_labels),
        "num_test_images": len(data.test_labels),
        "test_accuracy": [last[seed] for seed in range(task.seeds)],
        "precision": ("bf16" if task.precision == "bf16" else "fp32") if loop == "plain" else resolve(task.precision),
        "threads": torch.get_num_threads(),
        "device": find_device("auto").name,
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--loop", choices=list(LOOPS), required=True)
    parser.add_argument("--model", choices=MODELS, default=MODELS[0])
    add_task_options(parser, Task())
    parser.add_argument("--seeds", type=int, default=1, help="runs, one after the other, with the seeds from 0")
    parser.add_argument("--threads", type=int, help="of torch (default: torch's own)")
    parser.add_argument("--workers", type=int, help="of the DataLoader (default: 2 for plain, else one for each core)")
    parser.add_argument("--max-steps", type=int, help="of each run; to extrapolate from on a slow device")
    chosen = parser.parse_args()
    if chosen.threads is not None:
        torch.set_num_threads(chosen.threads)

    def say(line: dict[str, Any]) -> None:
        print(json.dumps(line), flush=True)

    say(train_all(chosen.loop, task_of(chosen), workers=chosen.workers, max_steps=chosen.max_steps, say=say))


if __name__ == "__main__":
    main()
