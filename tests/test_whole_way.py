"""From a YAML file to a table: the commands as a user runs them, on digits, with real MLflow storage."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import mlflow
import pytest

from cifar_ablate.record.compact import load_curves, load_predictions, load_record
from tests.comparing import runs_of, snapshot
from tests.conftest import Workshop

STUDY = """
    study: tiny
    question: Does mirroring help a tiny network on digits?
    seeds: 2
    recipe:
      data: digits
      train_size: 200
      model: {name: resnet18-compact, width: 4}
      epochs: 2
      batch_size: 64
      optimizer: {name: sgd, lr: 0.05, momentum: 0.9}
    arms:
      baseline:
      flip: {augment: {hflip: {p: 0.5}}}
      flip + smoothing: {from: flip, loss: {label_smoothing: 0.1}}
    published: {flip: {accuracy: 91.5, note: somebody's best epoch}}
"""


@pytest.fixture(scope="session")
def trained_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the study was run once; tests get copies (MLflow's artifact paths lead back here)."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "tiny.yaml").write_text(textwrap.dedent(STUDY), encoding="utf-8")
    environment = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
    command = [sys.executable, "-m", "cifar_ablate.cli", "run", "tiny.yaml"]
    subprocess.run(command, cwd=folder, env=environment, check=True, timeout=300)
    return folder


@pytest.fixture
def trained(workshop: Workshop, trained_once: Path) -> Workshop:
    shutil.copytree(trained_once, workshop.folder, dirs_exist_ok=True)
    return workshop


def test_run_records_every_arm_and_seed_in_mlflow(trained: Workshop) -> None:
    runs = runs_of("tiny")
    assert {(run.data.tags["ablate.arm"], run.data.tags["ablate.seed"]) for run in runs} == {
        (arm, seed) for arm in ("baseline", "flip", "flip + smoothing") for seed in ("0", "1")
    }
    for run in runs:
        assert run.info.status == "FINISHED"
        assert run.data.tags["ablate.study"] == "tiny"
        assert len(run.data.tags["ablate.fingerprint"]) == 20
        assert {"mlflow.source.git.commit", "ablate.git_dirty", "ablate.data_digest"} <= run.data.tags.keys()
        assert run.data.params["optimizer.lr"] == "0.05"
        assert run.data.params["model"] == "resnet18-compact"
        assert run.data.params["model.width"] == "4"
        assert 0 <= run.data.metrics["test_accuracy"] <= 100
        assert {"test_nll", "test_ece", "train_accuracy", "train_loss", "lr", "images_per_second"} <= set(
            run.data.metrics
        )


def test_run_keeps_what_is_needed_to_look_closer(trained: Workshop) -> None:
    run = runs_of("tiny")[0]
    names = {file.path for file in mlflow.MlflowClient().list_artifacts(run.info.run_id)}
    assert names == {
        "recipe.yaml",
        "environment.json",
        "history.csv",
        "confusion_matrix.png",
        "test_logits.npy",
        "test_labels.npy",
        "weights.safetensors",
    }


def test_the_same_command_again_trains_nothing(trained: Workshop) -> None:
    before = snapshot("tiny")
    answer = trained("run", "tiny.yaml")
    assert answer.code == 0
    assert "0 to train, 6 done before" in answer.out
    assert snapshot("tiny") == before


@pytest.mark.slow
def test_delivering_a_run_twice_changes_nothing(trained: Workshop) -> None:
    before = snapshot("tiny")
    for database in ("finished", "half delivered"):
        client = mlflow.MlflowClient()
        for run in runs_of("tiny"):
            if database == "half delivered":
                client.update_run(run.info.run_id, status="RUNNING")
        assert trained("run", "tiny.yaml").code == 0
    assert snapshot("tiny") == before


@pytest.mark.slow
def test_a_lost_database_is_filled_again_without_training(trained: Workshop, empty_database: Path) -> None:
    first = trained("report").out
    (trained.folder / "other.db").write_bytes(empty_database.read_bytes())
    trained.monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{trained.folder / 'other.db'}")
    answer = trained("run", "tiny.yaml")
    assert "6 trained before, now recorded" in answer.out
    assert without_history(trained("report").out) == without_history(first)


def without_history(report: str) -> str:
    """A report without what another database cannot know: MLflow's ids, and when the margin was set."""
    return re.sub(r"\b[0-9a-f]{32}\b|recorded 20\d\d-.*? had finished", "", report)


def test_the_report_is_a_table_of_every_arm(trained: Workshop) -> None:
    answer = trained("report")
    assert answer.code == 0
    lines = answer.out.splitlines()
    assert "## tiny" in lines
    assert "**Does mirroring help a tiny network on digits?**" in lines
    rows = arms_table(answer.out)
    assert list(rows) == ["baseline", "flip", "flip + smoothing"]
    assert "| 2/2 |" in rows["flip"]
    assert "+ hflip (p 0.5)" in rows["flip"]
    assert "from flip: loss.label\\_smoothing 0 -> 0.1" in rows["flip + smoothing"]
    assert any(line.startswith("- flip: 91.5% published (somebody's best epoch), ") for line in lines)
    assert "200 of 1,437 training images, all 360 test images" in answer.out


def test_the_table_holds_the_means_of_what_mlflow_holds(trained: Workshop) -> None:
    values = [run.data.metrics["test_accuracy"] for run in runs_of("tiny") if run.data.tags["ablate.arm"] == "flip"]
    assert f"| {sum(values) / 2:.2f} (" in arms_table(trained("report").out)["flip"]


def arms_table(report: str) -> dict[str, str]:
    """Lines of the table that says what the arms are, by arm."""
    table = report.partition("| Arm | Differs by |")[2].partition("\n\n")[0]
    return {line.split(" | ")[0].strip("| *"): line for line in table.splitlines() if line.startswith("| **")}


def test_an_edited_recipe_is_trained_anew_and_the_old_runs_are_counted_and_left_out(trained: Workshop) -> None:
    trained.write("tiny.yaml", STUDY.replace("hflip: {p: 0.5}", "hflip: {p: 0.25}"))
    answer = trained("run", "tiny.yaml")
    assert "4 to train, 2 done before" in answer.out
    report = trained("report").out
    assert "hflip (p 0.25)" in report
    assert "p 0.5" not in report
    assert "**Left out**: 4 runs" in report


def test_an_edit_that_changes_only_what_is_written_down_retrains_nothing(trained: Workshop) -> None:
    trained.write("tiny.yaml", STUDY.replace("batch_size: 64", "batch_size: 64\n      eval_every: 0"))
    assert "0 to train, 6 done before" in trained("run", "tiny.yaml").out


@pytest.mark.slow
def test_more_seeds_train_only_the_new_ones(trained: Workshop) -> None:
    trained.write("tiny.yaml", STUDY.replace("seeds: 2", "seeds: [0, 1, 7]"))
    assert "3 to train, 6 done before" in trained("run", "tiny.yaml").out
    assert "| 3/3 |" in trained("report").out


@pytest.mark.slow
def test_seeds_added_after_the_report_was_read_are_marked_in_it(trained: Workshop) -> None:
    assert "Seeds added by hand" not in trained("report").out
    trained.write("tiny.yaml", STUDY.replace("seeds: 2", "seeds: 3"))
    assert trained("run", "tiny.yaml").code == 0
    assert "**Seeds added by hand**: 1 per arm, after verdicts had been read at 2 seeds" in trained("report").out


@pytest.mark.slow
def test_another_study_with_the_same_training_shares_it(trained: Workshop) -> None:
    other = STUDY.replace("study: tiny", "study: other").replace("flip + smoothing:", "both:")
    trained.write("other.yaml", other)
    answer = trained("run", "other.yaml")
    assert "6 trained before, now recorded" in answer.out
    assert len(runs_of("other")) == 6
    assert "epoch 1/2" not in answer.out


@pytest.mark.slow
def test_a_variant_has_a_record_of_its_own(trained: Workshop) -> None:
    assert trained("run", "tiny.yaml", "--set", "epochs=1", "--seed", "0").code == 0
    report = trained("report").out
    assert "## tiny\n" in report
    assert "## tiny@epochs=1\n" in report
    assert "This is a variant (epochs=1) of the study" in report
    assert "of a variant: other recipes, so not a repetition" in trained("report", "tiny@epochs=1").out
    assert "| 1/2 |" in trained("report", "tiny@epochs=1").out


@pytest.mark.slow
def test_plan_lists_every_run_and_trains_nothing(workshop: Workshop) -> None:
    workshop.write("tiny.yaml", STUDY)
    assert workshop("run", "tiny.yaml", "--arm", "flip").code == 0
    answer = workshop("plan", "tiny.yaml")
    assert answer.code == 0
    lines = [line for line in answer.out.splitlines() if line.startswith(("baseline", "flip"))]
    assert len(lines) == 6
    assert sum(" done" in line for line in lines) == 2
    assert "6 runs: 2 done, 0 failed, 4 to do, about " in answer.out
    assert len(runs_of("tiny")) == 2


def test_an_exported_record_gives_the_same_report(trained: Workshop) -> None:
    assert trained("export", "tiny", "record").code == 0
    assert trained("report", "--record", "record").out == trained("report").out
    record, curves, predictions = (read(Path("record")) for read in (load_record, load_curves, load_predictions))
    assert len(record.runs) == 6
    assert len(curves) == 12
    assert predictions.predicted.shape == predictions.loss.shape == (6, 360)
    for index, fingerprint in enumerate(predictions.fingerprints):
        run = next(run for run in record.runs if run.fingerprint == fingerprint)
        right = 100 * (predictions.predicted[index] == predictions.labels).mean()
        assert right == pytest.approx(run.metrics["test_accuracy"], abs=1e-9)
        assert predictions.loss[index].astype(float).mean() == pytest.approx(run.metrics["test_nll"], rel=0.01)


def test_a_diverged_run_is_a_finished_result(workshop: Workshop) -> None:
    workshop.write("tiny.yaml", STUDY.replace("lr: 0.05", "lr: 1.0e30"))
    answer = workshop("run", "tiny.yaml", "--arm", "baseline", "--seed", "0")
    assert answer.code == 0
    assert "diverged: the training loss was" in answer.out
    (run,) = runs_of("tiny")
    assert run.info.status == "FINISHED"
    assert run.data.tags["ablate.outcome"] == "diverged"
    assert "0/2 (1 diverged)" in workshop("report").out
    assert "1 done before" in workshop("run", "tiny.yaml", "--arm", "baseline", "--seed", "0").out


def test_a_failing_run_is_recorded_and_does_not_stop_the_rest(workshop: Workshop) -> None:
    from cifar_ablate.runner import train_group

    workshop.write("tiny.yaml", STUDY)
    train = train_group.train_run

    def sometimes(recipe: Any, seed: int, *rest: Any, **options: Any) -> Any:
        if recipe.augment and seed == 0:
            raise RuntimeError("out of luck\nand more")
        return train(recipe, seed, *rest, **options)

    workshop.monkeypatch.setattr(train_group, "train_run", sometimes)
    answer = workshop("run", "tiny.yaml")
    assert answer.code == 1
    assert "4 finished, 2 failed" in answer.out
    assert "failed: tiny flip seed 0: RuntimeError: out of luck" in answer.out
    assert "**Failed**: flip seed 0: RuntimeError: out of luck" in workshop("report").out
    again = workshop("run", "tiny.yaml")
    assert again.code == 1
    assert "2 skipped as failed" in again.out
    workshop.monkeypatch.setattr(train_group, "train_run", train)
    assert workshop("run", "tiny.yaml", "--retry", "failed").code == 0
    assert "| 2/2 |" in workshop("report").out
    assert {run.info.status for run in runs_of("tiny")} == {"FINISHED"}


@pytest.mark.slow
def test_a_failed_run_that_was_trained_again_while_mlflow_was_away_is_not_taken_for_failed(workshop: Workshop) -> None:
    from cifar_ablate.runner import train_group

    def unlucky(*_: Any, **__: Any) -> Any:
        raise RuntimeError("out of luck")

    workshop.write("tiny.yaml", STUDY)
    train, one = train_group.train_run, ("tiny.yaml", "--arm", "flip", "--seed", "0")
    workshop.monkeypatch.setattr(train_group, "train_run", unlucky)
    assert workshop("run", *one).code == 1
    workshop.monkeypatch.setattr(train_group, "train_run", train)
    assert workshop("run", *one, "--retry", "failed", "--offline").code == 0
    assert "trained, to record" in workshop("plan", "tiny.yaml").out
    answer = workshop("run", *one)
    assert answer.code == 0
    assert "1 trained before, now recorded" in answer.out
    assert {run.info.status for run in runs_of("tiny")} == {"FINISHED"}


def test_an_export_that_fails_leaves_the_record_that_was_there(trained: Workshop) -> None:
    assert trained("export", "tiny", "record").code == 0
    before = {path.name: path.read_bytes() for path in Path("record").iterdir()}

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    trained.monkeypatch.setattr("cifar_ablate.record.compact.write_arrays", full)
    answer = trained("export", "tiny", "record")
    assert answer.code == 1
    assert "free space" in answer.err
    assert {path.name: path.read_bytes() for path in Path("record").iterdir()} == before


def test_a_report_of_nothing_says_how_to_start(workshop: Workshop) -> None:
    answer = workshop("report")
    assert answer.code == 1
    assert "start with `cifar-ablate run STUDY.yaml`" in answer.err


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["report", "nosuch"], 2, "unknown recorded study 'nosuch'"),
        (["report", "--format", "markdwn"], 2, "did you mean 'markdown'?"),
        (["report", "--record", "nowhere"], 1, "write a record with `cifar-ablate export"),
        (["export", "nosuch", "out"], 2, "unknown recorded study 'nosuch'"),
        (["run", "tiny.yaml", "--arm", "flop"], 2, "did you mean 'flip'?"),
        (["run", "tiny.yaml", "--seed", "9"], 2, "planned: 0, 1"),
        (["run", "tiny.yaml", "--executor", "locl"], 2, "did you mean 'local'?"),
        (["run", "tiny.yaml", "--retry", "all"], 2, "write --retry failed"),
        (["run", "tiny.yaml", "--device", "cuda"], 1, "use --device cpu"),
        (["run", "tiny.yaml", "--device", "tpu"], 2, "unknown device 'tpu'"),
        (["run", "tiny.yaml", "--set", "batch_size=201"], 2, "more than train_size 200"),
        (["models", "resnet19-compact"], 2, "did you mean 'resnet18-compact'?"),
    ],
)
def test_bad_input_is_one_sentence_with_the_cure(
    workshop: Workshop, arguments: list[str], code: int, said: str
) -> None:
    workshop.write("tiny.yaml", STUDY)
    answer = workshop(*arguments)
    assert answer.code == code, answer
    assert said in answer.err
    assert len(answer.err.strip().splitlines()) == 1


