"""What each part of the engine gains on a CPU: steps with all of them, and without one at a time.

    python -m benchmarks.without [--case S16 ...] [--rounds 5] [--compile] [--out without.json]

Cases are resnet18-compact (S) and resnet18 (K) with their batch size. A machine that others share is 10% faster in one
minute than in the next, which is more than most parts gain. So a variant and the whole engine train at the same moment,
in one-thread processes that are each bound to one of two cores, and change cores for the second half of a round.
Printed are images per second of a core, medians, and the ratio to the whole engine: of both halves together, median
over rounds with the least and the greatest. --compile adds variants with torch.compile, which take a minute to start.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.contenders import recipe_of
from benchmarks.peak import at_once, whole_step
from benchmarks.task import MODELS, Task, add_task_options, load, task_of, two_cores
from cifar_ablate import device as device_module
from cifar_ablate.device import find_device, find_slots
from cifar_ablate.spec.schema import Recipe
from cifar_ablate.training import convolution, engine, optim
from cifar_ablate.training.batches import to_device
from cifar_ablate.training.engine import Engine, Mode
from cifar_ablate.training.state import set_up

CASES = {"S16": (MODELS[0], 16), "S128": (MODELS[0], 128), "K128": (MODELS[1], 128)}
SECONDS = 6.0


@dataclass(frozen=True)
class Variant:
    """The engine without one of its parts."""

    remove: Callable[[], None] = lambda: None
    compiles: bool = False
    cases: tuple[str, ...] = tuple(CASES)
    """Where it makes a difference."""


def torch_convolutions() -> None:
    engine.with_matrix_products = lambda model: model


def columns_on_2x2_maps() -> None:
    """As on all other maps, with the padding."""
    convolution.WORTH_DENSE = 2**30


def dense_products_for_few_images() -> None:
    convolution.WORTH_DENSE = 0


def weights_as_they_are() -> None:
    optim._order_in_memory = lambda tensor: tuple(range(tensor.ndim))


def memory_given_back() -> None:
    device_module._keep_freed_memory = lambda: None


WHOLE = "everything"
VARIANTS = {
    WHOLE: Variant(),
    "products for convolutions": Variant(torch_convolutions),
    "dense products on 2x2 maps": Variant(columns_on_2x2_maps, cases=("S128",)),
    "columns on 2x2 maps, for few images": Variant(dense_products_for_few_images, cases=("S16",)),
    "views of weights in the order of memory": Variant(weights_as_they_are),
    "freed memory kept": Variant(memory_given_back),
    "plain steps (compiled instead)": Variant(compiles=True),
    "plain steps and products (compiled instead)": Variant(torch_convolutions, compiles=True),
}


def work(core: int, task: Task, name: str, start: Any, results: Any) -> None:
    """Images per second of whole steps with a variant, in this process and on this core."""
    os.sched_setaffinity(0, {core})
    variant = VARIANTS[name]
    variant.remove()
    found = find_device("cpu")
    find_slots(found, 1, None)[0].enter()
    data = to_device(load(task), found.torch)
    state = set_up(
        Recipe.model_validate(recipe_of(task)), 0, data, found.resolve("auto"), Engine(Mode(compile=variant.compiles))
    )
    step = whole_step(state)
    for _ in range(3):
        step()
    start.wait()
    begun, num = time.perf_counter(), 0.0
    while time.perf_counter() - begun < SECONDS:
        num += step()
    results.put((name, num / (time.perf_counter() - begun)))


def beside_everything(task: Task, name: str, on: Sequence[int]) -> tuple[float, float]:
    """Images per second of a variant and of the whole engine beside it, means over both ways to share two cores."""
    rates: dict[str, list[float]] = {WHOLE: [], name: []}
    for cores in (on, on[::-1]):
        for key, rate in at_once(work, [(core, task, one) for core, one in zip(cores, rates, strict=True)]):
            rates[key].append(rate)
    return statistics.fmean(rates[name]), statistics.fmean(rates[WHOLE])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--case", choices=CASES, action="append", help="default: all")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--compile", action="store_true", help="try torch.compile, too")
    parser.add_argument("--out", type=Path, help="write every round as JSON")
    add_task_options(parser, Task(images=1280))
    chosen = parser.parse_args()
    names = [name for name in VARIANTS if name != WHOLE and (chosen.compile or not VARIANTS[name].compiles)]
    on = two_cores()
    measured: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for case in chosen.case or CASES:
        model, batch_size = CASES[case]
        task = task_of(chosen, model=model, batch_size=batch_size)
        rates: dict[str, list[tuple[float, float]]] = {name: [] for name in names if case in VARIANTS[name].cases}
        for index in range(chosen.rounds):
            for name, pairs in rates.items():
                pairs.append(beside_everything(task, name, on))
                without, whole = pairs[-1]
                print(f"{case}, round {index + 1}: {without:.1f} images/s without {name}, {whole:.1f} with", flush=True)
        measured[case] = rates
    print(f"\n{find_device('cpu').name}, torch {torch.__version__}\n")
    print("| case | without | images/s of a core | with | ratio (range) |\n|---|---|---:|---:|---:|")
    for case, rates in measured.items():
        for name, pairs in rates.items():
            without, whole = (statistics.median(values) for values in zip(*pairs, strict=True))
            ratios = [one / other for one, other in pairs]
            found = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
            print(f"| {case} | {name} | {without:.0f} | {whole:.0f} | {found} |")
    if chosen.out:
        content = {"device": find_device("cpu").name, "torch": torch.__version__, "without_and_with": measured}
        chosen.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
