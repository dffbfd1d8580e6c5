"""Checkpoints in MLflow's artifact store: a machine that has never seen a run goes on with it."""

from __future__ import annotations

import shutil
import signal
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
import pytest

from cifar_ablate.folder import RunFolder
from cifar_ablate.tracking.checkpoints import upload
from tests.comparing import bits, leftovers, runs_of, snapshot
from tests.disturbing import STUDY, Command, starts, wait_until
from tests.test_mlflow_server import mlflow_ui
from tests.tuning import write

if TYPE_CHECKING:
    from tests.conftest import Workshop

__all__ = ["mlflow_ui"]
NUM_EPOCHS = 40
LABEL = f"tiny@epochs={NUM_EPOCHS}"
RUN = ("run", "tiny.yaml", "--arm", "flip", "--seed", "0", "--checkpoint-seconds", "0", "--set", f"epochs={NUM_EPOCHS}")
KEEP = ("--checkpoints", "mlflow")


class Machine:
    """A folder of its own, as on another machine; what is shared is MLflow's server."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.commands: list[Command] = []
        folder.mkdir()
        (folder / "tiny.yaml").write_text(textwrap.dedent(STUDY), encoding="utf-8")

    def run(self, *arguments: str, **options: Any) -> Command:
        self.commands.append(Command(self.folder, *RUN, *arguments, **options))
        return self.commands[-1]


@pytest.fixture
def machines(workshop: Workshop, mlflow_ui: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Machine]]:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_ui)
    three = [Machine(workshop.folder / name) for name in ("one", "two", "three")]
    yield three
    for machine in three:
        for command in machine.commands:
            command.clear_away()


def kept() -> list[str]:
    """Checkpoints in MLflow, of all runs of the study."""
    client = mlflow.MlflowClient()
    return [file.path for run in runs_of(LABEL) for file in client.list_artifacts(run.info.run_id) if file.is_dir]


def without_early_weights(folder: Path) -> Any:
    """What trainings came to; weights of epochs that another machine trained are in MLflow alone."""
    return [
        (status, epochs, metrics, curve, {name: bits for name, bits in files.items() if "epoch" not in name})
        for status, epochs, metrics, curve, files in bits(folder).values()
    ]


@pytest.mark.cluster
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT], ids=["kill -9", "Ctrl-C"])
def test_another_machine_goes_on_with_a_run_from_the_checkpoint_in_mlflow(machines: list[Machine], number: int) -> None:
    one, two, three = machines
    alone = three.run("--offline")
    assert alone.end() == 0, alone.said
    first = one.run(*KEEP)
    first.wait_for("epoch 2/")
    wait_until(lambda: any("ablate.checkpoint" in run.data.tags for run in runs_of(LABEL)))
    first.send(number, to_group=True)
    first.end()
    reached = first.said.count("  loss ")
    shutil.rmtree(one.folder)  # the machine is gone, with its disk
    assert kept()
    second = two.run(*KEEP)
    assert second.end() == 0, second.said
    assert "goes on from the checkpoint that MLflow keeps of it" in second.said
    (begun,) = starts(second.said).values()
    assert begun >= (reached if number == signal.SIGINT else 1)
    assert without_early_weights(two.folder) == without_early_weights(three.folder)
    assert leftovers(two.folder) == []
    assert kept() == []
    ((_, status, tags, _, metrics, artifacts),) = snapshot(LABEL)
    weights = {name for name, _ in artifacts if name.startswith("weights-epoch-")}
    assert weights == {f"weights-epoch-{epoch:04d}.safetensors" for epoch in range(2, NUM_EPOCHS + 1, 2)}
    assert status == "FINISHED"
    assert "ablate.checkpoint" not in tags
    assert [step for step, _ in metrics["train_loss"]] == list(range(1, NUM_EPOCHS + 1))


@pytest.mark.cluster
def test_a_checkpoint_that_was_altered_on_its_way_is_told_and_the_run_starts_over(machines: list[Machine]) -> None:
    one, two, three = machines
    first = one.run(*KEEP)
    wait_until(lambda: "epoch 2/" in first.said and bool(kept()))
    first.send(signal.SIGINT, to_group=True)
    assert first.end() == 130
    store = one.folder.parent / "mlartifacts"
    files = [*store.rglob("checkpoint.safetensors")]
    assert files
    for file in files:
        file.write_bytes(file.read_bytes()[:-1] + b"?")
    second = two.run(*KEEP)
    assert second.end() == 0, second.said
    assert "was altered; it goes on from what is here" in second.said
    assert three.run("--offline").end() == 0
    assert bits(two.folder) == bits(three.folder)


def test_another_place_for_checkpoints_is_refused(workshop: Workshop) -> None:
    workshop.write("tiny.yaml", STUDY)
    answer = workshop("run", "tiny.yaml", "--checkpoints", "s3")
    assert answer.code == 2
    assert answer.err == "--checkpoints s3: write folder, or mlflow to let any machine go on with a run\n"


@pytest.mark.slow
def test_pruned_trials_leave_no_checkpoints_in_mlflow(
    workshop: Workshop, mlflow_ui: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_ui)
    pruner = ("pruner: none", "pruner: {name: median, startup_trials: 1, warmup: 0}")
    write(workshop, pruner, ("trials: 4", "trials: 8"), ("epochs: 3", "epochs: 6"))
    options = ("--checkpoints", "mlflow", "--checkpoint-seconds", "0")
    answer = workshop("tune", "small.yaml", *options)
    assert answer.code == 0, answer
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name("small/tuning")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    assert "pruned" in {run.data.tags.get("ablate.outcome") for run in runs}
    assert not [run for run in runs if "ablate.checkpoint" in run.data.tags]
    assert not [file.path for run in runs for file in client.list_artifacts(run.info.run_id) if file.is_dir]


@pytest.mark.parametrize("kind", ["a link", "cut short", "altered", "empty"])
def test_a_checkpoint_that_no_machine_could_go_on_from_is_not_sent_to_mlflow(tmp_path: Path, kind: str) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    if kind == "a link":
        (tmp_path / "key").write_text("secret")
        folder.checkpoint.symlink_to(tmp_path / "key")
    else:
        header = b'{"__metadata__": {"progress": "{\\"epochs\\": 1, \\"steps\\": 0}"}}'
        whole = len(header).to_bytes(8, "little") + header
        folder.checkpoint.write_bytes(
            {"cut short": whole[:40], "altered": whole.replace(b"1", b"}"), "empty": b""}[kind]
        )
    sent: list[str] = []

    class Client:
        def log_artifact(self, run_id: str, path: str, place: str) -> None:
            sent.append(path)

    assert upload(Client(), "run", folder, None) is None  # type: ignore[arg-type]
    assert sent == []


def test_checkpoints_in_mlflow_and_offline_exclude_each_other(workshop: Workshop) -> None:
    workshop.write("tiny.yaml", STUDY)
    answer = workshop("run", "tiny.yaml", "--checkpoints", "mlflow", "--offline")
    assert answer.code == 2
    assert answer.err == "--checkpoints mlflow and --offline: give one of the two\n"
