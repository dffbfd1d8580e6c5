"""Checkpoints and weights: safetensors files that are written atomically, with a checksum, and never unpickled."""

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
from cifar_ablate.record.folder import atomic

CHECKSUM = "sha256"
"""Key in the header of a SHA-256 over the metadata and the names, dtypes, shapes and bytes of all tensors."""


@dataclass(frozen=True)
class Progress:
    """How far a training has come: the part of a checkpoint that is neither network nor optimizer."""

    values: Mapping[str, Any]
    """JSON values: ``epochs`` and ``steps`` done, ``train_seconds``, ``eval_seconds``, ``epoch_seconds``."""
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    """Sums and random state of an epoch that was stopped in its middle; averaged weights as ``average/NAME``."""


def save_weights(path: Path, model: nn.Module, metadata: Mapping[str, str]) -> None:
    """Write the weights and buffers of ``model``, with ``metadata`` and a checksum in the header.

    Raises OutputError if the disk refuses.
    """
    tensors = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    with atomic(path) as temporary:
        _write(temporary, tensors, {**metadata, CHECKSUM: _digest(tensors, metadata)})


def load_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a file of ``save_weights``: its tensors by name, and its metadata.

    Files from before weights had a checksum are not verified. Raises RecordError if the file is missing or damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  no mapping
    except FileNotFoundError:
        raise RecordError(f"there are no weights at {path}; repeat the `cifar-ablate run` that trained them") from None
    except (OSError, SafetensorError, ValueError) as error:
        raise RecordError(
            f"{path} is not a complete file of weights ({error}); download it or train it again"
        ) from None
    checked = {name: value for name, value in metadata.items() if name != CHECKSUM}
    if CHECKSUM in metadata and _digest(tensors, checked) != metadata[CHECKSUM]:
        raise RecordError(f"{path} changed after it was written (its SHA-256 differs); download it or train it again")
    return tensors, metadata


def save_checkpoint(
    newest: Path, before: Path, model: nn.Module, optimizer: torch.optim.Optimizer, progress: Progress
) -> None:
    """Write a checkpoint to ``newest``, after the file there replaced the one at ``before``.

    Raises OutputError if the disk refuses; both files then stay as they were.
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
    """Restore ``model`` and ``optimizer`` in place from the first usable checkpoint.

    A checkpoint is usable if it is intact, fits the network, and has at most ``max_epochs`` epochs: the history must
    have a line for each of them.

    Returns:
        How far the training had come, or None if no file is usable and nothing was changed; and the unusable files.
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
    """Write a safetensors file with sorted metadata, so that equal trainings give equal files.

    safetensors orders metadata at random. Its ``save_file`` also leaves a temporary file when it is killed, and makes
    files that only their owner can read.
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
    """Tensors, progress and scalars of an intact checkpoint that fits ``model``; else None."""
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
    if _shapes(_part(tensors, "model")) != _shapes(
        model.state_dict()
    ):  # load_state_dict copies what fits before it raises
        return None
    return tensors, values, scalars


def _restore(
    tensors: Mapping[str, Tensor], scalars: Mapping[str, Any], model: nn.Module, optimizer: torch.optim.Optimizer
) -> None:
    """Copy into existing tensors where there are any: a captured step reads fixed addresses."""
    model.load_state_dict(_part(tensors, "model"))
    existing = {parameter: dict(state) for parameter, state in optimizer.state.items()}
    state: dict[int, dict[str, Any]] = {}
    for name, value in [*_part(tensors, "optimizer").items(), *scalars.items()]:
        index, _, key = name.partition("/")
        state.setdefault(int(index), {})[key] = value
    rates = [group["lr"] for group in optimizer.param_groups]
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    # files are contiguous and weights channels_last, and a fused optimizer iterates over both in memory order
    for parameter, restored in optimizer.state.items():
        for name, value in restored.items():
            old = existing.get(parameter, {}).get(name)
            if isinstance(old, Tensor):
                restored[name] = old.copy_(value)
            elif isinstance(value, Tensor) and value.shape == parameter.shape:
                restored[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def _digest(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes; safetensors itself detects a cut file, but no changed byte."""
    digest = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    for name, value in sorted(tensors.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)  # as bytes, because numpy has no bfloat16
    return digest.hexdigest()


def _part(tensors: Mapping[str, Tensor], kind: str) -> dict[str, Tensor]:
    prefix = f"{kind}/"
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in tensors.items()}
