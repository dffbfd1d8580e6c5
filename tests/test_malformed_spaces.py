"""Search spaces that are wrong: each is refused at its place, with the cure, before the first trial."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

import pytest

from cifar_ablate.errors import StudyError
from cifar_ablate.spec.load import load_study
from tests.conftest import Workshop
from tests.tuning import STUDY

SPACE = textwrap.dedent(STUDY)
RATE = "optimizer.lr: {low: 0.001, high: 0.5, log: true}"
WARMUP = "schedule.warmup: {low: 0.0, high: 0.5, when: {schedule: cosine}}"
ADD = "schedule: [constant, cosine]"

CASES = [
    # a name, what is replaced, by what, line:column, path, a part of what is said
    ("unknown field", RATE, "optimiser.lr: {low: 0.1, high: 1.0}", "18:5", "optimiser.lr", "did you mean 'optimizer'?"),
    ("unknown option", RATE, "optimizer.rate: {low: 0.1, high: 1.0}", "18:5", "optimizer.rate", "unknown key 'rate'"),
    ("option of another", RATE, "optimizer.betas: [[0.9, 0.99]]", "18:5", "optimizer.betas", "at least two values"),
    ("low over high", "low: 0.001", "low: 0.9", "18:20", "optimizer.lr.low", "low 0.9 is more than high 0.5; swap"),
    ("one number", "low: 0.001", "low: 0.5", "18:30", "optimizer.lr.high", "low and high are both 0.5"),
    ("log from 0", "low: 0.001", "low: 0", "18:20", "optimizer.lr.low", "a log range starts above 0 (got 0)"),
    ("log with step", "log: true}", "log: true, step: 0.1}", "18:54", "optimizer.lr.step", "a log range has no step"),
    ("step past the end", "log: true}", "step: 0.2}", "18:32", "optimizer.lr.high", "do not end at it; write 0.401"),
    ("step too large", "log: true}", "step: 7}", "18:43", "optimizer.lr.step", "at most high - low (got 7)"),
    ("not finite", "high: 0.5, log", "high: .inf, log", "18:32", "optimizer.lr.high", "must be a finite number"),
    (
        "not a range",
        RATE,
        "optimizer.lr: 0.1",
        "18:5",
        "optimizer.lr",
        "must be {low: ..., high: ...} or a list of values",
    ),
    ("nested", RATE, "optimizer: {lr: [0.1, 1.0]}", "18:5", "optimizer", "write fields within it with dots"),
    ("no high", ", high: 0.5, log: true", "", "18:5", "optimizer.lr.high", "is required; add `high: ...`"),
    ("a key too many", "log: true}", "logg: true}", "18:43", "optimizer.lr.logg", "did you mean 'log'?"),
    (
        "limit of the field",
        "high: 0.5, when",
        "high: 1.5, when",
        "20:33",
        "schedule.warmup.high",
        "less than 1 (got 1.5)",
    ),
    (
        "unknown name",
        "[constant, cosine]",
        "[constant, cosin]",
        "19:5",
        "schedule",
        "unknown schedule 'cosin'; did you mean",
    ),
    ("one choice", "[constant, cosine]", "[cosine]", "19:5", "schedule", "needs at least two values"),
    ("a choice twice", "[constant, cosine]", "[cosine, cosine]", "19:5", "schedule", "lists cosine twice"),
    (
        "missing condition",
        "{schedule: cosine}",
        "{sched: cosine}",
        "20:5",
        "schedule.warmup",
        "neither the space nor the rec",
    ),
    (
        "condition never met",
        "{schedule: cosine}",
        "{schedule: step}",
        "20:5",
        "schedule.warmup",
        "to be 'step', which it never is",
    ),
    (
        "condition on itself",
        "{schedule: cosine}",
        "{schedule.warmup: 0.1}",
        "20:5",
        "schedule.warmup",
        "cannot depend on its own value",
    ),
    ("no condition", ", when: {schedule: cosine}", "", "20:5", "schedule.warmup", "write `when: {schedule: [cosine]}`"),
    (
        "not there",
        ADD,
        f"{ADD}\n    augment.mixup.alpha: [0.1, 0.2]",
        "20:5",
        "augment.mixup.alpha",
        "has no augment.mixup",
    ),
    (
        "no average",
        ADD,
        f"{ADD}\n    ema.decay: [0.9, 0.99]",
        "20:5",
        "ema.decay",
        "has no ema; write `ema: {decay: ...}`",
    ),
    (
        "fixed",
        ADD,
        f"{ADD}\n    train_size: [100, 200]",
        "20:5",
        "train_size",
        "cannot be tuned: it is the same for all",
    ),
    ("no single value", ADD, f"{ADD}\n    loss: [1, 2]", "20:5", "loss", "such as loss.label_smoothing"),
    (
        "whole numbers",
        ADD,
        f"{ADD}\n    batch_size: {{low: 1.5, high: 9}}",
        "20:18",
        "batch_size.low",
        "a whole number",
    ),
    (
        "batch over images",
        ADD,
        f"{ADD}\n    batch_size: [20, 999]",
        "20:5",
        "batch_size",
        "batch_size 999 is more than train_size",
    ),
    (
        "a condition that is never met",
        "when: {schedule: cosine}",
        "when: {optimizer.lr: 0.05}",
        "20:5",
        "schedule.warmup",
        "`when` asks for optimizer.lr to be 0.05, which is never drawn from a range; list its values instead",
    ),
    ("endless grid", "{name: tpe, startup_trials: 3}", "grid", "18:5", "optimizer.lr", "a grid needs a `step`"),
]


@pytest.mark.parametrize(
    ("old", "new", "at", "path", "says"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)
def test_a_wrong_space_is_told_with_its_line_its_field_and_the_cure(
    tmp_path: Path, old: str, new: str, at: str, path: str, says: str
) -> None:
    assert SPACE.count(old) == 1
    file = tmp_path / "small.yaml"
    file.write_text(SPACE.replace(old, new), encoding="utf-8")
    with pytest.raises(StudyError) as caught:
        load_study(file)
    first = str(caught.value).splitlines()[0]
    assert first.startswith(f"{file}:{at}: tune.space.{path}: "), first
    assert says in first


OTHERS = [
    ("trials: 4", "trials: 0", "tune.trials: must be at least 1 (got 0)"),
    ("trials: 4", "trails: 4", "tune.trails: unknown key 'trails'; did you mean 'trials'?"),
    ("val_fraction: 0.2", "val_fraction: 1.0", "tune.val_fraction: must be less than 1 (got 1.0)"),
    ("pruner: none", "pruner: medain", "tune.pruner: unknown pruner 'medain'; did you mean 'median'?"),
    ("pruner: none", "pruner: {name: hyperband, min_epochs: 0}", "tune.pruner.min_epochs: must be at least 1 (got 0)"),
    ("{name: tpe, startup_trials: 3}", "tpi", "tune.sampler: unknown sampler 'tpi'; did you mean 'tpe'?"),
    ("{name: tpe, startup_trials: 3}", "{name: tpe, starts: 3}", "tune.sampler.starts: unknown key 'starts'"),
]


@pytest.mark.parametrize(("old", "new", "says"), OTHERS)
def test_the_rest_of_the_section_is_checked_like_any_part_of_a_study(
    tmp_path: Path, old: str, new: str, says: str
) -> None:
    file = tmp_path / "small.yaml"
    file.write_text(SPACE.replace(old, new), encoding="utf-8")
    with pytest.raises(StudyError, match=re.escape(says)):
        load_study(file)


def test_a_value_at_present_outside_of_the_space_is_told_before_the_first_trial(workshop: Workshop) -> None:
    workshop.write("small.yaml", SPACE.replace("low: 0.001", "low: 0.1"))
    answer = workshop("tune", "small.yaml", "--offline")
    assert answer.code == 2
    assert answer.err == (
        "small.yaml:18:5: tune.space.optimizer.lr: is 0.02 in arm 'baseline', which the space does not have; widen the "
        "range to hold 0.02, for the first trial is the recipe as it stands\n"
    )
    workshop.write("small.yaml", SPACE.replace("[constant, cosine]", "[linear, cosine]"))
    answer = workshop("tune", "small.yaml", "--offline")
    assert "add {name: 'constant'} to the choices" in answer.err
    assert not (workshop.folder / "optuna.db").exists()


def test_a_field_in_which_an_arm_differs_on_purpose_cannot_be_tuned_away(workshop: Workshop) -> None:
    workshop.write("small.yaml", SPACE.replace("smooth: {loss", "smooth: {optimizer: {lr: 0.1}, loss"))
    assert workshop("tune", "small.yaml", "--offline", "--trials", "1").code == 0
    answer = workshop("tune", "small.yaml", "--offline", "--all-arms")
    assert answer.code == 2
    assert "is what arm 'smooth' changes in 'baseline': tuned, they would not differ in it any more" in answer.err


def test_nor_one_in_which_an_arm_below_it_differs_on_purpose(workshop: Workshop) -> None:
    upper = "smooth: {optimizer: {lr: 0.1}}\n  smoother: {from: smooth, loss: {label_smoothing: 0.2}}"
    workshop.write("small.yaml", SPACE.replace("smooth: {loss: {label_smoothing: 0.1}}", upper))
    answer = workshop("tune", "small.yaml", "--offline", "--arm", "smoother")
    assert answer.code == 2
    assert "is what arm 'smoother' has from 'smooth', which changes it in 'baseline': tuned, they would" in answer.err


def test_a_field_that_an_arm_lacks_is_told_with_the_cure(workshop: Workshop) -> None:
    workshop.write("small.yaml", SPACE.replace(", when: {schedule: cosine}", ""))
    answer = workshop("tune", "small.yaml", "--offline")
    assert answer.code == 2
    assert "unknown key 'warmup', which is an option of cosine and linear and one-cycle" in answer.err
    assert "write `when: {schedule: [cosine]}`" in answer.err
    workshop.write("small.yaml", SPACE.replace(RATE, "augment.cutmix: [{alpha: 1.0}, {alpha: 0.3}]"))
    answer = workshop("tune", "small.yaml", "--offline")
    assert answer.code == 2
    assert "arm 'baseline' has no augment.cutmix; write it into the recipe, or add null to the choices" in answer.err


def test_a_validation_part_that_cannot_be_had_and_a_batch_larger_than_the_rest_are_told_first(
    workshop: Workshop,
) -> None:
    workshop.write("small.yaml", SPACE.replace("val_fraction: 0.2", "val_fraction: 0.01"))
    answer = workshop("tune", "small.yaml", "--offline")
    assert answer.code == 1
    assert "without a validation image; raise it, or take more training images" in answer.err
    workshop.write("small.yaml", SPACE.replace(ADD, f"{ADD}\n    batch_size: [20, 180]"))
    answer = workshop("tune", "small.yaml", "--offline")
    assert answer.code == 1
    assert "batch_size 180 is more than the 160 training images" in answer.err
