"""Build a model from its name, options and an init seed; count its parameters; print its layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import ValidationError
from torch import nn

from cifar_ablate.device import is_out_of_memory, out_of_memory
from cifar_ablate.errors import AblateError, UsageError
from cifar_ablate.registry import MODELS

IMAGE_CHANNELS = 3


@dataclass(frozen=True)
class LayerCounts:
    """Size of a model."""

    parameters: int
    """Number of parameters, without buffers."""
    mult_adds: int
    """Multiply-adds of one image's forward pass: torchinfo's count or, if larger, that of torch's FlopCounterMode.

    torchinfo includes BatchNorm and biases, as published tables do, but counts a Linear layer once for any number of
    tokens (5.9 M instead of 0.4 G for a small vision transformer) and no product outside of a layer.
    """


def build_model(
    name: str, options: Mapping[str, Any], *, num_classes: int, image_size_px: int, init_seed: int
) -> nn.Module:
    """Build a float32 model on the CPU, in training mode: images [B, 3, H, W] to logits [B, num_classes].

    The initial weights depend on the arguments alone: no global generator is read or changed. The model processes one
    image before it is returned, so that an unsupported size is an error here and not during a training.

    Args:
        name: A registered name, or one of timm's.
        options: The entry's keyword-only parameters; missing ones take their defaults.
        num_classes: Length of the logits.
        image_size_px: H and W.
        init_seed: Seed of the initial weights, any 64-bit integer.

    Raises:
        UnknownNameError: No model has this name.
        UsageError: The model has no such option, or cannot take images of this size.
    """
    checked = _checked(name, options)
    entry = MODELS.bind(name, checked)
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(init_seed)  # torch.manual_seed would also move the generators of GPUs
        try:
            model: nn.Module = entry(num_classes, image_size_px)
            logits = _answer(model, image_size_px)
        except AblateError:
            raise
        except Exception as error:
            if is_out_of_memory(error):
                raise out_of_memory(error) from error
            # other libraries raise any class for this, from KeyError to AssertionError
            raise UsageError(
                f"model {name!r} cannot be built for images of {image_size_px} px "
                f"({type(error).__name__}: {error}); choose another image size or another model"
            ) from error
    if logits.shape != (1, num_classes):
        raise UsageError(f"model {name!r} returns {tuple(logits.shape)} for one image; choose a classifier")
    return model


def layer_table(
    name: str, options: Mapping[str, Any], *, num_classes: int = 10, image_size_px: int = 32, depth: int = 4
) -> str:
    """torchinfo's table of a model's layers for one image: type, output shape, parameters, totals, sizes in MB.

    Args:
        name: A model's name.
        options: Its options.
        num_classes: Length of the logits.
        image_size_px: Height and width of the images.
        depth: Levels of the module tree to show; a module at the last level includes those below it.

    Raises:
        UnknownNameError, UsageError: As ``build_model``.
    """
    statistics, mult_adds = _statistics(name, options, num_classes, image_size_px, depth)
    lines = str(statistics).splitlines()
    total = next(i for i, line in enumerate(lines) if line.startswith("Total mult-adds"))
    lines[total] = f"Total mult-adds (M): {mult_adds / 1e6:,.2f}"  # 1.8.0 prints an enum's repr as unit
    return "\n".join(lines)


def count(name: str, options: Mapping[str, Any], *, num_classes: int = 10, image_size_px: int = 32) -> LayerCounts:
    """Parameters and multiply-adds per image of a model; raises as ``build_model``."""
    statistics, mult_adds = _statistics(name, options, num_classes, image_size_px, 1)
    return LayerCounts(parameters=int(statistics.total_params), mult_adds=mult_adds)


def _checked(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options with their defaults, validated by the entry's signature."""
    schema = MODELS.options(name)
    try:
        return schema(**options).model_dump()
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors())
        known = ", ".join(schema.model_fields)
        raise UsageError(f"options of model {name!r} are wrong: {problems}; its options are {known}") from None


def _answer(model: nn.Module, image_size_px: int) -> torch.Tensor:
    """Logits [1, num_classes] of one black image in evaluation mode, which does not change BatchNorm's statistics."""
    model.eval()
    with torch.no_grad():
        logits: torch.Tensor = model(_image(image_size_px))
    model.train()
    return logits


def _image(image_size_px: int) -> torch.Tensor:
    """One black image, float32 [1, 3, image_size_px, image_size_px], on the CPU."""
    return torch.zeros(1, IMAGE_CHANNELS, image_size_px, image_size_px, device="cpu")


def _statistics(
    name: str, options: Mapping[str, Any], num_classes: int, image_size_px: int, depth: int
) -> tuple[Any, int]:
    """torchinfo's ModelStatistics for one image, and the multiply-adds as ``LayerCounts`` defines them."""
    import torchinfo
    from torch.utils.flop_counter import FlopCounterMode

    model = build_model(name, options, num_classes=num_classes, image_size_px=image_size_px, init_seed=0)
    statistics = torchinfo.summary(
        model,
        input_data=_image(image_size_px),  # given a size instead, torchinfo draws from the global generator
        depth=depth,
        col_names=("output_size", "num_params"),
        device="cpu",
        mode="eval",
        verbose=0,
    )
    with FlopCounterMode(display=False) as counter:
        _answer(model, image_size_px)
    return statistics, max(int(statistics.total_mult_adds), counter.get_total_flops() // 2)
