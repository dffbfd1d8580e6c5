"""Which share of the device's matrix-product peak a training step reaches.

    python -m benchmarks.peak --data DIR [--rounds 5] [--out peak.json]

There are two limits. Arithmetic: the peak is the best of square products in the step's precision. Bytes: what every
operation of a step reads and writes, as if nothing stayed in a cache, over the rate at which large arrays are copied;
an operation that is fused, or that finds its input in the cache, pays less. A step's operations are nominal: torch's
own count for forward and backward, multiplications with padding included, a multiply-add being two. "fwd+bwd" is the
network alone, on a batch that is there; "step" is what a run does: pick the images, augment them as `+cutmix` does,
forward, backward, optimizer.

On a CPU a study is trained by a one-thread process on each core, so all measure at the same moment, peak, network
and step in turn, and their rates are added up. A share is that of one process in one round; printed are the medians.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.contenders import recipe_of
from benchmarks.task import MODELS, Task, add_task_options, load, task_of
from cifar_ablate.device import find_device, find_slots, num_cores
from cifar_ablate.models.build import build_model
from cifar_ablate.spec.schema import Recipe
from cifar_ablate.training.batches import to_device
from cifar_ablate.training.engine import Engine, EngineOptions, choose_mode
from cifar_ablate.training.evaluate import precision_context
from cifar_ablate.training.state import TrainState, set_up

SIDES = (1024, 2048, 4096)
SECONDS = 1.0
"""For each side, and at least for the network and for the step, in each round."""


@dataclass(frozen=True)
class Row:
    """One network on all cores, or on one GPU."""

    model: str
    processes: int
    gflop_per_image: float
    megabytes_per_image: float
    peak_gflops: float
    """All processes together; median over the rounds."""
    copied_gigabytes_per_second: float
    """Read and written, all processes together."""
    network_images_per_second: float
    step_images_per_second: float
    network_share: float
    """Median over rounds and processes, of 1."""
    step_share: float
    rounds: tuple[tuple[tuple[float, ...], ...], ...]
    """By process and round: peak GFLOP/s, GB/s, and images per second of the network and of the step."""


def gflop_per_image(model: str, options: Mapping[str, int], batch: int = 2) -> float:
    """Nominal operations of forward and backward."""
    network = build_model(model, options, num_classes=10, image_size_px=32, init_seed=0)
    with FlopCounterMode(display=False) as counter:
        network(torch.zeros(batch, 3, 32, 32)).sum().backward()
    return counter.get_total_flops() / batch / 1e9


class BytesMoved(TorchDispatchMode):
    """Sums what operations read and write; views move nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves((args, kwargs, out)) if isinstance(leaf, torch.Tensor)]
        if not func.is_view:
            self.total += sum(tensor.nbytes for tensor in tensors)
        return out


def megabytes_per_image(state: TrainState) -> float:
    """Bytes that forward, backward and optimizer move for each image of a batch."""
    network = network_alone(state, state.recipe.batch_size)
    network()
    with BytesMoved() as moved:
        network()
        state.optimizer.step()
    return moved.total / state.recipe.batch_size / 1e6


def copied(device: torch.device) -> float:
    """Rate of copying a large array, read and written, in GB/s."""
    source = torch.zeros(64 * 2**20, device=device)
    target = torch.empty_like(source)

    def copy() -> float:
        target.copy_(source)
        return 2 * source.nbytes / 1e9

    return rate_of(copy, device)


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


def network_alone(state: TrainState, batch_size: int) -> Callable[[], float]:
    images = torch.randn(batch_size, 3, 32, 32, device=state.setup.device).contiguous(memory_format=torch.channels_last)
    labels = torch.zeros(batch_size, dtype=torch.int64, device=state.setup.device)

    def forward_backward() -> float:
        state.model.zero_grad(set_to_none=True)
        with precision_context(images.device, state.precision):
            logits = state.model(images)
        torch.nn.functional.cross_entropy(logits.float(), labels).backward()  # type: ignore[no-untyped-call]
        return batch_size

    return forward_backward


