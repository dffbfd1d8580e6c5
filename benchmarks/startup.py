"""Start-up of the commands: their time on a recorded study of 25 runs, with nothing left to train.

    python -m benchmarks.startup

Each command is a process of its own. The table has the least wall and processor seconds of three, and which of the
slow libraries (``HEAVY``) the command imports. Other programs on the machine lengthen both times; the last line says by
how much, with the time of ``import torch``.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import timeit
from pathlib import Path

from benchmarks.scale import best
from benchmarks.scale_record import Shape, make_folder

HEAVY = (
    *("torch", "torchvision", "timm", "mlflow", "mlflow.server", "optuna", "ray", "gradio", "sqlalchemy"),
    *("numpy", "pandas", "scipy.special", "scipy.optimize", "scipy.stats", "sklearn", "matplotlib"),
)
"""Libraries that take 0.1 to 3 s to import."""
IMPORT_TORCH = [sys.executable, "-c", "import torch"]
COMMANDS = {
    "--help": ["--help"],
    "plan": ["plan", "FILES"],
    "run, nothing to do": ["run", "FILES"],
    "report": ["report", "--output", "summary.md"],
    "report, JSON": ["report", "--format", "json", "--output", "report.json"],
}


def imported(arguments: list[str], folder: Path) -> list[str]:
    """The heavy libraries that a command imports; raises RuntimeError if it fails."""
    code = f"""
import sys
from cifar_ablate.cli import main
sys.argv[1:] = {arguments!r}
try:
    main()
finally:
    print("imported:", *(name for name in {HEAVY!r} if name in sys.modules), file=sys.stderr, flush=True)
"""
    done = subprocess.run([sys.executable, "-P", "-c", code], cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{arguments}: exit {done.returncode}\n{done.stderr}")
    return next(line.split()[1:] for line in done.stderr.splitlines() if line.startswith("imported:"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    repeats = parser.parse_args().repeats
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "recorded"
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder / 'mlflow.db'}"
        files = make_folder(folder, Shape(25, 5, 5))
        print("| command | wall s | processor s | imports |\n|---|---:|---:|---|")
        for name, words in COMMANDS.items():
            arguments = [each for word in words for each in (files if word == "FILES" else [word])]
            taken = best(arguments, folder, repeats)
            libraries = " ".join(imported(arguments, folder))
            print(f"| {name} | {taken.wall_seconds:.2f} | {taken.cpu_seconds:.2f} | {libraries} |", flush=True)
        seconds = min(timeit.repeat(lambda: subprocess.run(IMPORT_TORCH, check=True), number=1, repeat=repeats))
        print(f"\n`import torch` alone: {seconds:.2f} s; load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")


if __name__ == "__main__":
    main()
