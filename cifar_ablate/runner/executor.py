"""What an executor is: where runs are trained, how many at a time, and how they get there."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from cifar_ablate.errors import UsageError

if TYPE_CHECKING:  # ``--help`` lists the executors, and shall not wait for torch
    from types import TracebackType

    from cifar_ablate.data import DataSet
    from cifar_ablate.device import Device, Place
    from cifar_ablate.plan import DataKey, PlannedRun
    from cifar_ablate.runner.messages import Channel, Group, TrainGroup
    from cifar_ablate.training.engine import EngineOptions


@dataclass(frozen=True)
class Wish:
    """What a command line says of where runs are trained."""

    device: str = "auto"
    jobs: int | None = None
    """Runs at a time; None: as many as pay."""
    threads: int | None = None
    """CPU threads of each run."""
    address: str | None = None
    """Of a cluster."""
    gpus_per_run: float | None = None
    """Share of a GPU, for an executor that counts them."""


class Executor:
    """Trains groups of runs in this process; others differ in where. Used in a ``with`` block."""

    trains_here: ClassVar[bool] = True
    """On this machine, with its devices?"""
    growth: int = 1
    """So many times more places there may be later on: groups are cut small enough for them."""

    def __init__(self, wish: Wish) -> None:
        """Raises UsageError where the wish is for another executor."""
        for option, value in (("--address", wish.address), ("--gpus-per-run", wish.gpus_per_run)):
            if value is not None:
                raise UsageError(f"{option} {value}: that is for a cluster; add --executor ray")
        self.wish = wish

    def __enter__(self) -> Executor:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Nothing is trained any more."""

    def device(self) -> Device:
        """What runs are trained on: it decides their precision. Raises AblateError where there is no such device."""
        from cifar_ablate.device import find_device

        return find_device(self.wish.device)

    def places(
        self, runs: Sequence[PlannedRun], data: Mapping[DataKey, DataSet], options: EngineOptions
    ) -> tuple[Sequence[Place], str]:
        """A place for each group that is trained at the same time, and what a person is told of them."""
        from cifar_ablate.runner.jobs import choose_places
        from cifar_ablate.runner.preflight import describe_places

        places, why = choose_places(runs, data, self.device(), self.wish.jobs, self.wish.threads, options)
        return places, describe_places(places, why)

    def train(
        self, groups: Iterable[Group], train_group: TrainGroup, places: Sequence[Place], channel: Channel
    ) -> None:
        """Train all groups; a group is asked for when there is a place for it, for a trial may depend on the last."""
        for group in groups:
            if not channel.should_stop():
                train_group(group, places[0], channel)
