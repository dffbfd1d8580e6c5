"""Artifact stores that raise what their own libraries raise, and checkpoints of several machines."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path
from typing import Any

import mlflow
import pytest

from cifar_ablate.errors import RecordError, TrackingError
from cifar_ablate.folder import DESCRIBED, RunFolder
from cifar_ablate.records import RunIdentity
from cifar_ablate.runner.command import Command as RunCommand
from cifar_ablate.runner.messages import Ended
from cifar_ablate.tracking import Delivery, Tracking
from cifar_ablate.tracking.checkpoints import TAG, Kept, fetch
from cifar_ablate.tracking.claims import PREFIX
from tests.comparing import runs_of
from tests.conftest import Workshop
from tests.disturbing import STUDY, Begin, starts, wait_until
from tests.test_claims import ELSEWHERE, claim

ONE = ("--arm", "baseline", "--seed", "0")
SHORT = STUDY.replace("epochs: 4", "epochs: 2")
IDENTITY = RunIdentity(study="s", arm="a", seed=0, precision="fp32", recipe_id="ab" * 8, fingerprint="cd" * 8)


class StoreError(Exception):
    """As boto3's errors, none of MLflow's nor of the system's."""


def artifacts(run: Any) -> set[str]:
    return {file.path for file in mlflow.MlflowClient().list_artifacts(run.info.run_id)}


@pytest.mark.slow
def test_what_an_artifact_store_raises_is_tried_again(workshop: Workshop) -> None:
    workshop.write("tiny.yaml", SHORT)
    assert workshop("run", "tiny.yaml", *ONE, "--offline").code == 0
    log, num_refused = mlflow.MlflowClient.log_artifact, 0

    def refuse_twice(*arguments: Any) -> None:
        nonlocal num_refused
        num_refused += 1
        if num_refused <= 2:
            raise StoreError("Unable to locate credentials")
        log(*arguments)

    workshop.monkeypatch.setattr(mlflow.MlflowClient, "log_artifact", refuse_twice)
    workshop.monkeypatch.setattr("cifar_ablate.tracking.courier.FIRST_PAUSE_SECONDS", 0.01)
    answer = workshop("sync")
    assert answer.code == 0, answer
    (run,) = runs_of("tiny")
    assert run.info.status == "FINISHED"
    assert "confusion_matrix.png" in artifacts(run)


def test_an_artifact_store_that_takes_nothing_is_told_in_a_sentence(workshop: Workshop) -> None:
    workshop.write("tiny.yaml", SHORT)
    assert workshop("run", "tiny.yaml", *ONE, "--offline").code == 0

    def refuse(*_: Any) -> None:
        raise StoreError("Unable to locate credentials")

    workshop.monkeypatch.setattr(mlflow.MlflowClient, "log_artifact", refuse)
    workshop.monkeypatch.setattr("cifar_ablate.tracking.courier.FIRST_PAUSE_SECONDS", 0.01)
    answer = workshop("sync")
    assert answer.code == 1
    assert (
        "not delivered: tiny baseline seed 0: the artifact store does not take files (Unable to locate credentials); "
        "check its address and credentials" in answer.out
    )


class Client:
    """An MLflow whose artifact store cannot be read."""

    def download_artifacts(self, *_: object) -> str:
        raise StoreError("Unable to locate credentials")


def test_a_checkpoint_that_a_store_cannot_give_is_a_sentence(tmp_path: Path) -> None:
    kept = Kept("checkpoint-a", 1, 0, "0" * 64, "run")
    with pytest.raises(RecordError, match=r"of run run is not there \(Unable to locate credentials\)"):
        fetch(Client(), kept, RunFolder(tmp_path / "run"))  # type: ignore[arg-type]


def folder_at(path: Path, epochs: int) -> RunFolder:
    """A run that is being trained, with a checkpoint after so many epochs."""
    folder = RunFolder(path)
    folder.create({"epochs": 9}, dict.fromkeys(DESCRIBED, "1"))
    for epoch in range(1, epochs + 1):
        folder.append_epoch({"epoch": epoch, "time_ms": epoch, "train_loss": 1.0})
    header = json.dumps({"__metadata__": {"progress": json.dumps({"epochs": epochs, "steps": 0})}}).encode()
    folder.checkpoint.write_bytes(len(header).to_bytes(8, "little") + header)
    return folder


def deliver(tracking: Tracking, folder: RunFolder) -> Delivery:
    client = mlflow.MlflowClient()
    found = client.get_experiment_by_name("s")
    experiment = found.experiment_id if found else client.create_experiment("s")
    return tracking.deliver(str(experiment), IDENTITY, folder, is_training=True)


