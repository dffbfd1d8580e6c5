"""How steps are taken on a device: eagerly, compiled, or captured; and what runs of one shape share."""

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
from cifar_ablate.training.average import average_of
from cifar_ablate.training.batches import DeviceData
from cifar_ablate.training.convolution import with_matrix_products
from cifar_ablate.training.step import Glance, Network, Stepper

Choice = Literal["auto", "on", "off"]
CAPTURABLE = ("sgd", "adamw")
"""Optimizers that take their learning rate from the device and keep their whole state there."""
MIN_CAPABILITY = (7, 0)
"""Of CUDA devices: below it inductor has no code generator, and bf16 and graphs are too slow to be worth it."""
SHAPES = 256
"""Compiled in one process at most, in all lanes; torch's own limit is 8 for each line of code."""
WORTH_COMPILING = 20_000_000
"""Training images, all runs and epochs of a shape: from here on what fusion saves is likely to be more than the minute
that compiling takes. An estimate, from a fifth of 0.2 to 0.8 s an epoch; ``benchmarks/gpu.py`` measures both."""


@dataclass(frozen=True)
class EngineOptions:
    """What may be forced; ``auto`` is what pays on the device.

    None of it changes what is trained, but for rounding: a captured step has its learning rate as a float32, and a
    compiled network adds up in another order.
    """

    compile: Choice = "auto"
    capture: Choice = "auto"


@dataclass(frozen=True)
class Mode:
    """How steps are taken, with the reasons; recorded with each run."""

    compile: bool = False
    capture: bool = False
    why: str = field(default="", compare=False)
    capture_is_forced: bool = False
    """Where a step cannot be captured: fail, and do not call it instead."""

    def for_recipe(self, recipe: Recipe) -> Mode:
        """What a recipe leaves of it."""
        if not self.capture or recipe.optimizer.name in CAPTURABLE:
            return self
        return replace(self, capture=False, why=f"{recipe.optimizer.name} reads its learning rate on the host")


def check_options(options: EngineOptions, kind: str) -> None:
    """Raises UsageError or DeviceError for what can be had on no device of that kind, wherever it is."""
    for name, value in (("--compile", options.compile), ("--capture", options.capture)):
        if value not in get_args(Choice):
            raise UsageError(f"{name} {value}: choose auto, on or off")
    if options.capture == "on" and kind != "cuda":
        raise DeviceError(f"--capture on: a {kind} has no CUDA graphs; leave it at auto")


