"""What ``plan`` says that the planned seeds can decide."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from cifar_ablate.analysis.power import detectable, seeds_needed
from cifar_ablate.record.types import RecordedRun
from cifar_ablate.runner.decisions import decision_lines, spread_of
from cifar_ablate.spec.load import load_study
from cifar_ablate.spec.schema import Study
from tests.conftest import Workshop

TEXT = """\
study: tiny
question: Does mirroring help a tiny network on digits?
seeds: 5
margin: 0.2
recipe:
  data: digits
  train_size: 100
  model: {name: resnet18-compact, width: 4}
  epochs: 2
  batch_size: 5
  optimizer: {name: sgd, lr: 0.05}
arms:
  baseline:
  flip: {augment: {hflip: {p: 0.5}}}
  smooth: {loss: {label_smoothing: 0.05}}
  slow: {optimizer: {lr: 0.01}, epochs: 3}
"""


def study(tmp_path: Path, *edits: tuple[str, str]) -> Study:
    text = TEXT
    for old, new in edits:
        assert old in text
        text = text.replace(old, new)
    path = tmp_path / "tiny.yaml"
    path.write_text(text, encoding="utf-8")
    return load_study(path)


def run(arm: str, seed: int, accuracy: float, outcome: str = "finished") -> RecordedRun:
    metrics = {"test_accuracy": accuracy} if outcome == "finished" else {}
    return RecordedRun("", arm, seed, f"{arm}{seed}", arm, outcome, "", metrics)


RUNS = [
    *(run("baseline", seed, accuracy) for seed, accuracy in enumerate((94.0, 93.8, 94.1))),
    *(run("flip", seed, accuracy) for seed, accuracy in enumerate((95.2, 94.6))),
    run("smooth", 0, 10.0),
    run("slow", 0, 0.0, "diverged"),
]


def test_the_spread_is_pooled_within_arms_from_two_runs_on(tmp_path: Path) -> None:
    spread = spread_of(study(tmp_path), RUNS, is_whole_cifar10=False)
    within = np.var([94.0, 93.8, 94.1], ddof=1) * 2 + np.var([95.2, 94.6], ddof=1)
    assert spread.sd == pytest.approx(np.sqrt(within / 3))
    assert spread.source == "from 5 recorded runs, 3 df"
    assert spread.is_recorded


@pytest.mark.parametrize("runs", [[], RUNS[:1], RUNS[5:], [run("baseline", 0, 50.0), run("baseline", 1, 50.0)]])
def test_without_two_runs_that_differ_it_is_what_the_study_expects(tmp_path: Path, runs: list[RecordedRun]) -> None:
    spread = spread_of(study(tmp_path, ("margin: 0.2", "expected_sd: 0.7")), runs, is_whole_cifar10=False)
    assert (spread.sd, spread.source) == (0.7, "as the study expects it (expected_sd)")
    assert not spread.is_recorded


@pytest.mark.parametrize(("epochs", "sd"), [(1, 0.56), (4, 0.56), (8, 0.326), (16, 0.19), (64, 0.15), (500, 0.15)])
def test_otherwise_it_is_the_published_one_of_the_shortest_training(tmp_path: Path, epochs: int, sd: float) -> None:
    planned = study(tmp_path, ("epochs: 2\n", f"epochs: {epochs}\n"), ("epochs: 3}", f"epochs: {epochs + 9}}}"))
    spread = spread_of(planned, [], is_whole_cifar10=True)
    assert spread.sd == pytest.approx(sd, abs=5e-4)
    said = rf"for {epochs} epochs?, from what is published for 4, 16 and 64 .*, arXiv 2304\.01910"
    assert re.fullmatch(said, spread.source)
    assert not spread.is_recorded


def test_the_published_spread_of_the_whole_cifar10_is_said_to_be_too_small_for_less(tmp_path: Path) -> None:
    source = spread_of(study(tmp_path), [], is_whole_cifar10=False).source
    assert "that is the whole CIFAR-10, so it is likely too small here: state expected_sd" in source


def test_seeds_are_told_with_what_they_detect_and_what_the_margin_needs(tmp_path: Path) -> None:
    planned = study(tmp_path, ("margin: 0.2", "margin: 0.2\nexpected_sd: 0.21"))
    spread = spread_of(planned, [], is_whole_cifar10=False)
    first, second = decision_lines(planned, spread, 100.0)
    detected, need = detectable(5, 4, 0.21), seeds_needed(0.2, 4, 0.21)
    assert detected is not None
    assert need is not None
    basis = "(3 comparisons, seed spread 0.21 points as the study expects it (expected_sd))"
    assert first == f"5 seeds detect {detected:.2f} points at 80% power {basis}"
    minutes, seconds = divmod((need - 5) * 100, 60)
    more = f"{need - 5} more per arm, about {minutes}:{seconds:02} more here"
    assert second == f"your margin of 0.2 needs about {need} seeds: {more}"
    assert decision_lines(planned, spread, None)[1].endswith(f"{need - 5} more per arm")


@pytest.mark.parametrize(
    ("edits", "says"),
    [
        ([("margin: 0.2", "margin: 0")], "with a margin of 0 no number of seeds shows that nothing matters; state"),
        ([("margin: 0.2", "margin: 5")], "your margin of 5 needs about 3 seeds, and 5 are planned"),
        ([("margin: 0.2", "margin: 0.001")], "your margin of 0.001 needs more than 10,000 seeds; only a larger"),
        ([("seeds: 5", "seeds: 1")], "1 seed gives no verdict: 4 arms need at least 3 (3 comparisons"),
        ([("seeds: 5", "seeds: 2")], "2 seeds give no verdict: 4 arms need at least 3 (3 comparisons"),
    ],
)
def test_what_cannot_be_decided_is_said_in_a_sentence(tmp_path: Path, edits: list[tuple[str, str]], says: str) -> None:
    planned = study(tmp_path, *edits)
    lines = decision_lines(planned, spread_of(planned, [], is_whole_cifar10=False), 1.0)
    assert any(line.startswith(says) for line in lines), lines


def test_two_arms_need_five_seeds_for_a_verdict(tmp_path: Path) -> None:
    arms = TEXT[TEXT.index("  smooth:") :]
    planned = study(tmp_path, (arms, ""), ("seeds: 5", "seeds: {looks: [4, 5]}"), ("margin: 0.2", "margin: 50"))
    first, second = decision_lines(planned, spread_of(planned, [], is_whole_cifar10=False), 1.0)
    assert re.match(r"looks detect, each by itself at 80% power: 4 seeds nothing, 5 seeds \d+\.\d\d points \(", first)
    assert second == "your margin of 50 needs about 5 seeds, and 5 are planned"


def test_one_arm_decides_nothing(tmp_path: Path) -> None:
    planned = study(tmp_path, (TEXT[TEXT.index("  flip:") :], ""))
    (line,) = decision_lines(planned, spread_of(planned, [], is_whole_cifar10=False), 1.0)
    assert line == "one arm: nothing is compared, so no number of seeds decides anything"


def test_plan_says_it_under_each_table(workshop: Workshop) -> None:
    workshop.write("tiny.yaml", TEXT)
    workshop.write("other.yaml", TEXT.replace("study: tiny", "study: other\nexpected_sd: 0.4").replace("0.2", "0"))
    said = workshop("plan", "tiny.yaml", "other.yaml").out
    assert re.search(r"\n  5 seeds detect \d\.\d\d points at 80% power \(3 comparisons, seed spread 0\.56 points", said)
    assert re.search(r"\n  your margin of 0\.2 needs about \d+ seeds: \d+ more per arm, about [\d:]+ more here\n", said)
    assert re.search(r"\n  5 seeds detect \d\.\d\d points .*0\.40 points as the study expects it", said)
    assert "with a margin of 0 no number of seeds" in said


@pytest.mark.slow
def test_plan_takes_the_spread_and_the_time_from_recorded_runs(workshop: Workshop) -> None:
    workshop.write("tiny.yaml", TEXT.replace("seeds: 5", "seeds: 3"))
    assert workshop("run", "tiny.yaml").code == 0
    said = workshop("plan", "tiny.yaml").out
    assert re.search(r"seed spread \d+\.\d\d points from 12 recorded runs, 8 df\)", said)
    assert re.search(r"your margin of 0\.2 needs .*(more here|more than 10,000 seeds)", said)
