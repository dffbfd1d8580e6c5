"""Each contender as a real process: `cifar-ablate run` in an empty folder, or one of the loops; with what it took.

All find the same decoded images in the same place, prepared before any clock starts, and train and evaluate as often.
`cifar-ablate run` does more: its MLflow record, checkpoints, per-image predictions, a confusion matrix, and the
accuracy on all training images at the end of each run are in its time.
"""

from __future__ import annotations

import io
import json
import math
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from PIL import Image

from benchmarks.task import AUGMENT, MOMENTUM, WARMUP, WEIGHT_DECAY, Task, load, with_fewer_tests
from cifar_ablate.data import DataSet

OURS = "cifar-ablate"
LOOPS = ("plain", "fair", "timm")
ROOT = Path(__file__).resolve().parent.parent
ARM = "+cutmix"


class Sizes(NamedTuple):
    """Numbers of images."""

    train: int
    test: int


@dataclass(frozen=True)
class Outcome:
    """What one contender took for all runs of a task."""

    wall_seconds: float
    """From the start of its process to its end."""
    cold_seconds: float
    """From the start of its process to the first step of any run."""
    train_seconds: float
    """Of all runs; runs at the same time count twice."""
    eval_seconds: float
    train_seconds_per_image: float
    """Warm: without each run's first epoch where there are more."""
    eval_seconds_per_image: float
    lanes: int
    """Runs at the same time."""
    evaluates_training_images: bool
    """Once, at the end of each run."""
    test_accuracy: tuple[float, ...]
    """Percent, by seed."""
    raw: dict[str, Any]
    """Every epoch's seconds and images, and what the contender said of itself."""

    def extrapolated(self, done: Task, done_sizes: Sizes, whole: Task, sizes: Sizes) -> float:
        """Wall time of a larger task: this one's, and warm time per image x the images that are not in it.

        Runs at the same time go in waves. The accuracy on training images that `cifar-ablate` takes at a run's end is
        part of it.
        """
        trained = whole.epochs * sizes.train - done.epochs * done_sizes.train
        evaluated = whole.num_evaluations() * sizes.test - done.num_evaluations() * done_sizes.test
        if self.evaluates_training_images:
            evaluated += sizes.train - done_sizes.train
        more = trained * self.train_seconds_per_image + evaluated * self.eval_seconds_per_image
        return self.wall_seconds + more * math.ceil(whole.seeds / self.lanes)


@dataclass(frozen=True)
class Prepared:
    """A task whose images are decoded already, in a folder in which contenders work."""

    task: Task
    sizes: Sizes
    work: Path

    def measure(self, name: str, *, jobs: int, threads: int | None) -> Outcome:
        """Train the task with a contender, in an empty folder that is removed at the end."""
        with tempfile.TemporaryDirectory(dir=self.work) as folder:
            if name == OURS:
                return run_study(self, Path(folder), jobs=jobs, threads=threads)
            return run_loop(name, self, Path(folder), threads=threads)


def prepare(task: Task, work: Path) -> Prepared:
    """Decode the images once for all contenders.

    A study always evaluates all test images. So where fewer are asked for, all training images and these are packed
    into a tar, which everybody then trains on.
    """
    if task.test_images is not None:
        tar = work / f"with-{task.test_images}-test-images.tar"
        if not tar.exists():
            pack(
                with_fewer_tests(load(replace(task, images=None, test_images=None), work / "data"), task.test_images),
                tar,
            )
        task = replace(task, data=str(tar), test_images=None)
    data = load(task, work / "data")
    return Prepared(task, Sizes(len(data.train_labels), len(data.test_labels)), work)


