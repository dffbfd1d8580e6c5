"""Studies whose arms were tuned: the shared recipe beside each arm's own best, confounds, budgets, and every format."""

from __future__ import annotations

import copy
import csv
import io
import json
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from cifar_ablate.analysis.contrasts import compare
from cifar_ablate.analysis.interactions import moves
from cifar_ablate.analysis.verdicts import Verdict
from cifar_ablate.record.compact import load_record
from cifar_ablate.record.types import StudyRecord
from cifar_ablate.report.build import build_report
from cifar_ablate.report.recorded_study import RecordedStudy
from cifar_ablate.report.tuned import change_of, shared_label, shared_labels, tuning_report
from cifar_ablate.report.types import Change, Report, StudyReport, TunedComparison, TuningReport
from cifar_ablate.report.write import render
from tests.accuracies import runs
from tests.conftest import Workshop
from tests.recording import ARMS, PILOT, edited_record
from tests.reporting import NAMES, QUESTION, Renamed, pilot_record
from tests.tuned_records import COMMAND, Edit, shared_record, tuned_arm, tuned_record, tuned_section

POINTS = {"baseline": 5.0, "mixup+affine": 1.0, "aggressive": 4.5, "label-smoothing": 1.0}
"""With these the first verdicts do not survive, one is reversed, and the others stand."""


@pytest.fixture(scope="module")
def report() -> Report:
    """A tuned study with its shared recipe beside it, unlisted."""
    return build_report([tuned_record(POINTS)], shared_recipes=[shared_record()])


def tuning_of(
    points: Mapping[str, float] = {},
    edit: Edit = lambda document: None,
    *,
    beside: StudyRecord | None = None,
    only: tuple[str, ...] = ARMS,
) -> TuningReport:
    tuned, shared = tuned_record(points, edit, only=only), beside or shared_record()
    tuning = tuning_report(RecordedStudy(tuned, tuned.current()), RecordedStudy(shared, shared.current()))
    assert tuning is not None
    return tuning


def comparison(tuning: TuningReport, arm: str, reference: str) -> TunedComparison:
    return next(one for one in tuning.comparisons if (one.arm, one.reference) == (arm, reference))


def text_of(study: StudyReport, arm: str, reference: str) -> str:
    return next(
        one.text
        for family in study.families
        for one in family.comparisons
        if (one.contrast.arm, one.contrast.reference) == (arm, reference)
    )


# --- verdicts that flip ---


def test_each_comparison_stands_beside_its_own_under_the_shared_recipe(report: Report) -> None:
    shared, own = build_report([shared_record()]).studies[0], report.studies[0]
    tuning = own.tuning
    assert tuning is not None
    assert report.studies == (own,)  # the one beside is not listed
    for mine, theirs, family in zip(own.families, shared.families, own.families, strict=True):
        for one, other in zip(mine.comparisons, theirs.comparisons, strict=True):
            found = comparison(tuning, one.contrast.arm, one.contrast.reference)
            assert (found.own_best, found.shared) == (one.contrast, other.contrast)
            assert found.family == family.name


def test_a_verdict_that_does_not_survive_is_told_from_one_that_is_reversed_and_one_that_stands(report: Report) -> None:
    tuning = report.studies[0].tuning
    assert tuning is not None
    changes = {(one.arm, one.reference): one.change for one in tuning.comparisons}
    assert changes == {
        ("mixup+affine", "baseline"): Change.LOST,
        ("+cutmix", "baseline"): Change.LOST,
        ("aggressive", "baseline"): Change.STANDS,
        ("label-smoothing", "baseline"): Change.LOST,
        ("+cutmix", "mixup+affine"): Change.STANDS,
        ("aggressive", "+cutmix"): Change.REVERSED,
        ("label-smoothing", "+cutmix"): Change.FOUND,
    }
    assert tuning.sentences[0] == (
        "Of 7 verdicts, 5 flip with each arm's own best recipe: mixup+affine against baseline (does not survive "
        "tuning); +cutmix against baseline (does not survive tuning); label-smoothing against baseline (does not "
        "survive tuning); aggressive against +cutmix (reversed); label-smoothing against +cutmix (appears only after "
        "tuning); 2 stand."
    )
    said = comparison(tuning, "mixup+affine", "baseline").text
    assert said.startswith(
        "mixup+affine against baseline does not survive tuning: better (+6.17, 95% CI +2.28 to +10.06) with the "
        "shared recipe, too close to call (+2.17, 95% CI"
    )


