"""The resume state of a run as one safetensors file: written whole or not at all, read without unpickling."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from cifar_ablate.folder import atomic


def save_weights(path: Path, model: nn.Module, metadata: Mapping[str, str]) -> None:
    """Weights and buffers of ``model`` as safetensors, with ``metadata`` in the header."""
    tensors = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    with atomic(path) as temporary:
        save_file(tensors, temporary, dict(metadata))


def save_checkpoint(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, progress: Mapping[str, Any]
) -> None:
    """Model, optimizer and ``progress`` (JSON values: epochs done, seconds so far)."""
    tensors = {f"model/{name}": value for name, value in model.state_dict().items()}
    scalars: dict[str, Any] = {}
    for index, state in optimizer.state_dict()["state"].items():
        for name, value in state.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer/{index}/{name}"] = value
            else:
                scalars[f"{index}/{name}"] = value
    metadata = {"progress": json.dumps(progress), "scalars": json.dumps(scalars)}
    with atomic(path) as temporary:
        save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, temporary, metadata)


def load_checkpoint(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any] | None:
    """Restore both in place and give back ``progress``; None, with nothing changed, where no usable file is."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  no mapping
        progress, scalars = json.loads(metadata["progress"]), json.loads(metadata["scalars"])
    except (OSError, SafetensorError, KeyError, json.JSONDecodeError):
        return None
    weights = {name.removeprefix("model/"): value for name, value in tensors.items() if name.startswith("model/")}
    if _shapes(weights) != _shapes(model.state_dict()):  # before load_state_dict, which copies whatever does fit
        return None
    model.load_state_dict(weights)
    state: dict[int, dict[str, Any]] = {}
    for name, value in [*tensors.items(), *((f"optimizer/{name}", value) for name, value in scalars.items())]:
        kind, _, rest = name.partition("/")
        if kind == "optimizer":
            index, _, key = rest.partition("/")
            state.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    # files are contiguous, weights channels_last, and fused optimizers walk through both in the order of memory
    for parameter, restored in optimizer.state.items():
        for name, value in restored.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                restored[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
    return dict(progress)


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in tensors.items()}