@pytest.mark.slow
def test_a_tracking_server_that_does_not_answer_is_one_sentence(workshop: Workshop) -> None:
    workshop.write("tiny.yaml", STUDY)
    answer = workshop.process(
        "run",
        "tiny.yaml",
        MLFLOW_TRACKING_URI="http://127.0.0.1:9",
        MLFLOW_HTTP_REQUEST_MAX_RETRIES="0",
    )
    assert answer.code == 1
    assert "http://127.0.0.1:9 does not answer" in answer.err
    assert "Traceback" not in answer.err


def test_schema_is_json_that_knows_every_name(workshop: Workshop) -> None:
    text = workshop("schema").out
    assert json.loads(text)["title"] == "cifar-ablate study"
    for name in ("cutmix", "resnet18-compact", "one-cycle", "digits", "muon"):
        assert name in text


def test_models_prints_the_layer_table(workshop: Workshop) -> None:
    table = workshop("models", "resnet18-compact").out
    assert "Total params: 11,154,890" in table
    assert "Total mult-adds (M): 135.15" in table
    assert "resnet18-compact " in workshop("models").out
    assert "Total params: 2," in workshop("models", "resnet18-compact", "--set", "width=16").out


@pytest.mark.parametrize("command", [["report"], ["plan", "tiny.yaml"], ["export", "tiny", "out"]])
def test_commands_that_read_make_no_database(workshop: Workshop, command: list[str]) -> None:
    workshop.write("tiny.yaml", STUDY)
    (workshop.folder / "mlflow.db").unlink()
    workshop(*command)
    assert not (workshop.folder / "mlflow.db").exists()


