"""A study with looks that is trained in seconds, and what tests ask of it."""

from __future__ import annotations

import json
from pathlib import Path

from tests.comparing import runs_of
from tests.conftest import Workshop

STUDY = """
    study: looking
    question: Does smoothing help a tiny network on digits?
    seeds: {looks: [3, 5]}
    margin: 0.5
    recipe:
      data: digits
      train_size: 200
      model: {name: resnet18-compact, width: 4}
      epochs: 3
      batch_size: 10
      eval_every: 0
      optimizer: {name: sgd, lr: 0.05, momentum: 0.9}
    arms:
      baseline:
      smooth: {loss: {label_smoothing: 0.05}}
      slow: {optimizer: {lr: 1.0e-5}}
"""
RUN = ("run", "looking.yaml")
ALL = {(arm, seed) for arm in ("baseline", "smooth", "slow") for seed in range(3)} | {
    (arm, seed) for arm in ("baseline", "smooth") for seed in (3, 4)
}
"""What is trained where nothing happens: ``slow`` is decided at three seeds, ``smooth`` is open after five."""


def write(workshop: Workshop, text: str = STUDY) -> Workshop:
    workshop.write("looking.yaml", text)
    return workshop


def trained(folder: Path) -> set[tuple[str, int]]:
    """Arm and seed of each run with a result in its folder, by the plan that is kept there."""
    (plan,) = (folder / "mlruns" / "plans").glob("*.json")
    return {
        (run["arm"], run["seed"])
        for run in json.loads(plan.read_text())["runs"]
        if (folder / "mlruns" / "runs" / run["fingerprint"] / "result.json").exists()
    }


def recorded(label: str = "looking") -> set[tuple[str, int]]:
    """Arm and seed of each run that MLflow has as finished; none is there twice."""
    runs = runs_of(label)
    found = [(run.data.tags["ablate.arm"], int(run.data.tags["ablate.seed"])) for run in runs]
    assert len(set(found)) == len(found)
    return {key for key, run in zip(found, runs, strict=True) if run.info.status == "FINISHED"}


def folder_of(folder: Path, arm: str, seed: int) -> Path:
    """The folder of a planned run."""
    (plan,) = (folder / "mlruns" / "plans").glob("*.json")
    (name,) = [
        run["fingerprint"] for run in json.loads(plan.read_text())["runs"] if (run["arm"], run["seed"]) == (arm, seed)
    ]
    return folder / "mlruns" / "runs" / name
