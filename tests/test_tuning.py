"""``cifar-ablate tune``: which trials there are, what they are trained and judged on, and how they end."""

from __future__ import annotations

import itertools
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from optuna.trial import TrialState

from cifar_ablate.data import load_data
from cifar_ablate.data.canonical import validation_part
from cifar_ablate.device import find_device
from cifar_ablate.errors import DataError, TrackingError
from cifar_ablate.registry import PRUNERS, SAMPLERS
from cifar_ablate.spec.space import compose
from cifar_ablate.tuning.plan import grid_size, plan_tuning
from cifar_ablate.tuning.trials import ArmTrials, readable
from tests.conftest import Workshop
from tests.disturbing import Begin, said
from tests.test_test_set import write_images
from tests.tuning import STUDY, TUNE, load, storage_of, studies, told, trials, write

RATE, SAMPLER = "{low: 0.001, high: 0.5, log: true}", "{name: tpe, startup_trials: 3}"
WITHOUT_WARMUP = ("    schedule.warmup: {low: 0.0, high: 0.5, when: {schedule: cosine}}\n", "")
COMPLETE, PRUNED, FAIL = TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL


@pytest.mark.slow
def test_the_first_trial_is_the_recipe_as_it_stands_and_the_gain_is_over_it(workshop: Workshop) -> None:
    write(workshop)
    answer = workshop(*TUNE)
    assert answer.code == 0, answer.err
    first, *rest = trials(workshop.folder)
    assert first.user_attrs["values"] == {"optimizer.lr": 0.02, "schedule": "constant"}
    assert len(rest) == 3
    best = max(one.value or 0 for one in (first, *rest))
    gain = re.search(r"val (\d+\.\d+)%, \+(\d+\.\d+) points over the recipe as it stands", answer.out)
    if gain is None:
        assert "nothing was better than the recipe as it stands" in answer.out
        assert first.value == best
    else:
        assert float(gain[1]) == pytest.approx(best, abs=0.005)
        assert float(gain[2]) == pytest.approx(best - (first.value or 0), abs=0.011)


def test_trials_is_the_total_that_is_wanted_and_the_same_command_again_adds_none(workshop: Workshop) -> None:
    write(workshop)
    assert workshop(*TUNE, "--trials", "2").code == 0
    assert len(trials(workshop.folder)) == 2
    before = told(workshop.folder)
    assert workshop(*TUNE, "--trials", "2").code == 0
    assert told(workshop.folder) == before
    assert workshop(*TUNE, "--trials", "3").code == 0
    assert told(workshop.folder)[:2] == before
    assert len(trials(workshop.folder)) == 3


