"""Training never chooses by the test set: with another test set everything but the test metrics is the same."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file

from cifar_ablate.data import load_data
from cifar_ablate.runner.kept_plans import kept_plans
from tests.conftest import Workshop

STUDY = """
    study: {name}
    question: Does the test set decide anything?
    seeds: 2
    recipe:
      data: {{name: image_folder, path: {name}}}
      model: {{name: resnet18-compact, width: 4}}
      epochs: 4
      batch_size: 32
      eval_every: 1
      checkpoint_every: 2
      optimizer: {{name: sgd, lr: 0.05, momentum: 0.9}}
      schedule: cosine
      ema: {{decay: 0.9}}
    arms:
      baseline:
      augmented: {{augment: {{hflip: {{}}, crop: {{}}, mixup: {{}}}}, flip_averaging: true}}
"""
OF_TEST = {"test_accuracy", "test_nll", "test_ece"}
OF_TIME = {"time_ms", "images_per_second"}


def write_images(folder: Path, images: np.ndarray[Any, Any], labels: np.ndarray[Any, Any]) -> None:
    """One PNG to an image, ``folder/<class>/<number>.png``; images are uint8 [N, 3, H, W]."""
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        place = folder / f"digit-{label}"
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.transpose(1, 2, 0)).save(place / f"{number}.png")


def trained(name: str) -> dict[tuple[str, int], dict[str, Any]]:
    """What each run of a study left behind, by arm and seed."""
    (plan,) = [plan for plan in kept_plans() if plan.label == name]
    found = {}
    for run in plan.runs:
        folder = Path("mlruns/runs") / run.fingerprint
        lines = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
        found[run.arm, run.seed] = {
            "weights": {path.name: load_file(path) for path in folder.glob("weights*.safetensors")},
            "history": [without(line, OF_TEST | OF_TIME) for line in lines],
            "result": json.loads((folder / "result.json").read_text()),
        }
    return found


def without(values: Mapping[str, Any], names: set[str]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in names}


def test_another_test_set_changes_the_test_metrics_and_nothing_else(workshop: Workshop) -> None:
    data = load_data("digits", {}, train_size=200)
    shuffled = np.random.default_rng(0)
    sets = {
        "real": (data.test_images[:60], data.test_labels[:60]),
        "other": (255 - data.test_images[60:120], shuffled.permutation(data.test_labels[60:120])),
    }
    for name, (images, labels) in sets.items():
        write_images(workshop.folder / name / "train", data.train_images, data.train_labels)
        write_images(workshop.folder / name / "test", images, labels)
        workshop.write(f"{name}.yaml", STUDY.format(name=name))
        assert workshop("run", f"{name}.yaml", "--offline").code == 0
    one, other = trained("real"), trained("other")
    assert one.keys() == other.keys()
    for key, run in one.items():
        twin = other[key]
        names = {"weights.safetensors", "weights-epoch-0002.safetensors", "weights-epoch-0004.safetensors"}
        assert run["weights"].keys() == twin["weights"].keys() == names
        for file, tensors in run["weights"].items():
            assert all(torch.equal(tensor, twin["weights"][file][name]) for name, tensor in tensors.items())
        assert len(run["history"]) == 4
        assert run["history"] == twin["history"]
        assert run["result"]["epochs"] == twin["result"]["epochs"] == 4
        ours, theirs = run["result"]["metrics"], twin["result"]["metrics"]
        assert without(ours, OF_TEST) == without(theirs, OF_TEST)
        assert "train_accuracy" in without(ours, OF_TEST)
        assert all(ours[name] != theirs[name] for name in ("test_nll", "test_ece"))
