"""One step of training that needs nothing from the host: called, or captured once as a CUDA graph and replayed.

Everything a step reads lies on the device: the images, the epoch's order, the draws of its augmentations, its learning
rates, and the position it is at, which it moves on itself. What a GPU replays is the function that a CPU calls, but for
the learning rate: a float64 of the host there, a float32 of the device here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from cifar_ablate.augment.pipeline import Draws, Pipeline
from cifar_ablate.training.average import Average
from cifar_ablate.training.batches import DeviceData, plan_epoch
from cifar_ablate.training.evaluate import precision_context
from cifar_ablate.training.schedules import Curve

WARM_UP_STEPS = 3
"""Before a capture, as torch's documentation asks: libraries choose algorithms and allocate workspaces."""


@dataclass
class Network:
    """A network and all that changes it; captured and compiled once, and then used by many runs."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    pipeline: Pipeline
    data: DeviceData
    precision: str
    batch_size: int
    average: Average | None = None
    compiled: Callable[[Tensor], Tensor] | None = None
    """The model compiled for whole batches; a last batch that is shorter would compile it again."""

    @property
    def device(self) -> torch.device:
        return self.data.mean.device


@dataclass
class Stepper:
    """Takes the steps of an epoch, from tables on the device."""

    network: Network
    is_captured: bool = False
    stream: Any = None
    """torch.cuda.Stream on which steps are captured: cuBLAS keeps a workspace for each, so lanes must not share one."""
    graphs: dict[int, Any] = field(default_factory=dict, init=False)
    """torch.cuda.CUDAGraph by batch size: the last batch of an epoch may be smaller."""
    why_not_captured: str = ""
    """Where a capture was tried, and failed."""

    def __post_init__(self) -> None:
        device = self.network.device
        self.position = torch.zeros((), dtype=torch.int64, device=device)
        self.index = torch.zeros((), dtype=torch.int64, device=device)
        self.line = torch.arange(self.network.batch_size, device=device)
        self.sums = {"loss": torch.zeros((), device=device), "num_right": torch.zeros((), device=device)}
        """Of the epoch under way: the loss of each image, and the right answers; float32 []."""
        self.loss = torch.zeros((), device=device)
        """Of the last step, float32 []."""
        self.glance = Glance(self.loss)
        self.tables: dict[str, Tensor] = {}
        self.draws: dict[str, dict[str, Tensor]] = {}

    def load_epoch(self, seed: int, number: int, learning_rates: Curve, first_step: int) -> None:
        """Bring an epoch's order, draws and learning rates to the device, and stand before ``first_step``."""
        network = self.network
        epoch = plan_epoch(seed, number, network.data)
        self._put(torch.from_numpy(epoch.order), torch.from_numpy(learning_rates).float())
        self._put_draws(network.pipeline.draw_epoch(epoch, network.device))
        self.position.fill_(first_step * network.batch_size)
        self.index.fill_(first_step)
        self.rates = learning_rates

    def __call__(self, step: int) -> int:
        """Take step ``step`` of the epoch, which must be the next one; gives its number of images."""
        network = self.network
        size = min(network.batch_size, len(network.data.train_labels) - step * network.batch_size)
        if self.is_captured:
            if size not in self.graphs:
                raise RuntimeError(f"no step of {size} images was captured")  # prepare() comes first
            self.graphs[size].replay()
        else:
            for group in network.optimizer.param_groups:
                group["lr"] = float(self.rates[step])
            self._step(size)
        return size

    def prepare(self, sizes: set[int]) -> None:
        """Capture the steps of these sizes; the weights are something else afterwards, and must be set."""
        for group in self.network.optimizer.param_groups:
            group["lr"] = torch.zeros((), device=self.network.device)
            if "capturable" in group:
                group["capturable"] = True
        pool = None
        for size in sorted(sizes, reverse=True):
            self.graphs[size] = _captured(partial(self._first_step, size), partial(self._step, size), self, pool)
            pool = self.graphs[size].pool()

    def _first_step(self, size: int) -> None:
        """A step from the epoch's start: however many warm up, none looks beyond the tables."""
        self.position.zero_()
        self.index.zero_()
        self._step(size)

    def _step(self, size: int) -> None:
        network, data = self.network, self.network.data
        rows = self.line[:size] + self.position
        picked = self.tables["order"][rows]
        params = {name: {key: values[rows] for key, values in drawn.items()} for name, drawn in self.draws.items()}
        batch = network.pipeline.augment(data.train_images[picked], data.train_labels[picked], params)
        if self.is_captured:  # a schedule needs no new capture
            for group in network.optimizer.param_groups:
                # not [index]: a tensor without dimensions is read on the host there, which no capture allows
                group["lr"].copy_(self.tables["rates"].index_select(0, self.index.view(1)).view(()))
        loss, logits = optimize(network, batch.images, batch.targets)
        if network.average is not None:
            network.average.update(network.model)
        self.loss.copy_(loss)
        self.sums["loss"].add_(loss * size)
        self.sums["num_right"].add_((logits.argmax(1) == batch.targets.argmax(1)).sum())
        self.position.add_(size)
        self.index.add_(1)

    def _put(self, order: Tensor, rates: Tensor) -> None:
        for name, values in (("order", order), ("rates", rates)):
            if name not in self.tables or not self.is_captured:
                self.tables[name] = values.to(self.network.device)
            else:  # a captured step reads where they lay when it was captured
                self.tables[name].copy_(values, non_blocking=True)

    def _put_draws(self, draws: Draws) -> None:
        if not self.draws or not self.is_captured:
            self.draws = {name: dict(params) for name, params in draws.items()}
            return
        for name, params in draws.items():
            for key, values in params.items():
                self.draws[name][key].copy_(values, non_blocking=True)