def test_where_nothing_moved_every_verdict_stands_and_no_flip_is_told() -> None:
    tuning = tuning_of()
    assert {one.change for one in tuning.comparisons} == {Change.STANDS}
    assert tuning.flips == ()
    assert tuning.sentences[0] == "None of 7 verdicts flips with each arm's own best recipe."


def test_what_changes_what_one_would_do_is_a_flip_and_nothing_else_is() -> None:
    contrast = compare(runs({"a": [1.0, 2, 3], "b": [2.0, 3, 5]}), baseline="a")[0]
    expected = {
        ("better", "worse"): Change.REVERSED,
        ("worse", "better"): Change.REVERSED,
        ("better", "undecided"): Change.LOST,
        ("worse", "equivalent"): Change.LOST,
        ("equivalent", "better"): Change.FOUND,
        ("no_worse", "worse"): Change.FOUND,
        ("undecided", "equivalent"): Change.SETTLED,
        ("equivalent", "no_better"): Change.OPENED,
        ("diverged", "better"): Change.TRAINS,
        ("undecided", "diverged"): Change.DIVERGES,
        ("no_worse", "no_better"): Change.OPEN,
        ("undecided", "no_worse"): Change.OPEN,
        ("single_run", "better"): Change.UNKNOWN,
        ("provisional", "provisional"): Change.UNKNOWN,
    }
    for (before, after), change in expected.items():
        shared, own = (replace(contrast, verdict=Verdict(one)) for one in (before, after))
        assert change_of(shared, own) is change, (before, after)
        assert change.is_flip == (change not in (Change.OPEN, Change.UNKNOWN))
    for one in Verdict:
        is_none = one in (Verdict.SINGLE_RUN, Verdict.PROVISIONAL)
        same = replace(contrast, verdict=one)
        assert change_of(same, same) is (Change.UNKNOWN if is_none else Change.STANDS)
        assert change_of(None, same) is Change.UNKNOWN
        for other in Verdict:  # no pair is forgotten
            change_of(same, replace(contrast, verdict=other))


def test_a_flip_whose_difference_may_not_have_moved_says_so() -> None:
    tuning = tuning_of({"mixup+affine": -2.5})
    one = comparison(tuning, "mixup+affine", "baseline")
    assert one.change is Change.LOST
    assert one.move is not None
    assert one.move.estimate == pytest.approx(-2.5)
    assert not one.move.is_shown
    assert one.text.endswith("the verdict changed, but the data do not show that the difference did.")


def test_the_move_of_a_difference_is_that_of_its_four_arms(report: Report) -> None:
    tuning = report.studies[0].tuning
    assert tuning is not None
    for one in tuning.comparisons:
        assert one.move is not None
        assert one.move.estimate == pytest.approx(POINTS.get(one.arm, 0) - POINTS.get(one.reference, 0))
        assert one.move.ci95 is not None
        assert one.shared is not None
        assert one.own_best.estimate == pytest.approx((one.shared.estimate or 0) + one.move.estimate)


def test_runs_that_both_studies_share_count_once_and_move_nothing() -> None:
    tuning = tuning_of(only=())
    assert all(one.move is not None and (one.move.estimate, one.move.ci95) == (0, None) for one in tuning.comparisons)
    assert "Both have the same recipes: the search changed neither arm." in tuning.comparisons[0].text
    half = tuning_of({"+cutmix": 1.0}, only=("+cutmix",))
    moved = comparison(half, "+cutmix", "baseline").move
    assert moved is not None
    assert moved.estimate == pytest.approx(1.0)
    rng = np.random.default_rng(0)
    series = {name: pd.Series(rng.normal(90, 0.3, 5)) for name in "abcd"}
    (both,) = moves(series, [("a", "b", "a", "d")])  # only the reference has another recipe
    (alone,) = compare(runs({"d": list(series["d"]), "b": list(series["b"])}), baseline="d")
    assert both is not None
    assert both.estimate == pytest.approx(alone.estimate)
    assert both.ci95 == pytest.approx(alone.ci95)