@pytest.mark.slow
@pytest.mark.parametrize("moment", [0.2, 0.5])
def test_a_kill_while_the_database_is_made_leaves_a_folder_that_works(workshop: Workshop, moment: float) -> None:
    (workshop.folder / "mlflow.db").unlink()
    environment = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
    make = [sys.executable, "-c", "from cifar_ablate.record.mlflow_store import Tracking; Tracking()"]
    process = subprocess.Popen(make, cwd=workshop.folder, env=environment, stderr=subprocess.DEVNULL)
    while process.poll() is None and not (workshop.folder / ".mlflow.db.unfinished").exists():
        time.sleep(0.02)
    time.sleep(moment)
    process.kill()
    process.wait()
    done = subprocess.run(make, cwd=workshop.folder, env=environment, check=False, timeout=120)
    assert done.returncode == 0
    assert (workshop.folder / "mlflow.db").exists()


def test_a_database_that_is_none_is_one_sentence(workshop: Workshop) -> None:
    (workshop.folder / "mlflow.db").write_bytes(b"this is no database" * 100)
    answer = workshop("report")
    assert answer.code == 1
    assert "does not answer as it should" in answer.err
    assert len(answer.err.strip().splitlines()) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("result.json", b"[]"),
        ("result.json", b'{"status": "finished"}'),
        ("result.json", b"\xff\xfe"),
        ("environment.json", b"{}"),
        ("recipe.yaml", b"5"),
        ("history.jsonl", b"5\n"),
        ("test_logits.npy", b"garbage"),
        ("test_logits.npy", None),
    ],
)
def test_a_damaged_folder_is_told_with_its_cure_and_the_other_runs_go_on(
    trained: Workshop, empty_database: Path, name: str, content: bytes | None
) -> None:
    (trained.folder / "other.db").write_bytes(empty_database.read_bytes())
    trained.monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{trained.folder / 'other.db'}")
    damaged = sorted((trained.folder / "mlruns" / "runs").iterdir())[0]
    if content is None:
        (damaged / name).unlink()
    else:
        (damaged / name).write_bytes(content)
    answer = trained("run", "tiny.yaml")
    assert answer.code == 1, answer
    assert "1 damaged" in answer.out
    assert "--retry failed" not in answer.out  # that would not help
    assert damaged.name in answer.out
    assert "trains it again" in answer.out
    assert [run.info.status for run in runs_of("tiny")] == ["FINISHED"] * 5  # and none that runs for ever
    plan = trained("plan", "tiny.yaml")
    assert plan.code == 0, plan.err
    assert sum(" done" in line for line in plan.out.splitlines() if line.startswith(("baseline", "flip"))) == 5
    shutil.rmtree(damaged)
    assert trained("run", "tiny.yaml").code == 0


