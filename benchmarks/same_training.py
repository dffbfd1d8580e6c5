"""What must hold before any time counts: we train what the loops train.

    python -m benchmarks.same_training --data DIR [--part steps|accuracy] [--seeds 5] [--out same_training.json]

steps: both networks, with the same initial weights, the same batches and the same learning rates, so augmentation and
the order of the images have no part in it. The losses of 20 of our steps and of 20 of the plain loop's, in fp32, must
differ by at most 1e-4 of their size. The plain step has our way of rounding there: tensors in the same order in memory
(channels_last) and torch's fused SGD. For these decide in which order a kernel adds, and such networks are chaotic: the
column `noise` shows what becomes of the same 20 losses where the plain loop's initial weights are changed by one part
in ten million. That the two decide nothing else is shown apart, in float64, where rounding is too small to grow: the
plain step as it is written, and with both of them, must agree to 1e-10.

accuracy: `cifar-ablate run` against each loop, over seeds that begin with the same initial weights. The loops draw
their own orders and augmentations, so single runs differ; all mix for each image, which torchvision does not (with
--mixing library the loops do as torchvision: another law, and another accuracy). The mean of the paired differences in
test accuracy must have a 95% interval (Student's t) that contains 0. An interval is printed with its width, for a wide
one excludes little: more seeds or images make it narrower. Where all is equal, one comparison in twenty falls outside
by chance; repeat such a one with more seeds before believing it.

Either part ends with exit code 1 where it does not hold.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import Tensor
from torch.nn import functional

from benchmarks.contenders import LOOPS, OURS, prepare, recipe_of
from benchmarks.parts import set_rate
from benchmarks.peers import plain_optimizer, plain_step
from benchmarks.task import MODELS, Task, add_task_options, channel_statistics, load, task_of
from cifar_ablate.data import DataSet
from cifar_ablate.device import find_device, num_cores
from cifar_ablate.record.folder import write_atomically

LIMIT = 1e-4
STEPS = 20
STEP_BATCH = 32
NOISE = 1e-7
"""Relative, on the initial weights: about the rounding of fp32."""
ROUNDING_LIMIT = 1e-10
ROUNDING_STEPS, ROUNDING_BATCH = 5, 8
"""float64 is slow."""
CONFIDENCE = 0.95
SMALL_WIDTH = 16
SMALL = 2000
"""Training and test images of the second part, where no other number is asked for."""

Batches = Sequence[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class StepCheck:
    """Losses of the same steps by both, and the largest relative differences between losses."""

    model: str
    ours: tuple[float, ...]
    plain: tuple[float, ...]
    ours_to_plain: float
    """fp32, both rounding alike."""
    noise_to_plain: float
    """fp32, from weights changed by `NOISE`."""
    between_roundings: float
    """float64, the plain step as it is written and the plain step that rounds as ours."""

    @property
    def holds(self) -> bool:
        return self.ours_to_plain <= LIMIT and self.between_roundings <= ROUNDING_LIMIT


@dataclass(frozen=True)
class Difference:
    """Test accuracy of ours minus a loop's, paired by seed, in points."""

    loop: str
    ours: tuple[float, ...]
    theirs: tuple[float, ...]
    mean: float
    low: float
    high: float

    @property
    def holds(self) -> bool:
        return self.low <= 0 <= self.high


def injected_batches(data: DataSet, num: int, batch_size: int, device: torch.device) -> Batches:
    """Normalised images with soft targets, each mixed with another image's, so that all of the loss is exercised."""
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in channel_statistics(data.train_images))
    rng = np.random.default_rng(0)
    batches = []
    for _ in range(num):
        rows = rng.choice(len(data.train_labels), batch_size, replace=False)
        images = (torch.from_numpy(data.train_images[rows]).float() / 255 - mean) / std
        targets = functional.one_hot(torch.from_numpy(data.train_labels[rows]), data.num_classes).float()
        kept = torch.from_numpy(rng.beta(1.0, 1.0, (batch_size, 1)).astype(np.float32))
        images = torch.lerp(images.flip(0), images, kept[:, :, None, None])
        batches.append((images.to(device), torch.lerp(targets.flip(0), targets, kept).to(device)))
    return batches


