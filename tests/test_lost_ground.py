"""The disk fills up, a folder may not be written, images are gone: one sentence with the cure, and nothing is lost."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.comparing import bits, runs_of, snapshot, without_speed
from tests.conftest import Tried, Workshop
from tests.disturbing import (
    ONE_RUN,
    RUN,
    STUDY,
    Begin,
    SmallDisk,
    Undisturbed,
    assert_readable,
    assert_undisturbed,
    statuses,
    wait_until,
)

pytestmark = pytest.mark.faults


def use(disk: SmallDisk, workshop: Workshop, *, for_what: str) -> None:
    """Let the run folders, the database, or both be on the small disk."""
    if for_what == "both":
        shutil.copy(workshop.folder / "mlflow.db", disk.path)
        workshop.folder = disk.path
        workshop.monkeypatch.chdir(disk.path)
        workshop.monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{disk.path / 'mlflow.db'}")
        workshop.write("tiny.yaml", STUDY)
    elif for_what == "run folders":
        (workshop.folder / "mlruns").symlink_to(disk.path, target_is_directory=True)
    else:
        shutil.move(workshop.folder / "mlflow.db", disk.path)
        (workshop.folder / "mlflow.db").symlink_to(disk.path / "mlflow.db")
        workshop.monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{disk.path / 'mlflow.db'}")


def sentences(said: str) -> list[str]:
    """What was said of places that cannot be written."""
    return re.findall(r"cannot write .+?: .+?; (?:free space|run where you may write|its folder was removed)", said)


# -------------------------------------------------------------------------------------------------- a full disk


@pytest.mark.parametrize("for_what", ["run folders", "both"])
def test_whatever_room_is_left_a_study_on_a_full_disk_stops_with_the_cure_and_goes_on_when_there_is_room(
    workshop: Workshop, begin: Begin, undisturbed: Undisturbed, small_disk: SmallDisk, tried: Tried, for_what: str
) -> None:
    use(small_disk, workshop, for_what=for_what)
    num_stopped = 0
    for leave_kib in (0, 16, 64, 150, 400, 700, 1000):
        small_disk.fill(leave_kib=leave_kib)
        tried("disk of 20 MB full")
        answer = workshop(*RUN)
        said = answer.out + answer.err
        small_disk.clear()
        assert answer.code in (0, 1), said
        assert "Traceback" not in said
        if answer.code == 1:
            num_stopped += 1
            assert sentences(said), said
        assert not [status for status, _ in (statuses() if has_runs() else {}).values() if status == "FAILED"]
        assert_readable(workshop.folder)
        assert workshop("plan", "tiny.yaml").code == 0
    assert num_stopped >= 4
    assert workshop(*RUN).code == 0
    assert_undisturbed(workshop.folder, undisturbed)


def has_runs() -> bool:
    import mlflow

    return mlflow.MlflowClient().get_experiment_by_name("tiny") is not None


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_disk_that_is_full_at_a_checkpoint_stops_a_study_once_and_fails_no_run(
    workshop: Workshop, begin: Begin, undisturbed: Undisturbed, small_disk: SmallDisk, tried: Tried, jobs: int
) -> None:
    use(small_disk, workshop, for_what="run folders")
    command = begin(*RUN, "--jobs", str(jobs))
    command.wait_for(rf"\[{jobs}/[^z]*epoch 2/")
    small_disk.fill(leave_kib=200)  # room for lines of the history, none for a checkpoint of 1.4 MB
    tried("disk full at a checkpoint")
    assert command.end() == 1, command.said
    assert re.search(r"^Stopped: cannot write \S+/\.?(checkpoint|weights)[^/]+: No space left", command.said, re.M)
    assert "Traceback" not in command.said
    assert len(re.findall(r"^Stopped: cannot write .+: No space left on device; free space", command.said, re.M)) == 1
    assert "failed" not in command.said
    recorded = statuses()
    assert "RUNNING" not in {status for status, _ in recorded.values()}
    assert "FAILED" not in {status for status, _ in recorded.values()}
    small_disk.clear()
    assert workshop(*RUN).code == 0
    assert_undisturbed(workshop.folder, undisturbed)


def test_a_database_without_room_is_waited_for_while_training_goes_on(
    workshop: Workshop, begin: Begin, undisturbed: Undisturbed, small_disk: SmallDisk, tried: Tried
) -> None:
    use(small_disk, workshop, for_what="database")
    command = begin(*RUN)
    command.wait_for(r"\[1/[^z]*epoch 1/")
    small_disk.fill()
    tried("disk full in the database")
    command.wait_for(r"cannot write \S+/mlflow\.db: database or disk is full; [^.]+\. Training goes on")
    command.wait_for(r"\[3/[^z]*epoch 1/")
    small_disk.clear()
    assert command.end() == 0, command.said
    assert command.said.count("Training goes on") == 1
    assert "MLflow answers again" in command.said
    assert_undisturbed(workshop.folder, undisturbed)


@pytest.mark.parametrize("when", ["until it ends", "for a while"])
def test_a_disk_that_is_full_at_an_artifact_costs_no_run_and_it_is_delivered_when_there_is_room(
    workshop: Workshop, begin: Begin, undisturbed: Undisturbed, small_disk: SmallDisk, tried: Tried, when: str
) -> None:
    """MLflow's own folder is on that disk; run folders and database are not."""
    (workshop.folder / "mlruns").mkdir()
    (workshop.folder / "mlruns" / "1").symlink_to(small_disk.path, target_is_directory=True)  # the first experiment's
    small_disk.fill(leave_kib=300)  # the small artifacts find room, weights of 0.7 MB do not
    tried("disk full at an artifact")
    command = begin(*RUN)
    command.wait_for(r"cannot write mlruns\S*: No space left on device; [^.]+\. Training goes on")
    if when == "for a while":
        small_disk.clear()
        assert command.end() == 0, command.said
        assert "MLflow answers again" in command.said
    else:
        assert command.end() == 1, command.said
        assert "`cifar-ablate sync` tries again" in command.said
        assert bits(workshop.folder) == undisturbed.bits  # it was trained to its end
        assert "FAILED" not in {status for status, _ in statuses().values()}
        small_disk.clear()
        assert workshop("sync").code == 0
    assert "Traceback" not in command.said
    assert_undisturbed(workshop.folder, undisturbed)
    assert workshop(*RUN).out.count("4 done before") == 1


