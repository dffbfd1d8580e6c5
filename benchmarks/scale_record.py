"""A folder in which so many runs were trained and recorded, made without training: for ``benchmarks.scale``.

One run is delivered by the program itself, from a run folder written by the program's own classes. What that leaves in
MLflow's database (rows of runs, tags, parameters, metrics, latest metrics) is copied for every other run, with its own
id, arm, seed, fingerprint, accuracy and artifact folder, in one transaction: 10,000 runs in half a minute, where
delivering them takes an hour. Accuracies are drawn at random and mean nothing.
"""

from __future__ import annotations

import json
import os
import sqlite3
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

EPOCHS = 30
STUDY = """\
study: study-{number:03d}
question: How long does it take to look at many runs?
seeds: {seeds}
recipe:
  data: digits
  model: {{name: resnet18-compact, width: 2}}
  epochs: {epochs}
  batch_size: {batch}
  optimizer: {{name: sgd, lr: 0.1}}
arms:
  baseline:
{arms}"""


@dataclass(frozen=True)
class Shape:
    """Studies of so many arms and seeds; the last one may have fewer seeds."""

    num_runs: int
    num_arms: int
    num_seeds: int

    def studies(self) -> Iterator[str]:
        """YAML of each study."""
        of_each = self.num_arms * self.num_seeds
        arms = "".join(
            f"  arm {arm}: {{optimizer: {{lr: {0.1 + arm / 1000:.4f}}}}}\n" for arm in range(1, self.num_arms)
        )
        for number, start in enumerate(range(0, self.num_runs, of_each)):
            seeds = min(of_each, self.num_runs - start) // self.num_arms
            yield STUDY.format(number=number, seeds=seeds, epochs=EPOCHS, batch=32 + number, arms=arms)


def make_folder(folder: Path, shape: Shape) -> list[str]:
    """Fill an empty folder, which becomes the current one; gives the names of the study files."""
    from cifar_ablate.device import find_device
    from cifar_ablate.plan import load_all_data, make_plan
    from cifar_ablate.record.mlflow_store import Tracking
    from cifar_ablate.spec.load import load_studies

    folder.mkdir(parents=True, exist_ok=True)
    os.chdir(folder)
    files = []
    for number, text in enumerate(shape.studies()):
        files.append(f"study-{number:03d}.yaml")
        Path(files[-1]).write_text(text, encoding="utf-8")
    studies = load_studies([Path(file) for file in files])
    data = load_all_data(studies, lambda *_: None)
    images = next(iter(data.values()))
    tracking = Tracking()
    writer: Writer | None = None
    database = sqlite3.connect("mlflow.db")
    for study in studies:
        plan = make_plan(study, data, find_device("cpu"))
        experiment = tracking.open_study(study.label, plan.document)
        for run in plan.runs:
            if writer is None:
                writer = Writer(run, images, tracking, experiment, database)
            else:
                writer.add(run, experiment)
        database.commit()
    return files