def our_losses(task: Task, data: DataSet, batches: Batches, rates: Sequence[float]) -> tuple[float, ...]:
    """Losses of the project's own training step; all that this file knows of its training."""
    from cifar_ablate.spec.schema import Recipe
    from cifar_ablate.training.batches import to_device
    from cifar_ablate.training.state import set_up
    from cifar_ablate.training.step import optimize

    device = batches[0][0].device
    state = set_up(Recipe.model_validate(recipe_of(task)), 0, to_device(data, device), "fp32")
    losses = []
    for (images, targets), rate in zip(batches, rates, strict=True):
        set_rate(state.optimizer, rate)
        losses.append(float(optimize(state.setup, images, targets)[0]))
    return tuple(losses)


def plain_losses(
    task: Task, data: DataSet, batches: Batches, rates: Sequence[float], *, like_ours: bool, noise: float = 0.0
) -> tuple[float, ...]:
    """Losses of the plain loop's step on the same batches from the same weights, computed in the batches' type.

    `like_ours`: with channels_last and fused SGD, and so the rounding of our step.
    """
    first, layout = batches[0][0], torch.channels_last if like_ours else torch.contiguous_format
    model = task.network(0, data).to(first.device, first.dtype).to(memory_format=layout)
    with torch.no_grad():
        draws = torch.Generator().manual_seed(0)
        for weights in model.parameters():
            weights.mul_(1 + noise * torch.randn(weights.shape, generator=draws).to(weights))
    optimizer = plain_optimizer(model, task, fused=like_ours or None)
    losses = []
    for (images, targets), rate in zip(batches, rates, strict=True):
        set_rate(optimizer, rate)
        losses.append(float(plain_step(model, optimizer, images.contiguous(memory_format=layout), targets)))
    return tuple(losses)


def largest_difference(losses: Sequence[float], reference: Sequence[float]) -> float:
    """Relative; infinite where a loss is not finite."""
    pairs = zip(losses, reference, strict=True)
    return max(abs(one - other) / abs(other) if math.isfinite(one + other) else math.inf for one, other in pairs)


def check_steps(task: Task, data: DataSet) -> StepCheck:
    """Both steps on the same batches; a CUDA device computes in true fp32, and the same each time."""
    batches = injected_batches(data, STEPS, task.batch_size, find_device("auto").torch)
    few = [
        (images[:ROUNDING_BATCH].double(), targets[:ROUNDING_BATCH].double())
        for images, targets in batches[:ROUNDING_STEPS]
    ]
    rates = [float(rate) for rate in replace(task, epochs=1).rates(STEPS * task.batch_size)]
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
        ours = our_losses(task, data, batches, rates)
        plain = plain_losses(task, data, batches, rates, like_ours=True)
        noisy = plain_losses(task, data, batches, rates, like_ours=True, noise=NOISE)
        exact = [plain_losses(task, data, few, rates[:ROUNDING_STEPS], like_ours=like) for like in (True, False)]
    return StepCheck(
        task.model,
        ours,
        plain,
        ours_to_plain=largest_difference(ours, plain),
        noise_to_plain=largest_difference(noisy, plain),
        between_roundings=largest_difference(*exact),
    )


def steps_hold(chosen: argparse.Namespace) -> tuple[bool, list[dict[str, Any]]]:
    """The first part for both networks; prints its table."""
    print(f"\n{STEPS} fp32 steps on the same batches; limits {LIMIT:g}, and {ROUNDING_LIMIT:g} in float64\n")
    print(
        "| model | first loss | last loss, ours | last loss, plain | ours to plain | noise | two roundings, float64 |"
    )
    print("|---|---:|---:|---:|---:|---:|---:|")
    found, hold = [], True
    for model in chosen.model or MODELS:
        task = task_of(chosen, model=model, batch_size=chosen.step_batch_size, images=None, test_images=None)
        check = check_steps(task, load(task))
        losses = f"{check.plain[0]:.6f} | {check.ours[-1]:.6f} | {check.plain[-1]:.6f}"
        largest = f"{check.ours_to_plain:.1e} | {check.noise_to_plain:.1e} | {check.between_roundings:.1e}"
        print(f"| {model} | {losses} | {largest} |", flush=True)
        found.append(asdict(check))
        hold = hold and check.holds
    return hold, found