def environment(work: Path) -> dict[str, str]:
    """Of a contender's process: this program, the prepared images, no tracking server of the user's."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**kept, "PYTHONPATH": path, "CIFAR_ABLATE_DATA": str(work / "data")}


def pack(data: DataSet, path: Path) -> None:
    """Write a data set as a tar of train/<class>/*.png and test/<class>/*.png."""
    unfinished = path.with_suffix(".part")
    with tarfile.open(unfinished, "w") as tar:
        for split, images, labels in (
            ("train", data.train_images, data.train_labels),
            ("test", data.test_images, data.test_labels),
        ):
            for index, (image, label) in enumerate(zip(images, labels, strict=True)):
                content = io.BytesIO()
                Image.fromarray(image.transpose(1, 2, 0)).save(content, "PNG", compress_level=1)
                entry = tarfile.TarInfo(f"{split}/{data.classes[label]}/{index:06d}.png")
                entry.size = content.tell()
                content.seek(0)
                tar.addfile(entry, content)
    unfinished.replace(path)


def recipe_of(task: Task) -> dict[str, Any]:
    """The task as the recipe of a study."""
    return {
        "data": task.source(),
        "train_size": task.images,
        "model": {"name": task.model, **task.model_options()},
        "epochs": task.epochs,
        "batch_size": task.batch_size,
        "optimizer": {
            "name": "sgd",
            "lr": task.lr,
            "momentum": MOMENTUM,
            "nesterov": True,
            "weight_decay": WEIGHT_DECAY,
        },
        "schedule": {"name": "linear", "warmup": WARMUP},
        "augment": {name: dict(options) for name, options in AUGMENT.items()},
        "precision": task.precision,
        "eval_every": task.eval_every,
    }


def study_text(task: Task) -> str:
    """The task as a study of one arm."""
    study = {
        "study": "benchmark",
        "question": "How long does this study take?",
        "seeds": task.seeds,
        "recipe": {name: value for name, value in recipe_of(task).items() if value is not None},
        "baseline": ARM,
        "arms": {ARM: None},
    }
    return yaml.safe_dump(study, sort_keys=False)


def run_study(prepared: Prepared, folder: Path, *, jobs: int, threads: int | None) -> Outcome:
    """`cifar-ablate run` from nothing to the last artifact in MLflow."""
    task = prepared.task
    (folder / "study.yaml").write_text(study_text(task), encoding="utf-8")
    command = [sys.executable, "-m", "cifar_ablate.cli", "run", "study.yaml", "--jobs", str(jobs)]
    if threads is not None:
        command += ["--threads", str(threads)]
    started, wall, printed = timed(command, folder, prepared.work)
    runs = recorded_runs(folder, prepared.sizes)
    if len(runs) != task.seeds or any(run["status"] != "finished" for run in runs):
        raise SystemExit(f"{OURS} did not finish its runs:\n{printed}")
    epochs = [line for run in runs for line in run["epochs"]]
    evaluated = sum(run["images_evaluated"] for run in runs)
    eval_seconds = sum(run["eval_seconds"] for run in runs)
    return Outcome(
        wall_seconds=wall,
        cold_seconds=min(line["started"] for line in epochs) - started,
        train_seconds=sum(line["train_seconds"] for line in epochs),
        eval_seconds=eval_seconds,
        train_seconds_per_image=warm_seconds_per_image(epochs),
        eval_seconds_per_image=eval_seconds / evaluated,
        lanes=min(jobs, task.seeds),
        evaluates_training_images=True,
        test_accuracy=tuple(run["test_accuracy"] for run in runs),
        raw={"runs": runs, "jobs": jobs, "command": command[1:]},
    )


def recorded_runs(folder: Path, sizes: Sizes) -> list[dict[str, Any]]:
    """What the run folders say of each run, by seed: `environment.json`, `history.jsonl` and `result.json`."""
    runs = []
    for place in (folder / "mlruns" / "runs").iterdir():
        described, result = (json.loads((place / name).read_text()) for name in ("environment.json", "result.json"))
        lines = [json.loads(line) for line in (place / "history.jsonl").read_text().splitlines()]
        epochs = []
        for line in lines:
            seconds = sizes.train / line["images_per_second"]
            epoch = {
                "epoch": line["epoch"],
                "images": sizes.train,
                "train_seconds": seconds,
                "loss": line["train_loss"],
            }
            epochs.append(epoch | {"started": line["time_ms"] / 1000 - seconds})
        num_evaluations = sum("test_accuracy" in line for line in lines)
        runs.append(
            {
                "seed": described["seed"],
                "status": result["status"],
                "epochs": epochs,
                "eval_seconds": result["eval_seconds"],
                "images_evaluated": num_evaluations * sizes.test + sizes.train,
                "test_accuracy": result["metrics"].get("test_accuracy"),
                **{name: described[name] for name in ("device", "threads", "torch", "data")},
            }
        )
    return sorted(runs, key=lambda run: run["seed"])


def run_loop(loop: str, prepared: Prepared, folder: Path, *, threads: int | None) -> Outcome:
    """A loop of `peers.py` from the start of Python to its end."""
    task = prepared.task
    command = [sys.executable, "-m", "benchmarks.peers", "--loop", loop, *options_of(task)]
    if threads is not None:
        command += ["--threads", str(threads)]
    started, wall, printed = timed(command, folder, prepared.work)
    lines = [json.loads(line) for line in printed.splitlines() if line.startswith("{")]
    epochs, total = [line for line in lines if line["event"] == "epoch"], lines[-1]
    evaluated = task.seeds * task.num_evaluations() * prepared.sizes.test
    return Outcome(
        wall_seconds=wall,
        cold_seconds=total["first_step_time"] - started,
        train_seconds=total["train_seconds"],
        eval_seconds=total["eval_seconds"],
        train_seconds_per_image=warm_seconds_per_image(epochs),
        eval_seconds_per_image=total["eval_seconds"] / evaluated,
        lanes=1,
        evaluates_training_images=False,
        test_accuracy=tuple(total["test_accuracy"]),
        raw={"epochs": epochs, "total": total, "command": command[1:]},
    )


def options_of(task: Task) -> list[str]:
    """A task as options of `peers.py`."""
    values = asdict(task) | {"data": task.source().get("path", task.data)}
    return [
        part
        for name, value in values.items()
        if value is not None
        for part in (f"--{name.replace('_', '-')}", str(value))
    ]


def warm_seconds_per_image(epochs: Sequence[dict[str, Any]]) -> float:
    """Of training: all epochs but each run's first, which also pays for what is done once; or all, if there is one."""
    warm = [line for line in epochs if line["epoch"] > 1] or list(epochs)
    return float(sum(line["train_seconds"] for line in warm) / sum(line["images"] for line in warm))


def timed(command: Sequence[str], folder: Path, work: Path) -> tuple[float, float, str]:
    """Run a command in a folder; gives the time of day when it started, its wall time, and what it printed."""
    started, begun = time.time(), time.perf_counter()
    done = subprocess.run(command, cwd=folder, env=environment(work), stdout=subprocess.PIPE, text=True, check=False)
    wall = time.perf_counter() - begun
    if done.returncode:
        raise SystemExit(f"exit code {done.returncode} of {' '.join(command)}\n{done.stdout}")
    return started, wall, done.stdout