@pytest.mark.slow
@pytest.mark.parametrize("spread", [0.3, 0.6])
def test_where_tuning_changes_nothing_a_move_is_shown_in_about_one_study_of_twenty(spread: float) -> None:
    """200 studies of three arms and a baseline, whose spread may be twice the others'; 10 expected, sd 3."""
    rng = np.random.default_rng(1)
    num_wrong = 0
    for _ in range(200):
        seeds = rng.normal(90, 0.2, 5)
        spreads = dict.fromkeys("XxYyZz", 0.3) | dict.fromkeys("Bb", spread)
        values = {key: pd.Series(seeds + rng.normal(0, sd, 5)) for key, sd in spreads.items()}
        found = moves(values, [(arm.upper(), "B", arm, "b") for arm in "xyz"])
        num_wrong += any(one is not None and one.is_shown for one in found)
    assert 1 <= num_wrong <= 19


def test_with_looks_differences_are_set_side_by_side_and_no_move_is_given() -> None:
    def looks(study: dict[str, Any]) -> None:
        study["looks"] = [3, 5]

    both = tuning_of(POINTS, looks, beside=shared_record(looks))
    assert comparison(both, "aggressive", "+cutmix").shared is not None
    assert all(one.move is None and "moved by" not in one.text for one in both.comparisons)
    assert both.unlike == ()
    said = "the two have different looks, so their intervals have different levels."
    assert tuning_of(POINTS, looks).unlike == (said,)


def test_too_few_seeds_move_nothing_and_flip_nothing() -> None:
    def two(record: StudyRecord) -> StudyRecord:
        return replace(record, runs=[run for run in record.runs if run.seed < 2])

    found = build_report([two(tuned_record(POINTS))], shared_recipes=[two(shared_record())]).studies[0].tuning
    assert found is not None
    assert all(one.move is None and one.change is Change.UNKNOWN for one in found.comparisons)
    assert "whether the verdict stands is not known without both" in found.comparisons[0].text
    assert not any("flip" in sentence for sentence in found.sentences)


# --- the record of the shared recipe ---


def test_a_shared_record_that_is_not_at_hand_is_named_with_the_command_that_makes_it() -> None:
    study = build_report([tuned_record(POINTS)]).studies[0]
    assert study.tuning is not None
    assert not study.tuning.is_at_hand
    assert f"readme-augmentation@pilot, is missing, so these verdicts are compared with nothing: `{COMMAND}`" in (
        study.tuning.missing
    )
    assert all(one.shared is None and one.change is Change.UNKNOWN for one in study.tuning.comparisons)
    markdown = render(Report((study,)), "markdown").text
    assert f"`{COMMAND}` makes it." in markdown
    assert "| **baseline** | 7 | 51.50 | 53.25 | 20 | 8 | 1 | 120 | optimizer.lr 0.03; schedule cosine |" in markdown
    assert "Shared recipe" not in markdown


def test_the_shared_record_is_of_the_variant_that_was_run() -> None:
    assert shared_label(tuned_record().document) == "readme-augmentation@pilot"
    assert shared_label(tuned_record(edit=lambda study: study.update(variant="")).document) == "readme-augmentation"
    assert shared_label(shared_record().document) is None
    assert shared_labels([tuned_record(), tuned_record()]) == ["readme-augmentation@pilot"]
    assert shared_labels([tuned_record(), shared_record()]) == []


def test_the_report_of_the_shared_recipe_says_what_tuning_makes_of_it_and_only_with_both() -> None:
    both = build_report([shared_record(), tuned_record(POINTS)]).studies[0]
    keyword, text = both.must_know[0]
    assert keyword == "Tuned counterpart"
    assert text.startswith(
        "readme-augmentation-tuned@pilot has each arm at its own best optimizer.lr and schedule. Of 7"
    )
    assert "aggressive against +cutmix (reversed)" in text
    alone = build_report([shared_record()]).studies[0]
    assert replace(both, must_know=both.must_know[1:]) == alone


def edited(text: str) -> str:
    return text.replace("\\", "")