def choose_mode(options: EngineOptions, device: Device, num_images: int = 0) -> Mode:
    """What ``auto`` means on a device where so many images are trained with one network, in all runs and epochs.

    ``device``: one of this machine. Raises UsageError or DeviceError for what cannot be forced there.
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
    """Is there what triton builds its launchers with?"""
    return any(which(name) for name in (os.environ.get("CC") or "gcc", "gcc", "clang"))


def has_cpp_compiler() -> bool:
    """Is there what inductor compiles with for a CPU?"""
    return any(which(name) for name in (os.environ.get("CXX") or "g++", "g++", "clang++"))


@dataclass
class Engine:
    """What the runs of one process share on one device, one run at a time for each ``lane``."""

    mode: Mode = field(default_factory=Mode)
    kept: dict[int, tuple[str, str, Stepper]] = field(default_factory=dict)
    """By lane: the shape of the network, what else its step depends on, and the step."""
    streams: dict[int, Any] = field(default_factory=dict)
    """By lane."""

    def stepper(self, recipe: Recipe, fresh: nn.Module, data: DeviceData, precision: str, lane: int = 0) -> Stepper:
        """A step with the weights of ``fresh``: one of this shape used before, set back in place, or a new one."""
        shape, identity = _shape(recipe, data, precision), _identity(recipe)
        old_shape, old_identity, old = self.kept.pop(lane, ("", "", None))
        if old is not None and (old_shape, old_identity) == (shape, identity):
            stepper = old
        else:
            reused = (old.network.model, old.network.compiled) if old is not None and old_shape == shape else None
            old = None  # its graphs, optimizer and average hold memory that the new ones need
            stepper = self._made(recipe, fresh, data, precision, reused, lane)
        _restart(stepper, fresh, recipe)
        self.kept[lane] = (shape, identity, stepper)
        return stepper

    def mode_of(self, recipe: Recipe, lane: int = 0) -> Mode:
        """How the steps of a recipe are taken in a lane; before ``stepper`` was called, how they are meant to be."""
        mode = self.mode.for_recipe(recipe)
        _, identity, stepper = self.kept.get(lane, ("", "", None))
        if mode.capture and stepper is not None and identity == _identity(recipe) and stepper.why_not_captured:
            return replace(mode, capture=False, why=stepper.why_not_captured)
        return mode

    def stream(self, lane: int, device: torch.device) -> Any:
        """The lane's torch.cuda.Stream; None where the device has none. Steps are captured and replayed there."""
        if device.type != "cuda":
            return None
        if lane not in self.streams:
            self.streams[lane] = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        return self.streams[lane]

    def drop(self, lane: int = 0) -> None:
        """Forget what a failed run may have left in disorder."""
        self.kept.pop(lane, None)

    def keep_lanes(self, num: int) -> None:
        """Forget the lanes beyond so many: what they hold is memory that others need."""
        for lane in [lane for lane in self.kept if lane >= num]:
            self.drop(lane)

    def _made(
        self, recipe: Recipe, fresh: nn.Module, data: DeviceData, precision: str, reused: Shared | None, lane: int
    ) -> Stepper:
        if reused is not None:
            model, compiled = reused
        else:
            model = on_device(copy.deepcopy(fresh), data.mean.device)  # warming up changes it
            compiled = _compiled(model) if self.mode.compile else None
        average = None if recipe.ema is None else average_of(model, recipe.ema.decay)
        network = Network(
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
            return Stepper(network)
        try:
            return _captured(network, self.stream(lane, data.mean.device))
        except Exception as error:
            if self.mode.capture_is_forced or is_out_of_memory(error):
                raise
            why = first_cause(error)
        return Stepper(network, why_not_captured=f"its step cannot be captured ({why})")


Shared = tuple[nn.Module, Callable[[Tensor], Tensor] | None]
"""What runs of one shape share: the network, and the same compiled."""


def _captured(network: Network, stream: Any) -> Stepper:
    """Steps of all sizes, captured; the weights are something else afterwards."""
    stepper = Stepper(network, is_captured=True, stream=stream)
    network.model.train()  # a run that was left in the middle of an evaluation may have used it before
    num = len(network.data.train_labels)
    stepper.load_epoch(0, 0, np.zeros(math.ceil(num / network.batch_size)), 0)
    stepper.prepare({network.batch_size, num % network.batch_size} - {0})
    return stepper


def pipeline_of(recipe: Recipe, data: DeviceData) -> Pipeline:
    """The augmentations of a recipe on a data set."""
    return build_pipeline(
        {name: part.kwargs() for name, part in recipe.augment.items()},
        mean=data.mean,
        std=data.std,
        num_classes=data.num_classes,
        label_smoothing=recipe.loss.label_smoothing,
    )


def draws_at_random(recipe: Recipe, num_classes: int, image_size_px: int) -> bool:
    """Does the network draw random numbers while it is trained, as dropout does?"""
    model = build_model(
        recipe.model.name, recipe.model.kwargs(), num_classes=num_classes, image_size_px=image_size_px, init_seed=0
    )
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        before = torch.get_rng_state()
        model(torch.zeros(2, IMAGE_CHANNELS, image_size_px, image_size_px))
        return not torch.equal(before, torch.get_rng_state())


def _restart(stepper: Stepper, fresh: nn.Module, recipe: Recipe) -> None:
    """A new run in the place of the one before: weights, statistics, optimizer and sums, none of them moved."""
    network = stepper.network
    network.model.load_state_dict(fresh.state_dict())
    network.model.train()
    if network.average is not None:
        network.average.restart(network.model)
    stepper.glance = Glance(stepper.loss)  # the one before tells of the run before
    if stepper.is_captured:
        for state in network.optimizer.state.values():
            for value in state.values():
                value.zero_()
        torch.cuda.synchronize(network.device)
    else:
        network.optimizer = _optimizer(recipe, network.model)
    for total in stepper.sums.values():
        total.zero_()


def _optimizer(recipe: Recipe, model: nn.Module) -> torch.optim.Optimizer:
    model.zero_grad(set_to_none=True)
    optimizer: torch.optim.Optimizer = OPTIMIZERS.bind(recipe.optimizer.name, recipe.optimizer.kwargs())(model)
    return optimizer


def on_device(model: nn.Module, device: torch.device) -> nn.Module:
    if device.type == "cpu":
        model = with_matrix_products(model)
    return model.to(device).to(memory_format=torch.channels_last)


def _compiled(model: nn.Module) -> Any:
    # inductor's own convolution templates gave silently wrong 3x3 results (pytorch issue 173068); aten's are right
    from torch._dynamo import config as dynamo
    from torch._inductor import config as inductor

    inductor.max_autotune_conv_backends = "ATEN"
    dynamo.recompile_limit = SHAPES  # beyond it a network would be trained eagerly, and a log line be all that says so
    return torch.compile(model, dynamic=False)


def _shape(recipe: Recipe, data: DeviceData, precision: str) -> str:
    return json.dumps([recipe.model.as_dict(), id(data), recipe.batch_size, precision])


def _identity(recipe: Recipe) -> str:
    """What a step depends on beside its shape; the learning rate and its schedule are read from the device."""
    plain = recipe.as_dict()
    optimizer: Mapping[str, Any] = {name: value for name, value in plain["optimizer"].items() if name != "lr"}
    return json.dumps([plain["augment"], plain["loss"], plain["ema"], optimizer], sort_keys=True)
