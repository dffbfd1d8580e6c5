"""Time `cifar-ablate report` on a study of many runs: a synthetic record in a real MLflow database, whole processes.

    python -m benchmarks.report_speed --arms 40 --seeds 25 --images 10000

prints seconds for each format, as minimum and median of three processes. Accuracies are random and mean nothing;
what is measured is the way from the database to the report.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

EPOCHS = 30
FORMATS = ("json", "csv", "markdown", "html")


def make_record(num_arms: int, num_seeds: int, num_images: int) -> None:
    """Record a study in the MLflow database of the current folder, with artifacts where MLflow puts them."""
    import mlflow
    from mlflow.entities import Metric, RunTag

    from cifar_ablate.record.mlflow_store import Tracking

    tracking = Tracking()
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 10, num_images)
    experiment = tracking.open_study("large", document_of(num_arms, num_seeds))
    client = mlflow.MlflowClient()
    for arm in range(num_arms):
        for seed in range(num_seeds):
            scores = rng.normal(size=(num_images, 10)).astype(np.float16)
            scores[np.arange(num_images), labels] += 1.5
            accuracy = 100 * float((scores.argmax(1) == labels).mean())
            run = client.create_run(experiment)
            tags = {
                "ablate.arm": f"arm {arm}",
                "ablate.seed": str(seed),
                "ablate.fingerprint": f"{arm:010}{seed:010}",
                "ablate.recipe": f"{arm:020}",
                "ablate.outcome": "finished",
            }
            curve = [Metric("test_accuracy", accuracy, 0, epoch) for epoch in range(1, EPOCHS + 1)]
            last = {"train_accuracy": 99.0, "test_nll": 0.5, "test_ece": 0.05, "train_seconds": 60.0}
            metrics = [*curve, *(Metric(name, value, 0, EPOCHS) for name, value in last.items())]
            client.log_batch(run.info.run_id, metrics, tags=[RunTag(name, value) for name, value in tags.items()])
            client.set_terminated(run.info.run_id, "FINISHED")
            write_artifacts(Path(run.info.artifact_uri.removeprefix("file://")), scores, labels, accuracy)


def document_of(num_arms: int, num_seeds: int) -> dict[str, object]:
    """The study as the record keeps it."""
    recipe = {"data": {"name": "digits"}, "epochs": EPOCHS, "eval_every": 1, "batch_size": 64, "augment": {}}
    seeds = list(range(num_seeds))
    arms = [
        {
            "name": f"arm {arm}",
            "parent": "arm 0" if arm else None,
            "recipe_id": f"{arm:020}",
            "seeds": seeds,
            "precision": "fp32",
            "recipe": {**recipe, "optimizer": {"name": "sgd", "lr": 0.1 + arm}},
            "differs": [f"optimizer.lr 0.1 -> {0.1 + arm:g}"] if arm else [],
            "data": "synthetic",
            "data_digest": "0" * 32,
        }
        for arm in range(num_arms)
    ]
    return {
        "study": "large",
        "variant": "",
        "question": "How long does a report of many runs take?",
        "seeds": seeds,
        "looks": [],
        "margin": 0.2,
        "baseline": "arm 0",
        "arms": arms,
        "published": {},
    }


def write_artifacts(place: Path, scores: np.ndarray, labels: np.ndarray, accuracy: float) -> None:
    """What a run leaves behind."""
    place.mkdir(parents=True, exist_ok=True)
    np.save(place / "test_logits.npy", scores)
    np.save(place / "test_labels.npy", labels)
    lines = ["epoch,train_loss,test_accuracy,test_nll"]
    lines += [f"{epoch},0.5,{accuracy * epoch / EPOCHS},0.5" for epoch in range(1, EPOCHS + 1)]
    (place / "history.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    environment = {"python": "3.11", "device": "none", "device_kind": "cpu", "threads": 1, "git_commit": "0" * 40}
    classes = {"classes": [f"class {index}" for index in range(10)]}
    (place / "environment.json").write_text(json.dumps(environment | classes), encoding="utf-8")


def seconds_of(format: str, repeats: int = 3) -> list[float]:
    """Wall seconds of whole ``report`` processes."""
    taken = []
    for _ in range(repeats):
        begun = time.perf_counter()
        command = [sys.executable, "-m", "cifar_ablate.cli", "report", "large", "--format", format]
        done = subprocess.run(command, capture_output=True, check=True)
        taken.append(time.perf_counter() - begun)
        if not done.stdout:
            raise RuntimeError(f"the {format} report was empty")
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arms", type=int, default=40)
    parser.add_argument("--seeds", type=int, default=25)
    parser.add_argument("--formats", default=",".join(FORMATS))
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--folder", type=Path, help="keep the record there, and use it again")
    options = parser.parse_args()
    root = Path(__file__).parent.parent
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        os.environ["PYTHONPATH"] = str(root)
        os.environ.pop("MLFLOW_TRACKING_URI", None)
        os.chdir(folder)
        if not Path("mlflow.db").exists():
            make_record(options.arms, options.seeds, options.images)
        print(f"{options.arms * options.seeds:,} runs, {options.images:,} test images\n")
        print("| format | least s | median s |\n|---|---:|---:|")
        for format in options.formats.split(","):
            taken = seconds_of(format)
            print(f"| {format} | {min(taken):.1f} | {statistics.median(taken):.1f} |", flush=True)


if __name__ == "__main__":
    main()
