"""How plan, run (with nothing left to train) and report grow with the number of recorded runs.

    python -m benchmarks.scale --shape many     # studies of 10 arms and 10 seeds, up to 100 of them
    python -m benchmarks.scale --shape one      # one study, up to 100 arms and 100 seeds

Each command is a process of its own, measured whole: wall seconds, seconds of processor time, peak memory. The
last table has the processor seconds with 20 runs, and those of each further 1,000 from one size to the next: equal ones
are linear growth.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from benchmarks.scale_record import Shape

SIZES = (1250, 2500, 5000, 10_000)
MANY = {num: Shape(num, 10, 10) for num in SIZES}
ONE = dict(
    zip(SIZES, (Shape(1250, 50, 25), Shape(2500, 50, 50), Shape(5000, 100, 50), Shape(10_000, 100, 100)), strict=True)
)
COMMANDS = {
    "plan": ["plan", "FILES", "--jobs", "1"],
    "run, nothing to do": ["run", "FILES", "--jobs", "1"],
    "report, JSON": ["report", "--format", "json", "--output", "out/report.json"],
    "report, markdown": ["report", "--output", "out/summary.md"],
    "report, HTML": ["report", "--output", "out/summary.html"],
}


@dataclass(frozen=True)
class Measured:
    """One process, whole."""

    wall_seconds: float
    cpu_seconds: float
    peak_mb: float


def measure(arguments: list[str], folder: Path) -> Measured:
    """``cifar-ablate ARGUMENTS`` in a folder."""
    begun = time.perf_counter()
    with (folder / "log").open("wb") as log:
        child = subprocess.Popen(
            [sys.executable, "-P", "-m", "cifar_ablate.cli", *arguments], cwd=folder, stdout=log, stderr=log
        )
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise RuntimeError(f"{arguments}: exit {child.returncode}\n{(folder / 'log').read_text()[-3000:]}")
    return Measured(time.perf_counter() - begun, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


def best(arguments: list[str], folder: Path, repeats: int) -> Measured:
    """The least of several: other programs only add."""
    taken = [measure(arguments, folder) for _ in range(repeats)]
    return Measured(
        min(one.wall_seconds for one in taken), min(one.cpu_seconds for one in taken), min(one.peak_mb for one in taken)
    )


def slopes(sizes: list[int], seconds: list[float]) -> list[float]:
    """Seconds for each further 1,000 runs, from one size to the next: equal ones are linear growth."""
    steps = zip(pairwise(sizes), pairwise(seconds), strict=True)
    return [1000 * (after - before) / (larger - smaller) for (smaller, larger), (before, after) in steps]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=("many", "one"), default="many")
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES))
    parser.add_argument("--commands", nargs="+", default=list(COMMANDS), choices=list(COMMANDS))
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--folder", type=Path, help="keep the records there, and use them again")
    options = parser.parse_args()
    os.environ["PYTHONPATH"] = str(Path(__file__).parent.parent)
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    shapes = MANY if options.shape == "many" else ONE
    temporary = Path(tempfile.mkdtemp())
    root = (options.folder or temporary).absolute()
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}\n")
    found: dict[str, list[Measured]] = {name: [] for name in options.commands}
    least: dict[str, Measured] = {}
    print("| command | runs | studies | wall s | processor s | peak MB |\n|---|---:|---:|---:|---:|---:|")
    for num in (20, *options.sizes):
        shape = shapes.get(num) or Shape(num, 2, 10)
        folder = root / f"{options.shape}-{num}"
        files = [f"study-{number:03d}.yaml" for number, _ in enumerate(shape.studies())]
        if not (folder / "mlflow.db").exists():
            building = folder.with_name(f"{folder.name}-building")
            shutil.rmtree(building, ignore_errors=True)
            subprocess.run([sys.executable, "-c", _BUILD, str(folder), repr(shape)], check=True)
        for name in options.commands:
            arguments = [each for word in COMMANDS[name] for each in (files if word == "FILES" else [word])]
            (folder / "out").mkdir(exist_ok=True)
            one = best(arguments, folder, options.repeats)
            if num == 20:
                least[name] = one
                continue
            found[name].append(one)
            numbers = f"{one.wall_seconds:.1f} | {one.cpu_seconds:.1f} | {one.peak_mb:.0f}"
            print(f"| {name} | {num:,} | {len(files)} | {numbers} |", flush=True)
    between = " | ".join(
        f"{small:,} to {large:,}" for small, large in zip(options.sizes, options.sizes[1:], strict=False)
    )
    print(f"\n| command | with 20 runs | {between} |\n|---|---:{'|---:' * (len(options.sizes) - 1)}|")
    for name, measured in found.items():
        each = " | ".join(f"{one:.2f}" for one in slopes(options.sizes, [one.cpu_seconds for one in measured]))
        print(f"| {name} | {least[name].cpu_seconds:.1f} | {each} |")
    shutil.rmtree(temporary)


_BUILD = """
import sys
from pathlib import Path
from benchmarks.scale_record import Shape, make_folder
make_folder(Path(sys.argv[1]), eval(sys.argv[2]))
"""


if __name__ == "__main__":
    main()
