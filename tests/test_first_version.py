"""A folder that version 0.1.0 left is read, reported, resumed and tuned on; ``first_version/make.sh`` made it."""

from __future__ import annotations

import json
import re
import tarfile
from pathlib import Path
from typing import Any

import mlflow
import optuna
import pandas as pd
import pytest

from tests.comparing import runs_of
from tests.conftest import Workshop
from tests.moving import settle
from tests.predicting import content, picture

MADE = Path(__file__).parent / "first_version"
MADE_AT = Path("/tmp/first-version")


@pytest.fixture
def left(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Workshop:
    """Commands in that folder."""
    with tarfile.open(MADE / "first-version.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    settle(tmp_path, MADE_AT)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    return Workshop(tmp_path, capsys, monkeypatch)


def numbers(report: str) -> dict[str, Any]:
    """What a report in JSON says of runs, curves, arms and comparisons: its numbers and verdicts by their place."""
    found = {}
    for study in json.loads(report)["studies"]:
        label = study["label"]
        for run in study["runs"]:
            found |= {f"{label} run {run['arm']} {run['seed']} {name}": value for name, value in run.items()}
        for arm, by_seed in study["curves"].items():
            found |= {f"{label} curve {arm} {seed} {epoch}": y for seed, c in by_seed.items() for epoch, y in c}
        for row in study["rows"]:
            found |= {
                f"{label} arm {row['name']} {name}": value for name, value in (row["test_accuracy"] or {}).items()
            }
        for comparison in (each for family in study["families"] for each in family["comparisons"]):
            contrast, new_images = comparison["contrast"], comparison["new_images"] or {"ci": None}
            name = f"{label} {contrast['arm']} against {contrast['reference']}"
            found |= {
                f"{name} {key}": contrast[key] for key in ("verdict", "estimate", "p_adjusted", "df", "num_seeds")
            }
            for key, interval in (("ci95", contrast["ci95"]), ("ci90", contrast["ci90"]), ("new", new_images["ci"])):
                found |= {f"{name} {key} {end}": value for end, value in enumerate(interval or ())}
    return found


@pytest.mark.parametrize("study", ["small", "small-tuned", "interrupted"])
def test_its_record_gives_the_same_runs_curves_and_verdicts(study: str, left: Workshop) -> None:
    answer = left("report", study, "--format", "json")
    assert answer.code == 0, answer.err
    expected = numbers((left.folder / f"expected-{study}.json").read_text(encoding="utf-8"))
    assert len(expected) > 40
    assert numbers(answer.out) == pytest.approx(expected)


def test_its_exported_record_gives_the_same_verdicts_as_its_store(left: Workshop) -> None:
    answer = left("report", "--record", "record", "--format", "json")
    assert answer.code == 0, answer.err
    expected = numbers((left.folder / "expected-small.json").read_text(encoding="utf-8"))
    found = numbers(answer.out)
    assert found.keys() == expected.keys()
    for name, value in expected.items():  # the curves of an exported record have six digits
        assert found[name] == (pytest.approx(value, rel=1e-5) if " curve " in name else pytest.approx(value)), name


def test_a_plan_finds_every_run_as_it_was_left(left: Workshop) -> None:
    answer = left("plan", "small.yaml", "small-tuned.yaml", "interrupted.yaml")
    expected = (left.folder / "expected-plan.txt").read_text(encoding="utf-8")
    count = "22 runs: 18 done, 0 failed, 1 interrupted, 3 to do"
    assert count in expected
    assert count in answer.out
    assert "interrupted at epoch 2/4" in answer.out


def test_nothing_that_it_trained_is_trained_again(left: Workshop) -> None:
    answer = left("run", "small.yaml", "small-tuned.yaml", "--seed", "0")
    assert answer.code == 0, answer.err
    assert "0 to train, 6 done before" in answer.out
    assert len(runs_of("small")) == 9
    assert len(runs_of("small-tuned")) == 3


def test_its_interrupted_run_goes_on_from_its_checkpoint(left: Workshop) -> None:
    before = {run.info.run_id: run.info.status for run in runs_of("interrupted")}
    assert sorted(before.values()) == ["FINISHED", "FINISHED", "KILLED"]
    answer = left("run", "interrupted.yaml", "--arm", "mixed", "--seed", "0")
    assert answer.code == 0, answer.err
    assert re.search(r"mixed seed 0 \(from epoch 3\)", answer.out), answer.out
    after = runs_of("interrupted")
    assert {run.info.run_id for run in after} == set(before)
    assert {run.info.status for run in after} == {"FINISHED"}
    (run_id,) = (one for one, status in before.items() if status == "KILLED")
    points = mlflow.MlflowClient().get_metric_history(run_id, "train_loss")
    assert [point.step for point in sorted(points, key=lambda point: point.step)] == [1, 2, 3, 4]


def test_a_training_of_today_goes_the_way_it_went(left: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within the last bits of a sum, which differ between processors; the fingerprint is the same."""
    (run,) = (
        run
        for run in runs_of("interrupted")
        if run.data.tags["ablate.arm"] == "plain" and run.data.tags["ablate.seed"] == "0"
    )
    fingerprint = run.data.tags["ablate.fingerprint"]
    path = left.folder / "mlruns" / "runs" / fingerprint / "history.csv"
    expected = pd.read_csv(path)
    elsewhere = left.folder / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "interrupted.yaml").write_bytes((left.folder / "interrupted.yaml").read_bytes())
    monkeypatch.chdir(elsewhere)
    assert left("run", "interrupted.yaml", "--arm", "plain", "--seed", "0", "--offline").code == 0
    found = pd.read_csv(elsewhere / "mlruns" / "runs" / fingerprint / "history.csv")
    assert list(found["epoch"]) == list(expected["epoch"])
    assert found["lr"].tolist() == expected["lr"].tolist()
    assert found["train_loss"].tolist() == pytest.approx(expected["train_loss"].tolist(), rel=0.02)


def test_its_tuning_goes_on_with_the_next_trial(left: Workshop) -> None:
    def trials() -> list[tuple[dict[str, Any], float | None]]:
        (name,) = optuna.get_all_study_names("sqlite:///optuna.db")
        return [(t.params, t.value) for t in optuna.load_study(study_name=name, storage="sqlite:///optuna.db").trials]

    before = trials()
    assert len(before) == 3
    answer = left("tune", "small.yaml", "--arm", "baseline", "--trials", "4")
    assert answer.code == 0, answer.err
    assert trials()[:3] == before
    assert len(trials()) == 4
    assert len([run for run in runs_of("small/tuning") if "mlflow.parentRunId" in run.data.tags]) == 4


def test_a_network_that_it_trained_is_promoted_and_predicts(left: Workshop) -> None:
    assert left("promote", "small", "--arm", "larger").code == 0
    (left.folder / "digit.png").write_bytes(content(picture(0)))
    answer = left("predict", "digit.png", "--json")
    assert answer.code == 0, answer.err
    assert json.loads(answer.out)