def folders(workshop: Workshop, **parts: Any) -> Path:
    """The shared recipe's record and the tuned one's, in folders side by side; ``parts`` replace those of the study."""

    def tuned(study: dict[str, Any]) -> None:
        study["label"], study["study"] = "readme-augmentation-tuned@pilot", "readme-augmentation-tuned"
        study["file"] = "experiments/readme-augmentation-tuned.yaml"
        study["tuned"] = tuned_section({name: tuned_arm(0.02) for name in ARMS}) | parts

    def better(table: pd.DataFrame) -> pd.DataFrame:
        table.loc[table["arm"] == "baseline", "metric.test_accuracy"] += 12
        return table

    edited_record(workshop.folder / "records" / "tuned", better, tuned)
    edited_record(workshop.folder / "records" / "shared")
    return workshop.folder / "records"


@pytest.mark.slow
def test_a_label_brings_its_shared_recipe_along_from_the_folder_without_listing_it(workshop: Workshop) -> None:
    answer = workshop("report", "readme-augmentation-tuned@pilot", "--record", str(folders(workshop)))
    assert answer.code == 0, answer.err
    assert [line for line in answer.out.splitlines() if line.startswith("## ")] == [
        "## readme-augmentation-tuned@pilot"
    ]
    assert "mixup+affine against baseline is reversed by tuning" in edited(answer.out)
    alone = workshop("report", "--record", str(workshop.folder / "records" / "tuned"))
    assert f"`{COMMAND}` makes it." in alone.out
    shared = workshop("report", "readme-augmentation@pilot", "--record", str(workshop.folder / "records"))
    assert shared.out == workshop("report", "--record", str(PILOT)).out


@pytest.mark.slow
@pytest.mark.parametrize("name", ["a.md", "a.html", "a.tex", "a.csv", "a.json"])
def test_a_written_report_is_checked_against_both_records(workshop: Workshop, name: str) -> None:
    command = ("report", "readme-augmentation-tuned@pilot", "--record", str(folders(workshop)), "--output", name)
    assert workshop(*command).code == 0
    assert workshop(*command, "--check").code == 0
    table = workshop.folder / "records" / "shared" / "record" / "runs.csv"
    runs = pd.read_csv(table)
    runs.loc[runs["arm"] == "aggressive", "metric.test_accuracy"] += 3
    runs.to_csv(table, index=False)
    assert workshop(*command, "--check").code == 1


def test_a_damaged_tuned_section_is_refused_in_a_sentence(workshop: Workshop) -> None:
    answer = workshop("report", "--record", str(folders(workshop, val_fraction="a tenth")))
    assert answer.code != 0
    assert "readme-augmentation-tuned@pilot cannot be read (tuned.val_fraction: " in answer.err
    assert "export it again" in answer.err


STUDY = """
    study: NAME
    question: Does smoothing help a tiny network on digits?
    seeds: 5
    recipe:
      data: digits
      train_size: 200
      model: {name: resnet18-compact, width: 4}
      epochs: 2
      batch_size: 10
      optimizer: {name: sgd, lr: 0.05}
    arms:
      baseline: BASELINE
      smooth: {loss: {label_smoothing: 0.1} SMOOTH}
"""
TUNED = """
    tuned:
      study: tiny
      variant: epochs=1
      date: "2026-11-22"
      data: digits, in words
      space: {optimizer.lr: 0.01 to 1 (log)}
      sampler: tpe
      pruner: median
      seeds: 1
      val_fraction: 0.1
      arms:
        baseline: {trial: 3, val_accuracy: 31.5, trials: 4, epochs: 4, values: {optimizer.lr: 0.2}}
        smooth: {trial: 1, val_accuracy: 30.0, trials: 4, epochs: 4, values: {optimizer.lr: 0.3}}
"""


@pytest.mark.slow
def test_a_study_with_tuned_values_is_run_and_reported_beside_the_one_it_came_from(workshop: Workshop) -> None:
    shared = STUDY.replace("NAME", "tiny").replace("BASELINE", "").replace("SMOOTH", "")
    tuned = STUDY.replace("NAME", "tiny-tuned").replace("BASELINE", "{optimizer: {lr: 0.2}}")
    workshop.write("tiny.yaml", shared)
    workshop.write("tiny-tuned.yaml", tuned.replace("SMOOTH", ", optimizer: {lr: 0.3}") + TUNED)
    assert workshop("run", "tiny-tuned.yaml", "--set", "epochs=1").code == 0
    command = re.search(r"these verdicts are compared with nothing: `cifar-ablate ([^`]*)`", workshop("report").out)
    assert command is not None
    assert command[1] == "run tiny.yaml --set epochs=1"
    assert workshop(*command[1].split()).code == 0
    report = workshop("report", "tiny-tuned@epochs=1").out
    assert [line for line in report.splitlines() if line.startswith("## ")] == ["## tiny-tuned@epochs=1"]
    assert "They are compared each at its own best optimizer.lr." in report
    assert re.search(r"smooth against baseline (stands|stays open|does not survive|appears only|is )", report)
    assert "The difference moved by" in report
    assert "Not like with like" not in report
    assert "**Tuned counterpart**: tiny-tuned@epochs=1 has each arm at its own best" in workshop("report").out


