"""The server of docs/deploy.md, made by its own commands: two workers on PostgreSQL, a backup, and what is restored."""

from __future__ import annotations

import os
import re
import shutil
import textwrap
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import pytest
from optuna.trial import TrialState

from cifar_ablate.record.folder import RunFolder
from cifar_ablate.tuning.storage import open_storage
from tests.comparing import bits, runs_of, snapshot
from tests.conftest import Measured, Workshop
from tests.deploying import PAGE, Deployment, private_postgresql
from tests.test_mlflow_away import Command, recorded
from tests.tuning import STUDY as TUNED
from tests.tuning import studies

pytestmark = pytest.mark.cluster

STUDY = """
    study: shared
    question: Do two machines train a study once?
    seeds: 2
    recipe:
      data: digits
      train_size: 200
      model: {name: resnet18-compact, width: 4}
      epochs: 30
      batch_size: 50
      optimizer: {name: sgd, lr: 0.05, momentum: 0.9}
    arms: {baseline: null, flip: {augment: {hflip: {p: 0.5}}}}
"""
NUM_RUNS, NUM_TRIALS = 4, 8
FINITE = ("{low: 0.001, high: 0.5, log: true}", "{low: 0.001, high: 0.05, log: true}")


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """PostgreSQL, made by the page's first block; the server is started by the first test."""
    with private_postgresql() as (place, port):
        deployment = Deployment(tmp_path_factory.mktemp("srv"), place, port)
        deployment.do("databases", **deployment.superuser)
        try:
            yield deployment
        finally:
            deployment.stop()


def side_by_side(folders: list[Path], *arguments: str, **environment: str) -> str:
    """The same command in each folder at the same moment; gives what they said."""
    commands = [Command(folder, *arguments, **environment) for folder in folders]
    try:
        codes = [command.end(timeout=400) for command in commands]
    finally:
        for command in commands:
            command.kill()
    text = "\n---\n".join(command.text for command in commands)
    assert codes == [0] * len(folders), text
    assert "Traceback" not in text
    return text


def finished(folder: Path) -> set[str]:
    """Fingerprints of the runs that were trained to their end in this folder."""
    return {path.name for path in (folder / "mlruns" / "runs").iterdir() if RunFolder(path).result()}


def tables(report: str) -> list[str]:
    """The tables of a report, without how long its runs took and what MLflow calls them."""
    lines = [line for line in report.splitlines() if line.startswith("|")]
    return [re.sub(r"\b[0-9a-f]{32}\b", "ID", re.sub(r"[\d.,]+ (s|min|h) \|", "TIME |", line)) for line in lines]


def test_two_workers_and_a_backup_on_the_server_that_the_page_sets_up(
    deployed: Deployment, workshop: Workshop, measured: Measured
) -> None:
    measured("seconds until the server answers, its tables made", f"{deployed.start():.1f}")
    measured("memory of the server with two workers, MB", f"{deployed.megabytes():.0f}")
    empty = int(deployed.sql("SELECT pg_database_size('mlflow')"))
    environment = deployed.variables()
    folders = [workshop.folder / name for name in ("one", "other")]
    for folder in folders:
        folder.mkdir()
        (folder / "shared.yaml").write_text(textwrap.dedent(STUDY))
        tuned = textwrap.dedent(TUNED).replace(*FINITE)
        (folder / "small.yaml").write_text(tuned)

    said = side_by_side(folders, "run", "shared.yaml", **environment)
    assert "failed" not in said
    for name, value in environment.items():
        workshop.monkeypatch.setenv(name, value)
    check_study(workshop, folders)
    full = int(deployed.sql("SELECT pg_database_size('mlflow')"))
    measured("bytes in PostgreSQL per run of 30 epochs", f"{(full - empty) / NUM_RUNS:,.0f}")
    measure_artifacts(deployed, measured)

    side_by_side(folders, "tune", "small.yaml", "--trials", str(NUM_TRIALS), **environment)
    check_tuning(environment["OPTUNA_STORAGE"])
    measured("bytes of a fresh database of MLflow", f"{empty:,}")
    measured(
        "bytes of Optuna's database with 8 trials", f"{int(deployed.sql('SELECT pg_database_size($$optuna$$)')):,}"
    )
    measured("memory of the server after all that, MB", f"{deployed.megabytes():.0f}")

    check_backup(deployed, workshop, environment)
    deployed.stop()
    deployed.do("upgrade")
    measured("seconds until the server answers again", f"{deployed.start():.1f}")
    assert len(runs_of("shared")) == NUM_RUNS


