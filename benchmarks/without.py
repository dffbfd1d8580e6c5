"""What each part of the engine gains on a CPU: steps with all of them, and without one at a time.

    python -m benchmarks.without [--case S16 ...] [--rounds 5] [--compile] [--out without.json]

Cases are resnet18-compact (S) and resnet18 (K) with their batch size. Each measurement is a process of its own with one
thread, as many at once as there are cores, since that is how a study is trained; variants take turns, round by round.
Printed are images per second of a core, medians, and the median over rounds of the ratio to the whole engine in the
same round. --compile adds a variant with torch.compile, which takes a minute to start in each process.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.contenders import recipe_of
from benchmarks.peak import at_once, whole_step
from benchmarks.task import MODELS, Task, add_task_options, load, task_of
from cifar_ablate import device as device_module
from cifar_ablate.device import find_device, find_places, num_cores
from cifar_ablate.spec.schema import Recipe
from cifar_ablate.training import convolution, engine, optim
from cifar_ablate.training.batches import to_device
from cifar_ablate.training.engine import Engine, Mode
from cifar_ablate.training.fit import set_up

CASES = {"S16": (MODELS[0], 16), "S128": (MODELS[0], 128), "K128": (MODELS[1], 128)}
SECONDS = 6.0


@dataclass(frozen=True)
class Variant:
    """The engine without one of its parts."""

    remove: Callable[[], None] = lambda: None
    compiles: bool = False


def torch_convolutions() -> None:
    engine.with_matrix_products = lambda model: model


def padding_on_2x2_maps() -> None:
    """As all other products: columns."""

    class Columns:
        @staticmethod
        def apply(x: torch.Tensor, w: torch.Tensor) -> Any:
            return convolution._Convolve.apply(x, w, 1, 1, True, True)

    convolution._Dense = Columns  # type: ignore[assignment, misc]


def weights_as_they_are() -> None:
    optim._order_in_memory = lambda tensor: tuple(range(tensor.ndim))


def memory_given_back() -> None:
    device_module._keep_freed_memory = lambda: None


VARIANTS = {
    "everything": Variant(),
    "torch's convolutions": Variant(torch_convolutions),
    "2x2 maps with padding": Variant(padding_on_2x2_maps),
    "fused optimizer on channels_last weights": Variant(weights_as_they_are),
    "freed memory given back": Variant(memory_given_back),
    "compiled": Variant(compiles=True),
    "compiled, torch's convolutions": Variant(torch_convolutions, compiles=True),
}


def work(task: Task, name: str, start: Any, results: Any) -> None:
    """Images per second of whole steps with a variant, in this process."""
    variant = VARIANTS[name]
    variant.remove()
    found = find_device("cpu")
    find_places(found, 1, None)[0].enter()
    data = to_device(load(task), found.torch)
    fit = set_up(
        Recipe.model_validate(recipe_of(task)), 0, data, found.resolve("auto"), Engine(Mode(compile=variant.compiles))
    )
    step = whole_step(fit)
    for _ in range(3):
        step()
    start.wait()
    begun, num = time.perf_counter(), 0.0
    while time.perf_counter() - begun < SECONDS:
        num += step()
    results.put(num / (time.perf_counter() - begun))


def images_per_second(task: Task, name: str) -> float:
    """Of one core, all cores at it."""
    return statistics.fmean(at_once(work, num_cores(), task, name))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--case", choices=CASES, action="append", help="default: all")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--compile", action="store_true", help="try torch.compile, too")
    parser.add_argument("--out", type=Path, help="write every round as JSON")
    add_task_options(parser, Task(images=1280))
    chosen = parser.parse_args()
    names = [name for name in VARIANTS if chosen.compile or not VARIANTS[name].compiles]
    measured: dict[str, dict[str, list[float]]] = {}
    for case in chosen.case or CASES:
        model, batch_size = CASES[case]
        task = task_of(chosen, model=model, batch_size=batch_size)
        rates: dict[str, list[float]] = {name: [] for name in names}
        for index in range(chosen.rounds):
            for name in [*names[index % len(names) :], *names[: index % len(names)]]:
                rates[name].append(images_per_second(task, name))
                print(f"{case}, round {index + 1}, {name}: {rates[name][-1]:.1f} images/s", flush=True)
        measured[case] = rates
    print(f"\n{find_device('cpu').name}, {num_cores()} cores, torch {torch.__version__}\n")
    print("| case | without | images/s of a core | to everything |\n|---|---|---:|---:|")
    for case, rates in measured.items():
        for name, values in rates.items():
            ratios = [value / whole for value, whole in zip(values, rates["everything"], strict=True)]
            print(f"| {case} | {name} | {statistics.median(values):.0f} | {statistics.median(ratios):.2f} |")
    if chosen.out:
        content = {"device": find_device("cpu").name, "torch": torch.__version__, "images_per_second": measured}
        chosen.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