# --- like with like ---


@pytest.mark.slow
def test_records_that_differ_in_more_than_tuned_values_are_not_like_with_like() -> None:
    def edit(study: dict[str, Any]) -> None:
        study["seeds"], study["margin"] = [0, 1, 2, 3], 1.0
        study["tuned"]["variant"] = ""
        for arm in study["arms"]:
            arm["seeds"] = [0, 1, 2, 3]
        study["arms"][1]["data_digest"] = "other"
        study["arms"][2]["recipe"]["epochs"] = 12

    tuning = tuning_of(edit=edit)
    assert tuning.unlike == (
        "the values were searched without an overlay, these runs are under pilot.",
        "seeds 0, 1, 2, 3, 4 with the shared recipe, 0, 1, 2, 3 here.",
        "the margin is 0.2 points with the shared recipe, 1 point here.",
        "different images (data digest): mixup+affine.",
        "+cutmix differs from its shared recipe also in what was not searched: epochs 9 -> 12.",
    )
    assert [f"Not like with like: {one}" for one in tuning.unlike] == list(tuning.sentences[1:6])
    assert tuning_of().unlike == ()


@pytest.mark.slow
def test_a_shared_record_with_missing_runs_or_other_arms_is_said_to_have_them() -> None:
    shared = shared_record(lambda study: study["arms"].pop())
    shared = replace(shared, runs=[run for run in shared.runs if (run.arm, run.seed) != ("baseline", 3)])
    tuning = tuning_of(beside=shared)
    assert tuning.unlike == (
        "only one of the two has label-smoothing, so the families differ in size.",
        "with the shared recipe 1 of 20 planned runs has no result yet.",
    )
    lone = comparison(tuning, "label-smoothing", "baseline")
    assert (lone.shared, lone.move) == (None, None)
    assert lone.text.endswith("the shared recipe has no such comparison.")


@pytest.mark.slow
def test_an_arm_that_was_not_tuned_must_be_as_it_was() -> None:
    def edit(study: dict[str, Any]) -> None:
        study["arms"][4]["recipe"]["optimizer"]["lr"] = 0.5

    tuning = tuning_of(edit=edit, only=ARMS[:4])
    assert tuning.unlike == (
        "label-smoothing differs from its shared recipe also in what was not searched: optimizer.lr 0.01 -> 0.5.",
    )


# --- budgets ---


@pytest.mark.slow
def test_equal_budgets_are_not_mentioned_and_unequal_ones_say_who_had_how_many() -> None:
    def fewer(study: dict[str, Any]) -> None:
        study["tuned"]["arms"]["+cutmix"].update(trials=12, epochs=70)
        study["tuned"]["arms"]["aggressive"].update(epochs=131)
        del study["tuned"]["arms"]["label-smoothing"]

    assert tuning_of().budgets == ()
    assert tuning_of(edit=fewer).budgets == (
        "Not tuned, as written: label-smoothing. It is compared with arms that were tuned, which favours those.",
        "Unequal budgets: baseline, mixup+affine and aggressive had 20 trials, +cutmix 12. More trials find better "
        "values.",
        "Epochs trained in the search differ by more than a tenth: aggressive took 131 epochs, baseline and "
        "mixup+affine 120, +cutmix 70. Arms that train longer, and trials that are not ended early, cost more.",
    )


@pytest.mark.slow
@pytest.mark.parametrize(("epochs", "is_said"), [(132, False), (133, True)])
def test_epochs_are_unequal_beyond_a_tenth(epochs: int, is_said: bool) -> None:
    tuning = tuning_of(edit=lambda study: study["tuned"]["arms"]["+cutmix"].update(epochs=epochs))
    assert bool(tuning.budgets) == is_said


