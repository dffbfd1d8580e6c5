"""One training step that reads nothing from the host: called, or captured once as a CUDA graph and replayed.

Everything a step reads lies on the device: the images, the order of the epoch, the draws of its augmentations, its
learning rates and its position, which the step itself advances. A GPU replays the function that a CPU calls, except for
the learning rate: a float64 on the host when the step is called, a float32 on the device when it is captured.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from cifar_ablate.augment.pipeline import Draws, Pipeline
from cifar_ablate.training.batches import DeviceData, plan_epoch
from cifar_ablate.training.evaluate import precision_context
from cifar_ablate.training.schedules import Curve

WARM_UP_STEPS = 3
"""Number of steps before a capture, in which libraries choose algorithms and allocate workspaces.

The number that PyTorch's documentation of CUDA graphs uses.
"""


@dataclass
class Average:
    """Exponential moving average of a network: ``average = decay * average + (1 - decay) * weights``.

    Averages every floating-point parameter and buffer, including the statistics of BatchNorm, and copies the others, as
    timm's ModelEmaV3 does. No update depends on a value of the host, so it can be captured; torch's AveragedModel reads
    a counter there.
    """

    model: nn.Module
    """The averaged network, evaluated instead of the trained one."""
    decay: float
    """Between 0 and 1, both excluded."""

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move the average towards the weights of ``model``."""
        averaged, latest = _tensors(self.model), _tensors(model)
        floating = [index for index, tensor in enumerate(averaged) if tensor.is_floating_point()]
        torch._foreach_lerp_([averaged[i] for i in floating], [latest[i] for i in floating], 1 - self.decay)
        for index in set(range(len(averaged))) - set(floating):
            averaged[index].copy_(latest[index])

    def restart(self, model: nn.Module) -> None:
        """Set the average to the weights of ``model``."""
        self.model.load_state_dict(model.state_dict())


def average_of(model: nn.Module, decay: float) -> Average:
    """An average that starts at the weights of ``model``."""
    return Average(copy.deepcopy(model).requires_grad_(False), decay)


def _tensors(model: nn.Module) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]


