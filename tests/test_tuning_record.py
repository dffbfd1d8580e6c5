"""What a tuning leaves: in MLflow, in Optuna's storage and its dashboard, and as a study of the best values."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import mlflow
import pytest
import yaml

from cifar_ablate.process import ProcessId
from cifar_ablate.record.mlflow_store import Tracking
from cifar_ablate.record.mlflow_tunings import BEST, close_tuning, open_tuning
from cifar_ablate.spec.load import load_study
from cifar_ablate.spec.overlay import load_overlay
from tests.comparing import runs_of
from tests.conftest import Workshop
from tests.tuning import load, storage_of, studies, trials, write

NUM_AT_ONCE = 4
ONLINE = ("tune", "small.yaml")
RATE, SAMPLER = "{low: 0.001, high: 0.5, log: true}", "{name: tpe, startup_trials: 3}"
WITHOUT_WARMUP = ("    schedule.warmup: {low: 0.0, high: 0.5, when: {schedule: cosine}}\n", "")
WITHOUT_SCHEDULE = (
    "    schedule: [constant, cosine]\n    schedule.warmup: {low: 0.0, high: 0.5, when: {schedule: cosine}}\n",
    "",
)
GRID = (("pruner: none", "pruner: {name: median, startup_trials: 1, warmup: 0}"), (SAMPLER, "grid"))
MIXED = (*GRID, (RATE, "[0.02, 0.05, 1.0e-7, 1.0e+30]"), WITHOUT_SCHEDULE)
"""A study with complete, pruned and failed trials."""


def parent_and_children(label: str = "small/tuning") -> tuple[Any, list[Any]]:
    runs = runs_of(label)
    (parent,) = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    children = [run for run in runs if "mlflow.parentRunId" in run.data.tags]
    assert all(run.data.tags["mlflow.parentRunId"] == parent.info.run_id for run in children)
    return parent, sorted(children, key=lambda run: int(run.data.tags["ablate.trial"]))


def test_commands_that_end_at_the_same_moment_all_bring_the_parent_up_to_date(workshop: Workshop) -> None:
    """A tag of the best trial before was deleted twice, and one of the commands ended with "not delivered"."""
    tracking = Tracking()
    tuning = open_tuning(tracking, "small/tuning", "baseline", "0", {})
    together = threading.Barrier(NUM_AT_ONCE)

    def close(_: int) -> None:
        for best in range(6):
            together.wait(timeout=30)
            points = [("val_accuracy", float(trial), 1000 * trial, trial) for trial in range(best + 2)]
            tags = {f"{BEST}field_{best}": "1"}
            close_tuning(tracking, tuning, is_done=True, tags=tags, points=points, files=[])

    with ThreadPoolExecutor(NUM_AT_ONCE) as pool:
        list(pool.map(close, range(NUM_AT_ONCE)))
    parent, _ = parent_and_children()
    assert [name for name in parent.data.tags if name.startswith(BEST)] == [f"{BEST}field_5"]
    assert len(mlflow.MlflowClient().get_metric_history(parent.info.run_id, "val_accuracy")) == 7


def test_mlflow_has_a_parent_run_with_a_nested_run_for_each_trial(workshop: Workshop) -> None:
    write(workshop, *MIXED)
    answer = workshop(*ONLINE, "--trials", "9")
    assert answer.code == 0, answer.out + answer.err
    ended = trials(workshop.folder)
    parent, children = parent_and_children()
    assert parent.info.status == "FINISHED"
    assert [int(run.data.tags["ablate.trial"]) for run in children] == [one.number for one in ended]
    refused = workshop("predict", "x.png", "--run", children[0].info.run_id)
    assert (refused.code, "is a trial of a tuning, which keeps no weights" in refused.err) == (1, True)
    words = {"COMPLETE": "finished", "PRUNED": "pruned", "FAIL": "diverged"}
    assert [run.data.tags["ablate.outcome"] for run in children] == [words[one.state.name] for one in ended]
    assert {"finished", "diverged", "pruned"} == {run.data.tags["ablate.outcome"] for run in children}
    client = mlflow.MlflowClient()
    for run, one in zip(children, ended, strict=True):
        assert run.data.params["optimizer.lr"] == str(one.user_attrs["values"]["optimizer.lr"])
        assert not [name for name in run.data.metrics if name.startswith("test_")]
        curve = client.get_metric_history(run.info.run_id, "val_accuracy")
        assert {point.step: point.value for point in curve} == pytest.approx(one.intermediate_values)
        assert run.data.tags["ablate.data"].endswith("others of them to validate on")
    best = max((one for one in ended if one.state.name == "COMPLETE"), key=lambda one: one.value or 0)
    assert parent.data.tags["ablate.best_trial"] == str(best.number)
    assert parent.data.metrics["best_val_accuracy"] == pytest.approx(best.value)
    assert parent.data.params["space.optimizer.lr"] == "0.02, 0.05, 1e-07, 1e+30"
    assert parent.data.params["val_fraction"] == "0.2"


@pytest.mark.slow
def test_the_parent_run_has_history_and_importance_as_figures_and_every_trial_as_a_table(workshop: Workshop) -> None:
    write(workshop)
    assert workshop(*ONLINE, "--trials", "6").code == 0
    parent, _ = parent_and_children()
    client = mlflow.MlflowClient()
    names = {file.path: file.file_size for file in client.list_artifacts(parent.info.run_id)}
    assert names.keys() == {"trials.csv", "history.png", "importances.png"}
    assert names["history.png"] > 3_000
    table = Path(client.download_artifacts(parent.info.run_id, "trials.csv", str(workshop.folder)))
    rows = list(csv.DictReader(io.StringIO(table.read_text(encoding="utf-8"))))
    ended = trials(workshop.folder)
    assert [(int(row["trial"]), float(row["val_accuracy"])) for row in rows] == [
        (one.number, pytest.approx(one.value, abs=1e-4)) for one in ended
    ]
    assert [row["optimizer.lr"] for row in rows] == [str(one.user_attrs["values"]["optimizer.lr"]) for one in ended]


@pytest.mark.slow
def test_tunings_are_no_studies_and_runs_of_the_study_are_not_mixed_with_trials(workshop: Workshop) -> None:
    write(workshop)
    assert workshop(*ONLINE, "--trials", "1").code == 0
    nothing = workshop("report")
    assert "nothing is recorded" in nothing.err
    assert workshop("run", "small.yaml", "--arm", "baseline", "--seed", "0").code == 0
    assert len(runs_of("small")) == 1
    assert "small/tuning" not in workshop("report").out


@pytest.mark.slow
def test_what_was_tuned_offline_is_delivered_by_the_same_command(workshop: Workshop) -> None:
    write(workshop, *MIXED)
    answer = workshop(*ONLINE, "--offline", "--trials", "9")
    assert answer.code == 0
    assert "the same command without --offline delivers" in answer.out
    assert mlflow.MlflowClient().get_experiment_by_name("small/tuning") is None
    assert workshop(*ONLINE, "--trials", "9").code == 0
    parent, children = parent_and_children()
    outcomes = [run.data.tags["ablate.outcome"] for run in children]
    words = {"COMPLETE": "finished", "PRUNED": "pruned", "FAIL": "diverged"}
    assert outcomes == [words[one.state.name] for one in trials(workshop.folder)]
    assert parent.data.params["sampler"] == "grid"
    before = [(run.info.run_id, run.info.end_time) for run in children]
    assert workshop(*ONLINE, "--trials", "9").code == 0
    assert [(run.info.run_id, run.info.end_time) for run in parent_and_children()[1]] == before
    points = mlflow.MlflowClient().get_metric_history(parent.info.run_id, "val_accuracy")
    assert len({point.step for point in points}) == len(points)


@pytest.mark.slow
def test_of_a_trial_that_mlflow_has_in_part_the_other_seeds_are_delivered(workshop: Workshop) -> None:
    write(workshop, ("trials: 4", "trials: 1\n      seeds: 2".replace("    ", "", 1)))
    assert workshop(*ONLINE).code == 0
    parent, children = parent_and_children()
    assert sorted(run.data.tags["ablate.seed"] for run in children) == ["0", "1"]
    client = mlflow.MlflowClient()
    client.delete_run(children[1].info.run_id)
    assert workshop(*ONLINE).code == 0
    again = parent_and_children()[1]
    assert sorted(run.data.tags["ablate.seed"] for run in again) == ["0", "1"]
    assert all(run.data.tags["mlflow.parentRunId"] == parent.info.run_id for run in again)


@pytest.mark.slow
def test_values_that_make_no_recipe_are_a_failed_nested_run_with_the_reason(workshop: Workshop) -> None:
    momentum = "optimizer.momentum: [0.0, 0.9]\n    optimizer.nesterov: [false, true]"
    write(workshop, (f"optimizer.lr: {RATE}", momentum), (SAMPLER, "grid"), WITHOUT_SCHEDULE)
    answer = workshop(*ONLINE, "--trials", "20")
    assert answer.code == 0, answer.err
    said = (
        "optimizer.momentum 0, optimizer.nesterov true: the values do not fit together: nesterov: true needs momentum"
    )
    assert said in answer.out
    for _ in range(2):
        _, children = parent_and_children()
        (failed,) = [run for run in children if run.info.status == "FAILED"]
        assert len(children) == 4
        assert failed.data.params == {"optimizer.momentum": "0.0", "optimizer.nesterov": "True"}
        assert "nesterov: true needs momentum above 0" in failed.data.tags["ablate.reason"]
        mlflow.MlflowClient().update_run(failed.info.run_id, status="RUNNING")  # as of a command killed before its end
        assert workshop(*ONLINE, "--trials", "20").code == 0


@pytest.mark.slow
def test_a_second_tuning_of_an_arm_has_nested_runs_of_its_own_though_it_trains_nothing_anew(workshop: Workshop) -> None:
    write(workshop)
    assert workshop(*ONLINE, "--trials", "2").code == 0
    write(workshop, ("pruner: none", "pruner: {name: median, startup_trials: 2}"))
    for _ in range(2):
        assert workshop(*ONLINE, "--trials", "2").code == 0
        runs = runs_of("small/tuning")
        parents = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
        assert len(parents) == 2
        for parent in parents:
            nested = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
            assert sorted(run.data.tags["ablate.trial"] for run in nested) == ["0", "1"]
            assert {run.info.status for run in nested} == {"FINISHED"}
            assert {run.data.tags["ablate.tuning"] for run in nested} == {parent.data.tags["ablate.tuning"]}


@pytest.mark.slow
def test_one_damaged_folder_keeps_no_other_trial_from_mlflow(workshop: Workshop) -> None:
    write(workshop)
    assert workshop(*ONLINE, "--offline", "--trials", "3").code == 0
    folder = workshop.folder / "mlruns/runs" / trials(workshop.folder)[1].user_attrs["fingerprints"][0]
    (folder / "result.json").write_text("{")
    answer = workshop(*ONLINE, "--trials", "4")
    assert answer.code == 1
    assert "not delivered: baseline trial 1 seed 0: " in answer.out
    assert "is damaged; remove the folder" in answer.out
    assert [run.data.tags["ablate.trial"] for run in parent_and_children()[1]] == ["0", "2", "3"]


@pytest.mark.slow
def test_the_parent_keeps_no_value_of_a_trial_that_was_the_best_before(workshop: Workshop) -> None:
    write(workshop)
    assert workshop(*ONLINE, "--trials", "2").code == 0
    parent, _ = parent_and_children()
    mlflow.MlflowClient().set_tag(parent.info.run_id, "ablate.best.augment.mixup.alpha", "0.2")
    assert workshop(*ONLINE, "--trials", "2").code == 0
    best = max(trials(workshop.folder), key=lambda one: (one.value or 0, -one.number)).user_attrs["values"]
    tags = parent_and_children()[0].data.tags
    assert {name for name in tags if name.startswith("ablate.best.")} == {f"ablate.best.{name}" for name in best}


def test_every_trial_can_be_written_down_beside_a_report(workshop: Workshop) -> None:
    write(workshop, ("smooth: {", "../smooth/: {"))
    answer = workshop(*ONLINE, "--offline", "--all-arms", "--trials", "2", "--history", "reports/small")
    assert answer.code == 0, answer.err
    places = sorted(path.relative_to(workshop.folder) for path in (workshop.folder / "reports").rglob("*.*"))
    folders = [Path("reports/small") / arm for arm in ("baseline", "smooth")]
    assert places == sorted(folder / name for folder in folders for name in ("trials.csv", "history.png"))
    assert len((workshop.folder / "reports/small/smooth/trials.csv").read_text().splitlines()) == 3


# A study of the best values


def test_write_makes_a_readable_study_that_says_where_its_values_came_from(workshop: Workshop) -> None:
    path = write(workshop)
    answer = workshop(*ONLINE, "--offline", "--all-arms", "--write")
    assert answer.code == 0, answer.err
    assert "small-tuned.yaml: each arm at its best values" in answer.out
    text = (workshop.folder / "small-tuned.yaml").read_text(encoding="utf-8")
    assert "cifar-ablate run small-tuned.yaml" in text
    assert "# Written by: cifar-ablate tune small.yaml --offline --all-arms --write" in text
    assert max(map(len, text.splitlines())) <= 160
    tuned, before = load(workshop.folder / "small-tuned.yaml"), load(path)
    assert tuned.name == "small-tuned"
    assert tuned.seeds == before.seeds
    assert tuned.tune is None
    assert tuned.tuned is not None
    assert tuned.tuned.study == "small"
    assert tuned.tuned.space["optimizer.lr"] == "0.001 to 0.5 (log)"
    for arm in ("baseline", "smooth"):
        ended = trials(workshop.folder, arm)
        best = max(ended, key=lambda one: (one.value or 0, -one.number))
        origin = tuned.tuned.arms[arm]
        assert (origin.trial, origin.trials) == (best.number, 4)
        assert origin.val_accuracy == pytest.approx(best.value, abs=1e-3)
        assert origin.present_val_accuracy == pytest.approx(ended[0].value, abs=1e-3)
        assert origin.epochs == sum(one.user_attrs["epochs"] for one in ended)
        recipe = tuned.arm(arm).recipe.as_dict()
        assert recipe["optimizer"]["lr"] == best.user_attrs["values"]["optimizer.lr"]
        assert recipe["schedule"]["name"] == best.user_attrs["values"]["schedule"]
        untouched = {key: value for key, value in recipe.items() if key not in ("optimizer", "schedule")}
        expected = before.arm(arm).recipe.as_dict()
        assert untouched == {key: value for key, value in expected.items() if key not in ("optimizer", "schedule")}
    assert workshop("run", "small-tuned.yaml", "--offline", "--seed", "0").code == 0


@pytest.mark.slow
def test_write_keeps_arms_apart_that_were_written_on_top_of_each_other(workshop: Workshop) -> None:
    study = """
        study: ladder
        question: Does each step help?
        seeds: 1
        recipe:
          data: digits
          train_size: 100
          model: {name: resnet18-compact, width: 4}
          epochs: 1
          batch_size: 50
          optimizer: {name: sgd, lr: 0.02}
        arms:
          baseline:
          flip: {augment: {hflip: {p: 0.5}}, schedule: cosine}
          mixed: {from: flip, augment: {mixup: {alpha: 0.2}}}
          not flipped: {from: mixed, augment: {hflip: null}}
        tune:
          space:
            optimizer.lr: [0.02, 0.05, 0.1]
            optimizer.momentum: [0.0, 0.5, 0.9]
            augment.mixup.alpha: {low: 0.1, high: 1.0, when: {augment.mixup: true}}
            augment.mixup.p: {choices: [0.5, 1.0], when: {augment.mixup: true}}
          sampler: random
          pruner: none
          trials: 5
          val_fraction: 0.3
    """
    before = load(workshop.write("ladder.yaml", study))
    answer = workshop("tune", "ladder.yaml", "--offline", "--all-arms", "--write", "--output", "best.yaml")
    assert answer.code == 0, answer.out + answer.err
    tuned = load(workshop.folder / "best.yaml")
    assert [(arm.name, arm.parent) for arm in tuned.arms] == [(arm.name, arm.parent) for arm in before.arms]
    for arm in tuned.arms:
        ended = trials(workshop.folder, arm.name)
        best = max(ended, key=lambda one: (one.value or 0, -one.number))
        expected = before.arm(arm.name).recipe.as_dict()
        for name, value in best.user_attrs["values"].items():
            inner = expected
            *above, last = name.split(".")
            for part in above:
                inner = inner[part]
            inner[last] = value
        assert arm.recipe.as_dict() == expected


def test_write_does_not_take_the_place_of_somebodys_own_file(workshop: Workshop) -> None:
    path = write(workshop)
    (workshop.folder / "small-tuned.yaml").write_text(path.read_text().replace("study: small", "study: mine"))
    answer = workshop(*ONLINE, "--offline", "--trials", "1", "--write")
    assert answer.code == 2
    assert "small-tuned.yaml exists, and was not written by a tuning; name another file with --output" in answer.err
    assert "study: mine" in (workshop.folder / "small-tuned.yaml").read_text()
    for _ in range(2):
        assert workshop(*ONLINE, "--offline", "--trials", "1", "--write", "--output", "mine.yaml").code == 0
    assert yaml.safe_load((workshop.folder / "mine.yaml").read_text())["tuned"]["arms"].keys() == {"baseline"}


def test_write_loses_no_arm_that_was_written_before_and_shows_no_password(workshop: Workshop) -> None:
    write(workshop)
    tune = (*ONLINE, "--offline", "--trials", "1", "--write")
    assert workshop(*tune, "--arm", "baseline").code == 0
    before = (workshop.folder / "small-tuned.yaml").read_text()
    answer = workshop(*tune, "--arm", "smooth")
    assert answer.code == 2
    assert "has tuned values of baseline, which would be lost; give --arm baseline --arm smooth" in answer.err
    assert (workshop.folder / "small-tuned.yaml").read_text() == before
    assert workshop(*tune, "--arm", "baseline", "--arm", "smooth").code == 0
    from cifar_ablate.tuning.write import written_by

    said = "cifar-ablate tune s.yaml --storage postgresql://me:secret@host/db --set 'a=x\ny'"
    assert written_by(said) == "cifar-ablate tune s.yaml --storage 'postgresql://me:***@host/db' --set 'a=x y'"


def test_write_refuses_values_that_an_overlay_would_change_again(workshop: Workshop) -> None:
    write(workshop, (RATE, "[0.01, 0.02, 0.04]"))
    overlay = ("--set", "optimizer.lr={times: 2}")
    answer = workshop(*ONLINE, *overlay, "--offline", "--write")
    assert answer.code == 2
    assert "tune.space.optimizer.lr: is tuned in arm 'baseline' under 'optimizer.lr={times: 2}', which" in answer.err
    assert not (workshop.folder / "optuna.db").exists(), "it is found out before the first trial"
    assert workshop(*ONLINE, *overlay, "--offline", "--trials", "1").code == 0


def test_write_takes_a_component_whose_options_an_overlay_scales(workshop: Workshop) -> None:
    """``every_epochs`` is a third under the overlay, in each trial and in each run of the written study."""
    stepped = ("  optimizer: {name", "  schedule: {name: step, every_epochs: 3}\n  optimizer: {name")
    write(workshop, stepped, ("[constant, cosine]", "[step, cosine]"))
    overlay = ("--set", "schedule.every_epochs?={times: 0.34}")
    answer = workshop(*ONLINE, *overlay, "--offline", "--write", "--trials", "3")
    assert answer.code == 0, answer.err
    best = max(trials(workshop.folder), key=lambda one: (one.value or 0, -one.number))
    written = load_study(workshop.folder / "small-tuned.yaml", load_overlay(None, overlay[1:]))
    recipe = written.arm("baseline").recipe.as_dict()
    assert recipe["schedule"]["name"] == best.user_attrs["values"]["schedule"]
    assert recipe["optimizer"]["lr"] == best.user_attrs["values"]["optimizer.lr"]


def test_write_finds_out_first_that_an_overlay_scales_a_field_that_is_tuned_under_a_condition(
    workshop: Workshop,
) -> None:
    stepped = "schedule.every_epochs: {low: 1, high: 3, when: {schedule: step}}"
    constant = "[constant, {name: step, every_epochs: 2}]"
    write(workshop, ("[constant, cosine]", f"{constant}\n    {stepped}"), WITHOUT_WARMUP)
    answer = workshop(*ONLINE, "--set", "schedule.every_epochs?={times: 2}", "--offline", "--write")
    assert answer.code == 2
    assert "tune.space.schedule.every_epochs: is tuned in arm 'baseline' under 'schedule.every_epochs?" in answer.err
    assert not (workshop.folder / "optuna.db").exists()


def test_write_replaces_neither_another_studys_values_nor_the_study_itself(workshop: Workshop) -> None:
    write(workshop)
    tune = (*ONLINE, "--offline", "--trials", "1", "--write", "--output")
    assert workshop(*tune, "best.yaml").code == 0
    before = (workshop.folder / "best.yaml").read_text()
    write(workshop, ("study: small", "study: other"), name="other.yaml")
    answer = workshop("tune", "other.yaml", *tune[2:], "best.yaml")
    assert (answer.code, answer.err) == (2, "--write: best.yaml is the tuned small; name another file with --output\n")
    assert (workshop.folder / "best.yaml").read_text() == before
    answer = workshop(*tune, "small.yaml")
    assert answer.code == 2
    assert "small.yaml exists, and was not written by a tuning" in answer.err


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--write", "--output", "nowhere/best.yaml"), "--write: there is no folder nowhere; make it, or name another"),
        (("--history", "small.yaml"), "cannot write small.yaml: "),
    ],
)
def test_what_could_not_be_written_is_said_before_the_first_trial(
    workshop: Workshop, options: tuple[str, ...], says: str
) -> None:
    write(workshop)
    answer = workshop(*ONLINE, "--offline", *options)
    assert answer.code in (1, 2)
    assert says in answer.err
    assert not (workshop.folder / "optuna.db").exists()


def test_a_name_too_long_to_be_written_is_said_before_the_first_trial(workshop: Workshop) -> None:
    write(workshop, ("study: small", f"study: {'s' * 60}"))
    answer = workshop(*ONLINE, "--offline", "--write")
    assert answer.code == 2
    assert "has over 64 characters; give the study a shorter one" in answer.err
    assert not (workshop.folder / "optuna.db").exists()


def test_write_waits_for_what_another_command_still_trains(workshop: Workshop) -> None:
    write(workshop)
    assert workshop(*ONLINE, "--offline", "--trials", "2").code == 0
    (study,) = studies(storage_of(workshop.folder)).values()
    theirs = study.ask()
    theirs.set_user_attr("owner", ProcessId("other", "another-boot/1", 1, 0.0).to_text())
    theirs.set_user_attr("beat", time.time())
    answer = workshop(*ONLINE, "--offline", "--trials", "3", "--write")
    assert answer.code == 1, "`tune --write && run` shall not run an old file"
    assert "baseline: 2 of 3 trials (2 complete), 1 with another command" in answer.out
    assert "Other commands are still at work on some trials: they add theirs, and --write waits for them." in answer.out
    assert not (workshop.folder / "small-tuned.yaml").exists()


def test_the_options_of_write_are_checked(workshop: Workshop) -> None:
    write(workshop)
    answer = workshop(*ONLINE, "--output", "x.yaml")
    assert (answer.code, answer.err) == (2, "--output x.yaml: it is for --write; add that\n")
    answer = workshop(*ONLINE, "--arm", "smooth", "--all-arms")
    assert (answer.code, answer.err) == (2, "--arm and --all-arms: give one of the two\n")
    assert not (workshop.folder / "optuna.db").exists()


# Optuna's own view


@pytest.fixture
def dashboard(workshop: Workshop) -> Iterator[str]:
    """``optuna-dashboard sqlite:///optuna.db`` in the folder of the test; gives its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with (workshop.folder / "dashboard.log").open("wb") as log:
        server = subprocess.Popen(
            [str(Path(sys.executable).parent / "optuna-dashboard"), "sqlite:///optuna.db", "--port", str(port)],
            cwd=workshop.folder,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


@pytest.mark.slow
def test_optuna_dashboard_shows_the_tunings_of_this_folder(workshop: Workshop, dashboard: str) -> None:
    write(workshop)
    assert workshop(*ONLINE, "--offline", "--all-arms", "--trials", "2").code == 0
    shown = get(f"{dashboard}/api/studies")["study_summaries"]
    assert sorted(one["study_name"].rpartition(" / ")[0] for one in shown) == ["small / baseline", "small / smooth"]
    for one in shown:
        detail = get(f"{dashboard}/api/studies/{one['study_id']}?after=0")
        assert [trial["state"] for trial in detail["trials"]] == ["Complete", "Complete"]
        names = {parameter["name"] for parameter in detail["trials"][0]["params"]}
        assert {"optimizer.lr", "schedule"} <= names


def get(address: str) -> Any:
    deadline = time.monotonic() + 180
    while True:
        try:
            with urllib.request.urlopen(address, timeout=10) as answer:
                return json.load(answer)
        except (urllib.error.URLError, ConnectionError):
            assert time.monotonic() < deadline, "no dashboard within 180 s"
            time.sleep(0.2)


def test_the_storage_is_where_optunas_own_tools_would_look_for_it(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(workshop)
    monkeypatch.setenv("OPTUNA_STORAGE", "sqlite:///elsewhere.db")
    assert workshop(*ONLINE, "--offline", "--trials", "1").code == 0
    assert studies("sqlite:///elsewhere.db").keys() == {"baseline"}
    assert not Path("optuna.db").exists()
    assert workshop(*ONLINE, "--offline", "--trials", "1", "--storage", storage_of(workshop.folder)).code == 0
    assert Path("optuna.db").exists()
    options = "sqlite:///patient.db?timeout=30"
    assert workshop(*ONLINE, "--offline", "--trials", "1", "--storage", options).code == 0
    assert studies("sqlite:///patient.db").keys() == {"baseline"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("sqlite:////proc/none/optuna.db", "the tuning storage at sqlite:////proc/none/optuna.db does not answer"),
        ("nosuchdb://user:secret@host/db", "the tuning storage at nosuchdb://user:***@host/db does not answer"),
        ("sqlite:///:memory:", "it would be gone with the command; write sqlite:///optuna.db"),
        ("redis://user:secret@host/0", "what Redis keeps cannot be read safely; use postgresql+psycopg://"),
        ("optuna.db", "--storage optuna.db: a path is a journal file; for a database write sqlite:///optuna.db"),
        ("mysql+nodriver://user:secret@host/db", "mysql+nodriver://user:***@host/db does not answer"),
    ],
)
def test_a_storage_that_cannot_be_had_is_one_sentence_without_the_password(
    workshop: Workshop, url: str, says: str
) -> None:
    write(workshop)
    answer = workshop(*ONLINE, "--offline", "--trials", "1", "--storage", url)
    assert answer.code in (1, 2)
    assert says in answer.err
    assert "secret" not in answer.err
    assert answer.err.count("\n") == 1
