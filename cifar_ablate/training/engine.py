"""How a device takes steps (eager, compiled or captured), and what runs of the same shape share."""

from __future__ import annotations

import copy
import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from shutil import which
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from cifar_ablate.augment.pipeline import Pipeline, build_pipeline
from cifar_ablate.device import Device, first_cause, is_out_of_memory
from cifar_ablate.errors import DeviceError, UsageError
from cifar_ablate.models.build import IMAGE_CHANNELS, build_model
from cifar_ablate.registry import OPTIMIZERS
from cifar_ablate.spec.schema import Recipe
from cifar_ablate.training.batches import DeviceData
from cifar_ablate.training.convolution import with_matrix_products
from cifar_ablate.training.step import AsyncScalar, TrainSetup, TrainStep, average_of

Choice = Literal["auto", "on", "off"]
CAPTURABLE = ("sgd", "adamw")
"""Optimizers that read their learning rate on the device and keep their whole state there."""
MIN_CAPABILITY = (7, 0)
"""Minimum compute capability to compile or capture: inductor generates no code for older GPUs, and bf16 and graphs
gain too little there."""
MAX_COMPILED_SHAPES = 256
"""Maximum number of shapes that one process compiles, over all streams; torch's default is 8 for each line of code."""
WORTH_COMPILING = 20_000_000
"""Minimum number of training images, over all runs and epochs of a shape, for which compiling pays.

An estimate: compiling takes about a minute, and fusion saves about a fifth of an epoch of 0.2 to 0.8 s.
``benchmarks/gpu.py`` measures both.
"""


@dataclass(frozen=True)
class EngineOptions:
    """What the command line may force; ``auto`` chooses what pays on the device.

    The choice changes results only by rounding: a captured step has its learning rate as a float32, and a compiled
    network sums in another order.
    """

    compile: Choice = "auto"
    capture: Choice = "auto"


@dataclass(frozen=True)
class Mode:
    """How steps are taken, and why; recorded with each run."""

    compile: bool = False
    capture: bool = False
    why: str = field(default="", compare=False)
    capture_is_forced: bool = False
    """Fail if a step cannot be captured, instead of calling it."""

    def for_recipe(self, recipe: Recipe) -> Mode:
        """The mode for one recipe: without capture if its optimizer cannot be captured."""
        if not self.capture or recipe.optimizer.name in CAPTURABLE:
            return self
        return replace(self, capture=False, why=f"{recipe.optimizer.name} reads its learning rate on the host")


def check_options(options: EngineOptions, kind: str) -> None:
    """Raise UsageError or DeviceError for options that no device of this kind supports."""
    for name, value in (("--compile", options.compile), ("--capture", options.capture)):
        if value not in get_args(Choice):
            raise UsageError(f"{name} {value}: choose auto, on or off")
    if options.capture == "on" and kind != "cuda":
        raise DeviceError(f"--capture on: a {kind} has no CUDA graphs; leave it at auto")


def choose_mode(options: EngineOptions, device: Device, num_images: int = 0) -> Mode:
    """Resolve ``auto`` for a device of this machine.

    ``num_images`` is the number of training images of one shape, over all its runs and epochs. Raises UsageError or
    DeviceError for an option that the device does not support.
    """
    check_options(options, device.kind)
    if options.compile == "on" and device.kind == "cpu" and not has_cpp_compiler():
        raise DeviceError("--compile on: torch compiles for a CPU with g++ or clang++, and finds none; install one")
    if device.kind != "cuda":
        why = "a CPU gains nothing from either" if device.kind == "cpu" else f"neither was tried on {device.kind}"
        return Mode(options.compile == "on", False, why)
    capable = torch.cuda.get_device_capability(device.index) >= MIN_CAPABILITY
    if not capable:
        forced = options.capture == "on"
        return Mode(options.compile == "on", forced, f"{device.name} is older than Volta", forced)
    has_compiler = find_spec("triton") is not None and has_c_compiler()
    if options.compile == "on" and not has_compiler:
        raise DeviceError("--compile on: torch compiles for a GPU with triton and gcc or clang; install them")
    pays = has_compiler and num_images >= WORTH_COMPILING
    compiles = options.compile == "on" or (options.compile == "auto" and pays)
    why = f"{num_images:,} images to train, and compiling pays from {WORTH_COMPILING:,}"
    if not has_compiler:
        why = "there is no triton, or no C compiler for it"
    return Mode(compiles, options.capture != "off", why, options.capture == "on")


