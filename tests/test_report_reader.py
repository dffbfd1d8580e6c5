"""What the reader of a report is told beside the verdicts: what to do next, what was left out, what cannot be read."""

from __future__ import annotations

import gc
import json
import re
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from cifar_ablate.analysis.contrasts import compare
from cifar_ablate.analysis.power import noise_floor
from cifar_ablate.record.compact import load_predictions, save_record
from cifar_ablate.report.recommendations import noise_text
from tests.accuracies import runs
from tests.conftest import Workshop
from tests.recording import PILOT, diverged, edited_record, keep_arms, with_seeds
from tests.reporting import pilot_record
from tests.test_report import decided_early, report_of, with_ledger, with_looks
from tests.timing import times_as_long


def steps_of(report: str) -> str:
    """What to do next."""
    return report.split("#### What to do next\n\n")[1].split("\n\n###", maxsplit=1)[0]


def with_margin(margin: float) -> Callable[[dict[str, Any]], None]:
    return lambda study: study.update(margin=margin)


def test_what_seeds_can_settle_is_told_from_what_they_cannot(workshop: Workshop) -> None:
    steps = steps_of(report_of(workshop, edited_record(workshop.folder, document=with_margin(1.0))))
    assert "Open, with the additional seeds per arm to detect 1 point: +cutmix against mixup+affine (about " in steps
    assert re.search(r"label-smoothing against \\\+cutmix|label-smoothing against \+cutmix", steps)
    assert re.search(r"Not a matter of seeds: aggressive against baseline\. .* takes \d+ more seeds per arm", steps)


def test_two_seeds_are_sent_for_more_seeds_and_not_for_thousands(workshop: Workshop) -> None:
    record = edited_record(workshop.folder, lambda table: table[table["seed"] < 2], with_seeds(0, 1))
    steps = steps_of(report_of(workshop, record))
    assert "Too few seeds for a verdict: state `seeds: 5` or more" in steps
    assert "Not a matter of seeds" not in steps


def test_every_arm_that_is_confounded_is_named_with_its_keys(workshop: Workshop) -> None:
    steps = steps_of(report_of(workshop))
    assert (
        "add arms that differ in one thing each. Now mixup+affine differs from baseline in 4 (epochs, affine, hflip, "
        "mixup); aggressive from +cutmix in 2 (affine.p, hflip.p)."
    ) in steps


def test_outlying_runs_are_named_whether_or_not_a_verdict_rests_on_them(workshop: Workshop) -> None:
    assert "**Outliers**: aggressive seed 1 (45.88%), label-smoothing seed 3 (56.12%)" in report_of(workshop)


@pytest.mark.slow
def test_a_family_says_which_of_its_comparisons_have_no_part_in_it(workshop: Workshop) -> None:
    def lone(table: pd.DataFrame) -> pd.DataFrame:
        return table[(table["arm"] != "aggressive") | (table["seed"] == 0)]

    report = report_of(workshop, edited_record(workshop.folder, lone))
    assert "one family of 3; 1 with too few finished runs for an interval" in report
    one_seed = edited_record(workshop.folder, lambda table: table[table["seed"] == 0], with_seeds(0))
    assert "4 with too few finished runs for an interval" in report_of(workshop, one_seed)


def test_the_noise_floor_names_the_seeds_of_all_its_comparisons(workshop: Workshop) -> None:
    fewer = edited_record(workshop.folder, lambda table: table[(table["arm"] != "+cutmix") | (table["seed"] < 3)])
    assert "with this spread and 3 to 5 seeds (the median of the comparisons)" in report_of(workshop, fewer)


def test_new_images_say_where_they_rest_on_fewer_seeds(workshop: Workshop) -> None:
    fewer = edited_record(workshop.folder, lambda table: table[(table["arm"] != "+cutmix") | (table["seed"] < 3)])
    row = next(line for line in report_of(workshop, fewer).splitlines() if line.startswith("| **+cutmix** | mixup"))
    assert "(3 shared seeds)" in row