def test_a_study_that_outgrows_the_disk_says_so_and_goes_on_where_the_disk_has_grown(
    workshop: Workshop, small_disk: SmallDisk, tried: Tried
) -> None:
    tried("disk of 20 MB full")
    workshop.write("tiny.yaml", STUDY.replace("width: 4", "width: 8").replace("epochs: 4", "epochs: 1"))
    use(small_disk, workshop, for_what="run folders")
    answer = workshop("run", "tiny.yaml")
    assert answer.code == 1
    assert sentences(answer.out), answer.out
    before = [run for run in snapshot("tiny") if run[1] == "FINISHED"]
    assert before  # what was complete stays so
    subprocess.run(["mount", "-o", "remount,size=100m", str(small_disk.path)], check=True)
    again = workshop("run", "tiny.yaml")
    assert again.code == 0, again
    assert f"{len(before)} done before" in again.out
    assert {status for status, _ in statuses().values()} == {"FINISHED"}
    assert [run for run in snapshot("tiny") if run[0] in {of[0] for of in before}] == before


# ------------------------------------------------------------------------------------------- a read-only folder


@pytest.mark.parametrize("is_begun", [False, True], ids=["fresh", "with half a study"])
def test_a_folder_that_may_not_be_written_is_one_sentence_and_reading_commands_work_on_it(
    workshop: Workshop, begin: Begin, undisturbed: Undisturbed, small_disk: SmallDisk, tried: Tried, is_begun: bool
) -> None:
    tried("read-only folder")
    use(small_disk, workshop, for_what="both")
    if is_begun:  # in a process: files that are open for writing keep a file system writable
        assert begin(*RUN, "--seed", "0").end() == 0
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk.path)], check=True)
    said = workshop.folder.parent / "said.txt"  # what it says cannot be written there, either
    assert begin(*RUN, onto=said).end() == 1
    assert len(sentences(said.read_text())) == 1, said.read_text()
    plan, report = workshop.process("plan", "tiny.yaml"), workshop.process("report")
    assert plan.code == 0, plan
    assert ("2 done" in plan.out) == is_begun
    assert (report.code == 0) == is_begun, report
    subprocess.run(["mount", "-o", "remount,rw", str(small_disk.path)], check=True)
    assert workshop(*RUN).code == 0
    assert_undisturbed(workshop.folder, undisturbed)