@pytest.mark.slow
def test_arms_called_none_and_na_survive_an_export(workshop: Workshop) -> None:
    arms = (
        STUDY.replace("baseline:\n", "None:\n")
        .replace("flip + smoothing", "NA")
        .replace("recipe:", "baseline: None\n    recipe:", 1)
    )
    workshop.write("tiny.yaml", arms)
    assert workshop("run", "tiny.yaml", "--seed", "0").code == 0
    assert workshop("export", "tiny", "record").code == 0
    assert workshop("report", "--record", "record").out == workshop("report").out


@pytest.mark.slow
def test_a_terminal_that_knows_only_ascii_gets_the_report_all_the_same(trained: Workshop) -> None:
    trained.write("tiny.yaml", STUDY.replace("tiny network", "tiny réseau"))
    assert trained("run", "tiny.yaml").code == 0
    trained.monkeypatch.delenv("MLFLOW_TRACKING_URI")
    answer = trained.process("report", PYTHONIOENCODING="ascii", LANG="C")
    assert answer.code == 0, answer.err
    assert "tiny r\\xe9seau" in answer.out


@pytest.mark.slow
def test_a_full_disk_under_the_report_is_one_sentence(trained: Workshop) -> None:
    trained.monkeypatch.delenv("MLFLOW_TRACKING_URI")
    command = f"{sys.executable} -m cifar_ablate.cli report > /dev/full"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert done.stderr == "cannot write the report: No space left on device; write it where there is room\n"
