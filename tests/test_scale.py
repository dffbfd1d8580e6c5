"""Work grows with the number of recorded runs and not faster: counted in queries and in looks at records."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import sqlalchemy

from benchmarks.scale import slopes
from benchmarks.scale_record import Shape, make_folder
from cifar_ablate.record.types import RecordedRun
from tests.conftest import Workshop

pytestmark = pytest.mark.slow

SMALL, LARGE = 40, 160
SLACK = 1.2
"""Over four times as much work for four times as many runs."""
COMMANDS = {
    "plan": ["plan", "FILES", "--jobs", "1"],
    "run": ["run", "FILES", "--jobs", "1"],
    "report in JSON": ["report", "--format", "json"],
    "report in markdown": ["report", "--output", "summary.md"],
    "report in HTML": ["report", "--format", "html"],
}
SHAPES = {
    "one study, more seeds": lambda num: Shape(num, 4, num // 4),
    "one study, more arms": lambda num: Shape(num, num // 5, 5),
    "more studies": lambda num: Shape(num, 2, 5),
}


@dataclass
class Counted:
    """Work that a command did."""

    queries: int = 0
    """Statements that the database carried out."""
    looks: int = 0
    """Fields of recorded runs that were read."""


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counted]:
    found = Counted()

    def query(*_: object) -> None:
        found.queries += 1

    def look(run: RecordedRun, name: str) -> object:
        found.looks += 1
        return object.__getattribute__(run, name)

    monkeypatch.setattr(RecordedRun, "__getattribute__", look)
    sqlalchemy.event.listen(sqlalchemy.engine.Engine, "before_cursor_execute", query)
    yield found
    sqlalchemy.event.remove(sqlalchemy.engine.Engine, "before_cursor_execute", query)


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> dict[int, Path]:
    """Folders of finished studies by their number of runs."""
    place = tmp_path_factory.mktemp("scale")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        for num in (SMALL, LARGE):
            folder = place / str(num)
            patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'mlflow.db'}")
            make_folder(folder, SHAPES[request.param](num))
    return {num: place / str(num) for num in (SMALL, LARGE)}


@pytest.mark.parametrize("record", SHAPES, indirect=True)
@pytest.mark.parametrize("command", COMMANDS)
def test_four_times_as_many_runs_take_four_times_the_work(
    command: str, record: dict[int, Path], workshop: Workshop, counted: Counted
) -> None:
    work: dict[int, Counted] = {}
    for num, folder in record.items():
        workshop.monkeypatch.chdir(folder)
        workshop.monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'mlflow.db'}")
        files = sorted(path.name for path in folder.glob("study-*.yaml"))
        arguments = [each for word in COMMANDS[command] for each in (files if word == "FILES" else [word])]
        counted.queries = counted.looks = 0
        answer = workshop(*arguments)
        assert answer.code == 0, answer.err
        work[num] = Counted(counted.queries, counted.looks)
    times = LARGE / SMALL
    assert work[LARGE].queries <= SLACK * times * work[SMALL].queries + 10, work
    assert work[LARGE].looks <= SLACK * times * work[SMALL].looks + 50, work


def test_what_is_made_for_the_benchmark_is_what_the_program_delivers(workshop: Workshop, tmp_path: Path) -> None:
    folder = tmp_path / "made"
    workshop.monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'mlflow.db'}")
    [file] = make_folder(folder, Shape(4, 2, 2))
    made = workshop("run", file, "--jobs", "1")
    assert "0 to train, 4 done before" in made.out, made.err
    copied = workshop("report", "--format", "csv").out
    workshop.monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'again.db'}")
    again = workshop("sync")  # the same run folders, delivered one by one by the program itself
    assert again.code == 0, again.err
    assert without_ids(workshop("report", "--format", "csv").out) == without_ids(copied)


def without_ids(text: str) -> list[str]:
    return [",".join(cell for cell in line.split(",") if len(cell) != 32) for line in text.splitlines()]


def test_equal_slopes_tell_linear_from_quadratic_growth() -> None:
    sizes = [1250, 2500, 5000, 10_000]
    assert slopes(sizes, [5 + 0.001 * size for size in sizes]) == pytest.approx([1, 1, 1])
    first, *_, last = slopes(sizes, [1e-6 * size**2 for size in sizes])
    assert last == pytest.approx(4 * first)
