"""Runs on this machine: in this process, or in worker processes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from cifar_ablate.registry import EXECUTORS

if TYPE_CHECKING:  # ``--help`` lists the executors, and shall not wait for torch
    from cifar_ablate.device import Place
    from cifar_ablate.runner.messages import Channel, Group, TrainGroup


@EXECUTORS.register("local")
def local(groups: Iterable[Group], train_group: TrainGroup, places: Sequence[Place], channel: Channel) -> None:
    """Train on this machine: one group at a time, or with --jobs as many as there are worker processes.

    A group is asked for when there is a place for it: the next trial may depend on how the last one ended.
    """
    if len(places) > 1:
        from cifar_ablate.runner.workers import train_in_workers

        train_in_workers(groups, train_group, places, channel)
        return
    for group in groups:
        if not channel.should_stop():
            train_group(group, places[0], channel)
