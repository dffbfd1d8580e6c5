"""K in 30 epochs, tuned: resnet18's learning rate, decay, schedule and augmentation on a validation part; see `gpu.py`.

The best values are chosen on 10% of the training images and written into a study by ``cifar-ablate tune --write``; only
that study is trained with all seeds, once, and looks at the test images. Aimed at: 95.5% without flip averaging.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

from benchmarks.gpu_bench import Bench
from benchmarks.gpu_study import TO_94
from benchmarks.task import MODELS

SPACE: dict[str, Any] = {
    "optimizer.lr": {"low": 0.05, "high": 1.0, "log": True},
    "optimizer.weight_decay": {"low": 1e-4, "high": 2e-3, "log": True},
    "schedule.warmup": {"low": 0.05, "high": 0.4},
    "loss.label_smoothing": {"low": 0.0, "high": 0.2},
    "augment.cutout.size_px": [8, 12, 16],
}
RUN_SHARE = 0.3
"""Of the time, for the runs on the test set; trials have the rest."""


def tune(bench: Bench) -> None:
    """Tune, then train what came of it: the accuracy that the seeds reach on the test images."""
    recipe = {"data": bench.task.source(), "model": MODELS[1], "epochs": 30, **TO_94}
    if bench.task.width:  # for a test of this script
        recipe |= {"model": {"name": MODELS[1], "width": bench.task.width}, "batch_size": 100, "epochs": 1}
    content = {
        "study": "resnet18-30-epochs",
        "question": "How far does resnet18 come in 30 epochs?",
        "seeds": 1 if bench.task.width else 5,
        "recipe": recipe,
        "arms": {"baseline": None},
        "tune": {
            "space": SPACE,
            "pruner": {"name": "median", "warmup": 0.25},
            "trials": 2 if bench.task.width else 60,
            "time_limit_seconds": max(1.0, (1 - RUN_SHARE) * bench.time_left()),
        },
    }
    bench.attempt("tune", "resnet18, 30 epochs, mean test accuracy", "%", 20, lambda: _tuned(bench, content))


def _tuned(bench: Bench, content: dict[str, Any]) -> tuple[float, str]:
    with tempfile.TemporaryDirectory() as where:
        folder = Path(where)
        (folder / "k30.yaml").write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
        said = _command(bench, folder, "tune", "k30.yaml", "--jobs", "1", "--write", "--history", "history")
        _command(bench, folder, "run", "k30-tuned.yaml", "--jobs", "auto")
        results = [json.loads(path.read_text()) for path in sorted(folder.glob("mlruns/runs/*/result.json"))]
        if bench.out is not None:  # the study, the trials and their figures come back beside the figures
            for path in (folder / "k30-tuned.yaml", *folder.glob("history/*/*")):
                bench.out.with_name(f"{bench.out.stem}-{path.name}").write_bytes(path.read_bytes())
    reached = [one["metrics"]["test_accuracy"] for one in results if "test_accuracy" in one["metrics"]]
    if not reached:
        raise RuntimeError(f"no run finished: {said}")
    spread = f", sd {statistics.stdev(reached):.2f}" if len(reached) > 1 else ""
    return statistics.fmean(reached), f"{len(reached)} seeds{spread}; {said}"


def _command(bench: Bench, folder: Path, *words: str) -> str:
    """Run ``cifar-ablate`` in the folder, within the time that is left; gives what it said of the arm, or last."""
    within = ["timeout", "-s", "INT", str(max(1, int(bench.time_left() - 10)))]
    command = [*within, sys.executable, "-m", "cifar_ablate.cli", *words]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    lines = (done.stdout + done.stderr).strip().splitlines()
    return next((line for line in lines if line.startswith("baseline: ")), lines[-1] if lines else "")
