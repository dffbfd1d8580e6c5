"""What an executor is: where runs are trained, how many at a time, and how they get there."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import length_hint
from typing import TYPE_CHECKING, ClassVar

from cifar_ablate.errors import UsageError

if TYPE_CHECKING:  # `--help` lists the executors and must not wait for torch
    from types import TracebackType

    from cifar_ablate.data import DataSet
    from cifar_ablate.device import Device, Slot
    from cifar_ablate.plan import DataKey, PlannedRun
    from cifar_ablate.runner.events import Group, RunEvents, ShouldStop, TrainGroup
    from cifar_ablate.training.engine import EngineOptions


@dataclass(frozen=True)
class ExecutorConfig:
    """Where the command line wants runs to be trained."""

    device: str = "auto"
    jobs: int | None = None
    """Number of runs at a time; None: measured."""
    threads: int | None = None
    """CPU threads of each run."""
    address: str | None = None
    """Address of a cluster."""
    gpus_per_run: float | None = None
    """Share of a GPU for each run, for an executor that counts GPUs."""


class Executor:
    """Trains groups of runs in this process; subclasses train them elsewhere. Use it in a ``with`` block."""

    trains_here: ClassVar[bool] = True
    """Does it train on this machine, with its devices?"""
    growth: int = 1
    """Factor by which the number of slots may grow; groups are cut small enough for that."""

    def __init__(self, config: ExecutorConfig) -> None:
        """Raises UsageError if the options are meant for another executor."""
        for option, value in (("--address", config.address), ("--gpus-per-run", config.gpus_per_run)):
            if value is not None:
                raise UsageError(f"{option} {value}: that is for a cluster; add --executor ray")
        self.config = config

    def __enter__(self) -> Executor:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Release what the executor holds; nothing is trained after this."""

    def device(self) -> Device:
        """The device that runs are trained on, which decides their precision; raises AblateError if there is none."""
        from cifar_ablate.device import find_device

        return find_device(self.config.device)

    def slots(
        self, runs: Sequence[PlannedRun], data: Mapping[DataKey, DataSet], options: EngineOptions
    ) -> tuple[Sequence[Slot], str]:
        """One slot for each group that is trained at the same time, and a line for the user about them."""
        from cifar_ablate.runner.jobs import choose_slots
        from cifar_ablate.runner.preflight import describe_slots

        slots, why = choose_slots(runs, data, self.device(), self.config.jobs, self.config.threads, options)
        return slots, describe_slots(slots, why)

    def train(
        self, groups: Iterable[Group], train_group: TrainGroup, slots: Sequence[Slot], should_stop: ShouldStop
    ) -> RunEvents:
        """Train all groups and yield their events; override this.

        A group is requested when a slot is free: a trial may depend on the one before.
        """
        for group in groups:
            if not should_stop(None):
                yield from train_group(group, slots[0], should_stop)


class PendingGroups:
    """Groups that wait for a slot; each is requested when a slot is free."""

    def __init__(self, groups: Iterable[Group]) -> None:
        self.fresh: Iterator[Group] = iter(groups)
        self.returned: deque[Group] = deque()
        """What is left of the groups of processes that died."""

    @property
    def may_have_more(self) -> bool:
        """For a list this is known; for a generator only when there is no next group."""
        return bool(self.returned) or length_hint(self.fresh, 1) > 0

    def take(self) -> Group | None:
        group = self.returned.popleft() if self.returned else next(self.fresh, None)
        if group is None:
            self.fresh = iter(())
        return group

    def give_back(self, groups: Sequence[Group]) -> None:
        self.returned.extendleft(groups)

    def clear(self) -> None:
        self.fresh = iter(())
        self.returned.clear()
