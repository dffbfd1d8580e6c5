"""What the report says, through the command line, of a real record and of records that are not as they should be."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pandas as pd
import pytest

from cifar_ablate.analysis import compare
from tests.conftest import Workshop
from tests.recording import ARMS, PILOT, diverged, edited_record, keep_arms, with_seeds


def report_of(workshop: Workshop, record: Path = PILOT, *options: str) -> str:
    answer = workshop("report", "--record", str(record), *options)
    assert answer.code == 0, answer.err
    return answer.out


def test_verdicts_come_first_and_reproduction_last(workshop: Workshop) -> None:
    headings = [line for line in report_of(workshop).splitlines() if line.startswith("### ")]
    assert headings == [
        "### Verdicts",
        "### Table",
        "### Figures",
        "### Classes",
        "### Calibration",
        "### Published against measured",
        "### What you must know",
        "### How to reproduce",
    ]


def test_the_sentences_and_the_table_are_those_of_compare(workshop: Workshop) -> None:
    table = pd.read_csv(PILOT / "runs.csv").rename(columns={"metric.test_accuracy": "accuracy"})
    report = report_of(workshop)
    for contrast in compare(table[["arm", "seed", "accuracy"]], baseline="baseline", margin=0.2):
        assert contrast.sentence.removesuffix(".") in report
        assert f"{contrast.p_superior:.2f}" in next(
            line for line in report.splitlines() if line.startswith(f"| **{contrast.arm}** |") and "/5 |" in line
        )


def test_an_arm_that_differs_in_several_things_is_said_to_with_their_names(workshop: Workshop) -> None:
    report = report_of(workshop)
    assert (
        "mixup+affine differs from baseline in 4 things (epochs, affine, hflip, mixup): the difference cannot be put "
        "down to any one of them."
    ) in report
    cutmix = next(line for line in report.splitlines() if "+cutmix against mixup+affine" in line)
    assert "differs from" not in cutmix


def test_a_difference_is_claimed_for_new_images_only_where_their_interval_says_so(workshop: Workshop) -> None:
    report = report_of(workshop)
    for line in (line for line in report.splitlines() if line.startswith("- **better**")):
        low = re.search(r"on new images(?: too \(|) ?([+\N{MINUS SIGN}][0-9.]+) to", line)
        assert low is not None
        assert ("on new images too" in line) == low.group(1).startswith("+")
        assert ("shown for this test set only" in line) != ("on new images too" in line)


def test_the_noise_floor_stands_beside_what_is_claimed(workshop: Workshop) -> None:
    assert re.search(
        r"two equal arms differ by more than [0-9.]+ points in 1 of 20 studies, and the largest of 4 such differences "
        r"exceeds [0-9.]+; the differences claimed here are [0-9.]+ to [0-9.]+\.",
        report_of(workshop),
    )


def test_a_ladder_says_that_it_cannot_tell_interactions(workshop: Workshop) -> None:
    assert "cannot be told from such a ladder" in report_of(workshop)


def without_arms(*names: str) -> Callable[[pd.DataFrame], pd.DataFrame]:
    return lambda table: table[~table["arm"].isin(names)]


def same_accuracy(table: pd.DataFrame) -> pd.DataFrame:
    return table.assign(**{"metric.test_accuracy": 50.0})


BAD: dict[str, tuple[Callable[[pd.DataFrame], pd.DataFrame], Callable[[dict[str, Any]], object], list[str]]] = {
    "one arm": (
        lambda table: table,
        keep_arms("baseline"),
        ["One arm alone has nothing to be compared with: add an arm.", "none: a single arm", "1 arm, 5 runs."],
    ),
    "no run of the baseline": (
        without_arms("baseline"),
        lambda study: None,
        ["cannot be compared with baseline yet: baseline has no finished run.", "5 planned runs have no result yet"],
    ),
    "one seed": (
        lambda table: table[table["seed"] == 0],
        with_seeds(0),
        ["one run each: these two runs differ by", "single runs cannot rank recipes", "McNemar's exact p"],
    ),
    "two seeds": (
        lambda table: table[table["seed"] < 2],
        with_seeds(0, 1),
        ["provisional: too few seeds for a verdict"],
    ),
    "unequal seeds": (
        lambda table: table[(table["arm"] != "+cutmix") | (table["seed"] < 3)],
        lambda study: None,
        ["arms have unequal numbers of seeds (3 to 5)", "unpaired", "2 planned runs have no result yet"],
    ),
    "one arm diverged": (
        lambda table: diverged(table, (table["arm"] == "aggressive") & (table["seed"] < 2)),
        lambda study: None,
        ["2 of 5 (5% to 85%) runs of aggressive diverged", "conditional on finishing", "a result, not replaced"],
    ),
    "everything diverged": (
        lambda table: diverged(table, table["seed"] >= 0),
        lambda study: None,
        ["5 of 5 (48% to 100%) runs of aggressive diverged", "no run is left to compare their accuracies"],
    ),
    "equal accuracies": (
        same_accuracy,
        lambda study: None,
        ["the same in every seed; where nothing differs between seeds no interval can be given"],
    ),
    "never run": (
        lambda table: table[:0],
        lambda study: None,
        ["25 planned runs have no result yet", "baseline has no finished run", "| not run |"],
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_record_that_allows_no_verdict_is_told_in_a_sentence(workshop: Workshop, name: str) -> None:
    runs, document, said = BAD[name]
    report = report_of(workshop, edited_record(workshop.folder, runs, document))
    for sentence in said:
        assert sentence in report
    assert not re.search(r"\bnan\b(?! \(a result)|\bNone\b|\binf\b", report)


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("format", ["markdown"])
def test_every_format_takes_every_record(workshop: Workshop, name: str, format: str) -> None:
    runs, document, _ = BAD[name]
    assert report_of(workshop, edited_record(workshop.folder, runs, document), "--format", format)


def test_a_report_without_predictions_says_what_is_missing(workshop: Workshop) -> None:
    record = edited_record(workshop.folder, with_predictions=False)
    report = report_of(workshop, record)
    assert "shown for this test set only" in report
    assert "**Predictions**: not used: " in report
    assert "No per-class differences" in report


def test_a_published_figure_is_set_against_what_one_run_would_show(workshop: Workshop) -> None:
    def as_published(study: dict[str, Any]) -> None:
        study.update(variant="", label="readme-augmentation")
        study["published"]["baseline"] = {"accuracy": 45.0, "note": ""}

    report = report_of(workshop, edited_record(workshop.folder, document=as_published))
    assert re.search(r"- baseline: 45% published, 44\.59% here over 5 seeds \(.0\.41 points\)\. .* lies within", report)
    assert re.search(r"- aggressive: 87.8% published, .* lies outside what one run of ours would show", report)


def test_figures_lie_beside_the_report(workshop: Workshop) -> None:
    printed = report_of(workshop)
    assert report_of(workshop, PILOT, "--output", "there/summary.md") == ""
    assert Path("there/summary.md").read_text(encoding="utf-8") == printed
    links = re.findall(r"\]\((figures/[^)]+\.svg)\)", printed)
    assert len(links) >= 5
    for link in links:
        for folder in ("reports", "there"):
            svg = ElementTree.fromstring((Path(folder) / link.replace("%40", "@")).read_text(encoding="utf-8"))
            assert svg.tag.endswith("svg")


def test_figures_are_drawn_the_same_twice(workshop: Workshop) -> None:
    report_of(workshop)
    first = {path.name: path.read_bytes() for path in Path("reports/figures").iterdir()}
    report_of(workshop)
    assert {path.name: path.read_bytes() for path in Path("reports/figures").iterdir()} == first


def test_an_arm_has_one_colour_in_all_figures_and_is_told_apart_without_colour() -> None:
    from cifar_ablate.report.canvas import pens

    many = pens(["base", *(f"arm {index}" for index in range(31))], "base")
    assert len({(pen.marker, pen.dashes, pen.color) for pen in many.values()}) == 32
    few = pens(ARMS, "baseline")
    assert len({pen.marker for pen in few.values()}) == len(ARMS)


def test_check_is_content_with_a_report_that_the_record_still_gives(workshop: Workshop) -> None:
    report_of(workshop, PILOT, "--output", "reports/summary.md")
    answer = workshop("report", "--record", str(PILOT), "--check")
    assert answer.code == 0
    assert answer.out == "reports/summary.md matches the record\n"


def edit_number(text: str) -> str:
    return text.replace("51.13", "51.93", 1)


@pytest.mark.parametrize(
    ("runs", "change", "said"),
    [
        (lambda table: table, edit_number, "2 lines would be another today"),
        (lambda table: table[:-1], str, "1 planned run without a result: label-smoothing seed 4"),
        (lambda table: table[:-1], str, "unequal numbers of finished seeds"),
        (lambda table: table.assign(seed=table["seed"]), lambda text: "", "lines would be another today"),
    ],
)
def test_check_names_what_no_longer_matches(
    workshop: Workshop,
    runs: Callable[[pd.DataFrame], pd.DataFrame],
    change: Callable[[str], str],
    said: str,
) -> None:
    report_of(workshop, PILOT, "--output", "reports/summary.md")
    path = Path("reports/summary.md")
    path.write_text(change(path.read_text(encoding="utf-8")), encoding="utf-8")
    answer = workshop("report", "--record", str(edited_record(workshop.folder, runs)), "--check")
    assert answer.code == 1
    assert answer.err.startswith("reports/summary.md does not match the record:\n")
    assert said in answer.err


def test_check_misses_figures_that_are_gone(workshop: Workshop) -> None:
    report_of(workshop, PILOT, "--output", "reports/summary.md")
    next(Path("reports/figures").glob("*-seeds.svg")).unlink()
    answer = workshop("report", "--record", str(PILOT), "--check")
    assert answer.code == 1
    assert "1 figure missing beside it: figures/readme-augmentation@pilot-seeds.svg" in answer.err


def test_check_without_a_report_says_how_to_write_one(workshop: Workshop) -> None:
    answer = workshop("report", "--record", str(PILOT), "--check", "--output", "nowhere.md")
    assert answer.code == 1
    assert "there is no report to check at nowhere.md" in answer.err
    assert "--output nowhere.md" in answer.err


def test_a_place_that_cannot_be_written_is_one_sentence(workshop: Workshop) -> None:
    workshop.write("file", "")
    answer = workshop("report", "--record", str(PILOT), "--output", "file/summary.md")
    assert answer.code == 1
    assert "cannot write file/" in answer.err
    assert len(answer.err.strip().splitlines()) == 1


def test_a_server_that_does_not_answer_is_one_sentence(workshop: Workshop) -> None:
    away = {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
    answer = workshop.process("report", **away)
    assert answer.code == 1
    assert "http://127.0.0.1:9 does not answer" in answer.err
    assert "Traceback" not in answer.err