@dataclass
class TrainSetup:
    """A network with everything that a step needs; it is compiled and captured once and then used by many runs."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    pipeline: Pipeline
    data: DeviceData
    precision: str
    """fp32 or bf16."""
    batch_size: int
    average: Average | None = None
    compiled: Callable[[Tensor], Tensor] | None = None
    """The compiled model, for full batches only: the shorter last batch would compile it again."""

    @property
    def device(self) -> torch.device:
        return self.data.mean.device


@dataclass
class TrainStep:
    """Takes the steps of an epoch, with its input in tables on the device."""

    setup: TrainSetup
    is_captured: bool = False
    cuda_stream: Any = None
    """torch.cuda.Stream of the capture. cuBLAS keeps one workspace for each, so two runs must not share one."""
    graphs: dict[int, Any] = field(default_factory=dict, init=False)
    """torch.cuda.CUDAGraph by batch size: the last batch of an epoch may be smaller."""
    why_not_captured: str = ""
    """Why the capture failed, where one was tried."""

    def __post_init__(self) -> None:
        device = self.setup.device
        self.position = torch.zeros((), dtype=torch.int64, device=device)
        """Number of images of the epoch that are done, int64 []."""
        self.index = torch.zeros((), dtype=torch.int64, device=device)
        """Number of steps of the epoch that are done, int64 []."""
        self.line = torch.arange(self.setup.batch_size, device=device)
        self.sums = {"loss": torch.zeros((), device=device), "num_right": torch.zeros((), device=device)}
        """Sums over the images of the current epoch: their losses, and the number of right predictions; float32 []."""
        self.loss = torch.zeros((), device=device)
        """Mean loss of the last step, float32 []."""
        self.last_loss = AsyncScalar(self.loss)
        self.tables: dict[str, Tensor] = {}
        """``order``: int64 [N], ``rates``: float32 [steps of an epoch]."""
        self.draws: dict[str, dict[str, Tensor]] = {}
        """Parameters of each augmentation, each [N, ...]."""

    def load_epoch(self, seed: int, number: int, learning_rates: Curve, first_step: int) -> None:
        """Copy the order, draws and learning rates of epoch ``number`` (from 0) to the device.

        ``learning_rates`` is float64 [steps of an epoch]; the next call must take ``first_step`` (from 0).
        """
        setup = self.setup
        epoch = plan_epoch(seed, number, setup.data)
        self._put(torch.from_numpy(epoch.order), torch.from_numpy(learning_rates).float())
        self._put_draws(setup.pipeline.draw_epoch(epoch, setup.device))
        self.position.fill_(first_step * setup.batch_size)
        self.index.fill_(first_step)
        self.rates = learning_rates

    def __call__(self, step: int) -> int:
        """Take step ``step`` of the epoch, which must be the next one; return its number of images."""
        setup = self.setup
        size = min(setup.batch_size, len(setup.data.train_labels) - step * setup.batch_size)
        if self.is_captured:
            if size not in self.graphs:
                raise RuntimeError(f"no step of {size} images was captured")  # prepare() comes first
            self.graphs[size].replay()
        else:
            for group in setup.optimizer.param_groups:
                group["lr"] = float(self.rates[step])
            self._step(size)
        return size

    def prepare(self, sizes: set[int]) -> None:
        """Capture a step for each batch size. This changes the weights, so set them afterwards."""
        for group in self.setup.optimizer.param_groups:
            group["lr"] = torch.zeros((), device=self.setup.device)
            if "capturable" in group:
                group["capturable"] = True
        pool = None
        for size in sorted(sizes, reverse=True):
            self.graphs[size] = _captured(partial(self._first_step, size), partial(self._step, size), self, pool)
            pool = self.graphs[size].pool()

    def _first_step(self, size: int) -> None:
        """Take the first step of the epoch again, so that no number of warm-up steps reads beyond the tables."""
        self.position.zero_()
        self.index.zero_()
        self._step(size)

    def _step(self, size: int) -> None:
        setup, data = self.setup, self.setup.data
        rows = self.line[:size] + self.position
        picked = self.tables["order"][rows]
        params = {name: {key: values[rows] for key, values in drawn.items()} for name, drawn in self.draws.items()}
        batch = setup.pipeline.augment(data.train_images[picked], data.train_labels[picked], params)
        if self.is_captured:  # a schedule needs no new capture
            for group in setup.optimizer.param_groups:
                # not [index]: that reads a 0-d tensor on the host, which a capture forbids
                group["lr"].copy_(self.tables["rates"].index_select(0, self.index.view(1)).view(()))
        loss, logits = optimize(setup, batch.images, batch.targets)
        if setup.average is not None:
            setup.average.update(setup.model)
        self.loss.copy_(loss)
        self.sums["loss"].add_(loss * size)
        self.sums["num_right"].add_((logits.argmax(1) == batch.targets.argmax(1)).sum())
        self.position.add_(size)
        self.index.add_(1)

    def _put(self, order: Tensor, rates: Tensor) -> None:
        for name, values in (("order", order), ("rates", rates)):
            if name not in self.tables or not self.is_captured:
                self.tables[name] = values.to(self.setup.device)
            else:  # a captured step reads the addresses that it was captured with
                self.tables[name].copy_(values, non_blocking=True)

    def _put_draws(self, draws: Draws) -> None:
        if not self.draws or not self.is_captured:
            self.draws = {name: dict(params) for name, params in draws.items()}
            return
        for name, params in draws.items():
            for key, values in params.items():
                self.draws[name][key].copy_(values, non_blocking=True)


class AsyncScalar:
    """Reads a 0-d tensor without waiting for its device: on a GPU, the last value whose copy has arrived."""

    def __init__(self, value: Tensor) -> None:
        self.value = value
        self.host: Tensor | None = None

    def __call__(self) -> float:
        """The value; on a GPU, nan until the first copy has arrived."""
        if self.value.device.type != "cuda":
            return float(self.value)
        if self.host is None:
            self.host = torch.full((), math.nan, pin_memory=True)
            self.arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
        value = float(self.host)
        if self.arrived.query():  # type: ignore[no-untyped-call]
            self.host.copy_(self.value, non_blocking=True)
            self.arrived.record()
        return value


def optimize(setup: TrainSetup, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Take one optimizer step on the mean cross-entropy of a batch.

    Args:
        setup: Its ``model`` is in training mode; its parameters change in place.
        images: float32 [B, 3, H, W], augmented and normalised.
        targets: float32 [B, C], probabilities of the classes.

    Returns:
        The loss before the step, float32 [], and the logits, float32 [B, C], both detached.
    """
    compiled = setup.compiled if len(images) == setup.batch_size else None
    forward = setup.model if compiled is None else compiled
    with precision_context(images.device, setup.precision):
        logits = forward(images.contiguous(memory_format=torch.channels_last))
    logits = logits.float()
    loss = functional.cross_entropy(logits, targets)
    setup.model.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    setup.optimizer.step()
    return loss.detach(), logits.detach()


def _captured(warm_up: Callable[[], None], step: Callable[[], None], train_step: TrainStep, pool: Any) -> Any:
    """A torch.cuda.CUDAGraph of ``step``, warmed up on a side stream, as PyTorch's documentation requires."""
    current, side = torch.cuda.current_stream(), train_step.cuda_stream
    side.wait_stream(current)
    try:
        with torch.cuda.stream(side):
            for _ in range(WARM_UP_STEPS):
                warm_up()
    finally:  # later work must not overtake a warm-up that failed halfway
        current.wait_stream(side)
    train_step.setup.model.zero_grad(set_to_none=True)
    graph = torch.cuda.CUDAGraph()
    # thread_local: another thread that delivers or evaluates may call what a capture forbids
    capture = torch.cuda.graph(graph, pool=pool, stream=side, capture_error_mode="thread_local")
    with torch.cuda.stream(current), capture:  # a capture that fails does not leave its stream
        step()
    return graph