def whole_step(state: TrainState) -> Callable[[], float]:
    """Steps of epoch after epoch, whole batches only."""
    taken = [0]
    whole = len(state.data.train_labels) // state.recipe.batch_size

    def step() -> float:
        index = taken[0] % whole
        if index == 0:
            state.train_step.load_epoch(0, 0, state.base_lr * state.lr_factors[: state.num_steps], 0)
        state.model.train()
        taken[0] += 1
        return state.train_step(index)

    return step


def measured(task: Task, rounds: int, start: Any) -> tuple[float, list[tuple[float, ...]]]:
    """Megabytes per image; and peak, copy, network and step by round, in this process, with one thread on a CPU."""
    found = find_device()
    find_slots(found, 1, None)[0].enter()
    precision = found.resolve("auto")
    recipe = Recipe.model_validate(recipe_of(task))
    data = to_device(load(task), found.torch)
    state = set_up(recipe, 0, data, precision, Engine(choose_mode(EngineOptions(), found)))
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    step, network = whole_step(state), network_alone(state, recipe.batch_size)
    moved = megabytes_per_image(set_up(recipe, 0, data, precision))
    actions: list[Callable[[], float]] = [
        lambda: peak_gflops(found.torch, dtype),
        lambda: copied(found.torch),
        lambda: rate_of(network, found.torch),
        lambda: rate_of(step, found.torch),
    ]
    table = []
    for _ in range(rounds):
        row = []
        for action in actions:
            start.wait()
            row.append(action())
        table.append(tuple(row))
    return moved, table


def work(task: Task, rounds: int, start: Any, results: Any) -> None:
    results.put(measured(task, rounds, start))


def at_once(work: Callable[..., None], arguments: Sequence[Sequence[Any]]) -> list[Any]:
    """What processes put into a queue, one for each of ``arguments``: work(*these, barrier of all of them, queue)."""
    context = multiprocessing.get_context("spawn")
    start, results = context.Barrier(len(arguments)), context.SimpleQueue()
    processes = [context.Process(target=work, args=(*these, start, results)) for these in arguments]
    for process in processes:
        process.start()
    found = [results.get() for _ in processes]
    for process in processes:
        process.join()
    return found


def measure(task: Task, rounds: int) -> Row:
    """One network, on all cores or one GPU at once."""
    number = num_cores() if find_device().kind == "cpu" else 1
    found = at_once(work, [(task, rounds)] * number)
    tables = [table for _, table in found]
    flop = gflop_per_image(task.model, task.model_options())
    sums = [[sum(table[index][column] for table in tables) for index in range(rounds)] for column in range(4)]
    shares = [[flop * row[column] / row[0] for table in tables for row in table] for column in (2, 3)]
    return Row(
        task.model,
        number,
        flop,
        found[0][0],
        *(statistics.median(column) for column in sums),
        *(statistics.median(column) for column in shares),
        tuple(tuple(table) for table in tables),
    )


def print_table(rows: Sequence[Row]) -> None:
    columns = ("network", "processes", "GFLOP/image", "peak GFLOP/s", "MB/image", "copy GB/s", "bound by peak")
    columns += ("bound by bytes", "fwd+bwd images/s", "share of peak", "step images/s", "share of peak")
    print("| " + " | ".join(columns) + " |")
    print("|---|" + "---:|" * (len(columns) - 1))
    for row in rows:
        bounds = row.peak_gflops / row.gflop_per_image, 1000 * row.copied_gigabytes_per_second / row.megabytes_per_image
        cells = [row.model, str(row.processes), f"{row.gflop_per_image:.3f}", f"{row.peak_gflops:,.0f}"]
        cells += [f"{row.megabytes_per_image:.1f}", f"{row.copied_gigabytes_per_second:.1f}"]
        cells += [f"{bound:,.0f}" for bound in bounds]
        cells += [f"{row.network_images_per_second:,.0f}", f"{row.network_share:.0%}"]
        cells += [f"{row.step_images_per_second:,.0f}", f"{row.step_share:.0%}"]
        print("| " + " | ".join(cells) + " |")


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
    print(f"\n{found.name}, {found.resolve('auto')}, batch {chosen.batch_size}, torch {torch.__version__}\n")
    print_table(rows)
    if chosen.out:
        content = {"device": found.name, "torch": torch.__version__, "rows": [asdict(row) for row in rows]}
        chosen.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