def test_after_looks_nothing_is_called_interim_that_is_decided(workshop: Workshop) -> None:
    def runs(table: pd.DataFrame) -> pd.DataFrame:
        table = decided_early(table)
        return table[(table["arm"] != "aggressive") | (table["seed"] != 4)]

    report = report_of(workshop, edited_record(workshop.folder, runs, with_looks))
    assert "Decided at the look at 3 seeds." in report
    assert "1 planned run has no result yet" in report
    assert "interim" not in report


def test_after_the_last_look_new_seeds_are_for_a_new_study(workshop: Workshop) -> None:
    def looks(study: dict[str, Any]) -> None:
        with_looks(study)
        study["margin"] = 1.0

    steps = steps_of(report_of(workshop, edited_record(workshop.folder, document=looks)))
    assert "Train a study with fresh seeds, and looks further out" in steps
    assert "Declare them" not in steps


def test_a_verdict_over_seeds_added_by_hand_says_so_itself(workshop: Workshop) -> None:
    record = edited_record(workshop.folder, document=with_ledger(("verdicts", "3", 15)))
    verdicts = report_of(workshop, record).split("### Verdicts")[1].split("Noise floor")[0]
    told = [line for line in verdicts.splitlines() if line.startswith("- ")]
    assert len(told) == 7
    assert all(line.endswith("the interval is too narrow.") for line in told)


def test_an_arm_whose_runs_all_diverged_was_run(workshop: Workshop) -> None:
    record = edited_record(workshop.folder, lambda table: diverged(table, table["arm"] == "aggressive"))
    report = report_of(workshop, record)
    assert "none finished" in report
    assert "not run" not in report


def test_readings_of_the_test_set_are_counted_from_what_was_recorded(workshop: Workshop) -> None:
    record = edited_record(workshop.folder, lambda table: diverged(table, table["seed"] == 0))
    curves = pd.read_csv(record / "curves.csv")
    curves.loc[curves["seed"] == 0, "test_accuracy"] = np.nan  # diverged before their first evaluation
    curves.to_csv(record / "curves.csv", index=False)
    assert f"25 runs read it {curves['test_accuracy'].notna().sum()} times" in report_of(workshop, record)


def test_what_cannot_be_read_is_said_with_its_reason(workshop: Workshop) -> None:
    record = edited_record(workshop.folder)
    (record / "curves.csv").unlink()
    (record / "environments.json").unlink()
    data = (record / "predictions.npz").read_bytes()
    (record / "predictions.npz").write_bytes(data[: len(data) // 2])
    report = report_of(workshop, record)
    assert "**Curves**: not drawn: curves.csv cannot be read" in report
    assert "**Repeatability**: not known: " in report
    assert "**Predictions**: not used: predictions.npz cannot be read" in report


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda study: study.pop("margin"), "study.json has no 'margin'"),
        (lambda study: study.update(margin="abc"), "study.json: 'margin' is 'abc'"),
        (lambda study: study["arms"][0].pop("recipe"), "an arm in study.json has no 'recipe'"),
    ],
)
def test_a_damaged_record_is_refused_in_a_sentence(
    workshop: Workshop, edit: Callable[[dict[str, Any]], object], said: str
) -> None:
    answer = workshop("report", "--record", str(edited_record(workshop.folder, document=edit)))
    assert answer.code != 0
    assert said in answer.err
    assert "export it again" in answer.err
    assert answer.out == ""


def test_a_finished_run_without_accuracy_is_named(workshop: Workshop) -> None:
    def without(table: pd.DataFrame) -> pd.DataFrame:
        table.loc[1, "metric.test_accuracy"] = np.nan
        return table

    answer = workshop("report", "--record", str(edited_record(workshop.folder, without)))
    assert answer.code != 0
    assert "runs.csv: baseline seed 1 finished and has no test_accuracy" in answer.err


@pytest.mark.parametrize(("name", "begins"), [("a.html", "<!DOCTYPE html>"), ("a.tex", "\\documentclass"), ("a", "# ")])
def test_the_name_of_the_output_says_its_format(workshop: Workshop, name: str, begins: str) -> None:
    report_of(workshop, PILOT, "--output", name)
    assert Path(name).read_text(encoding="utf-8").startswith(begins)
    assert workshop("report", "--record", str(PILOT), "--output", name, "--check").code == 0


