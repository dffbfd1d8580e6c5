"""What a study left behind, in MLflow and in its run folders, made comparable to the bit."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlflow

SPEED = ("time_ms", "images_per_second")


def runs_of(label: str) -> list[Any]:
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name(label)
    assert experiment is not None
    return list(client.search_runs([experiment.experiment_id], max_results=1000))


def snapshot(label: str) -> list[Any]:
    """Everything MLflow knows of a study's runs: tags, parameters, every metric point, artifacts."""
    client = mlflow.MlflowClient()
    return [
        (
            run.info.run_id,
            run.info.status,
            run.data.tags,
            run.data.params,
            {
                name: [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, name)]
                for name in run.data.metrics
            },
            sorted((file.path, file.file_size) for file in client.list_artifacts(run.info.run_id)),
        )
        for run in sorted(runs_of(label), key=lambda run: str(run.info.run_id))
    ]


def without_speed(label: str) -> Any:
    """A study's snapshot without what differs from one training to the next: ids, times and places."""
    return sorted(
        (
            tags["ablate.arm"],
            tags["ablate.seed"],
            status,
            sorted(params.items()),
            # MLflow gives points by their times, and clocks are set
            sorted((name, sorted(points)) for name, points in metrics.items() if "second" not in name),
            [(path, size if path.endswith((".npy", ".safetensors")) else None) for path, size in artifacts],
        )
        for _, status, tags, params, metrics, artifacts in snapshot(label)
    )


def bits(folder: Path) -> dict[str, Any]:
    """What the trainings under ``folder`` came to, by fingerprint: everything in their folders but times and places."""
    found: dict[str, Any] = {}
    for run in sorted((folder / "mlruns" / "runs").iterdir()):
        result = json.loads((run / "result.json").read_text())
        history = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
        files = {
            path.name: hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted([*run.glob("*.npy"), *run.glob("weights*.safetensors")])
        }
        curve = [{name: line[name] for name in line if name not in SPEED} for line in history]
        found[run.name] = (result["status"], result["epochs"], result["metrics"], curve, files)
    return found


def leftovers(folder: Path) -> list[str]:
    """Files that a finished study has no use for: unfinished writes and checkpoints."""
    runs = folder / "mlruns" / "runs"
    return sorted(str(path.relative_to(runs)) for path in [*runs.glob("*/.?*.[0-9]*"), *runs.glob("*/checkpoint*")])


def command(*arguments: str, within: Sequence[str] = ()) -> list[str]:
    """``cifar-ablate ARGUMENTS`` as a process to start, behind other words; its output is not held back.

    It hears signals also where the tests run in the background or under nohup, which would hand their deafness down.
    """
    hearing = ("env", "--default-signal=HUP,INT,TERM")
    return [*hearing, *within, sys.executable, "-u", "-m", "cifar_ablate.cli", *arguments]


def start(folder: Path, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    """Start ``cifar-ablate ARGUMENTS`` in a folder, in a process group of its own."""
    return subprocess.Popen(
        command(*arguments),
        cwd=folder,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