def difference(loop: str, ours: Sequence[float], theirs: Sequence[float]) -> Difference:
    """Mean of the differences paired by seed, with Student's interval."""
    each = [our - their for our, their in zip(ours, theirs, strict=True)]
    mean = statistics.fmean(each)
    half = float(stats.t.ppf(0.5 + CONFIDENCE / 2, len(each) - 1)) * statistics.stdev(each) / math.sqrt(len(each))
    return Difference(loop, tuple(ours), tuple(theirs), mean, mean - half, mean + half)


def accuracy_holds(chosen: argparse.Namespace) -> tuple[bool, list[dict[str, Any]]]:
    """The second part: train everything, print its table."""
    if chosen.seeds < 2:
        raise SystemExit("an interval takes at least two --seeds")
    with tempfile.TemporaryDirectory() as folder:
        model = (chosen.model or MODELS)[0]
        full = task_of(chosen, model=model, images=None, test_images=None)
        data = load(full, Path(folder) / "data")
        images, tests = (min(SMALL, len(labels) // 2 * 2) for labels in (data.train_labels, data.test_labels))
        task = replace(full, images=chosen.images or images, test_images=chosen.test_images or tests)
        task = replace(task, width=SMALL_WIDTH if chosen.width is None else chosen.width)
        prepared = prepare(task, Path(folder))
        said = f"{prepared.sizes.train:,} of {data.num_train_full:,} training images"
        said += f" and {prepared.sizes.test:,} of {data.num_test_full:,} test images of {data.name}"
        print(f"\n{task.model} of width {task.width}, {task.epochs} epochs, {said}\n")
        ours = prepared.measure(OURS, jobs=chosen.jobs, threads=None).test_accuracy
        print("| against | seeds | ours % | theirs % | difference, points | 95% interval | contains 0 |")
        print("|---|---:|---:|---:|---:|---:|---|")
        found = []
        for loop in chosen.loop or LOOPS:
            one = difference(loop, ours, prepared.measure(loop, jobs=1, threads=chosen.loop_threads).test_accuracy)
            means = f"{statistics.fmean(one.ours):.2f} | {statistics.fmean(one.theirs):.2f} | {one.mean:+.2f}"
            interval = f"{one.low:+.2f} to {one.high:+.2f}"
            print(f"| {loop} | {len(ours)} | {means} | {interval} | {'yes' if one.holds else 'NO'} |", flush=True)
            found.append(asdict(one) | {"contains_0": one.holds, "images": said, "task": asdict(task)})
    return all(one["contains_0"] for one in found), found


def main() -> None:
    on_cpu = find_device("auto").kind == "cpu"
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--part", choices=("steps", "accuracy"), action="append", help="default: both")
    parser.add_argument("--model", choices=MODELS, action="append", help="default: both, and the first for accuracy")
    parser.add_argument("--loop", choices=LOOPS, action="append", help="default: all three")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--step-batch-size", type=int, default=STEP_BATCH)
    add_task_options(parser, Task(epochs=4, batch_size=64, lr=0.05, eval_every=0, mixing="per-image"))
    parser.add_argument("--jobs", type=int, default=num_cores() if on_cpu else 1, help="of cifar-ablate run")
    parser.add_argument("--loop-threads", type=int, help="of torch in the loops (default: torch's own)")
    parser.add_argument("--out", type=Path, help="write the figures as JSON, too")
    chosen = parser.parse_args()
    document: dict[str, Any] = {"command": sys.argv[1:], "device": find_device("auto").name, "torch": torch.__version__}
    hold = True
    for part in chosen.part or ("steps", "accuracy"):
        holds, document[part] = steps_hold(chosen) if part == "steps" else accuracy_holds(chosen)
        hold = hold and holds
        if chosen.out:
            write_atomically(chosen.out, json.dumps(document, indent=1) + "\n")
    print("\nIt holds." if hold else "\nIt does not hold: see above.")
    raise SystemExit(0 if hold else 1)


if __name__ == "__main__":
    main()