class Glance:
    """The value of a number on the device without waiting for it: on a GPU the last one that has arrived."""

    def __init__(self, number: Tensor) -> None:
        self.number = number
        self.host: Tensor | None = None

    def __call__(self) -> float:
        """float; nan until the first one has arrived."""
        if self.number.device.type != "cuda":
            return float(self.number)
        if self.host is None:
            self.host = torch.full((), math.nan, pin_memory=True)
            self.arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
        value = float(self.host)
        if self.arrived.query():  # type: ignore[no-untyped-call]
            self.host.copy_(self.number, non_blocking=True)
            self.arrived.record()
        return value


def optimize(network: Network, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """One step of the optimizer on images float32 [B, 3, H, W] and soft targets [B, C]; gives loss and logits."""
    whole = network.compiled is not None and len(images) == network.batch_size
    forward = network.compiled if whole and network.compiled is not None else network.model
    with precision_context(images.device, network.precision):
        logits = forward(images.contiguous(memory_format=torch.channels_last))
    logits = logits.float()
    loss = functional.cross_entropy(logits, targets)
    network.model.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    network.optimizer.step()
    return loss.detach(), logits.detach()


def _captured(warm_up: Callable[[], None], step: Callable[[], None], stepper: Stepper, pool: Any) -> Any:
    """A torch.cuda.CUDAGraph of ``step``, warmed up on the stepper's own stream, as torch's documentation asks."""
    current, side = torch.cuda.current_stream(), stepper.stream
    side.wait_stream(current)
    try:
        with torch.cuda.stream(side):
            for _ in range(WARM_UP_STEPS):
                warm_up()
    finally:  # what is issued next must not overtake a warm-up that failed halfway
        current.wait_stream(side)
    stepper.network.model.zero_grad(set_to_none=True)
    graph = torch.cuda.CUDAGraph()
    # thread_local: another thread that delivers or evaluates may call what a capture forbids
    capture = torch.cuda.graph(graph, pool=pool, stream=side, capture_error_mode="thread_local")
    with torch.cuda.stream(current), capture:  # a capture that fails leaves its stream behind
        step()
    return graph