@pytest.mark.slow
def test_the_report_says_what_was_searched_and_that_only_test_columns_count() -> None:
    said = tuning_of().sentences
    assert (
        "Searched for each arm of readme-augmentation under pilot: optimizer.lr (0.001 to 0.1 (log)); schedule "
        "(constant, cosine). Sampler tpe, pruner median, 1 seed per trial, chosen by accuracy on 10% of the training "
        "images, which trials were not trained on and runs are; cifar10: 4,500 of 50,000 training images, judged on "
        "500 others; last trial 2026-11-22."
    ) in said
    assert said[-1].startswith("The best of 20 trials on validation images looks better than it is")
    assert "only the columns of test accuracy show what it is worth" in said[-1]


# --- confounds ---


def test_tuned_fields_are_no_confounds_and_the_arms_are_said_to_be_at_their_own_best(report: Report) -> None:
    study = report.studies[0]
    one_change = text_of(study, "+cutmix", "mixup+affine")
    assert one_change.endswith("They are compared each at its own best optimizer.lr and schedule.")
    assert "differs from" not in one_change
    several = text_of(study, "mixup+affine", "baseline")
    assert "in 4 things (epochs, affine, hflip, mixup): the difference cannot be put down" in several
    found = {
        (one.contrast.arm, one.contrast.reference): (one.differs, one.tuned, one.is_confounded)
        for family in study.families
        for one in family.comparisons
    }
    assert found["+cutmix", "mixup+affine"] == (
        ("+ cutmix (alpha 1, p 1)",),
        ("optimizer.lr 0.02 -> 0.05",),
        False,
    )
    steps = " ".join(study.next_steps)
    assert "mixup+affine differs from baseline in 4 (epochs, affine, hflip, mixup)" in steps
    assert "optimizer.lr" not in steps


def test_without_a_search_the_same_differences_are_confounds() -> None:
    study = build_report([tuned_record(edit=lambda study: study.pop("tuned"))]).studies[0]
    said = text_of(study, "+cutmix", "mixup+affine")
    assert "+cutmix differs from mixup+affine in 2 things (optimizer.lr, cutmix)" in said.replace(
        "(cutmix, optimizer.lr)", "(optimizer.lr, cutmix)"
    )
    assert study.tuning is None


def test_what_lies_below_a_searched_field_is_tuned_and_what_lies_beside_it_is_not() -> None:
    def edit(study: dict[str, Any]) -> None:
        study["tuned"]["space"] = {"schedule": "cosine", "ema.decay": "0.9 to 0.999", "augment.cutmix.alpha": "0 to 1"}
        cutmix = study["arms"][2]["recipe"]
        cutmix["schedule"] = {**cutmix["schedule"], "warmup_epochs": 2}
        cutmix["ema"] = {"decay": 0.99}
        cutmix["optimizer"]["momentum"] = 0.8

    study = build_report([tuned_record(edit=edit)]).studies[0]
    (one,) = (one for one in study.families[1].comparisons if one.contrast.arm == "+cutmix")
    assert set(one.tuned) == {"schedule.warmup_epochs 0 -> 2", "ema none -> {'decay': 0.99}"}
    assert set(one.differs) == {
        "+ cutmix (alpha 1, p 1)",
        "optimizer.lr 0.02 -> 0.05",
        "optimizer.momentum 0.9 -> 0.8",
    }


@pytest.mark.slow
def test_an_arm_that_was_not_tuned_is_not_said_to_be_at_its_best() -> None:
    study = build_report([tuned_record(only=ARMS[:4])]).studies[0]
    assert text_of(study, "label-smoothing", "+cutmix").endswith(
        "+cutmix is at its own best optimizer.lr and schedule, label-smoothing was not tuned: part of the difference "
        "may come from the search."
    )
    neither = build_report([tuned_record(only=("aggressive",))]).studies[0]
    assert "own best" not in text_of(neither, "+cutmix", "mixup+affine")