@pytest.mark.slow
def test_equal_seeds_give_equal_trials_also_where_the_tuning_was_taken_up_again(
    workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(workshop)
    assert workshop(*TUNE, "--trials", "5").code == 0
    whole = told(workshop.folder)
    (workshop.folder / "again").mkdir()
    monkeypatch.chdir(workshop.folder / "again")
    shutil.copy(workshop.folder / "small.yaml", "small.yaml")
    for num in ("1", "2", "5"):
        assert workshop(*TUNE, "--trials", num).code == 0
    assert told(workshop.folder / "again") == whole
    assert len({json.dumps(values) for _, values, _, _ in whole}) > 3
    write(workshop, ("trials: 4", "trials: 4\n  seed: 1"))
    shutil.move(workshop.folder / "small.yaml", "small.yaml")
    assert workshop(*TUNE, "--trials", "5", "--storage", "sqlite:///other/optuna.db").code == 0
    other = told(workshop.folder / "again" / "other")
    assert other[0] == whole[0], "the recipe as it stands"
    assert not [values for _, values, *_ in other[1:] if values in [before for _, before, *_ in whole]]


def test_arms_are_tuned_with_one_budget_and_see_the_same_values_first(workshop: Workshop) -> None:
    write(workshop)
    answer = workshop(*TUNE, "--all-arms", "--trials", "3")
    assert answer.code == 0
    found = studies(storage_of(workshop.folder))
    assert found.keys() == {"baseline", "smooth"}
    one, other = (trials(workshop.folder, arm) for arm in ("baseline", "smooth"))
    assert len(one) == len(other) == 3
    assert [each.user_attrs["values"] for each in one] == [each.user_attrs["values"] for each in other]
    protocols = [
        {name: study.user_attrs[name] for name in ("space", "sampler", "pruner", "seeds", "val_fraction")}
        for study in found.values()
    ]
    assert protocols[0] == protocols[1]


def test_an_arm_may_be_tuned_alone_and_the_baseline_is_where_none_is_named(workshop: Workshop) -> None:
    write(workshop)
    assert workshop(*TUNE, "--arm", "smooth", "--trials", "1").code == 0
    assert studies(storage_of(workshop.folder)).keys() == {"smooth"}
    assert workshop(*TUNE, "--trials", "1").code == 0
    assert studies(storage_of(workshop.folder)).keys() == {"smooth", "baseline"}
    unknown = workshop(*TUNE, "--arm", "smoth")
    assert unknown.code == 2
    assert unknown.err == "--arm smoth: small has no such arm; did you mean 'smooth'?\n"


# What trials are trained and judged on


@pytest.mark.slow
def test_trials_with_other_test_images_are_the_same_trials(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    data = load_data("digits", {}, train_size=120)
    shuffled = np.random.default_rng(0)
    sets = {
        "real": (data.test_images[:40], data.test_labels[:40]),
        "other": (255 - data.test_images[40:80], shuffled.permutation(data.test_labels[40:80])),
    }
    found = []
    for name, (images, labels) in sets.items():
        place = workshop.folder / name
        write_images(place / "images" / "train", data.train_images, data.train_labels)
        write_images(place / "images" / "test", images, labels)
        path = write(
            workshop, ("data: digits", "data: {name: image_folder, path: images}"), ("  train_size: 200\n", "")
        )
        shutil.move(path, place / "small.yaml")
        monkeypatch.chdir(place)
        answer = workshop(*TUNE, "--trials", "3")
        assert answer.code == 0, answer.err
        found.append(told(place))
    assert found[0] == found[1]
    assert all(state == COMPLETE for state, *_ in found[0])


def test_what_a_trial_is_trained_with_holds_no_test_image(workshop: Workshop) -> None:
    study = load(write(workshop))
    whole = load_data("digits", {}, train_size=200)
    plans = plan_tuning(study, ["baseline"], {study_key(study): whole}, find_device("cpu"))
    part = plans[0].data
    tests = {image.tobytes() for image in whole.test_images}
    for images in (part.train_images, part.test_images):
        assert not {image.tobytes() for image in images} & tests
        assert not np.shares_memory(images, whole.test_images)
    both = np.concatenate([part.train_images, part.test_images])
    assert sorted(image.tobytes() for image in both) == sorted(image.tobytes() for image in whole.train_images)
    assert part.split == "val"
    assert part.describe() == "digits: 160 of 1,437 training images, and 40 others of them to validate on"


def study_key(study: Any) -> str:
    from cifar_ablate.plan import data_key

    return data_key(study.arms[0].recipe)


def test_the_validation_part_is_stratified_and_one_without_a_class_is_refused() -> None:
    whole = load_data("digits", {}, train_size=300)
    part = validation_part(whole, 0.2)
    share = np.bincount(part.test_labels, minlength=10) / np.bincount(whole.train_labels, minlength=10)
    assert np.all(abs(share - 0.2) < 0.05)
    assert part.digest != whole.digest
    assert part.digest == validation_part(whole, 0.2).digest != validation_part(whole, 0.25).digest
    with pytest.raises(DataError, match=r"val_fraction 0.01 of 300 .* without a validation image; raise it"):
        validation_part(whole, 0.01)
    with pytest.raises(DataError, match=r"without a training image; lower it"):
        validation_part(whole, 0.99)


def test_a_trial_shares_no_fingerprint_with_a_run_and_leaves_no_network_behind(workshop: Workshop) -> None:
    write(workshop)
    assert workshop(*TUNE, "--trials", "1").code == 0
    (trial,) = trials(workshop.folder)
    (folder,) = (workshop.folder / "mlruns" / "runs").iterdir()
    assert trial.user_attrs["fingerprints"] == [folder.name]
    names = {path.name for path in folder.iterdir()}
    assert not {name for name in names if name.endswith((".npy", ".safetensors"))}
    history = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    assert "val_accuracy" in history[-1]
    assert not [key for line in history for key in line if key.startswith("test_")]
    assert json.loads((folder / "result.json").read_text())["metrics"].keys() == {"val_accuracy", "val_nll", "val_ece"}
    assert workshop("run", "small.yaml", "--offline", "--arm", "baseline", "--seed", "0").code == 0
    folders = list((workshop.folder / "mlruns" / "runs").iterdir())
    assert len(folders) == 2
    (run,) = [each for each in folders if each != folder]
    assert "test_accuracy" in json.loads((run / "result.json").read_text())["metrics"]


def test_a_trial_is_the_mean_of_its_seeds(workshop: Workshop) -> None:
    write(workshop, ("trials: 4", "trials: 1\n  seeds: 2"))
    assert workshop(*TUNE).code == 0
    (trial,) = trials(workshop.folder)
    finals = [
        json.loads((workshop.folder / "mlruns/runs" / name / "result.json").read_text())["metrics"]["val_accuracy"]
        for name in trial.user_attrs["fingerprints"]
    ]
    assert len(set(trial.user_attrs["fingerprints"])) == 2
    assert trial.value == pytest.approx(np.mean(finals))
    assert trial.user_attrs["epochs"] == 6


# How trials end


@pytest.mark.slow
def test_a_diverged_trial_is_failed_with_its_reason_and_the_others_go_on(workshop: Workshop) -> None:
    write(workshop, (RATE, "[0.02, 1.0e+30]"), (SAMPLER, "grid"), WITHOUT_WARMUP)
    answer = workshop(*TUNE, "--trials", "20")
    assert answer.code == 0, answer.out
    ended = trials(workshop.folder)
    failed = [one for one in ended if one.state == FAIL]
    assert failed
    assert all(one.user_attrs["values"]["optimizer.lr"] == 1e30 for one in failed)
    assert all("loss was" in one.user_attrs["reason"] or "not finite" in one.user_attrs["reason"] for one in failed)
    assert f"failed: trial {failed[0].number}" in answer.out
    assert "diverged" not in next(line for line in answer.out.splitlines() if line.startswith("baseline: "))
    best = max((one for one in ended if one.state == COMPLETE), key=lambda one: one.value or 0)
    assert best.user_attrs["values"]["optimizer.lr"] == 0.02


@pytest.mark.slow
def test_a_grid_tries_every_combination_once_and_ends(workshop: Workshop) -> None:
    path = write(
        workshop,
        (RATE, "[0.02, 0.1]"),
        (
            "{low: 0.0, high: 0.5, when: {schedule: cosine}}",
            "{low: 0.0, high: 0.5, step: 0.25, when: {schedule: cosine}}",
        ),
        (SAMPLER, "grid"),
    )
    study = load(path)
    assert grid_size(study.space, study.arms[0].recipe.as_dict(), 100) == 2 * (1 + 3)
    assert grid_size(study.space, study.arms[0].recipe.as_dict(), 5) == 5
    assert workshop(*TUNE, "--trials", "50").code == 0
    tried = [json.dumps(one.user_attrs["values"], sort_keys=True) for one in trials(workshop.folder)]
    assert len(tried) == len(set(tried)) == 8


@pytest.mark.slow
@pytest.mark.parametrize("name", SAMPLERS.names())
def test_every_sampler_proposes_values_that_can_be_trained(workshop: Workshop, name: str) -> None:
    options = f"{{name: {name}, startup_trials: 2}}" if name in ("tpe", "gp") else name
    step = "[0.01, 0.02, 0.1]" if name == "grid" else RATE
    finite = ("low: 0.0, high: 0.5, when", "low: 0.0, high: 0.5, step: 0.5, when")
    edits = [(RATE, step), (SAMPLER, options)]
    write(workshop, *edits, *([finite] if name == "grid" else []), ("epochs: 3", "epochs: 1"))
    assert workshop(*TUNE, "--trials", "5").code == 0
    ended = trials(workshop.folder)
    assert len(ended) == 5
    assert all(one.state == COMPLETE for one in ended)
    for one in ended:
        values = one.user_attrs["values"]
        assert ("schedule.warmup" in values) == (values["schedule"] == "cosine")


@pytest.mark.slow
@pytest.mark.parametrize("name", PRUNERS.names())
def test_every_pruner_ends_bad_trials_early_or_none_at_all(workshop: Workshop, name: str) -> None:
    options = {
        "median": "{name: median, startup_trials: 1, warmup: 0}",
        "hyperband": "{name: hyperband, min_epochs: 1, reduction_factor: 2}",
        "none": "none",
    }[name]
    rates = "[0.02, 0.021, 0.022, 0.019, 1.0e-6, 2.0e-6, 3.0e-6, 4.0e-6]"
    write(
        workshop,
        ("pruner: none", f"pruner: {options}"),
        (RATE, rates),
        ("[constant, cosine]", "[constant, linear]"),
        WITHOUT_WARMUP,
        ("epochs: 3", "epochs: 4"),
        (SAMPLER, "random"),
    )
    answer = workshop(*TUNE, "--trials", "10")
    assert answer.code == 0
    ended = trials(workshop.folder)
    pruned = [one for one in ended if one.state == PRUNED]
    assert bool(pruned) == (name != "none")
    for one in pruned:
        assert len(one.intermediate_values) < 4
        assert one.user_attrs["epochs"] in (len(one.intermediate_values), 0)  # 0: the same values were tried before
        assert not list((workshop.folder / "mlruns/runs" / one.user_attrs["fingerprints"][0]).glob("checkpoint*"))
    assert all(
        list(one.intermediate_values) == [1, 2, 3, 4] for one in ended if one.state == COMPLETE and name != "none"
    )
    assert (f"{len(pruned)} pruned" in answer.out) == bool(pruned)


def test_after_the_limit_of_time_no_trial_begins(workshop: Workshop) -> None:
    write(workshop, ("trials: 4", "trials: 50\n  time_limit_seconds: 0.05"))
    assert workshop(*TUNE).code == 0
    assert len(trials(workshop.folder)) == 1


def test_what_cannot_be_trained_at_all_is_told_after_three_trials(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cifar_ablate.training import train

    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("the device is on fire")

    monkeypatch.setattr(train, "set_up", broken)
    write(workshop)
    answer = workshop(*TUNE, "--trials", "20")
    assert answer.code == 1
    assert "Stopped: 3 trials of baseline in a row ended alike: RuntimeError: the device is on fire" in answer.out
    ended = trials(workshop.folder)
    assert [one.state for one in ended] == [FAIL] * 3
    assert ended[0].user_attrs["reason"] == "RuntimeError: the device is on fire"


def test_trials_that_could_not_be_trained_are_tried_again_when_asked_and_count_no_more(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cifar_ablate.training import train

    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("the device is on fire")

    write(workshop, (RATE, "[0.02, 0.05, 1.0e+30]"), (SAMPLER, "random"), WITHOUT_WARMUP)
    with monkeypatch.context() as patch:
        patch.setattr(train, "set_up", broken)
        answer = workshop(*TUNE, "--trials", "2")
    assert "Try failed trials again with --retry failed once the cause is gone." in answer.out
    assert workshop(*TUNE, "--trials", "2").out.count("failed: trial") == 2
    answer = workshop(*TUNE, "--trials", "2", "--retry", "failed")
    assert answer.code == 0, answer.out
    assert "baseline: 2 failed trials to be tried again" in answer.out
    assert "baseline: 2 of 2 trials" in answer.out
    assert "failed: trial 0" not in answer.out
    every = studies(storage_of(workshop.folder))["baseline"].get_trials()
    again = {one.user_attrs["taken_up_from"]: one for one in every if "taken_up_from" in one.user_attrs}
    assert {number: one.params for number, one in again.items()} == {one.number: one.params for one in every[:2]}
    assert again[0].user_attrs["is_present_recipe"]
    before = len(every)
    assert workshop(*TUNE, "--trials", "2", "--retry", "failed").code == 0
    assert len(studies(storage_of(workshop.folder))["baseline"].get_trials()) == before, "nothing is left to be tried"
    with monkeypatch.context() as patch:
        patch.setattr(train, "set_up", broken)
        assert workshop(*TUNE, "--trials", "3").code == 0
    assert "0 failed trials to be tried again" in workshop(*TUNE, "--trials", "2", "--retry", "failed").out
    assert [one.state for one in trials(workshop.folder)].count(FAIL) == 1, "there is no place for it: it still counts"
    wrong = workshop(*TUNE, "--retry", "all")
    assert (wrong.code, wrong.err) == (2, "--retry all: only failed trials can be tried again; write --retry failed\n")


def test_what_diverged_would_again_and_is_not_tried_again(workshop: Workshop) -> None:
    write(
        workshop,
        (RATE, "[0.02, 1.0e+30]"),
        (SAMPLER, "grid"),
        ("    schedule: [constant, cosine]\n", ""),
        WITHOUT_WARMUP,
    )
    answer = workshop(*TUNE)
    assert "1 failed" in answer.out
    assert "--retry" not in answer.out
    before = told(workshop.folder)
    assert workshop(*TUNE, "--retry", "failed").code == 0
    assert told(workshop.folder) == before


def test_a_storage_that_does_not_answer_for_a_moment_fails_no_trial(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = ArmTrials.report

    def broken(arm: ArmTrials, running: Any, seed: int, epoch: int, accuracy: float) -> bool:
        if running.number == 1:
            raise TrackingError("the tuning storage is away; look after it")
        return report(arm, running, seed, epoch, accuracy)

    write(workshop)
    with monkeypatch.context() as patch:
        patch.setattr(ArmTrials, "report", broken)
        answer = workshop(*TUNE, "--trials", "3")
    assert answer.code == 1
    assert "Stopped: the tuning storage is away; look after it." in answer.out
    assert [one.state for one in trials(workshop.folder)].count(FAIL) == 0
    assert workshop(*TUNE, "--trials", "3").code == 0
    assert [one.state for one in trials(workshop.folder)] == [COMPLETE] * 3


def test_a_trial_whose_folder_is_damaged_can_be_tried_again(workshop: Workshop) -> None:
    write(workshop)
    assert workshop(*TUNE, "--trials", "2").code == 0
    folder = workshop.folder / "mlruns/runs" / trials(workshop.folder)[1].user_attrs["fingerprints"][0]
    (folder / "result.json").write_text("{")
    again = ("--trials", "2", "--storage", "again.journal")
    answer = workshop(*TUNE, *again)
    assert "is damaged; remove the folder" in answer.out
    assert "Try failed trials again with --retry failed once the cause is gone." in answer.out
    shutil.rmtree(folder)
    answer = workshop(*TUNE, *again, "--retry", "failed")
    assert answer.code == 0
    assert "2 of 2 trials (2 complete)" in answer.out


def test_a_trial_that_another_command_has_taken_over_is_left_to_it(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a night of sleep: the heartbeat had stopped, another machine took the trial, then this one wakes up."""
    report = ArmTrials.report
    taken: list[int] = []

    def report_after_sleep(arm: ArmTrials, running: Any, seed: int, epoch: int, accuracy: float) -> bool:
        if running.number == 1 and not taken:
            taken.append(1)
            (study,) = studies(storage_of(workshop.folder)).values()
            theirs = study.get_trials()[1]
            study._storage.set_trial_user_attr(theirs._trial_id, "lost", "its process ended without a word")
            study._storage.set_trial_state_values(theirs._trial_id, FAIL)
            study.enqueue_trial(theirs.params, user_attrs={"taken_up_from": 1})
        return report(arm, running, seed, epoch, accuracy)

    monkeypatch.setattr(ArmTrials, "report", report_after_sleep)
    write(workshop)
    answer = workshop(*TUNE, "--trials", "3")
    assert answer.code == 0, answer.out + answer.err
    assert "baseline trial 1: another command took it over, having heard nothing of this one for minutes" in answer.out
    assert [one.state for one in trials(workshop.folder)] == [COMPLETE] * 3
    assert [one.number for one in trials(workshop.folder)] == [0, 2, 3]


def test_a_pruner_that_comes_too_late_is_told_at_the_start(workshop: Workshop) -> None:
    write(workshop, ("pruner: none", "pruner: {name: hyperband, min_epochs: 3}"))
    answer = workshop(*TUNE, "--all-arms", "--trials", "1")
    assert "Not pruned, with at most 3 epochs a trial: baseline, smooth\n" in answer.out
    write(workshop, ("pruner: none", "pruner: {name: median, warmup: 0.5}"))
    assert "Not pruned" not in workshop(*TUNE, "--trials", "1").out


@pytest.mark.parametrize(
    ("warmup", "num_epochs", "num_warmup"), [(0.0, 10, 0), (0.1, 30, 3), (0.7, 10, 7), (0.35, 6, 3), (0.33, 9, 3)]
)
def test_the_warmup_of_the_median_pruner_is_a_share_of_the_epochs(
    warmup: float, num_epochs: int, num_warmup: int
) -> None:
    pruner = PRUNERS.bind("median", {"warmup": warmup})(num_epochs)
    assert pruner._n_warmup_steps == num_warmup


def test_values_that_do_not_fit_together_are_a_failed_trial_and_no_stop(workshop: Workshop) -> None:
    write(
        workshop,
        (
            "optimizer.lr: {low: 0.001, high: 0.5, log: true}",
            "optimizer.momentum: [0.0, 0.9]\n    optimizer.nesterov: [false, true]",
        ),
        (SAMPLER, "grid"),
        ("    schedule: [constant, cosine]\n", ""),
        WITHOUT_WARMUP,
    )
    answer = workshop(*TUNE, "--trials", "20")
    ended = trials(workshop.folder)
    assert [one.state for one in ended].count(FAIL) == 1, answer.err
    assert len(ended) == 4
    (failed,) = [one for one in ended if one.state == FAIL]
    assert failed.params == {"optimizer.momentum": 0.0, "optimizer.nesterov": True}
    assert "nesterov: true needs momentum above 0" in failed.user_attrs["reason"]


def test_another_space_is_another_tuning_and_the_first_one_is_kept(workshop: Workshop) -> None:
    write(workshop)
    assert workshop(*TUNE, "--trials", "1").code == 0
    write(workshop, ("high: 0.5, log", "high: 0.4, log"))
    assert workshop(*TUNE, "--trials", "1").code == 0
    import optuna

    names = optuna.get_all_study_names(storage_of(workshop.folder))
    assert len(names) == 2
    assert all(name.startswith("small / baseline / ") for name in names)


# Proposals


def test_numbers_are_trained_as_they_are_shown_with_four_digits_and_within_their_range(workshop: Workshop) -> None:
    study = load(write(workshop))
    (rate,) = [one for one in study.space if one.name == "optimizer.lr"]
    assert readable(0.0123456, rate.entry) == 0.01235  # type: ignore[arg-type]
    assert readable(0.49999999, rate.entry) == 0.5  # type: ignore[arg-type]
    assert readable(0.001, rate.entry) == 0.001  # type: ignore[arg-type]
    assert workshop(*TUNE, "--trials", "4").code == 0
    for one in trials(workshop.folder):
        folder = workshop.folder / "mlruns/runs" / one.user_attrs["fingerprints"][0]
        assert f"lr: {one.user_attrs['values']['optimizer.lr']}" in (folder / "recipe.yaml").read_text()
        rate = one.user_attrs["values"]["optimizer.lr"]
        assert rate == float(f"{rate:.4g}")


def test_a_condition_decides_which_fields_apply(workshop: Workshop) -> None:
    study = load(write(workshop))
    recipe = study.arms[0].recipe.as_dict()
    chosen = {"optimizer.lr": 0.1, "schedule": "cosine", "schedule.warmup": 0.25}
    values, set_now = compose(study.space, recipe, lambda one: chosen[one.name])
    assert set_now == chosen
    assert values["schedule"] == {"name": "cosine", "warmup": 0.25, "final": 0.0}
    chosen["schedule"] = "constant"
    values, set_now = compose(study.space, recipe, lambda one: chosen[one.name])
    assert set_now == {"optimizer.lr": 0.1, "schedule": "constant"}
    assert values["schedule"] == {"name": "constant"}
    assert recipe == study.arms[0].recipe.as_dict()


def test_a_study_without_a_space_says_how_to_write_one(workshop: Workshop) -> None:
    text = STUDY[: STUDY.index("    tune:")]
    workshop.write("small.yaml", text)
    answer = workshop(*TUNE)
    assert answer.code == 2
    assert answer.err.startswith("small.yaml has no `tune` section; add one, such as `tune: {space: {optimizer.lr: ")
    assert not (workshop.folder / "optuna.db").exists()


# Speed


@pytest.mark.slow
def test_one_compiled_network_serves_all_trials_of_a_shape(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[Any] = []

    def compile_it(model: Any) -> Any:
        compiled.append(model)
        return model

    monkeypatch.setattr("cifar_ablate.training.engine._compiled", compile_it)
    write(
        workshop,
        (
            f"optimizer.lr: {RATE}",
            f"optimizer.lr: {RATE}\n    optimizer.momentum: {{low: 0.5, high: 0.99}}\n    "
            "optimizer.weight_decay: [0.0, 0.001]\n    loss.label_smoothing: {low: 0.0, high: 0.2}",
        ),
        ("epochs: 3", "epochs: 1"),
    )
    assert workshop(*TUNE, "--compile", "on", "--trials", "6").code == 0
    tried = trials(workshop.folder)
    assert len({one.user_attrs["values"]["optimizer.momentum"] for one in tried}) == 6
    assert len(compiled) == 1
    write(workshop, (f"optimizer.lr: {RATE}", "batch_size: [20, 40]"), (SAMPLER, "grid"), WITHOUT_WARMUP)
    compiled.clear()
    assert workshop(*TUNE, "--compile", "on", "--trials", "9").code == 0
    sizes = [one.user_attrs["values"]["batch_size"] for one in trials_of_latest(workshop.folder)]
    assert len(compiled) == 1 + sum(before != after for before, after in itertools.pairwise(sizes))


def trials_of_latest(folder: Path) -> list[Any]:
    import optuna

    url = storage_of(folder)
    latest = max(optuna.get_all_study_summaries(url), key=lambda one: one.datetime_start)
    return list(optuna.load_study(study_name=latest.study_name, storage=url).get_trials())


@pytest.mark.slow
def test_trials_that_take_turns_in_one_place_are_all_trained_and_come_to_the_same(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cifar_ablate.runner import jobs

    write(workshop, (SAMPLER, "random"))
    assert workshop(*TUNE, "--trials", "5").code == 0
    alone = told(workshop.folder)
    find = jobs.find_slots
    monkeypatch.setattr(jobs, "find_slots", lambda *given: [replace(one, num_slices=3) for one in find(*given)])
    monkeypatch.setenv("OPTUNA_STORAGE", "turns.journal")
    shutil.rmtree(workshop.folder / "mlruns")
    assert workshop(*TUNE, "--trials", "5").code == 0
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    ended = studies(JournalStorage(JournalFileBackend("turns.journal")))["baseline"].get_trials()
    in_turn = [(one.state, one.user_attrs["values"], one.value, one.intermediate_values) for one in ended]
    assert in_turn == alone


# Regressions


@pytest.mark.slow
def test_trials_of_equal_values_at_once_wait_for_each_other_and_each_has_its_value(
    workshop: Workshop, begin: Begin
) -> None:
    """Two commands tune one recipe in two studies: the same trainings, in the same folders, at the same moment."""
    write(workshop, (RATE, "[0.02, 0.05]"), WITHOUT_WARMUP, ("epochs: 3", "epochs: 8"))
    shutil.copy(workshop.folder / "small.yaml", workshop.folder / "twin.yaml")
    text = (workshop.folder / "twin.yaml").read_text().replace("study: small", "study: twin")
    (workshop.folder / "twin.yaml").write_text(text)
    twins = [begin("tune", name, "--offline", "--trials", "4") for name in ("small.yaml", "twin.yaml")]
    assert [command.end(seconds=280) for command in twins] == [0, 0], said(twins)
    import optuna

    for name in optuna.get_all_study_names(storage_of(workshop.folder)):
        every = optuna.load_study(study_name=name, storage=storage_of(workshop.folder)).get_trials()
        assert [one.state for one in every] == [COMPLETE] * 4
        assert not [one for one in every if "lost" in one.user_attrs]


def test_a_choice_with_options_keeps_those_that_it_does_not_name(workshop: Workshop) -> None:
    path = write(
        workshop,
        ("  optimizer: {name", "  augment: {cutmix: {alpha: 1.0, p: 0.5}}\n  optimizer: {name"),
        (f"optimizer.lr: {RATE}", "augment.cutmix: [null, {alpha: 1.0}, {alpha: 0.3}]"),
        WITHOUT_WARMUP,
    )
    study = load(path)
    data = {study_key(study): load_data("digits", {}, train_size=200)}
    (plan,) = plan_tuning(study, ["baseline"], data, find_device("cpu"))
    assert plan.untuned_values["augment.cutmix"] == {"alpha": 1.0}
    chosen = {"augment.cutmix": {"alpha": 0.3}, "schedule": "constant"}
    values, _ = compose(study.space, plan.values, lambda one: chosen[one.name])
    assert values["augment"]["cutmix"] == {"alpha": 0.3, "p": 0.5}


@pytest.mark.parametrize(
    ("field", "kind"),
    [
        ("schedule.final: {low: 0, high: 1, when: {schedule: cosine}}", "float"),
        ("optimizer.weight_decay: {low: 0, high: 1}", "float"),
        ("batch_size: {low: 10, high: 40}", "int"),
        ("epochs: {low: 1, high: 4}", "int"),
        ("model.width: {low: 4, high: 8}", "int"),
    ],
)
def test_whole_numbers_are_searched_only_where_the_field_takes_no_others(
    workshop: Workshop, field: str, kind: str
) -> None:
    study = load(write(workshop, (f"optimizer.lr: {RATE}", field)))
    assert {one.name: one.kind for one in study.space}[field.partition(":")[0]] == kind


def test_the_recipe_as_it_stands_is_never_pruned(workshop: Workshop) -> None:
    write(
        workshop,
        ("lr: 0.02", "lr: 1.0e-7"),
        (RATE, "[1.0e-7, 0.02, 0.03]"),
        WITHOUT_WARMUP,
        (SAMPLER, "random"),
        ("pruner: none", "pruner: {name: median, startup_trials: 0, warmup: 0}"),
    )
    assert workshop(*TUNE, "--trials", "6").code == 0
    first, *_ = trials(workshop.folder)
    assert (first.state, "is_present_recipe" in first.user_attrs) == (COMPLETE, True)


@pytest.mark.parametrize("field", ["optimizer.lr.x", "epochs.x", "augment.mixup.alpha.x"])
def test_a_field_that_leads_too_deep_is_told_with_its_line(workshop: Workshop, field: str) -> None:
    write(workshop, (f"optimizer.lr: {RATE}", f"{field}: [1, 2]"))
    answer = workshop(*TUNE)
    assert answer.code == 2
    assert answer.err.startswith(f"small.yaml:18:5: tune.space.{field}: is not a field: ")
