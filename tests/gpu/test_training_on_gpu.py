"""What only a CUDA device can show: the same draws as on a CPU, equal seeds, and a network that learns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from cifar_ablate.data import load_data
from cifar_ablate.device import find_device
from cifar_ablate.record.folder import RunFolder, RunResult
from cifar_ablate.spec.schema import Recipe
from cifar_ablate.training.batches import plan_epoch, to_device
from cifar_ablate.training.events import finish
from cifar_ablate.training.state import set_up
from cifar_ablate.training.train import train_run

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device here"),
]

RECIPE: dict[str, Any] = {
    "data": "digits",
    "model": {"name": "resnet18-compact", "width": 8},
    "epochs": 5,
    "batch_size": 64,
    "optimizer": {"name": "sgd", "lr": 0.05, "momentum": 0.9, "nesterov": True},
    "schedule": "linear",
    "augment": {"crop": {}, "affine": {"p": 0.2}, "cutout": {}, "erasing": {}, "mixup": {}, "cutmix": {}},
}


def trained(folder: Path, precision: str = "fp32") -> RunResult:
    run_folder = RunFolder(folder)
    run_folder.create(RECIPE, {})
    data = to_device(load_data("digits", {}), torch.device("cuda"))
    recipe = Recipe.model_validate(RECIPE)
    return finish(train_run(recipe, 0, data, precision=precision, folder=run_folder))


def test_the_augmented_batch_is_that_of_a_cpu() -> None:
    batches = []
    for name in ("cpu", "cuda"):
        device = torch.device(name)
        data = to_device(load_data("digits", {}), device)
        state = set_up(Recipe.model_validate(RECIPE), 0, data, "fp32")
        epoch = plan_epoch(0, 0, data)
        draws = state.pipeline.draw_epoch(epoch, device)
        rows = torch.from_numpy(epoch.order).to(device)[:64]
        batches.append(state.pipeline(data.train_images[rows], data.train_labels[rows], draws, 0))
    torch.testing.assert_close(batches[0].images, batches[1].images.cpu(), rtol=0, atol=1e-4)
    torch.testing.assert_close(batches[0].targets, batches[1].targets.cpu(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_narrow_network_learns_digits(tmp_path: Path, precision: str) -> None:
    assert trained(tmp_path / "run", precision).metrics["test_accuracy"] > 60


def test_a_cuda_device_is_found_and_named() -> None:
    device = find_device()
    assert device.kind == "cuda"
    assert device.name
