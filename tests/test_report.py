"""What the report says, through the command line, of a real record and of records that are not as they should be."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pandas as pd
import pytest

from cifar_ablate.analysis.contrasts import compare
from cifar_ablate.registry import FORMATS
from tests.conftest import Workshop
from tests.recording import ARMS, PILOT, diverged, edited_record, keep_arms, with_seeds


def report_of(workshop: Workshop, record: Path = PILOT, *options: str) -> str:
    answer = workshop("report", "--record", str(record), *options)
    assert answer.code == 0, answer.err
    return answer.out


@pytest.mark.slow
def test_verdicts_come_first_and_reproduction_last(workshop: Workshop) -> None:
    headings = [line for line in report_of(workshop).splitlines() if line.startswith("### ")]
    assert headings == [
        "### Verdicts",
        "### Comparisons",
        "### Arms",
        "### Figures",
        "### Classes",
        "### Interactions",
        "### Calibration",
        "### Published and measured",
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
        r"exceeds [0-9.]+; [0-9.]+ to [0-9.]+ are claimed\.",
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
        ["One arm alone has nothing to be compared with: add an arm.", "none: a single arm"],
    ),
    "no run of the baseline": (
        without_arms("baseline"),
        lambda study: None,
        ["cannot be compared with baseline yet: baseline has no finished run.", "5 planned runs have no result yet"],
    ),
    "one seed": (
        lambda table: table[table["seed"] == 0],
        with_seeds(0),
        [
            "one run each: these two runs differ by",
            "single runs cannot rank recipes",
            "McNemar's exact p",
            "state `seeds: 5`",
        ],
    ),
    "two seeds": (
        lambda table: table[table["seed"] < 2],
        with_seeds(0, 1),
        ["provisional: too few seeds for a verdict"],
    ),
    "unequal seeds": (
        lambda table: table[(table["arm"] != "+cutmix") | (table["seed"] < 3)],
        lambda study: None,
        ["arms have unequal numbers of seeds (3 to 5)", "unpaired", "all verdicts are interim"],
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
        ["the same in every seed; where nothing differs between seeds no interval can be given", "No spread between"],
    ),
    "never run": (
        lambda table: table[:0],
        lambda study: None,
        ["25 planned runs have no result yet", "baseline has no finished run", " not run |"],
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_record_that_allows_no_verdict_is_told_in_a_sentence(workshop: Workshop, name: str) -> None:
    runs, document, said = BAD[name]
    report = report_of(workshop, edited_record(workshop.folder, runs, document))
    for sentence in said:
        assert sentence in report
    assert not re.search(r"\bnan\b|\bNone\b|\binf\b", report.replace("the training loss was nan", ""))


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("format", [name for name in FORMATS.names() if name != "markdown"])
def test_every_format_takes_every_record(workshop: Workshop, name: str, format: str) -> None:
    runs, document, _ = BAD[name]
    assert report_of(workshop, edited_record(workshop.folder, runs, document), "--format", format)


def test_a_report_without_predictions_says_what_is_missing(workshop: Workshop) -> None:
    record = edited_record(workshop.folder, with_predictions=False)
    report = report_of(workshop, record)
    assert "shown for this test set only" in report
    assert "**Predictions**: not used: " in report
    assert "No per-class differences" in report


def test_what_trains_the_study_again_names_its_file(workshop: Workshop) -> None:
    record = edited_record(
        workshop.folder,
        without_arms("aggressive"),
        lambda study: study.update(file="experiments/it's $HOME.yaml", variant="pilot,epochs=1"),
    )
    report = report_of(workshop, record)
    command = "cifar-ablate run 'experiments/it'\"'\"'s $HOME.yaml' --profile pilot --set epochs=1"
    assert f"$ {command}\n" in report
    assert f"5 planned runs have no result yet: `{command}` does what is left." in report


def test_the_relative_change_of_errors_stands_beside_the_difference(workshop: Workshop) -> None:
    report = report_of(workshop, edited_record(workshop.folder))
    assert re.search(r"\*\*aggressive\*\* \| \+cutmix \| .* \| \+4\.4% \|", report)  # 51.08% errors instead of 48.91%


def test_a_published_figure_is_set_against_what_one_run_would_show(workshop: Workshop) -> None:
    def as_published(study: dict[str, Any]) -> None:
        study.update(variant="", label="readme-augmentation")
        study["published"]["baseline"] = {"accuracy": 45.0, "note": ""}

    report = report_of(workshop, edited_record(workshop.folder, document=as_published))
    assert re.search(r"- baseline: 45% published, 44\.63% here over 5 seeds \(.0\.37 points\)\. .* lies within", report)
    assert re.search(r"- aggressive: 87.8% published, .* lies outside what one run of ours would show", report)


def with_ledger(*entries: tuple[str, str, int]) -> Callable[[dict[str, Any]], None]:
    """Edit of a study: kind, detail and finished runs of each entry."""

    def edit(study: dict[str, Any]) -> None:
        study["ledger"] = [
            {"kind": kind, "when": "2026-11-01T10:00:00+00:00", "detail": detail, "num_seeds": 3, "num_runs": num_runs}
            for kind, detail, num_runs in entries
        ]

    return edit


def test_seeds_added_after_a_verdict_was_read_are_marked(workshop: Workshop) -> None:
    record = edited_record(workshop.folder, document=with_ledger(("verdicts", "3", 15)))
    assert (
        "**Seeds added by hand**: 2 per arm, after verdicts had been read at 3 seeds (2026-11-01), outside any "
        "pre-declared look."
    ) in report_of(workshop, record)


def test_a_verdict_that_was_read_before_all_planned_runs_were_there_marks_nothing(workshop: Workshop) -> None:
    record = edited_record(workshop.folder, document=with_ledger(("verdicts", "5", 15)))
    assert "Seeds added by hand" not in report_of(workshop, record)


@pytest.mark.parametrize(("num_runs", "said"), [(0, "before any run had finished"), (12, "after 12 runs had finished")])
def test_the_margin_says_when_it_was_set(workshop: Workshop, num_runs: int, said: str) -> None:
    record = edited_record(workshop.folder, document=with_ledger(("margin", "0.2", num_runs)))
    assert f"recorded 2026-11-01, {said}." in report_of(workshop, record)


def test_who_read_the_test_set_is_counted(workshop: Workshop) -> None:
    entries = with_ledger(("look", "3", 15), ("plan", "seed spread", 15), ("verdicts", "5", 20), ("verdicts", "5", 25))
    report = report_of(workshop, edited_record(workshop.folder, document=entries))
    assert (
        "25 runs read it 65 times for their curves and last epochs (run); nothing was chosen by that; 1 look "
        "decided by it which arms get more seeds (run); 1 time its seed spread was taken (plan); verdicts were "
        "read at 2 states of the record (report), this one included."
    ) in report
    assert "**Read early**: verdicts were read 1 time before all planned runs had ended (first with 20 runs" in report


def decided_early(table: pd.DataFrame) -> pd.DataFrame:
    """mixup+affine is far better from the first seed on, and the others are as the baseline, give or take."""
    jitter = table["seed"].map({0: 0.1, 1: -0.1, 2: 0.05, 3: 0.0, 4: -0.05})
    place = table["arm"].map({arm: index for index, arm in enumerate(ARMS)})
    noise = jitter * place.map({0: 1, 1: -1, 2: 2, 3: -2, 4: 3})
    return table.assign(**{"metric.test_accuracy": 50 + 10 * (place == 1) + noise})


def with_looks(study: dict[str, Any]) -> None:
    study["looks"] = [3, 5]


def test_an_arm_decided_at_a_look_keeps_that_look_and_its_level(workshop: Workshop) -> None:
    report = report_of(workshop, edited_record(workshop.folder, decided_early, with_looks))
    line = next(line for line in report.splitlines() if "mixup+affine is better than baseline" in line)
    assert "3 seeds" in line
    assert "Decided at the look at 3 seeds." in line
    (level,) = re.findall(r"\(([0-9.]+)% CI", line)
    assert float(level) > 98
    assert "declared at 3, 5 seeds; taken: 3 seeds at " in report
    assert "**Seeds added by hand**: outside the looks: 2 of mixup+affine. No verdict uses them." in report


def test_a_look_that_waits_gives_no_verdict_and_says_so(workshop: Workshop) -> None:
    only_two = edited_record(workshop.folder, lambda table: table[table["seed"] < 2], with_looks)
    report = report_of(workshop, only_two)
    assert "no verdict before the look at 3 seeds (2 of mixup+affine and 2 of baseline are there)" in report
    assert "**better**" not in report
    assert (
        "The look at 3 seeds is next: `cifar-ablate run experiments/readme-augmentation.yaml --profile pilot` buys its"
        in report
    )


@pytest.mark.slow
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


@pytest.mark.slow
def test_figures_are_drawn_the_same_twice(workshop: Workshop) -> None:
    report_of(workshop)
    first = {path.name: path.read_bytes() for path in Path("reports/figures").iterdir()}
    report_of(workshop)
    assert {path.name: path.read_bytes() for path in Path("reports/figures").iterdir()} == first


def test_an_arm_has_one_colour_in_all_figures_and_is_told_apart_without_colour() -> None:
    from cifar_ablate.report.figures import pens

    many = pens(["base", *(f"arm {index}" for index in range(31))], "base")
    assert len({(pen.marker, pen.dashes, pen.color) for pen in many.values()}) == 32
    few = pens(ARMS, "baseline")
    assert len({pen.marker for pen in few.values()}) == len(ARMS)


@pytest.mark.slow
def test_check_is_content_with_a_report_that_the_record_still_gives(workshop: Workshop) -> None:
    report_of(workshop, PILOT, "--output", "reports/summary.md")
    answer = workshop("report", "--record", str(PILOT), "--check")
    assert answer.code == 0
    assert answer.out == "reports/summary.md matches the record\n"


def edit_number(text: str) -> str:
    return text.replace("50.80", "50.90", 1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("runs", "change", "said"),
    [
        (lambda table: table, edit_number, "2 lines differ"),
        (lambda table: table[:-1], str, "1 planned run without a result: label-smoothing seed 4"),
        (lambda table: table[:-1], str, "unequal numbers of seeds with a result"),
        (lambda table: table.assign(seed=table["seed"]), lambda text: "", "lines differ"),
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


@pytest.mark.slow
def test_check_sees_a_number_that_changed_in_any_format(workshop: Workshop) -> None:
    for format in FORMATS.names():
        path = Path(f"reports/summary.{format}")
        options = ("--format", format, "--output", str(path))
        report_of(workshop, PILOT, *options)
        assert workshop("report", "--record", str(PILOT), *options, "--check").code == 0
        text = path.read_text(encoding="utf-8")
        assert "6.17" in text
        path.write_text(text.replace("6.17", "6.71"), encoding="utf-8")
        assert workshop("report", "--record", str(PILOT), *options, "--check").code == 1, format


def test_check_is_content_with_a_divergence(workshop: Workshop) -> None:
    record = edited_record(workshop.folder, lambda table: diverged(table, table.index == 7))
    report_of(workshop, record, "--output", "reports/summary.md")
    assert workshop("report", "--record", str(record), "--check").code == 0


@pytest.mark.parametrize("name", ["curves.csv", "environments.json", "predictions.npz"])
def test_a_record_that_lost_a_file_is_still_reported(workshop: Workshop, name: str) -> None:
    record = edited_record(workshop.folder)
    (record / name).unlink()
    for format in FORMATS.names():
        assert "6.1" in report_of(workshop, record, "--format", format)


def test_looks_declared_after_verdicts_were_read_are_marked(workshop: Workshop) -> None:
    def late(study: dict[str, Any]) -> None:
        with_looks(study)
        with_ledger(("verdicts", "3", 15))(study)

    report = report_of(workshop, edited_record(workshop.folder, document=late))
    assert "**Looks declared late**: verdicts had been read before (2026-11-01, planned: 3)" in report


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
