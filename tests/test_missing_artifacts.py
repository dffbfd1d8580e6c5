"""What a killed command had not drawn of a run that had ended: who delivers the run draws it."""

from __future__ import annotations

from pathlib import Path

import pytest

from cifar_ablate.record.folder import RunFolder
from tests.comparing import runs_of
from tests.conftest import Workshop
from tests.test_stores import ONE, SHORT, artifacts
from tests.tuning import write


def folders(root: Path) -> list[RunFolder]:
    return [RunFolder(path) for path in (root / "mlruns" / "runs").iterdir() if path.is_dir()]


@pytest.mark.slow
def test_sync_brings_the_artifacts_that_a_killed_command_had_not_drawn_yet(workshop: Workshop) -> None:
    workshop.write("tiny.yaml", SHORT)
    assert workshop("run", "tiny.yaml", *ONE, "--offline").code == 0
    (folder,) = folders(workshop.folder)
    for name in ("history.csv", "confusion_matrix.png"):  # killed after it had written its result
        (folder.path / name).unlink()
    assert workshop("sync").code == 0
    (run,) = runs_of("tiny")
    assert artifacts(run) >= {"history.csv", "confusion_matrix.png", "weights.safetensors"}


@pytest.mark.slow
def test_a_tuning_brings_the_artifacts_that_a_killed_command_had_not_written_yet(workshop: Workshop) -> None:
    write(workshop, ("trials: 4", "trials: 1"), ("seeds: 2", "seeds: 1"))
    tune = ("tune", "small.yaml", "--arm", "baseline")
    assert workshop(*tune, "--offline").code == 0
    for folder in folders(workshop.folder):
        (folder.path / "history.csv").unlink()
    assert workshop(*tune).code == 0
    trials = [run for run in runs_of("small/tuning") if "mlflow.parentRunId" in run.data.tags]
    assert trials
    assert all("history.csv" in artifacts(run) for run in trials)