def has_c_compiler() -> bool:
    """Is there a C compiler, with which triton builds its launchers?"""
    return any(which(name) for name in (os.environ.get("CC") or "gcc", "gcc", "clang"))


def has_cpp_compiler() -> bool:
    """Is there a C++ compiler, with which inductor compiles for a CPU?"""
    return any(which(name) for name in (os.environ.get("CXX") or "g++", "g++", "clang++"))


@dataclass
class Engine:
    """What the runs of one process share on one device; each ``stream`` serves one run at a time."""

    mode: Mode = field(default_factory=Mode)
    kept: dict[int, tuple[str, str, TrainStep]] = field(default_factory=dict)
    """By stream: the shape of the network, what else its step depends on, and the step."""
    cuda_streams: dict[int, Any] = field(default_factory=dict)
    """By stream: its torch.cuda.Stream."""

    def train_step(
        self, recipe: Recipe, initial: nn.Module, data: DeviceData, precision: str, stream: int = 0
    ) -> TrainStep:
        """A step with the weights of ``initial``: the last one of the stream, reset in place, or a new one."""
        shape, identity = _shape(recipe, data, precision), _identity(recipe)
        old_shape, old_identity, old = self.kept.pop(stream, ("", "", None))
        if old is not None and (old_shape, old_identity) == (shape, identity):
            train_step = old
        else:
            reused = (old.setup.model, old.setup.compiled) if old is not None and old_shape == shape else None
            old = None  # frees the memory of its graphs, optimizer and average for the new ones
            train_step = self._new_step(recipe, initial, data, precision, reused, stream)
        _restart(train_step, initial, recipe)
        self.kept[stream] = (shape, identity, train_step)
        return train_step

    def mode_of(self, recipe: Recipe, stream: int = 0) -> Mode:
        """How the steps of a recipe are taken on a stream; before ``train_step`` is called, how they should be."""
        mode = self.mode.for_recipe(recipe)
        _, identity, train_step = self.kept.get(stream, ("", "", None))
        if mode.capture and train_step is not None and identity == _identity(recipe) and train_step.why_not_captured:
            return replace(mode, capture=False, why=train_step.why_not_captured)
        return mode

    def cuda_stream(self, stream: int, device: torch.device) -> Any:
        """The torch.cuda.Stream on which the steps of ``stream`` are captured and replayed; None without CUDA."""
        if device.type != "cuda":
            return None
        if stream not in self.cuda_streams:
            self.cuda_streams[stream] = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        return self.cuda_streams[stream]

    def drop(self, stream: int = 0) -> None:
        """Forget the step of a stream, which a failed run may have left in a broken state."""
        self.kept.pop(stream, None)

    def keep_streams(self, num: int) -> None:
        """Forget the steps of all streams from number ``num`` on, to free their memory."""
        for stream in [stream for stream in self.kept if stream >= num]:
            self.drop(stream)

    def _new_step(
        self,
        recipe: Recipe,
        initial: nn.Module,
        data: DeviceData,
        precision: str,
        reused: SharedNetwork | None,
        stream: int,
    ) -> TrainStep:
        if reused is not None:
            model, compiled = reused
        else:
            model = on_device(copy.deepcopy(initial), data.mean.device)  # a copy, because warming up changes it
            compiled = _compiled(model) if self.mode.compile else None
        average = None if recipe.ema is None else average_of(model, recipe.ema.decay)
        setup = TrainSetup(
            model,
            _optimizer(recipe, model),
            pipeline_of(recipe, data),
            data,
            precision,
            recipe.batch_size,
            average,
            compiled,
        )
        if not self.mode.for_recipe(recipe).capture:
            return TrainStep(setup)
        try:
            return _captured(setup, self.cuda_stream(stream, data.mean.device))
        except Exception as error:
            if self.mode.capture_is_forced or is_out_of_memory(error):
                raise
            why = first_cause(error)
        return TrainStep(setup, why_not_captured=f"its step cannot be captured ({why})")