# -------------------------------------------------------------------------------------------------- lost images


def write_images(folder: Path) -> None:
    """Two classes, light and dark, of 12 training images and 4 test images each."""
    rng = np.random.default_rng(0)
    for split, num in (("train", 12), ("test", 4)):
        for name, level in (("dark", 40), ("light", 180)):
            (folder / split / name).mkdir(parents=True)
            for index in range(num):
                pixels = (level + rng.integers(0, 40, (8, 8, 3))).astype(np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{index}.png")


OWN = """
    study: tiny
    question: Does mirroring help on images of one's own?
    seeds: 1
    recipe:
      data: {name: image_folder, path: images, image_size: 32}
      model: {name: resnet18-compact, width: 4}
      epochs: 40
      batch_size: 8
      optimizer: {name: sgd, lr: 0.05}
    arms: {baseline: null, flip: {augment: {hflip: {p: 0.5}}}}
"""


@pytest.mark.parametrize("what", ["images", "images/train", "images/test/dark"])
def test_images_lost_while_a_study_runs_do_not_reach_it_and_are_one_sentence_at_the_next_start(
    workshop: Workshop, begin: Begin, tried: Tried, what: str
) -> None:
    tried("images lost while a study runs")
    write_images(workshop.folder / "images")
    shutil.copytree(workshop.folder / "images", workshop.folder / "kept")
    workshop.write("tiny.yaml", OWN)
    (workshop.folder / "undisturbed").mkdir()
    shutil.copytree(workshop.folder / "images", workshop.folder / "undisturbed" / "images")

    command = begin("run", "tiny.yaml")
    command.wait_for("epoch 5/")
    shutil.rmtree(workshop.folder / what)
    command.wait_for("epoch 10/")  # they are in memory since the start
    command.send(2, to_group=True)
    assert command.end() == 130
    before = snapshot("tiny")
    answer = workshop("run", "tiny.yaml")
    assert answer.code == 1
    assert len(answer.err.strip().splitlines()) == 1, answer
    assert "images" in answer.err
    assert snapshot("tiny") == before

    shutil.rmtree(workshop.folder / "images", ignore_errors=True)
    shutil.copytree(workshop.folder / "kept", workshop.folder / "images", copy_function=shutil.copy2)
    assert workshop("run", "tiny.yaml").code == 0
    found, recorded = bits(workshop.folder), without_speed("tiny")
    workshop.monkeypatch.chdir(workshop.folder / "undisturbed")
    workshop.monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{workshop.folder / 'undisturbed.db'}")
    assert workshop("run", "../tiny.yaml").code == 0
    assert bits(workshop.folder / "undisturbed") == found
    assert without_speed("tiny") == recorded


def test_a_run_folder_that_is_removed_under_its_run_is_told_and_trained_again(
    workshop: Workshop, begin: Begin, undisturbed: Undisturbed, tried: Tried
) -> None:
    tried("run folder removed under its run")
    command = begin(*RUN, *ONE_RUN)
    command.wait_for("epoch 2/")
    shutil.rmtree(workshop.folder / "mlruns" / "runs")
    wait_until(lambda: command.code is not None)
    assert command.code == 1, command.said
    assert "Traceback" not in command.said
    assert sentences(command.said), command.said
    assert workshop(*RUN, *ONE_RUN).code == 0
    assert_undisturbed(workshop.folder, undisturbed, only=["flip 0"])
    assert len(runs_of("tiny")) == 1
