"""SIGTERM, and SIGKILL exactly 10 s later, as schedulers of clusters send them: each run has a checkpoint by then."""

from __future__ import annotations

import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest

from cifar_ablate.record.folder import read_progress
from tests.comparing import runs_of
from tests.conftest import Tried, Workshop
from tests.disturbing import (
    NUM_EPOCHS,
    NUM_RUNS,
    NUM_STEPS,
    ONE_RUN,
    RUN,
    STUDY,
    Begin,
    Command,
    Undisturbed,
    assert_undisturbed,
    steps_done,
    wait_until,
)
from tests.test_interruptions import count_steps
from tests.test_mlflow_away import Server

pytestmark = pytest.mark.faults

GRACE_SECONDS = 10.0
PLAIN = "SIGTERM with 10 s of grace"
FROZEN = "SIGTERM with 10 s of grace, MLflow frozen"
LONG_STEP = "SIGTERM with 10 s of grace, in a step or evaluation of a second"


def terminate(command: Command, *, to_group: bool, fault: str, tried: Tried) -> int:
    """SIGTERM, then SIGKILL when the grace is over; gives the exit code."""
    tried(fault)
    begun = time.monotonic()
    command.send(signal.SIGTERM, to_group=to_group)
    while command.code is None and time.monotonic() - begun < GRACE_SECONDS:
        time.sleep(0.01)
    tried.took(fault, time.monotonic() - begun)
    if command.code is None:
        command.send(signal.SIGKILL, to_group=to_group)
    return command.end()


@pytest.mark.parametrize("to_group", [False, True], ids=["to the process", "to its group"])
@pytest.mark.parametrize("jobs", [1, 3])
def test_sigterm_leaves_a_checkpoint_within_its_grace_and_the_same_command_loses_no_step(
    workshop: Workshop, begin: Begin, undisturbed: Undisturbed, tried: Tried, jobs: int, to_group: bool
) -> None:
    command = begin("run", "tiny.yaml", "--jobs", str(jobs))  # checkpoints a minute apart: none by itself
    command.wait_for(rf"\[{jobs}/[^z]*epoch \d/", seconds=120)
    assert terminate(command, to_group=to_group, fault=PLAIN, tried=tried) == 130, command.said
    assert_no_step_is_lost(workshop, undisturbed)


def assert_no_step_is_lost(workshop: Workshop, undisturbed: Undisturbed) -> None:
    """Each run that was begun has a checkpoint or a result; the same command takes the steps that are left."""
    for folder in (workshop.folder / "mlruns" / "runs").iterdir():
        progress = read_progress(folder / "checkpoint.safetensors")
        assert progress or (folder / "result.json").exists() or not (folder / "history.jsonl").exists()
    num_left = NUM_RUNS * NUM_EPOCHS * NUM_STEPS - steps_done(workshop.folder)
    steps = count_steps(workshop)
    answer = workshop(*RUN)
    assert answer.code == 0, answer
    assert len(steps) == num_left
    assert_undisturbed(workshop.folder, undisturbed)


@pytest.fixture
def server(tmp_path: Path, empty_database: Path) -> Iterator[Server]:
    """An MLflow server of this test."""
    made = Server(tmp_path / "server")
    shutil.copy(empty_database, made.folder / "mlflow.db")
    made.start()
    yield made
    made.kill()


def test_sigterm_while_mlflow_is_frozen_is_heard_all_the_same(
    workshop: Workshop, begin: Begin, undisturbed: Undisturbed, server: Server, tried: Tried
) -> None:
    """Its requests wait 30 s for an answer; who sends SIGTERM does not."""
    workshop.monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    for jobs, to_group in ((2, True), (1, False)):
        command = begin("run", "tiny.yaml", "--jobs", str(jobs))
        command.wait_for(r"\[\d/[^z]*epoch \d/", seconds=120)
        server.signal(signal.SIGSTOP)
        time.sleep(1)  # a request is under way
        assert terminate(command, to_group=to_group, fault=FROZEN, tried=tried) == 130, command.said
        server.signal(signal.SIGCONT)
    server.signal(signal.SIGSTOP)
    command = begin("run", "tiny.yaml")  # it hangs at its first question
    wait_until(command.hears_signals)
    time.sleep(1)
    assert terminate(command, to_group=False, fault=FROZEN, tried=tried) == 130, command.said
    server.signal(signal.SIGCONT)
    assert_no_step_is_lost(workshop, undisturbed)


@pytest.mark.parametrize("what", ["step", "evaluation"])
def test_sigterm_in_a_long_step_or_evaluation_is_heard_between_two_calls(
    workshop: Workshop, begin: Begin, tried: Tried, what: str
) -> None:
    study = STUDY.replace("width: 4", "width: 24").replace("epochs: 4", "epochs: 2")
    if what == "step":  # one step an epoch
        study = study.replace("batch_size: 25", "batch_size: 400")
    else:  # nearly all of an epoch is its evaluation
        study = study.replace("train_size: 400", "train_size: 20").replace("batch_size: 25", "batch_size: 10")
    workshop.write("tiny.yaml", study)
    alone = workshop("run", "tiny.yaml", *ONE_RUN)
    assert alone.code == 0, alone
    (done,) = (workshop.folder / "mlruns" / "runs").iterdir()
    undisturbed = (done / "test_logits.npy").read_bytes(), (done / "weights.safetensors").read_bytes()
    shutil.rmtree(workshop.folder / "mlruns")
    for run in runs_of("tiny"):
        mlflow.MlflowClient().delete_run(run.info.run_id)

    command = begin("run", "tiny.yaml", *ONE_RUN)
    command.wait_for("epoch 1/" if what == "step" else r"\[1/1\]")
    time.sleep(0.3)
    assert terminate(command, to_group=True, fault=LONG_STEP, tried=tried) == 130, command.said
    again = workshop("run", "tiny.yaml", *ONE_RUN)
    assert again.code == 0, again
    assert ((done / "test_logits.npy").read_bytes(), (done / "weights.safetensors").read_bytes()) == undisturbed
    assert [run.info.status for run in runs_of("tiny")] == ["FINISHED"]
