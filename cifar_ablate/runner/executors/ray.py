"""Runs on the nodes of a Ray cluster."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from cifar_ablate.errors import DeviceError, UsageError, require_extra
from cifar_ablate.registry import EXECUTORS
from cifar_ablate.runner.cluster.environment import LOCAL, address_of, prepare_environment
from cifar_ablate.runner.executor import Executor, ExecutorConfig

if TYPE_CHECKING:  # `--help` lists the executors and must wait for neither torch nor Ray
    from types import TracebackType

    from cifar_ablate.data import DataSet
    from cifar_ablate.device import Device, Slot
    from cifar_ablate.plan import DataKey, PlannedRun
    from cifar_ablate.runner.cluster.connection import Share
    from cifar_ablate.runner.events import Group, RunEvents, ShouldStop, TrainGroup
    from cifar_ablate.training.engine import EngineOptions

SMALLEST_SHARE = 0.001
"""Smallest share of a GPU for a run."""
GROWTH = 4
"""Factor by which a cluster may grow during a command and still be used fully."""


@EXECUTORS.register("ray")
class Ray(Executor):
    """Train on a Ray cluster: groups are tasks with a share of a GPU, restarted elsewhere if a node dies."""

    trains_here = False

    def __init__(self, config: ExecutorConfig) -> None:
        if config.gpus_per_run is not None and not SMALLEST_SHARE <= config.gpus_per_run <= 1:
            raise UsageError(f"--gpus-per-run {config.gpus_per_run:g}: a run uses one GPU or a share of one: 0.25, 1")
        if config.device == "mps":
            raise UsageError("--device mps: Ray knows no Apple GPUs; use --device cpu, or leave --executor ray out")
        require_extra("ray", "ray")
        self.config = config
        self.growth = 1 if address_of(config.address) == LOCAL else GROWTH
        self.found: Device | None = None
        self.remark = ""

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self.found is not None:
            from cifar_ablate.runner.cluster.connection import disconnect

            disconnect()

    def device(self) -> Device:
        """The common device of the nodes (``find_common_device``); joins the cluster first."""
        if self.found is None:
            address = address_of(self.config.address)
            prepare_environment(address)
            from cifar_ablate.runner.cluster.connection import connect, disconnect, find_common_device, has_gpus

            connect(address, cores_wanted=(self.config.jobs or 0) * (self.config.threads or 1))
            try:
                kind = self.config.device if self.config.device != "auto" else "cuda" if has_gpus() else "cpu"
                self.found, self.remark = find_common_device(kind)
            finally:
                if self.found is None:
                    disconnect()
        return self.found

    def slots(
        self, runs: Sequence[PlannedRun], data: Mapping[DataKey, DataSet], options: EngineOptions
    ) -> tuple[Sequence[Slot], str]:
        """As many as the cluster has room for or --jobs asks for; runs that share a GPU take turns in one slot."""
        from cifar_ablate.device import Slot
        from cifar_ablate.runner.cluster.connection import capacity, described

        share, in_turn = self.share()
        room = capacity(share)
        if not room:
            raise DeviceError(
                f"no node of the cluster ({described(share)}) has room for a run; give fewer --threads, or larger nodes"
            )
        num = room if self.config.jobs is None else max(1, self.config.jobs // in_turn)
        slot = Slot(self.device(), int(share.num_cpus), in_turn)
        at_a_time = f"{num * in_turn} runs at a time" if num * in_turn > 1 else "1 run at a time"
        threads = "1 thread" if slot.threads == 1 else f"{slot.threads} threads"
        said = f"On {slot.device.name} ({described(share)}), {at_a_time}, {threads} each"
        return [slot] * num, f"{said}\n{self.remark[:1].upper()}{self.remark[1:]}" if self.remark else said

    def train(
        self, groups: Iterable[Group], train_group: TrainGroup, slots: Sequence[Slot], should_stop: ShouldStop
    ) -> RunEvents:
        from cifar_ablate.runner.cluster.dispatch import train_on_cluster
        from cifar_ablate.runner.train_group import GroupTrainer

        assert isinstance(train_group, GroupTrainer), "a cluster trains with a GroupTrainer"  # noqa: S101
        is_fixed = self.config.jobs is not None
        yield from train_on_cluster(groups, train_group, slots, self.share()[0], should_stop, is_fixed=is_fixed)

    def share(self) -> tuple[Share, int]:
        """The resources of one task and how many runs take turns in it: a GPU is shared within one process only."""
        from cifar_ablate.runner.cluster.connection import SHARE_DIGITS, Share

        threads = float(self.config.threads or 1)
        if self.device().kind != "cuda":
            return Share(threads), 1
        each = self.config.gpus_per_run or 1.0
        in_turn = min(int(1 / each + 1e-6), self.config.jobs or 1_000)
        return Share(threads, min(1.0, round(in_turn * each, SHARE_DIGITS))), in_turn