SharedNetwork = tuple[nn.Module, Callable[[Tensor], Tensor] | None]
"""What runs of the same shape share: the network, and the compiled network."""


def _captured(setup: TrainSetup, cuda_stream: Any) -> TrainStep:
    """A step that is captured for each batch size; this changes the weights."""
    train_step = TrainStep(setup, is_captured=True, cuda_stream=cuda_stream)
    setup.model.train()  # an earlier run may have been stopped during an evaluation
    num = len(setup.data.train_labels)
    train_step.load_epoch(0, 0, np.zeros(math.ceil(num / setup.batch_size)), 0)
    train_step.prepare({setup.batch_size, num % setup.batch_size} - {0})
    return train_step


def pipeline_of(recipe: Recipe, data: DeviceData) -> Pipeline:
    """The augmentations of a recipe for a data set."""
    return build_pipeline(
        {name: part.kwargs() for name, part in recipe.augment.items()},
        mean=data.mean,
        std=data.std,
        num_classes=data.num_classes,
        label_smoothing=recipe.loss.label_smoothing,
    )


def draws_at_random(recipe: Recipe, num_classes: int, image_size_px: int) -> bool:
    """Does the network draw random numbers in training mode, as dropout does?"""
    model = build_model(
        recipe.model.name, recipe.model.kwargs(), num_classes=num_classes, image_size_px=image_size_px, init_seed=0
    )
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        before = torch.get_rng_state()
        model(torch.zeros(2, IMAGE_CHANNELS, image_size_px, image_size_px))
        return not torch.equal(before, torch.get_rng_state())


def _restart(train_step: TrainStep, initial: nn.Module, recipe: Recipe) -> None:
    """Reset weights, statistics, optimizer and sums for a new run, in place: a captured step reads fixed addresses."""
    setup = train_step.setup
    setup.model.load_state_dict(initial.state_dict())
    setup.model.train()
    if setup.average is not None:
        setup.average.restart(setup.model)
    train_step.last_loss = AsyncScalar(train_step.loss)  # the old one still holds a loss of the last run
    if train_step.is_captured:
        for state in setup.optimizer.state.values():
            for value in state.values():
                value.zero_()
        torch.cuda.synchronize(setup.device)
    else:
        setup.optimizer = _optimizer(recipe, setup.model)
    for total in train_step.sums.values():
        total.zero_()


def _optimizer(recipe: Recipe, model: nn.Module) -> torch.optim.Optimizer:
    model.zero_grad(set_to_none=True)
    optimizer: torch.optim.Optimizer = OPTIMIZERS.bind(recipe.optimizer.name, recipe.optimizer.kwargs())(model)
    return optimizer


def on_device(model: nn.Module, device: torch.device) -> nn.Module:
    """Move a network to the device, in channels_last; on a CPU, replace its slow convolutions."""
    if device.type == "cpu":
        model = with_matrix_products(model)
    return model.to(device).to(memory_format=torch.channels_last)


def _compiled(model: nn.Module) -> Any:
    # inductor's own convolution templates gave silently wrong 3x3 results (pytorch issue 173068); aten's are right
    from torch._dynamo import config as dynamo
    from torch._inductor import config as inductor

    inductor.max_autotune_conv_backends = "ATEN"
    dynamo.recompile_limit = MAX_COMPILED_SHAPES  # beyond it dynamo trains eagerly, and only logs that
    return torch.compile(model, dynamic=False)


def _shape(recipe: Recipe, data: DeviceData, precision: str) -> str:
    return json.dumps([recipe.model.as_dict(), id(data), recipe.batch_size, precision])


def _identity(recipe: Recipe) -> str:
    """What a step depends on besides its shape; it reads the learning rate and its schedule from the device."""
    plain = recipe.as_dict()
    optimizer: Mapping[str, Any] = {name: value for name, value in plain["optimizer"].items() if name != "lr"}
    return json.dumps([plain["augment"], plain["loss"], plain["ema"], optimizer], sort_keys=True)