def test_more_arms_than_a_figure_holds_are_said(workshop: Workshop) -> None:
    folder = workshop.folder / "many"
    shutil.copytree(PILOT, folder)
    study = json.loads((folder / "study.json").read_text(encoding="utf-8"))
    names = [f"arm {index}" for index in range(50)]
    study["arms"] += [{**study["arms"][1], "name": name} for name in names]
    (folder / "study.json").write_text(json.dumps(study), encoding="utf-8")
    runs = pd.read_csv(folder / "runs.csv")
    mixup = runs[runs["arm"] == "mixup+affine"]
    pd.concat([runs, *(mixup.assign(arm=name) for name in names)]).to_csv(folder / "runs.csv", index=False)
    report = report_of(workshop, folder)
    assert "**Figures**: not drawn: there are more than 40 arms." in report
    assert max(map(len, steps_of(report).splitlines())) < 1000


def test_outliers_among_a_hundred_arms_cost_no_fit_each_and_no_warning() -> None:
    rng = np.random.default_rng(0)

    def frame(draw: Callable[[], float]) -> pd.DataFrame:
        rows = [(f"arm {arm}", seed, 90 + 0.3 * draw()) for arm in range(100) for seed in range(10)]
        rows += [("even", seed, accuracy) for arm, seed, accuracy in rows if arm == "arm 0"]
        return pd.DataFrame(rows, columns=["arm", "seed", "accuracy"])

    tame, wild = frame(rng.standard_normal), frame(lambda: float(rng.standard_t(3)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = compare(wild, baseline="arm 0")
    assert len(found) == 100
    assert found[-1].estimate == pytest.approx(0.0)
    # 1.5 to 1.8 times; with a fit for each comparison and outlier it was some 25 times
    assert times_as_long(lambda: compare(wild, baseline="arm 0"), lambda: compare(tame, baseline="arm 0")) < 5


def test_a_report_leaves_garbage_collection_as_it_was(workshop: Workshop) -> None:
    report_of(workshop)
    assert workshop("report", "--record", "nowhere").code != 0
    assert gc.isenabled()
    assert gc.get_freeze_count() == 0


def test_a_study_with_looks_says_nothing_of_interactions_that_its_arms_could_not_tell(workshop: Workshop) -> None:
    def single(study: dict[str, Any]) -> None:
        with_looks(study)
        keep_arms("baseline", "mixup+affine")(study)
        arm = study["arms"][1]
        arm["recipe"] = {**study["arms"][0]["recipe"], "epochs": 9}

    assert "nteractions are not tested" not in report_of(workshop, edited_record(workshop.folder, document=single))


def test_a_noise_floor_of_unlike_comparisons_gives_its_range() -> None:
    base = [94.0, 93.8, 94.1, 93.9, 94.0]
    (quiet,) = compare(runs({"base": base, "quiet": [94.1, 93.8, 94.2, 94.0, 94.0]}), baseline="base")
    (wild,) = compare(runs({"base": base, "wild": [80.0, 90.0, 70.0, 93.0, 60.0]}), baseline="base")
    assert re.search(
        r"points \([\d.]+ to [\d.]+, by the arm\) in 1 of 20", noise_text({"": noise_floor([quiet, wild])})
    )
    assert "by the arm" not in noise_text({"": noise_floor([quiet])})


def test_a_record_is_small_and_gives_back_every_prediction(tmp_path: Path) -> None:
    pilot = pilot_record()
    predictions, curves = pilot.details.predictions(pilot.runs), pilot.details.curves(pilot.runs)
    environments = pilot.details.environments(pilot.runs)
    save_record(tmp_path / "record", pilot, curves=curves, environments=environments, predictions=predictions)
    assert sum(path.stat().st_size for path in (tmp_path / "record").iterdir()) < 500_000
    again = load_predictions(tmp_path / "record")
    assert predictions is not None
    for name in ("fingerprints", "labels", "predicted", "confidence"):
        assert np.array_equal(getattr(again, name), getattr(predictions, name))
    for run, loss in zip(pilot.runs, again.loss.astype(float), strict=True):
        assert loss.mean() == pytest.approx(run.metrics["test_nll"], abs=0.001)
