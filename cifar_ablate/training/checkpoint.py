"""The resume state of a run: two generations of one file, each whole, checksummed, and read without unpickling."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from cifar_ablate.errors import RecordError
from cifar_ablate.folder import atomic

CHECKSUM = "sha256"
"""Of names, types, shapes, values and metadata: in the header of every file that is written here."""


@dataclass(frozen=True)
class Progress:
    """How far a training has come, beside its network and optimizer."""

    values: Mapping[str, Any]
    """JSON values: epochs and steps done, seconds so far."""
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    """Sums of the epoch that is not done yet, and the state of its random generators."""


def save_weights(path: Path, model: nn.Module, metadata: Mapping[str, str]) -> None:
    """Weights and buffers of ``model`` as safetensors, with ``metadata`` and a checksum of all in the header."""
    tensors = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    with atomic(path) as temporary:
        _write(temporary, tensors, {**metadata, CHECKSUM: _digest(tensors, metadata)})


def load_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Weights by name and the metadata of a file that ``save_weights`` wrote; raises RecordError.

    Files written before weights had a checksum have none in their metadata, and are taken as they are.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  no mapping
    except FileNotFoundError:
        raise RecordError(f"there are no weights at {path}; the same `cifar-ablate run` makes them again") from None
    except (OSError, SafetensorError, ValueError) as error:
        raise RecordError(f"{path} is no whole file of weights ({error}); fetch it or train it again") from None
    checked = {name: value for name, value in metadata.items() if name != CHECKSUM}
    if CHECKSUM in metadata and _digest(tensors, checked) != metadata[CHECKSUM]:
        raise RecordError(f"{path} was altered after it was written (SHA-256); fetch it or train it again")
    return tensors, metadata


def save_checkpoint(
    newest: Path, before: Path, model: nn.Module, optimizer: torch.optim.Optimizer, progress: Progress
) -> None:
    """Write the state to ``newest``; what was there becomes ``before``, and what was there is dropped.

    Raises OutputError where the disk refuses; both older generations are then as they were.
    """
    tensors = {f"model/{name}": value for name, value in model.state_dict().items()}
    tensors |= {f"progress/{name}": value for name, value in progress.tensors.items()}
    scalars: dict[str, Any] = {}
    for index, state in optimizer.state_dict()["state"].items():
        for name, value in state.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer/{index}/{name}"] = value
            else:
                scalars[f"{index}/{name}"] = value
    tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    metadata = {"progress": json.dumps(dict(progress.values)), "scalars": json.dumps(scalars)}
    with atomic(newest, before=before) as temporary:
        _write(temporary, tensors, metadata | {CHECKSUM: _digest(tensors, metadata)})


def load_checkpoint(
    paths: Sequence[Path], model: nn.Module, optimizer: torch.optim.Optimizer, *, max_epochs: int
) -> tuple[Progress | None, list[Path]]:
    """Restore both in place from the first of ``paths`` that is whole and fits.

    A checkpoint that has more than ``max_epochs`` epochs does not: the history must have a line for each.
    Gives how far the training had come (None: no usable file, and nothing is changed), and the files passed over.
    """
    damaged: list[Path] = []
    for path in paths:
        if not path.exists():
            continue
        read = _read(path, model)
        if read is None:
            damaged.append(path)
            continue
        tensors, values, scalars = read
        if values["epochs"] > max_epochs:
            damaged.append(path)
            continue
        _restore(tensors, scalars, model, optimizer)
        return Progress(values, _part(tensors, "progress")), damaged
    return None, damaged


def _write(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Equal trainings shall give equal files: safetensors writes its metadata in an order of chance.

    Its ``save_file`` also leaves a temporary file of its own when it is killed, and makes files that only their owner
    can read.
    """
    content = save(dict(tensors), dict(metadata))
    size = int.from_bytes(content[:8], "little")
    text = json.dumps(json.loads(content[8 : 8 + size]), sort_keys=True, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of 8
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        file.write(memoryview(content)[8 + size :])


def _read(path: Path, model: nn.Module) -> tuple[dict[str, Tensor], dict[str, Any], dict[str, Any]] | None:
    """Tensors, progress and scalars of a whole checkpoint of such a network; else None."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  no mapping
        expected = metadata.pop(CHECKSUM)
        values, scalars = json.loads(metadata["progress"]), json.loads(metadata["scalars"])
        if _digest(tensors, metadata) != expected or not isinstance(values["epochs"], int):
            return None
    except (OSError, SafetensorError, KeyError, ValueError, TypeError, RecursionError):
        return None
    if _shapes(_part(tensors, "model")) != _shapes(model.state_dict()):  # load_state_dict copies whatever does fit
        return None
    return tensors, values, scalars


def _restore(
    tensors: Mapping[str, Tensor], scalars: Mapping[str, Any], model: nn.Module, optimizer: torch.optim.Optimizer
) -> None:
    """Into the tensors that are there already, where there are any: a captured step looks for them where they lay."""
    model.load_state_dict(_part(tensors, "model"))
    there = {parameter: dict(state) for parameter, state in optimizer.state.items()}
    state: dict[int, dict[str, Any]] = {}
    for name, value in [*_part(tensors, "optimizer").items(), *scalars.items()]:
        index, _, key = name.partition("/")
        state.setdefault(int(index), {})[key] = value
    rates = [group["lr"] for group in optimizer.param_groups]
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    # files are contiguous, weights channels_last, and fused optimizers walk through both in the order of memory
    for parameter, restored in optimizer.state.items():
        for name, value in restored.items():
            old = there.get(parameter, {}).get(name)
            if isinstance(old, Tensor):
                restored[name] = old.copy_(value)
            elif isinstance(value, Tensor) and value.shape == parameter.shape:
                restored[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def _digest(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """SHA-256 over names, types, shapes and bytes; safetensors itself notices a cut file, but no altered byte."""
    digest = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    for name, value in sorted(tensors.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)  # bytes: numpy knows no bfloat16
    return digest.hexdigest()


def _part(tensors: Mapping[str, Tensor], kind: str) -> dict[str, Tensor]:
    prefix = f"{kind}/"
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in tensors.items()}