@pytest.mark.slow
def test_tuned_values_are_no_factors_of_interactions() -> None:
    def factorial(study: dict[str, Any]) -> None:
        recipes = {arm["name"]: arm["recipe"] for arm in study["arms"]}
        for name, augment in (("mixup+affine", ("a",)), ("+cutmix", ("b",)), ("aggressive", ("a", "b"))):
            recipes[name]["epochs"] = 3
            names = {"a": "hflip", "b": "mixup"}
            recipes[name]["augment"] = {names[one]: {"p": 0.5} for one in augment}
        del study["arms"][4]

    tuned = build_report([tuned_record(edit=factorial)]).studies[0]
    assert [(one.name, one.kind) for one in tuned.interactions] == [
        ("hflip", "main effect"),
        ("mixup", "main effect"),
        ("hflip x mixup", "interaction"),
    ]
    assert not tuned.interaction_note
    without = build_report([tuned_record(edit=lambda study: (factorial(study), study.pop("tuned")))]).studies[0]
    assert without.interactions == ()


def test_the_arms_table_marks_what_the_search_has_found(report: Report) -> None:
    row = next(row for row in report.studies[0].rows if row.name == "+cutmix")
    assert row.differs == ("+ cutmix (alpha 1, p 1)", "optimizer.lr 0.02 -> 0.05 (tuned)")


def test_a_published_figure_is_no_repetition_of_a_tuned_recipe() -> None:
    study = build_report([tuned_record(edit=lambda study: study.update(variant=""))]).studies[0]
    assert all(row.text.endswith(", tuned: other recipes, so not a repetition.") for row in study.published)


# --- formats ---


def test_json_holds_both_sides_of_every_comparison(report: Report) -> None:
    read = json.loads(render(report, "json").text)["studies"][0]
    tuning, mine = read["tuning"], report.studies[0].tuning
    assert mine is not None
    assert (tuning["study"], tuning["shared"], tuning["is_at_hand"]) == (
        "readme-augmentation",
        "readme-augmentation@pilot",
        True,
    )
    for one, found in zip(tuning["comparisons"], mine.comparisons, strict=True):
        assert found.shared is not None
        assert found.shared.ci95 is not None
        assert found.move is not None
        assert found.move.ci95 is not None
        assert one["shared"]["ci95"] == list(found.shared.ci95)
        assert one["own_best"]["verdict"] == found.own_best.verdict.value
        assert one["change"] == found.change.value
        assert one["move"] == {"estimate": found.move.estimate, "ci95": list(found.move.ci95)}
    assert tuning["arms"][0]["tuned"] == {**tuned_arm(0.03), "optuna_study": ""}
    assert tuning["arms"][0]["shared_test"]["mean"] == pytest.approx(44.628)
    assert tuning["sentences"] == list(mine.sentences)


def test_csv_has_the_shared_recipe_and_the_cost_in_columns_of_their_own(report: Report) -> None:
    rows = list(csv.DictReader(io.StringIO(render(report, "csv").text)))
    tuning = report.studies[0].tuning
    assert tuning is not None
    by_pair = {(row["arm"].lstrip("'"), row["reference"].lstrip("'")): row for row in rows}
    for one in tuning.comparisons:
        row = by_pair[one.arm, one.reference]
        assert one.shared is not None
        assert one.move is not None
        assert float(row["shared_difference"]) == one.shared.estimate
        assert row["shared_verdict"] == one.shared.verdict.value
        assert row["verdict_change"] == one.change.value
        assert float(row["moved_by"]) == one.move.estimate
    baseline = by_pair["baseline", ""]
    assert (baseline["is_tuned"], baseline["tuned_trials"], baseline["tuned_val_accuracy"]) == ("True", "20", "53.25")


@pytest.mark.slow
def test_the_page_has_a_section_that_its_contents_name_with_a_figure_of_both(report: Report) -> None:
    page = render(report, "html").text
    assert '<a href="#study-1-own-best">' in page
    section = page.split('id="study-1-own-best">')[1].split("</section>")[0]
    assert section.count('class="badge') == 2 * 7
    assert "●" in section
    figures = re.findall(r'aria-label="Figure: ([^"]*)"', page)
    assert figures[:2] == ["Differences", "Own best recipes"]
    markdown = render(report, "markdown")
    assert "figures/readme-augmentation-tuned@pilot-own.svg" in markdown.files
    assert "shared" in markdown.files["figures/readme-augmentation-tuned@pilot-own.svg"]


BAD = {**NAMES, "baseline": "--- `x` $y$ <b>&amp;</b>"}


