"""Every shipped study, run in the smoke profile, and the terminal's promises."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from cifar_ablate.errors import StudyError
from cifar_ablate.record.compact import load_predictions, load_record
from cifar_ablate.registry import SCHEDULES
from cifar_ablate.spec.load import load_study
from cifar_ablate.spec.overlay import load_overlay
from tests.conftest import Workshop

EXPERIMENTS = sorted((Path(__file__).parent.parent / "experiments").glob("*.yaml"))
SHORTEST = "onecycle"
"""This one every ``make test`` trains; the others are among the slow tests."""


@pytest.mark.parametrize(
    "path",
    [pytest.param(path, id=path.stem, marks=() if path.stem == SHORTEST else pytest.mark.slow) for path in EXPERIMENTS],
)
def test_a_shipped_study_runs_in_the_smoke_profile(workshop: Workshop, path: Path) -> None:
    answer = workshop("run", str(path), "--profile", "smoke", "--seed", "0")
    assert answer.code == 0, answer.err
    assert "failed" not in answer.out
    report = workshop("report").out
    assert f"## {path.stem}@smoke" in report
    assert "not run" not in report
    assert "500 of 1,437 training images" in report


@pytest.mark.parametrize("profile", [None, "pilot", "smoke"])
def test_no_profile_makes_a_step_schedule_constant(profile: str | None) -> None:
    """A profile that shortened the run but not the steps would compare a constant rate and call it steps."""
    for path in EXPERIMENTS:
        for arm in load_study(path, load_overlay(profile, [])).arms:
            schedule = arm.recipe.schedule
            if schedule.name == "step":
                curve = SCHEDULES.bind("step", schedule.kwargs())(arm.recipe.epochs * 10, 10)
                assert len(set(curve)) > 1, (path.stem, arm.name)


def test_all_shipped_studies_are_those_that_are_documented() -> None:
    readme = ["readme-augmentation-tuned", "readme-augmentation"]
    assert [path.stem for path in EXPERIMENTS] == ["augmentation", "dropout", "onecycle", *readme]


@pytest.mark.parametrize("command", [["-m", "cifar_ablate"], ["-m", "cifar_ablate.cli"]], ids=" ".join)
def test_the_version_is_that_of_the_package(command: list[str]) -> None:
    done = subprocess.run([sys.executable, *command, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"cifar-ablate {version('cifar-ablate')}\n"


@pytest.mark.parametrize("command", [[], ["plan"], ["tune"], ["predict"]], ids=" ".join)
def test_a_short_option_prints_the_help_of_every_command(workshop: Workshop, command: list[str]) -> None:
    short, long = workshop(*command, "-h"), workshop(*command, "--help")
    assert short.code == 0
    assert "Usage" in short.out
    assert short.out == long.out


def test_a_shell_is_given_its_completion(workshop: Workshop) -> None:
    assert "--install-completion" in workshop("--help").out
    asked = {"_CIFAR_ABLATE_COMPLETE": "complete_bash", "COMP_WORDS": "cifar-ablate pre", "COMP_CWORD": "1"}
    program = Path(sys.executable).with_name("cifar-ablate")
    done = subprocess.run([program], env=os.environ | asked, capture_output=True, text=True, check=True)
    assert sorted(done.stdout.split()) == ["predict", "preview"]


def test_the_readmes_study_is_one_and_its_error_is_what_the_program_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    readme = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
    study = readme.split("```yaml\n", 1)[1].split("```", 1)[0]
    monkeypatch.chdir(tmp_path)
    path = Path("my-study.yaml")
    path.write_text(study, encoding="utf-8")
    assert [arm.name for arm in load_study(path).arms] == ["baseline", "cutmix", "cutmix, longer", "no flip"]
    path.write_text(study.replace("alpha: 1.0", "alpha: -1"), encoding="utf-8")
    with pytest.raises(StudyError) as error:
        load_study(path)
    assert f"`{error.value}`" in readme


RECORDS = sorted((Path(__file__).parent.parent / "reports").glob("*/record"))


@pytest.mark.parametrize("record", RECORDS, ids=lambda path: path.parent.name)
def test_a_committed_report_is_what_its_record_gives(workshop: Workshop, record: Path) -> None:
    label, reports = load_record(record).label, str(record.parent.parent)
    for format, name in (("markdown", "summary.md"), ("html", "summary.html")):
        path = record.parent / name
        answer = workshop("report", label, "--record", reports, "--format", format, "--check", "--output", str(path))
        assert answer.code == 0, answer.err
    assert sum(path.stat().st_size for path in record.iterdir()) < 2_000_000


@pytest.mark.parametrize("record", RECORDS, ids=lambda path: path.parent.name)
def test_the_predictions_of_a_committed_record_give_its_accuracies(record: Path) -> None:
    predictions = load_predictions(record)
    accuracies = {run.fingerprint: run.metrics["test_accuracy"] for run in load_record(record).runs}
    for fingerprint, predicted in zip(predictions.fingerprints, predictions.predicted, strict=True):
        assert 100 * (predicted == predictions.labels).mean() == pytest.approx(accuracies[fingerprint], abs=1e-9)


@pytest.mark.slow
@pytest.mark.real
def test_real_cifar10_goes_the_whole_way(workshop: Workshop, cifar_root: Path) -> None:
    """``data: cifar10`` from the archives, 500 training images, all 10,000 test images, to a table and a record."""
    workshop.monkeypatch.setenv("CIFAR_ABLATE_DATA", str(cifar_root))
    path = EXPERIMENTS[-1]
    overlay = ("--set", "train_size=500", "--set", "model.width=8", "--set", "epochs={times: 0.1}")
    answer = workshop("run", str(path), *overlay, "--seed", "0", "--arm", "baseline", "--arm", "+cutmix")
    assert answer.code == 0, answer.err
    report = workshop("report").out
    assert "cifar10: 500 of 50,000 training images, all 10,000 test images" in report
    label = next(line[3:] for line in report.splitlines() if line.startswith("## readme")).replace("\\", "")
    assert workshop("export", label, "record").code == 0
    assert workshop("report", "--record", "record").out == workshop("report").out


@pytest.mark.slow
@pytest.mark.real
def test_the_same_images_in_a_folder_give_the_same_fingerprints(
    workshop: Workshop, real_archives: list[Path], cifar_root: Path
) -> None:
    """Neither the name of the source nor a path is part of a fingerprint: the digest of the pixels is."""
    workshop.monkeypatch.setenv("CIFAR_ABLATE_DATA", str(cifar_root))
    study = """
        study: where
        question: Does it matter where the images come from?
        seeds: 1
        recipe: {model: {name: resnet18-compact, width: 4}, epochs: 1, train_size: 100, batch_size: 50,
                  optimizer: {name: sgd, lr: 0.1}, data: DATA}
        arms: {baseline: null}
    """
    folder = f"{{name: image_folder, path: {[str(path) for path in real_archives]}}}"
    workshop.write("archive.yaml", study.replace("DATA", "cifar10"))
    workshop.write("folder.yaml", study.replace("study: where", "study: elsewhere").replace("DATA", folder))
    assert "1 finished" in workshop("run", "archive.yaml").out
    assert "1 trained before, now recorded" in workshop("run", "folder.yaml").out
