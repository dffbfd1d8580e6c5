"""Runs on this machine: in this process, or in worker processes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from cifar_ablate.registry import EXECUTORS
from cifar_ablate.runner.executor import Executor

if TYPE_CHECKING:  # `--help` lists the executors and must not wait for torch
    from cifar_ablate.device import Slot
    from cifar_ablate.runner.events import Group, RunEvents, ShouldStop, TrainGroup


@EXECUTORS.register("local")
class Local(Executor):
    """Train on this machine: one group at a time, or with --jobs one in each worker process."""

    def train(
        self, groups: Iterable[Group], train_group: TrainGroup, slots: Sequence[Slot], should_stop: ShouldStop
    ) -> RunEvents:
        if len(slots) == 1:
            yield from super().train(groups, train_group, slots, should_stop)
            return
        from cifar_ablate.runner.workers import train_in_workers

        yield from train_in_workers(groups, train_group, slots, should_stop)