def hostile_pair() -> list[StudyRecord]:
    """Both records under names that want to break out of a format, and a search described in them, too."""

    def renamed(record: StudyRecord) -> StudyRecord:
        document = copy.deepcopy(dict(record.document))
        document |= {"question": QUESTION, "baseline": BAD["baseline"], "published": {}}
        for arm in document["arms"]:
            arm["name"], arm["parent"] = BAD[arm["name"]], BAD.get(arm["parent"])
        if tuned := document.get("tuned"):
            tuned["arms"] = {BAD[name]: one for name, one in tuned["arms"].items()}
            tuned["arms"][BAD["aggressive"]]["values"] = {"schedule": "</td><script>alert(2)</script>|`\\input{x}"}
            tuned |= {"data": "<img src=x onerror=alert(3)>", "sampler": "=cmd|' /C calc'!A0", "pruner": r"\input{y}"}
            tuned["space"] = {"optimizer.lr": "</li><script>alert(4)</script> | `", "schedule": "$x$ \\end{document}"}
            del tuned["arms"][BAD["label-smoothing"]]
        runs = [replace(run, arm=BAD[run.arm]) for run in record.runs]
        return replace(record, document=document, runs=runs, details=Renamed(record.details, BAD))

    return [renamed(tuned_record(POINTS)), renamed(shared_record())]


@pytest.fixture(scope="module")
def hostile() -> Report:
    return build_report(hostile_pair())


class Page(HTMLParser):
    """A page's tags and words."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.words: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert not [name for name, _ in attrs if name.startswith("on")]
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.words.append(data)


@pytest.mark.slow
def test_hostile_names_stay_names_in_the_page(hostile: Report) -> None:
    page = Page(render(hostile, "html").text)
    assert page.tags.count("script") == 1
    assert not {"img", "b", "i"} & set(page.tags)
    words = "".join(page.words)
    assert all(name in words for name in BAD.values())
    assert "Sampler =cmd|' /C calc'!A0, pruner \\input{y}" in words


def test_hostile_names_stay_in_their_cells_of_markdown(hostile: Report) -> None:
    text = render(hostile, "markdown").text
    section = text.split("### With each arm's own best recipe")[1].split("### Comparisons")[0]
    tables = [block for block in section.split("\n\n") if block.startswith("| Arm")]
    assert len(tables) == 2
    for block in tables:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}) == 1
    assert "<span>$</span>" in section  # how GitHub lets a dollar sign be one
    assert not re.findall(r"<(?!/?details|/?summary|span>\$</span>|/span>)", section)
    assert not re.findall(r"(?<!\\)`", section)


def test_hostile_names_run_nothing_in_latex_and_csv(hostile: Report, tmp_path: Path) -> None:
    written = render(hostile, "latex").text
    assert written.isascii()
    assert r"\input" not in written
    assert written.count(r"\end{document}") == 1
    for row in csv.DictReader(io.StringIO(render(hostile, "csv").text)):
        for cell in row.values():
            if cell.startswith(("=", "+", "-", "@")):
                float(cell)
    pdflatex = shutil.which("pdflatex")
    if pdflatex is None:
        pytest.skip("pdflatex is not installed")
    (tmp_path / "report.tex").write_text(written, encoding="ascii")
    command = [pdflatex, "-no-shell-escape", "-halt-on-error", "-interaction=nonstopmode", "report.tex"]
    done = subprocess.run(
        command, cwd=tmp_path, stdin=subprocess.DEVNULL, capture_output=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stdout.decode(errors="replace")[-2000:]


# --- studies without a search ---


@pytest.mark.slow
def test_the_report_of_a_study_without_a_search_has_nothing_of_it() -> None:
    report = build_report([pilot_record()])
    study = report.studies[0]
    assert study.tuning is None
    assert all(one.tuned == () for family in study.families for one in family.comparisons)
    for format in ("markdown", "html", "latex"):
        text = render(report, format).text
        assert "own best" not in text.replace("Own best", "own best")
        assert not re.search(r"\btuned\b", text, re.IGNORECASE)
    row = next(csv.DictReader(io.StringIO(render(report, "csv").text)))
    assert (row["is_tuned"], row["shared_verdict"], row["tuned"]) == ("", "", "")
    kept = (PILOT.parent / "summary.md").read_text(encoding="utf-8")
    assert render(build_report([load_record(PILOT)]), "markdown").text.splitlines()[:40] == kept.splitlines()[:40]