class Writer:
    """Writes run folders, and copies the rows that the first run's delivery has left."""

    def __init__(self, run: Any, images: Any, tracking: Any, experiment: str, database: sqlite3.Connection) -> None:
        self.images, self.database = images, database
        self.rng = np.random.default_rng(0)
        folder, _ = self.write_folder(run)
        upload = tracking.upload(experiment, run, folder)
        upload.update("finished")
        self.run_id = upload.run_id
        self.place = tracking.client.get_run(self.run_id).info.artifact_uri.removeprefix("file://")
        self.experiment = experiment
        self.rows = {table: self._rows(table) for table in ("runs", "tags", "params", "metrics", "latest_metrics")}

    def _rows(self, table: str) -> tuple[list[str], list[tuple[Any, ...]]]:
        found = self.database.execute(f"select * from {table} where run_uuid = ?", (self.run_id,))
        return [column[0] for column in found.description], found.fetchall()

    def write_folder(self, run: Any) -> tuple[Any, float]:
        labels, recipe = self.images.test_labels, run.recipe.as_dict()
        return write_run(run, recipe, labels, self.images.describe(), self.images.digest, self.rng)

    def add(self, run: Any, experiment: str) -> None:
        """One more run: its folder, its artifacts (links to the folder's files), its rows."""
        folder, accuracy = self.write_folder(run)
        run_id = uuid.UUID(bytes=self.rng.bytes(16)).hex
        place = self.place.replace(f"/{self.experiment}/{self.run_id}/", f"/{experiment}/{run_id}/")
        Path(place).mkdir(parents=True)
        for path in folder.artifacts():
            os.link(path, Path(place) / path.name)
        name = f"{run.arm} seed {run.seed}"
        tags = {
            "ablate.study": run.study,
            "ablate.arm": run.arm,
            "ablate.seed": str(run.seed),
            "ablate.fingerprint": run.fingerprint,
            "ablate.recipe": run.recipe_id,
            "mlflow.runName": name,
        }
        for table, (columns, rows) in self.rows.items():
            changed = []
            for row in rows:
                values = dict(zip(columns, row, strict=True)) | {"run_uuid": run_id}
                if table == "runs":
                    values |= {"experiment_id": int(experiment), "artifact_uri": f"file://{place}", "name": name}
                elif table == "tags":
                    values["value"] = tags.get(values["key"], values["value"])
                elif table == "params":
                    seeds = {"arm": run.arm, "seed": str(run.seed)}
                    values["value"] = seeds.get(values["key"], values["value"])
                elif values["key"] == "test_accuracy" and values["step"] == EPOCHS:
                    values["value"] = accuracy
                changed.append(tuple(values[column] for column in columns))
            marks = ", ".join("?" * len(columns))
            self.database.executemany(f"insert into {table} ({', '.join(columns)}) values ({marks})", changed)


def write_run(
    run: Any, recipe: dict[str, Any], labels: np.ndarray, data: str, digest: str, rng: np.random.Generator
) -> tuple[Any, float]:
    """A run folder as training leaves it, in the current folder, and its test accuracy."""
    from cifar_ablate.record.folder import RunFolder, RunResult

    folder = RunFolder(Path("mlruns") / "runs" / run.fingerprint)
    folder.path.mkdir(parents=True)
    scores = rng.normal(size=(len(labels), 10)).astype(np.float16)
    scores[np.arange(len(labels)), labels] += 1.5
    accuracy = 100 * float((scores.argmax(1) == labels).mean())
    np.save(folder.logits, scores)
    np.save(folder.labels, labels)
    environment = {
        "classes": [str(digit) for digit in range(10)],
        "data": data,
        "data_digest": digest,
        "device": "none",
        "device_kind": "cpu",
        "threads": 1,
        "torch": "0",
        "python": "3.11",
        "git_commit": "0" * 40,
        "git_dirty": False,
    }
    (folder.path / "environment.json").write_text(json.dumps(environment, indent=1), encoding="utf-8")
    (folder.path / "recipe.yaml").write_text(json.dumps(recipe), encoding="utf-8")
    (folder.path / "history.jsonl").write_text("\n".join(map(json.dumps, history(accuracy))) + "\n", "utf-8")
    lines = [f"{line['epoch']},{line['train_loss']},{line['test_accuracy']},0.5" for line in history(accuracy)]
    text = "\n".join(["epoch,train_loss,test_accuracy,test_nll", *lines])
    (folder.path / "history.csv").write_text(text + "\n", encoding="utf-8")
    metrics = {"test_accuracy": accuracy, "train_accuracy": 99.0, "test_nll": 0.5, "test_ece": 0.05}
    result = RunResult("finished", EPOCHS, 60.0, 1.0, metrics)
    (folder.path / "result.json").write_text(json.dumps(vars(result)), encoding="utf-8")
    return folder, accuracy


def history(accuracy: float) -> list[dict[str, Any]]:
    """Lines of thirty epochs, with the metrics that a training writes."""
    curves = {"train_loss": 0.5, "running_accuracy": 99.0, "test_nll": 0.5, "lr": 0.1, "images_per_second": 900.0}
    return [
        {"epoch": epoch, "time_ms": 1_700_000_000_000 + epoch, **curves, "test_accuracy": accuracy * epoch / EPOCHS}
        for epoch in range(1, EPOCHS + 1)
    ]
