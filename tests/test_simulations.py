"""What the verdicts are worth, measured anew and held against docs/statistics.md and against what they promise."""

from __future__ import annotations

import math
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from benchmarks.simulations import ALTERNATIVES, HEADER, PARTS, Measured, measure

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "statistics.md"
SEED = 1
"""Not the page's: these are other studies."""
STUDIES = {
    "family": 250,
    "power": 100,
    "margin": 150,
    "looks at 5, 8, 12": 80,
    "peeking at 5, 8, 12": 150,
    "peeking from 3 to 12": 30,
    "new images": 400,
    ALTERNATIVES: 400,
}
LEVEL = 0.05
NUM_ERRORS = 3
"""Monte-Carlo standard errors that a figure may be off."""
WEAK = "the baseline's sd doubled"
OURS = ("family", "looks at 5, 8, 12")


@cache
def documented() -> dict[tuple[str, str, str], Measured]:
    """The rows of the page's table."""
    rows = {}
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 6 and cells[0] in STUDIES:
            part, setting, name, value, error, studies = cells
            rows[part, setting, name] = Measured(
                part, setting, name, float(value), float(error), int(studies.replace(",", ""))
            )
    return rows


def bound(row: Measured, share: float) -> float:
    """So far from ``share`` may a simulated share be."""
    return NUM_ERRORS * math.sqrt(share * (1 - share) / row.studies)


def check_promises(row: Measured) -> None:
    """What the analysis promises whoever reads a verdict: errors at most 5%, intervals that cover 95%."""
    if row.part in OURS and row.measured == "family error" and WEAK not in row.setting:
        assert row.value <= LEVEL + bound(row, LEVEL), row
    if row.part == "margin":
        assert row.value <= LEVEL + bound(row, LEVEL), row
    if row.measured in ("all four 95% intervals cover", "new-image interval covers"):
        assert row.value >= 1 - LEVEL - bound(row, LEVEL), row


def check_against_the_page(row: Measured) -> None:
    told = documented()[row.part, row.setting, row.measured]
    if row.measured == "runs" or row.measured.endswith("points"):
        error = math.hypot(row.error, told.error)
    else:  # a share: from both together, so that one of exactly 0 or 1 has an error, too
        share = (row.value * row.studies + told.value * told.studies) / (row.studies + told.studies)
        error = math.sqrt(share * (1 - share) * (1 / row.studies + 1 / told.studies))
    assert abs(row.value - told.value) <= NUM_ERRORS * error + 0.0005, f"{row} on the page: {told}"


@pytest.mark.simulations
@pytest.mark.parametrize("part", STUDIES)
def test_simulated_studies_keep_the_promises_and_are_as_documented(part: str) -> None:
    num_rows = 0
    for row in measure(part, STUDIES[part], SEED):
        check_promises(row)
        check_against_the_page(row)
        num_rows += 1
    assert num_rows == sum(key[0] == part for key in documented())


def test_every_part_is_on_the_page_and_keeps_the_promises_there() -> None:
    assert {key[0] for key in documented()} == set(STUDIES) == {*PARTS, ALTERNATIVES}
    for row in documented().values():
        check_promises(row)


def test_the_weak_spot_is_told_and_is_one() -> None:
    weak = [row for (_, setting, name), row in documented().items() if WEAK in setting and name == "family error"]
    assert len(weak) == 3
    assert any(row.value > LEVEL for row in weak)
    assert all(row.value < 0.1 for row in weak)


@pytest.mark.slow
def test_the_command_prints_the_table_that_the_page_shows() -> None:
    command = [sys.executable, "-m", "benchmarks.simulations", "--studies", "3", "--seed", "2", "--part", "new images"]
    told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert HEADER in told
    rows = [line for line in told.splitlines() if line.startswith("| new images |")]
    assert rows == [str(row) for row in measure("new images", 3, 2)]
    assert {tuple(cell.strip() for cell in row.strip("|").split("|"))[:3] for row in rows} == {
        key for key in documented() if key[0] == "new images"
    }


@pytest.mark.slow
def test_the_same_seed_gives_the_same_studies_in_any_number_of_processes() -> None:
    assert list(measure("margin", 2, 3)) == list(measure("margin", 2, 3, processes=2))


def test_the_page_tells_the_worked_example_as_compare_does() -> None:
    from cifar_ablate.analysis.contrasts import compare
    from tests.accuracies import WORKED, runs

    text = " ".join(PAGE.read_text(encoding="utf-8").split())
    for one in compare(runs(WORKED), baseline="base"):
        assert one.sentence in text, one.sentence
    for arm, of_arm in WORKED.items():
        assert " | ".join((arm, *(f"{accuracy:.2f}" for accuracy in of_arm))) in text, arm
