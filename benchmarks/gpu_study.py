"""A whole study on a GPU, and the seconds that resnet18 takes to 94%; a part of `gpu.py`."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

from benchmarks.contenders import ROOT
from benchmarks.gpu_bench import Bench
from benchmarks.task import MODELS

TO_94 = {
    "batch_size": 500,
    "optimizer": {"name": "sgd", "lr": 0.2, "momentum": 0.9, "nesterov": True, "weight_decay": 5e-4},
    "schedule": {"name": "linear", "warmup": 0.2},
    "augment": {"crop": {"padding": 4, "fill": "reflect"}, "hflip": {}, "cutout": {"size_px": 12}},
    "eval_every": 0,
}
"""The base recipe of KellerJordan/cifar10-zoo for this network: 94.0% with flip averaging in 26 epochs (n=200)."""


def study(bench: Bench) -> None:
    """The shipped study, and the seconds to 94%."""
    shipped = shipped_study(bench)
    seeds = shipped["seeds"]
    num = len(shipped["arms"]) * (seeds if isinstance(seeds, int) else len(seeds))

    def measure() -> tuple[float, str]:
        took, ended, said = run_study("readme", shipped, bench.time_left() - 15)
        return took, f"{len(ended)} of {num} runs; {said}"

    bench.attempt("study", "readme-augmentation", "s", 20, measure)
    arms: dict[str, Any] = {"plain": {}, "flip": {"flip_averaging": True, "epochs": 22}}
    recipe = {"data": bench.task.source(), "model": MODELS[1], "epochs": 28, **TO_94}
    if bench.task.width:  # for a test of this script
        recipe |= {"model": {"name": MODELS[1], "width": bench.task.width}, "batch_size": 100}
        arms = {name: {**change, "epochs": 1} for name, change in arms.items()}
    for name, change in arms.items():
        to_94(bench, name, recipe | change, seeds)


def shipped_study(bench: Bench) -> dict[str, Any]:
    """experiments/readme-augmentation.yaml on the data of the task; small where the task is a test of this script."""
    shipped: dict[str, Any] = yaml.safe_load((ROOT / "experiments" / "readme-augmentation.yaml").read_text("utf-8"))
    shipped["recipe"] |= {"data": bench.task.source()}
    if bench.task.width:
        model = {"name": MODELS[0], "width": bench.task.width}
        shipped["recipe"] |= {"model": model, "batch_size": 64, "epochs": bench.task.epochs}
        shipped["seeds"] = 1
        for arm in shipped["arms"].values():
            arm.pop("epochs", None)
    return shipped


def to_94(bench: Bench, name: str, recipe: dict[str, Any], seeds: Any) -> None:
    """Seconds of training per run, and the mean accuracy that they reach."""
    question = "How long to 94%?"
    one = {"study": f"to-94-{name}", "question": question, "seeds": seeds, "recipe": recipe, "arms": {"baseline": None}}

    def measure() -> tuple[float, str]:
        took, ended, said = run_study("to94", one, bench.time_left() - 10)
        mean = statistics.fmean(result["metrics"]["test_accuracy"] for result in ended)
        note = f"mean test {mean:.2f}% of {len(ended)} seeds; {took:.0f} s in all; {said}"
        return statistics.fmean(result["train_seconds"] for result in ended), note

    flip = ", flip-averaged" if recipe.get("flip_averaging") else ""
    bench.attempt("to 94%", f"resnet18, {recipe['epochs']} epochs{flip}, training per run", "s", 30, measure)


def run_study(name: str, content: dict[str, Any], seconds: float) -> tuple[float, list[dict[str, Any]], str]:
    """Wall time of ``cifar-ablate run`` in an empty folder, results of finished runs (at least one), last line."""
    with tempfile.TemporaryDirectory() as where:
        folder = Path(where)
        path = folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
        command = ["timeout", "-s", "INT", str(max(1, int(seconds))), sys.executable, "-m", "cifar_ablate.cli"]
        begun = time.perf_counter()
        done = subprocess.run(
            [*command, "run", path.name, "--jobs", "auto"], cwd=folder, capture_output=True, text=True, check=False
        )
        took = time.perf_counter() - begun
        results = [json.loads(path.read_text()) for path in sorted(folder.glob("mlruns/runs/*/result.json"))]
    said = [line for line in done.stdout.splitlines() if line.startswith("--jobs auto")]
    said += (done.stdout + done.stderr).strip().splitlines()[-1:]
    finished = [result for result in results if result["status"] == "finished"]
    if not finished:
        raise RuntimeError(f"no run finished: {'; '.join(said)}")
    return took, finished, "; ".join(said)
