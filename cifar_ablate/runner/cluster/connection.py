"""Connect to a Ray cluster: an existing one, or one that is started on this machine for the command."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cifar_ablate.analysis.sentences import count
from cifar_ablate.device import Device, num_cores
from cifar_ablate.errors import DeviceError, UsageError
from cifar_ablate.process import block_signals
from cifar_ablate.runner.cluster.environment import LOCAL
from cifar_ablate.runner.cluster.node import NodeInfo, describe_node, differing, versions

ANSWER_SECONDS, LONGEST_SECONDS = 60.0, 300.0
"""Time for all nodes to start a process with torch and describe themselves; time for at least one of them."""
NAMESPACE = "cifar-ablate"
SHARE_DIGITS = 4
"""Decimals of a GPU share: Ray counts ten-thousandths."""


@dataclass(frozen=True)
class Share:
    """The resources that Ray reserves for one task."""

    num_cpus: float
    num_gpus: float = 0.0

    def fits(self, resources: dict[str, float]) -> int:
        """Number of tasks that fit on a node at the same time."""
        by_cpu = int(resources.get("CPU", 0.0) / self.num_cpus + 1e-6)
        if not self.num_gpus:
            return by_cpu
        on_each = int(1 / self.num_gpus + 1e-6)  # Ray never puts a task on parts of two
        return min(by_cpu, int(resources.get("GPU", 0.0)) * on_each)


def connect(address: str, *, cores_wanted: int = 0) -> None:
    """Join the cluster at ``address``; ``local``: start one on this machine, which ends with the command.

    Raises UsageError, DeviceError.
    """
    if address.startswith("ray://"):
        raise UsageError(f"--address {address}: start the command on a node of the cluster, and give HOST:PORT or auto")
    options: dict[str, Any] = {"address": address}
    if address == LOCAL:
        options |= {"num_cpus": max(num_cores(), cores_wanted), "include_dashboard": False}
    # a signal to the process group is for the command alone, which stops trainings with a checkpoint
    in_main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGTERM)
    try:
        with block_signals():
            ray.init(**options, namespace=NAMESPACE, log_to_driver=False, logging_level=logging.CRITICAL)
    except (ConnectionError, RayError, ValueError, RuntimeError, OSError, TimeoutError) as error:
        first = str(error).strip().split("\n", 1)[0][:300]
        cure = "look into its logs in /tmp/ray" if address == LOCAL else "check --address, RAY_AUTH_TOKEN, `ray status`"
        raise DeviceError(f"there is no Ray cluster to be had at {address} ({first}); {cure}") from None
    finally:
        if in_main:
            signal.signal(signal.SIGTERM, before)  # Ray sets its own handler


def disconnect() -> None:
    """Leave the cluster; a cluster that was started for the command ends."""
    with suppress(Exception):
        ray.shutdown()


def alive() -> list[dict[str, Any]]:
    """Ray's description of each node that is alive."""
    nodes: Any = ray.nodes  # without types
    return [node for node in nodes() if node["Alive"]]


def capacity(share: Share) -> int:
    """Number of tasks of this share that fit on the whole cluster."""
    return sum(share.fits(node["Resources"]) for node in alive())


def has_gpus() -> bool:
    return any(node["Resources"].get("GPU", 0.0) > 0 for node in alive())


def find_common_device(kind: str) -> tuple[Device, str]:
    """The device that runs are trained on, and a remark for the user.

    It computes in bf16 if every node does. Asks each node with such a device, as long as one is free. Raises
    DeviceError if a node has other versions than this machine, or no node has the device.
    """
    needed, name, cure = ("GPU", "a GPU", "use --device cpu, or start nodes with --num-gpus")
    if kind != "cuda":
        needed, name, cure = ("CPU", "a CPU for tasks", "start nodes without --num-cpus=0")
    nodes = [node for node in alive() if node["Resources"].get(needed, 0.0) > 0]
    if not nodes:
        raise DeviceError(f"no node of the Ray cluster has {name}; {cure}")
    describe: Any = ray.remote(max_retries=0, max_calls=int(kind == "cuda"))(describe_node)
    asked = [
        describe.options(
            num_cpus=0,
            num_gpus=0.001 if kind == "cuda" else 0,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False),
        ).remote(kind)
        for node in nodes
    ]
    answers, waiting = ray.wait(asked, num_returns=len(asked), timeout=ANSWER_SECONDS)
    if not answers:
        answers, waiting = ray.wait(asked, num_returns=1, timeout=LONGEST_SECONDS - ANSWER_SECONDS)
    for one in waiting:
        ray.cancel(one)
    told = [_answer(one) for one in answers]
    infos = [one for one in told if isinstance(one, NodeInfo)]
    for info in infos:
        if why := differing(info.versions, versions(), info.host):
            raise DeviceError(f"{why}, for results depend on it")
    if reasons := "; ".join(one for one in told if isinstance(one, str)):
        raise DeviceError(f"a node of the Ray cluster cannot train: {reasons}; put it right, or take it out")
    if not infos:
        raise DeviceError(f"no node of the Ray cluster answered within {LONGEST_SECONDS:.0f} s; look at `ray status`")
    names = ", ".join(dict.fromkeys(info.device.name for info in infos))
    device = Device(infos[0].device.kind, names, all(info.device.fast_bf16 for info in infos))
    return device, remark_on(infos, len(waiting))


def remark_on(infos: Sequence[NodeInfo], num_silent: int) -> str:
    """A remark on what results depend on besides the study."""
    fixed = "another set of nodes may mean another; `precision` in the recipe fixes it"
    if num_silent:
        return f"precision auto is decided without {count(num_silent, 'busy node')}; {fixed}"
    if len({info.device.fast_bf16 for info in infos}) > 1:
        return f"precision auto is fp32, for not every node is fast in bf16; {fixed}"
    if infos[0].device.kind == "cpu" and len(kinds := sorted({info.instructions for info in infos})) > 1:
        return f"processors differ ({', '.join(kinds)}), so the last bits of a result depend on its node"
    return ""


def _answer(reference: Any) -> NodeInfo | str | None:
    """A node's description, or why it has none; None if the node is gone."""
    try:
        answer: NodeInfo | str = ray.get(reference)
    except RayTaskError as error:  # the package is not installed there
        return str(error.cause or error).strip().rsplit("\n", 1)[-1][:300]
    except RayError:
        return None
    return answer


def described(share: Share) -> str:
    """The cluster in a few words."""
    nodes = alive()
    total = [sum(node["Resources"].get(name, 0.0) for node in nodes) for name in ("CPU", "GPU")]
    gpus = f", {total[1]:g} GPUs" if total[1] else ""
    each = f", {share.num_gpus:g} GPU for each task" if share.num_gpus else ""
    return f"Ray, {count(len(nodes), 'node')}, {total[0]:g} CPUs{gpus}{each}"
