"""Runs on this machine's device, one group after the other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from cifar_ablate.registry import EXECUTORS


@EXECUTORS.register("local")
def local(groups: Sequence[Any], train_group: Any) -> Iterator[Any]:
    """Train in this process, one group after the other."""
    for group in groups:
        yield from train_group(group)
