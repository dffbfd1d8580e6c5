"""Runs on this machine: in this process, or in worker processes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from cifar_ablate.registry import EXECUTORS
from cifar_ablate.runner.executor import Executor

if TYPE_CHECKING:  # ``--help`` lists the executors, and shall not wait for torch
    from cifar_ablate.device import Place
    from cifar_ablate.runner.messages import Channel, Group, TrainGroup


@EXECUTORS.register("local")
class Local(Executor):
    """Train on this machine: one group at a time, or with --jobs as many as there are worker processes."""

    def train(
        self, groups: Iterable[Group], train_group: TrainGroup, places: Sequence[Place], channel: Channel
    ) -> None:
        if len(places) > 1:
            from cifar_ablate.runner.workers import train_in_workers

            train_in_workers(groups, train_group, places, channel)
        else:
            super().train(groups, train_group, places, channel)
