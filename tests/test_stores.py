"""Artifact stores that raise what their own libraries raise."""

from __future__ import annotations

from typing import Any

import mlflow
import pytest

from cifar_ablate.errors import TrackingError
from cifar_ablate.record.mlflow_store import Tracking
from cifar_ablate.record.types import RunIdentity
from tests.comparing import runs_of
from tests.conftest import Workshop
from tests.disturbing import STUDY

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
    workshop.monkeypatch.setattr("cifar_ablate.record.mlflow_writer.FIRST_PAUSE_SECONDS", 0.01)
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
    workshop.monkeypatch.setattr("cifar_ablate.record.mlflow_writer.FIRST_PAUSE_SECONDS", 0.01)
    answer = workshop("sync")
    assert answer.code == 1
    assert (
        "not delivered: tiny baseline seed 0: the artifact store does not take files (Unable to locate credentials); "
        "check its address and credentials" in answer.out
    )


def test_a_store_that_gives_nothing_is_a_sentence(workshop: Workshop) -> None:
    workshop.write("tiny.yaml", SHORT)
    assert workshop("run", "tiny.yaml", *ONE).code == 0

    def refuse(*_: Any) -> None:
        raise StoreError("Unable to locate credentials")

    workshop.monkeypatch.setattr(mlflow.MlflowClient, "download_artifacts", refuse)
    with pytest.raises(TrackingError, match=r"does not give files \(Unable to locate credentials\)"):
        Tracking().artifact(runs_of("tiny")[0].info.run_id, "weights.safetensors", workshop.folder)


def test_a_store_without_its_library_says_what_to_install(workshop: Workshop) -> None:
    workshop.write("tiny.yaml", SHORT)
    assert workshop("run", "tiny.yaml", *ONE, "--offline").code == 0

    def refuse(*_: Any) -> None:
        raise ModuleNotFoundError("No module named 'boto3'")

    workshop.monkeypatch.setattr(mlflow.MlflowClient, "log_artifact", refuse)
    workshop.monkeypatch.setattr("cifar_ablate.record.mlflow_writer.FIRST_PAUSE_SECONDS", 0.01)
    answer = workshop("sync")
    assert answer.code == 1
    assert "(No module named 'boto3'); install its library" in answer.out
