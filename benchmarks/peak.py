"""Which share of the device's matrix-product peak a training step reaches.

    python -m benchmarks.peak --data DIR [--rounds 5] [--out peak.json]

The peak is the best of square products in the step's precision. A step's operations are nominal: torch's own count for
forward and backward, multiplications with padding included, a multiply-add being two. "fwd+bwd" is the network alone,
on a batch that is there; "step" is what a run does: pick the images, augment them as `+cutmix` does, forward, backward,
optimizer.

On a CPU a study is trained by a one-thread process on each core, so all measure at the same moment, peak, network
and step in turn, and their rates are added up. A share is that of one process in one round; printed are the medians.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.contenders import recipe_of
from benchmarks.task import MODELS, Task, add_task_options, load, num_cores, task_of
from cifar_ablate.device import find_device
from cifar_ablate.models.build import build_model
from cifar_ablate.spec.schema import Recipe
from cifar_ablate.training.batches import to_device
from cifar_ablate.training.engine import Engine, EngineOptions, choose_mode
from cifar_ablate.training.evaluate import precision_context
from cifar_ablate.training.fit import Fit, set_up

SIDES = (1024, 2048, 4096)
SECONDS = 1.0
"""For each side, and at least for the network and for the step, in each round."""


@dataclass(frozen=True)
class Row:
    """One network on all cores, or on one GPU."""

    model: str
    processes: int
    gflop_per_image: float
    peak_gflops: float
    """All processes together; median over the rounds."""
    network_images_per_second: float
    step_images_per_second: float
    network_share: float
    """Median over rounds and processes, of 1."""
    step_share: float
    rounds: tuple[tuple[tuple[float, float, float], ...], ...]
    """By process and round: peak GFLOP/s, and images per second of the network and of the step."""


def gflop_per_image(model: str, batch: int = 2) -> float:
    """Nominal operations of forward and backward."""
    network = build_model(model, {}, num_classes=10, image_size_px=32, init_seed=0)
    with FlopCounterMode(display=False) as counter:
        network(torch.zeros(batch, 3, 32, 32)).sum().backward()
    return counter.get_total_flops() / batch / 1e9


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def rate_of(action: Callable[[], float], device: torch.device) -> float:
    """What ``action`` does per second, over at least SECONDS."""
    action()
    wait(device)
    begun, done = time.perf_counter(), 0.0
    while time.perf_counter() - begun < SECONDS:
        done += action()
        wait(device)
    return done / (time.perf_counter() - begun)


def peak_gflops(device: torch.device, dtype: torch.dtype) -> float:
    """The best rate of a square matrix product, over several sides."""
    best = 0.0
    for side in SIDES if device.type == "cpu" else (4096, 8192):
        a, b = (torch.randn(side, side).to(device, dtype) for _ in range(2))

        def product(a: torch.Tensor = a, b: torch.Tensor = b, side: int = side) -> float:
            torch.mm(a, b)
            return 2 * side**3 / 1e9

        best = max(best, rate_of(product, device))
    return best


def network_alone(fit: Fit, batch_size: int) -> Callable[[], float]:
    images = torch.randn(batch_size, 3, 32, 32, device=fit.network.device).contiguous(memory_format=torch.channels_last)
    labels = torch.zeros(batch_size, dtype=torch.int64, device=fit.network.device)

    def forward_backward() -> float:
        fit.model.zero_grad(set_to_none=True)
        with precision_context(images.device, fit.precision):
            logits = fit.model(images)
        torch.nn.functional.cross_entropy(logits.float(), labels).backward()  # type: ignore[no-untyped-call]
        return batch_size

    return forward_backward


def whole_step(fit: Fit) -> Callable[[], float]:
    """Steps of epoch after epoch, whole batches only."""
    taken = [0]
    whole = len(fit.data.train_labels) // fit.recipe.batch_size

    def step() -> float:
        index = taken[0] % whole
        if index == 0:
            fit.stepper.load_epoch(0, 0, fit.base_lr * fit.lr_factors[: fit.num_steps], 0)
        fit.model.train()
        taken[0] += 1
        return fit.stepper(index)

    return step


def measured(task: Task, rounds: int, start: Any) -> list[tuple[float, float, float]]:
    """Peak, network and step, round by round, in this process, with one thread on a CPU."""
    found = find_device()
    if found.kind == "cpu":
        torch.set_num_threads(1)
    precision = found.resolve("auto")
    recipe = Recipe.model_validate(recipe_of(task))
    data = to_device(load(task), found.torch)
    fit = set_up(recipe, 0, data, precision, Engine(choose_mode(EngineOptions(), found)))
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    step, network = whole_step(fit), network_alone(fit, recipe.batch_size)
    table = []
    for _ in range(rounds):
        row = []
        for action in (lambda: peak_gflops(found.torch, dtype), lambda: rate_of(network, found.torch)):
            start.wait()
            row.append(action())
        start.wait()
        row.append(rate_of(step, found.torch))
        table.append((row[0], row[1], row[2]))
    return table


def work(task: Task, rounds: int, start: Any, results: Any) -> None:
    results.put(measured(task, rounds, start))


def measure(task: Task, rounds: int) -> Row:
    """One network, on all cores or one GPU at once."""
    number = num_cores() if find_device().kind == "cpu" else 1
    context = multiprocessing.get_context("spawn")
    start, results = context.Barrier(number), context.SimpleQueue()
    processes = [context.Process(target=work, args=(task, rounds, start, results)) for _ in range(number)]
    for process in processes:
        process.start()
    tables = [results.get() for _ in processes]
    for process in processes:
        process.join()
    flop = gflop_per_image(task.model)
    sums = [[sum(table[index][column] for table in tables) for index in range(rounds)] for column in range(3)]
    shares = [[flop * row[column] / row[0] for table in tables for row in table] for column in (1, 2)]
    return Row(
        task.model,
        number,
        flop,
        *(statistics.median(column) for column in sums),
        *(statistics.median(column) for column in shares),
        tuple(tuple(table) for table in tables),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="write the table as JSON, too")
    parser.add_argument("--model", choices=MODELS, action="append", help="default: both")
    add_task_options(parser, Task())
    chosen = parser.parse_args()
    rows = []
    for model in chosen.model or MODELS:
        task = task_of(chosen, model=model)
        rows.append(measure(task, chosen.rounds))
    found = find_device()
    print(f"\n{found.name}, {found.resolve('auto')}, batch {task.batch_size}, torch {torch.__version__}\n")
    print("| network | processes | GFLOP/image | peak GFLOP/s | fwd+bwd images/s | share | step images/s | share |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|")
    for row in rows:
        network = f"{row.network_images_per_second:,.0f} | {row.network_share:.0%}"
        step = f"{row.step_images_per_second:,.0f} | {row.step_share:.0%}"
        first = f"{row.model} | {row.processes} | {row.gflop_per_image:.3f} | {row.peak_gflops:,.0f}"
        print(f"| {first} | {network} | {step} |")
    if chosen.out:
        content = {"device": found.name, "torch": torch.__version__, "rows": [asdict(row) for row in rows]}
        chosen.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
