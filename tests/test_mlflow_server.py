"""What plain ``mlflow ui`` shows, and a tracking server as the record, both as real processes on this machine."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest

from tests.conftest import Workshop

pytestmark = pytest.mark.slow

STUDY = """
    study: served
    question: Does a server change anything?
    seeds: 1
    recipe:
      data: digits
      train_size: 100
      model: {name: resnet18-compact, width: 4}
      epochs: 2
      batch_size: 50
      optimizer: {name: sgd, lr: 0.05, momentum: 0.9}
    arms: {baseline: null, flip: {augment: {hflip: {p: 0.5}}}}
"""


@pytest.fixture
def mlflow_ui(workshop: Workshop) -> Iterator[str]:
    """``mlflow ui`` without flags but a port (and one worker), in the folder of the test; gives its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
    with (workshop.folder / "ui.log").open("wb") as log:
        server = subprocess.Popen(
            [str(Path(sys.executable).parent / "mlflow"), "ui", "--port", str(port), "--workers", "1"],
            cwd=workshop.folder,
            env=environment | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"},
            stdout=log,
            stderr=log,
            start_new_session=True,  # it starts processes of its own: the whole group is ended
        )
    try:
        address = f"http://127.0.0.1:{port}"
        _wait_for(f"{address}/health", server)
        yield address
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def _wait_for(address: str, server: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        assert server.poll() is None, "mlflow ui ended by itself; see ui.log"
        try:
            with urllib.request.urlopen(address, timeout=2):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.3)
    pytest.fail("mlflow ui did not answer within two minutes")


def test_plain_mlflow_ui_shows_what_run_recorded_and_takes_another_study_as_a_server(
    workshop: Workshop, mlflow_ui: str
) -> None:
    workshop.write("served.yaml", STUDY)
    workshop.monkeypatch.delenv("MLFLOW_TRACKING_URI")
    local = workshop.process("run", "served.yaml")  # into mlflow.db of this folder, as a user without a server does
    assert local.code == 0, local.err
    workshop.monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_ui)
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name("served")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    assert {run.data.tags["ablate.arm"] for run in runs} == {"baseline", "flip"}
    assert [point.step for point in client.get_metric_history(runs[0].info.run_id, "train_loss")] == [1, 2]

    (workshop.folder / "elsewhere").mkdir()
    workshop.monkeypatch.chdir(workshop.folder / "elsewhere")
    again = workshop("run", "../served.yaml")
    assert "0 to train, 2 done before" in again.out, again.err
    assert workshop("run", "../served.yaml", "--set", "epochs=1").code == 0
    report = workshop("report")
    assert "## served\n" in report.out, report.err
    assert "## served@epochs=1\n" in report.out
    assert workshop("export", "served@epochs=1", "record").code == 0
    assert Path("record/predictions.npz").exists()