def check_study(workshop: Workshop, folders: list[Path]) -> None:
    """Each run once, all artifacts to be had, and everything as one machine alone records it."""
    one, other = (finished(folder) for folder in folders)
    assert not one & other
    assert len(one | other) == NUM_RUNS
    assert {run.info.status for run in runs_of("shared")} == {"FINISHED"}
    assert len(runs_of("shared")) == NUM_RUNS
    client = mlflow.MlflowClient()
    for run in runs_of("shared"):
        assert run.info.artifact_uri.startswith("mlflow-artifacts:")
        folder = next(f for f in folders if run.data.tags["ablate.fingerprint"] in finished(f))
        trained = folder / "mlruns" / "runs" / run.data.tags["ablate.fingerprint"]
        into = workshop.folder / run.info.run_id
        into.mkdir()
        for artifact in client.list_artifacts(run.info.run_id):
            got = Path(
                client.download_artifacts(run.info.run_id, artifact.path, str(workshop.folder / run.info.run_id))
            )
            assert got.read_bytes() == (trained / artifact.path).read_bytes(), artifact.path
    together = recorded("shared")

    report = elsewhere(workshop, "third", "report")
    alone = workshop.folder / "alone"
    alone.mkdir()
    (alone / "shared.yaml").write_text(textwrap.dedent(STUDY))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{alone / 'mlflow.db'}")
        workshop.monkeypatch.chdir(alone)
        assert workshop("run", "shared.yaml").code == 0
        assert recorded("shared") == together
        assert tables(workshop("report").out) == tables(report)
    assert "| **baseline** |" in report
    here: dict[str, Any] = {}
    for folder in folders:
        for path in (folder / "mlruns" / "runs").iterdir():
            if not RunFolder(path).result():  # begun at one moment, and left to the other
                shutil.rmtree(path)
        here |= bits(folder)
    assert here == bits(alone)


def elsewhere(workshop: Workshop, name: str, *arguments: str) -> str:
    """What a command says in a folder where nothing was trained."""
    folder = workshop.folder / name
    folder.mkdir(exist_ok=True)
    workshop.monkeypatch.chdir(folder)
    answer = workshop(*arguments)
    assert answer.code == 0, answer
    return answer.out


def check_tuning(url: str) -> None:
    with open_storage(url) as storage:
        ended = [one for one in studies(storage)["baseline"].get_trials() if "lost" not in one.user_attrs]
    assert [one.state for one in ended] == [TrialState.COMPLETE] * NUM_TRIALS
    assert len({one.user_attrs["owner"] for one in ended}) == 2  # both took part
    nested = [run for run in runs_of("small/tuning") if run.data.tags.get("ablate.outcome") == "finished"]
    assert sorted(int(run.data.tags["ablate.trial"]) for run in nested) == [one.number for one in ended]


def measure_artifacts(deployed: Deployment, measured: Measured) -> None:
    """Bytes on the server's disk; weights and predictions grow with network and test set, the others do not."""
    sizes: dict[str, list[int]] = {}
    for path in (deployed.home / "artifacts").rglob("*"):
        if path.is_file():
            sizes.setdefault(re.sub(r"\d{4}", "N", path.name), []).append(path.stat().st_size)
    small = sum(sum(of) for name, of in sizes.items() if not name.endswith((".npy", ".safetensors")))
    measured("bytes of artifacts per run but weights and predictions", f"{small / NUM_RUNS:,.0f}")
    measured("bytes of artifacts per run of this test", f"{sum(sum(of) for of in sizes.values()) / NUM_RUNS:,.0f}")


def check_backup(deployed: Deployment, workshop: Workshop, environment: dict[str, str]) -> None:
    """Everything is dropped, and comes back as it was."""
    before = {label: snapshot(label) for label in ("shared", "small/tuning")}
    report = elsewhere(workshop, "third", "report")
    deployed.do("backup")
    deployed.stop()
    (deployed.home / "artifacts" / "of later").mkdir()
    for name in ("mlflow", "optuna"):
        deployed.sql(f"DROP DATABASE {name}")
    deployed.do("restore", **{name: deployed.superuser[name] for name in ("PGHOST", "PGUSER")})
    deployed.do("artifacts")
    assert not (deployed.home / "artifacts" / "of later").exists()
    deployed.start()
    assert {label: snapshot(label) for label in before} == before
    check_tuning(environment["OPTUNA_STORAGE"])
    assert elsewhere(workshop, "fourth", "report") == report  # it reads the artifacts, too
    again = elsewhere(workshop, "one", "run", "shared.yaml")
    assert f"0 to train, {NUM_RUNS} done before" in again


def test_the_server_answers_under_its_own_names_alone(deployed: Deployment) -> None:
    if deployed.process is None:
        deployed.start()
    with urllib.request.urlopen(f"{deployed.uri}/api/2.0/mlflow/experiments/search?max_results=1", timeout=10):
        pass
    strange = urllib.request.Request(
        f"{deployed.uri}/api/2.0/mlflow/experiments/search?max_results=1", headers={"Host": "elsewhere.example"}
    )
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(strange, timeout=10)
    assert refused.value.code == 403


def test_postgresql_asks_for_the_password(deployed: Deployment) -> None:
    from cifar_ablate.errors import TrackingError

    url = deployed.variables()["OPTUNA_STORAGE"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PGPASSFILE", os.devnull)
        with pytest.raises(TrackingError, match="no password supplied"), open_storage(url):
            pass


def test_every_command_of_the_page_is_run_by_these_tests() -> None:
    """But for the dashboard, which test_tuning_record starts."""
    named = set(re.findall(r"^```bash\n# (\w+)$", PAGE.read_text(encoding="utf-8"), re.MULTILINE))
    assert len(re.findall(r"^```bash$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)) == len(named)
    assert named == {"databases", "server", "dashboard", "worker", "backup", "restore", "artifacts", "upgrade"}
