"""What one GPU does, in three commands of less than nine minutes each.

    python -m benchmarks.gpu speed --data DIR [--out speed.json]
    python -m benchmarks.gpu study --data DIR [--out study.json]
    python -m benchmarks.gpu tune --data DIR [--out tune.json]

``speed``: the matrix-product peak; the warm epoch of both networks by batch size, each with its steps issued one by
one, captured, and captured and compiled; several runs of the compact network at once; the plain and the fair loop
beside it; how far equal seeds come apart. ``study``: the wall time of experiments/readme-augmentation.yaml with all of
its arms and seeds; the seconds that resnet18 takes to 94%, with and without flip averaging. ``tune``: resnet18 in 30
epochs, tuned on a validation part, then trained with five seeds; trials and tuned study are written beside --out.

Parts are done in order while time is left (--minutes), the table of all that was measured is printed last, and the JSON
is written after each part. An epoch is timed over --steps steps and scaled to the data set: "extrapolated" where fewer
than its steps were taken. Nothing here needs a GPU: on a CPU the same parts run, eagerly, for a test of this script.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.gpu_bench import Bench
from benchmarks.gpu_speed import speed
from benchmarks.gpu_study import study
from benchmarks.gpu_tune import tune
from benchmarks.task import Task, add_task_options, load, task_of
from cifar_ablate.device import find_device

PARTS: dict[str, Callable[[Bench], None]] = {"speed": speed, "study": study, "tune": tune}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--minutes", type=float, default=8.5, help="no part is begun that would end later")
    parser.add_argument("--steps", type=int, default=400, help="of an epoch; the rest is extrapolated")
    parser.add_argument("--out", type=Path, help="write what was measured as JSON, after each part")
    add_task_options(parser, Task())
    chosen = parser.parse_args()
    bench = Bench(task_of(chosen), chosen.steps, time.monotonic() + 60 * chosen.minutes, chosen.out)
    PARTS[chosen.part](bench)
    found = find_device()
    print(f"\n{found.name}, torch {torch.__version__}, {load(bench.task).describe()}\n")
    print("| part | what | value | note |\n|---|---|---:|---|")
    for row in bench.rows:
        value = "-" if row["value"] is None else f"{row['value']:.4g} {row['unit']}"
        print(f"| {row['part']} | {row['what']} | {value} | {row['note']} |")
    for what in bench.left_out:
        print(f"left out, for lack of time: {what}")


if __name__ == "__main__":
    main()
