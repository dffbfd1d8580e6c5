"""What a study costs as its images, its runs and its jobs grow: `cifar-ablate run` as a process, in empty folders.

    python -m benchmarks.scaling --data DIR [--model resnet18-compact] [--rounds 5] [--out scaling.json]

Three series, each with everything else held: 1, 2 and 4 times the images; 1, 2, 4 and 8 runs; 1, 2 and 4 jobs. The
series take turns, round by round; printed are medians with the least and the greatest, and the seconds that a doubling
adds. A study that costs twice as much when it is twice as large adds as much as the step before took, less its start.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from benchmarks.contenders import OURS, prepare
from benchmarks.task import MODELS, Task, add_task_options, task_of
from cifar_ablate.device import find_device, num_cores
from cifar_ablate.record.folder import write_atomically

Point = tuple[Task, int]
SERIES: dict[str, dict[int, Callable[[Task], Point]]] = {
    "images": {
        factor: lambda task, factor=factor: (replace(task, images=factor * (task.images or 0)), num_cores())  # type: ignore[misc]
        for factor in (1, 2, 4)
    },
    "runs": {number: lambda task, number=number: (replace(task, seeds=number), num_cores()) for number in (1, 2, 4, 8)},  # type: ignore[misc]
    "jobs": {number: lambda task, number=number: (replace(task, seeds=4), number) for number in (1, 2, 4)},  # type: ignore[misc]
}


def measure(task: Task, rounds: int, out: Path | None) -> dict[str, list[float]]:
    """Seconds of each point of each series, round by round."""
    taken: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as work:
        for index in range(rounds):
            for series, points in SERIES.items():
                for factor, point in points.items():
                    studied, jobs = point(task)
                    seconds = prepare(studied, Path(work)).measure(OURS, jobs=jobs, threads=None).wall_seconds
                    taken.setdefault(f"{series} {factor}", []).append(seconds)
                    print(f"round {index + 1}: {series} {factor}: {seconds:.1f} s", flush=True)
            if out:
                content = {"device": find_device().name, "task": str(task), "seconds": taken}
                write_atomically(out, json.dumps(content, indent=1) + "\n")
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--model", choices=MODELS, default=MODELS[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="write every round as JSON, after each")
    add_task_options(parser, Task(images=640, epochs=2, eval_every=0))
    chosen = parser.parse_args()
    task = task_of(chosen, seeds=2)
    taken = measure(task, chosen.rounds, chosen.out)
    print(f"\n{find_device().name}, {num_cores()} cores, {task.model}\n")
    print("| grows | size | seconds (range) | more than the one before |\n|---|---:|---:|---:|")
    for series, points in SERIES.items():
        before: float | None = None
        for factor in points:
            values = taken[f"{series} {factor}"]
            median = statistics.median(values)
            size = factor * (task.images or 0) if series == "images" else factor
            more = "" if before is None else f"{median - before:+.1f}"
            print(f"| {series} | {size} | {median:.1f} ({min(values):.1f} to {max(values):.1f}) | {more} |")
            before = median


if __name__ == "__main__":
    main()