def test_a_checkpoint_never_takes_the_place_of_one_that_is_further(workshop: Workshop) -> None:
    tracking = Tracking()
    behind = deliver(tracking, folder_at(workshop.folder / "behind", 1))  # before the other one has sent its checkpoint
    ahead = deliver(tracking, folder_at(workshop.folder / "ahead", 5))
    ahead.confirm(is_training=True)
    ahead.keep_checkpoint()
    behind.confirm(is_training=True)
    behind.keep_checkpoint()
    (run,) = runs_of("s")
    assert json.loads(run.data.tags[TAG])["epochs"] == 5
    assert artifacts(run) == {"checkpoint-a"}
    folder_at(workshop.folder / "behind", 6)
    behind.keep_checkpoint()
    (run,) = runs_of("s")
    assert json.loads(run.data.tags[TAG])["epochs"] == 6
    assert json.loads(run.data.tags[TAG])["place"] == "checkpoint-b"


def test_a_store_that_gives_nothing_is_a_sentence(workshop: Workshop) -> None:
    workshop.write("tiny.yaml", SHORT)
    assert workshop("run", "tiny.yaml", *ONE).code == 0

    def refuse(*_: Any) -> None:
        raise StoreError("Unable to locate credentials")

    workshop.monkeypatch.setattr(mlflow.MlflowClient, "download_artifacts", refuse)
    with pytest.raises(TrackingError, match=r"does not give files \(Unable to locate credentials\)"):
        Tracking().artifact(runs_of("tiny")[0].info.run_id, "weights.safetensors", workshop.folder)


def test_a_store_without_its_library_says_what_to_install(workshop: Workshop) -> None:
    delivery = deliver(Tracking(), folder_at(workshop.folder / "here", 1))

    def refuse(*_: Any) -> None:
        raise ModuleNotFoundError("No module named 'boto3'")

    workshop.monkeypatch.setattr(mlflow.MlflowClient, "log_artifact", refuse)
    with pytest.raises(TrackingError, match=r"\(No module named 'boto3'\); install its library"):
        delivery.keep_checkpoint()


def test_a_claim_is_renewed_from_another_thread_until_it_is_taken_back(workshop: Workshop) -> None:
    delivery = deliver(Tracking(), folder_at(workshop.folder / "here", 1))
    before = delivery.claim
    delivery.renew()
    assert delivery.claim.tag == before.tag
    assert delivery.claim.claimed == before.claimed
    assert delivery.claim.beat > before.beat
    (run,) = runs_of("s")
    assert json.loads(run.data.tags[before.tag])["beat"] == delivery.claim.beat
    delivery.let_go()
    delivery.renew()
    (run,) = runs_of("s")
    assert before.tag not in run.data.tags


@pytest.mark.cluster
def test_a_run_that_another_machine_was_at_goes_on_from_its_checkpoint_when_that_machine_has_died(
    workshop: Workshop, begin: Begin
) -> None:
    options = ("--arm", "flip", "--seed", "0", "--checkpoint-seconds", "0", "--set", "epochs=20")
    label = "tiny@epochs=20"
    first = begin("run", "tiny.yaml", *options, "--checkpoints", "mlflow")
    wait_until(lambda: "epoch 2/" in first.said and any(TAG in run.data.tags for run in runs_of(label)))
    first.send(signal.SIGKILL, to_group=True)
    first.end()
    (run,) = runs_of(label)
    client, now = mlflow.MlflowClient(), time.time()
    theirs = claim(ELSEWHERE, 4711, now - 900, claimed=now - 800, beat=now)
    client.set_tag(run.info.run_id, f"{PREFIX}theirs", theirs)
    end = RunCommand._end

    def end_and_die(command: RunCommand, run_: Any, ended: Ended) -> None:
        end(command, run_, ended)
        if command.kinds.get(run_.key) == "elsewhere":
            client.delete_tag(run.info.run_id, f"{PREFIX}theirs")

    workshop.monkeypatch.setattr(RunCommand, "_end", end_and_die)
    other = workshop.folder / "other"
    other.mkdir()
    workshop.monkeypatch.chdir(other)
    answer = workshop("run", "../tiny.yaml", *options, "--checkpoints", "mlflow")
    assert answer.code == 0, answer
    assert "whose claim is older" in answer.out
    assert "goes on from the checkpoint that MLflow keeps of it" in answer.out
    assert min(starts(answer.out).values()) >= 1
    assert [run.info.status for run in runs_of(label)] == ["FINISHED"]
