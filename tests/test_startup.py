"""What each command imports when there is nothing to train: imports are most of its time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.scale_record import Shape, make_folder
from benchmarks.startup import imported
from cifar_ablate import plan
from cifar_ablate.device import Device
from cifar_ablate.spec.load import load_study

MLFLOW = {"mlflow", "sqlalchemy", "numpy", "pandas"}
ALLOWED = {
    "plan": MLFLOW | {"torch", "scipy.special"},
    "run": MLFLOW | {"torch"},
    "report": MLFLOW | {"scipy.special", "scipy.optimize", "scipy.stats", "matplotlib"},
    "report --format json": MLFLOW | {"scipy.special", "scipy.optimize", "scipy.stats"},
}


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a recorded study of 3 arms and 3 seeds."""
    folder = tmp_path_factory.mktemp("recorded")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'mlflow.db'}")
        make_folder(folder, Shape(9, 3, 3))
        yield folder


@pytest.mark.parametrize("command", ["", "run", "tune", "report"])
def test_help_imports_no_heavy_library(command: str, tmp_path: Path) -> None:
    assert imported([*command.split(), "--help"], tmp_path) == []


@pytest.mark.parametrize("command", ALLOWED)
def test_a_command_with_nothing_to_train_imports_no_more_than_it_needs(command: str, recorded: Path) -> None:
    files = [] if command.startswith("report") else ["study-000.yaml"]
    assert set(imported([*command.split(), *files], recorded)) <= ALLOWED[command]


def test_a_network_that_was_trained_is_not_built_again(recorded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study, cpu = load_study(recorded / "study-000.yaml"), Device("cpu", "a CPU", fast_bf16=False)
    data = plan.load_all_data([study], lambda *_: None)
    built: list[str] = []
    monkeypatch.setattr(plan, "build_model", lambda name, *_, **__: built.append(name))
    plan.make_plan(study, data, cpu)
    assert built == ["resnet18-compact"]
    plan.make_plan(study, data, cpu, was_trained=lambda fingerprint: True)
    assert built == ["resnet18-compact"]
