"""The floors of the house: nothing further down imports what is further up, and heavy libraries keep to their rooms."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from benchmarks.house import circles, import_graph, modules_in

PACKAGE = Path(__file__).parent.parent / "cifar_ablate"

GROUND = "console errors fields locks portable process registry rng text_safety __init__"
FLOORS = (
    tuple(GROUND.split()),
    ("spec", "analysis"),
    ("data", "models", "device", "environment", "plan", "record"),
    ("augment",),
    ("training",),
    ("report", "runner", "tuning"),
    ("predictor",),
    ("cli", "__main__"),
)
FLOOR_OF = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
FILES = sorted(PACKAGE.rglob("*.py"))


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imports(path: Path, *, typing_only: bool = False) -> set[str]:
    """Modules that a file imports anywhere; imports under TYPE_CHECKING only where asked for."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    skipped: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            skipped |= {id(inner) for inner in ast.walk(node)}
    found: set[str] = set()
    for node in ast.walk(tree):
        if not typing_only and id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


def test_every_file_has_a_floor() -> None:
    assert {room_of(path) for path in FILES} == set(FLOOR_OF)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_file_imports_nothing_from_a_floor_above(path: Path) -> None:
    mine = room_of(path)
    for module in imports(path):
        if module.startswith("cifar_ablate."):
            room = module.split(".")[1]
            assert FLOOR_OF[room] <= FLOOR_OF[mine], f"{path.name} (floor of {mine}) imports {module} from above"


def test_no_files_import_each_other_in_a_circle() -> None:
    assert circles(import_graph(modules_in(PACKAGE.parent))) == []


@pytest.mark.parametrize("room", ["analysis", "report", "record"])
def test_a_report_needs_no_torch(room: str) -> None:
    heavy = {"torch", "torchvision", "timm"}
    for path in FILES:
        if room_of(path) == room:
            assert not {module.split(".")[0] for module in imports(path)} & heavy, path


@pytest.mark.parametrize(
    ("service", "door"),
    [("mlflow", "record/mlflow_"), ("optuna", "tuning/"), ("sklearn", "data/"), ("filelock", "locks")],
)
def test_an_outside_service_has_one_door(service: str, door: str) -> None:
    for path in FILES:
        if not str(path.relative_to(PACKAGE)).startswith(door):
            assert service not in {module.split(".")[0] for module in imports(path)}, path


def test_training_knows_nothing_of_mlflow_or_yaml() -> None:
    for path in FILES:
        if room_of(path) in ("training", "augment"):
            assert not {module.split(".")[0] for module in imports(path)} & {"mlflow", "yaml"}, path


def test_the_analysis_knows_nothing_but_numbers() -> None:
    for path in FILES:
        if room_of(path) == "analysis":
            ours = {module for module in imports(path) if module.startswith("cifar_ablate")}
            assert all(module.startswith(("cifar_ablate.analysis", "cifar_ablate.errors")) for module in ours), path
            assert not {module.split(".")[0] for module in imports(path)} & {"mlflow", "torch", "matplotlib"}, path


def test_only_the_command_line_ends_the_process() -> None:
    for path in FILES:
        if room_of(path) not in ("cli", "console"):
            assert "SystemExit" not in path.read_text(encoding="utf-8"), path


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_functions_stay_short(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef):
            assert (node.end_lineno or 0) - node.lineno < 60, f"{path.name}: {node.name}"
