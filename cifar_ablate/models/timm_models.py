"""All architectures of timm by their names; the only module that imports its models. Weights are never downloaded.

``vit_tiny_patch16_224`` and ``timm/vit_tiny_patch16_224`` are the same model; the prefix is needed if one of our own
models has the name (``timm/resnet18``). A pretrained tag (``resnet50.a1_in1k``) is accepted and ignored.

timm's networks are made for 224 px and halve the size five times, which leaves a single pixel of a 32 px image. So the
first layers are adapted to images smaller than ``SMALL_PX``, by the timm module (family) that defines the model:

* ``POOLED``: a 3x3 convolution of stride 1 replaces the 7x7 one of stride 2, without max-pooling: 32 px end as 4x4;
* ``GRIDS``: the patch size is set so that the first grid has this many cells per side, with a window that divides it;
* other families get the image size if the model takes it, and otherwise half the stride in the convolutions that see
  the image (``efficientnet``: 32 px end as 2x2; ``convnext``: its 4x4 patches overlap by half, and 32 px end as 2x2).

``build_model`` sends one image through the model and so finds sizes that a family cannot take.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator
from typing import Any

from torch import nn

from cifar_ablate.errors import UsageError
from cifar_ablate.fields import Probability
from cifar_ablate.registry import MODELS

PREFIX = "timm/"
IMAGE_CHANNELS = 3
SMALL_PX = 96
"""From this size on, timm's own stems leave at least 3x3."""

POOLED = {
    "densenet": ("features.conv0", "features.pool0"),
    "res2net": ("conv1", "maxpool"),
    "resnest": ("conv1", "maxpool"),
    "resnet": ("conv1", "maxpool"),
    "resnetv2": ("stem.conv", "stem.pool"),
    "senet": ("layer0.conv1", "pool0"),
    "sknet": ("conv1", "maxpool"),
}
"""Family to the paths of its first convolution and of its max-pooling."""
GRIDS = {
    "beit": 8,
    "cait": 8,
    "convit": 8,
    "deit": 8,
    "eva": 8,
    "swin_transformer": 16,
    "swin_transformer_v2": 16,
    "swin_transformer_v2_cr": 16,
    "vision_transformer": 8,
    "vision_transformer_relpos": 8,
}
"""Family to the cells per side of its first grid."""
WINDOWS = {"swin_transformer": 4, "swin_transformer_v2": 4, "swin_transformer_v2_cr": 4}
MIXER_GRID = 8
"""As ``GRIDS``, for token mixers, which ignore a patch size among their arguments."""
CONVOLUTIONAL = frozenset({"byobnet", "mobilevit"})
"""Families that accept an image size although they work with any."""
OPTIONS = {"drop_rate": "dropout", "drop_path_rate": "drop_path"}
"""timm's names of our options."""


def find(name: str) -> Callable[..., nn.Module] | None:
    """The builder of the timm model ``name`` (one object per architecture), or None if timm has no such model."""
    from timm import is_model
    from timm.models import get_pretrained_cfg

    bare = name.removeprefix(PREFIX)
    architecture, _, tag = bare.partition(".")
    if not is_model(architecture):
        return None
    if tag:
        try:
            get_pretrained_cfg(bare)
        except RuntimeError:  # the tag belongs to no weights of this architecture
            return None
    return _entry(architecture)


def names() -> Iterator[str]:
    """All names, with and without the prefix, from which suggestions are made."""
    from timm import list_models

    for name in list_models():
        yield name
        yield PREFIX + name


@functools.cache
def _entry(architecture: str) -> Callable[..., nn.Module]:
    def timm_model(
        num_classes: int, image_size_px: int, *, dropout: Probability = 0.0, drop_path: Probability = 0.0
    ) -> nn.Module:
        """Images [B, 3, H, W] to logits [B, num_classes].

        Args:
            num_classes: Length of the logits.
            image_size_px: H and W; many of these models accept one size only.
            dropout: timm's ``drop_rate``, in most models before the head only.
            drop_path: timm's ``drop_path_rate``: probability of skipping the last block; smaller for earlier blocks.

        Raises:
            UsageError: ``dropout`` or ``drop_path`` is above 0, and the model has no such option.
        """
        family = _family(architecture)
        rates = {"drop_rate": dropout, "drop_path_rate": drop_path}
        shape = _shape(family, image_size_px)
        arguments = {"num_classes": num_classes, **shape, **rates}
        model, refused = _create(architecture, arguments)
        if image_size_px >= SMALL_PX or "patch_size" in shape:
            return model
        if family == "mlp_mixer":
            return _mixer(architecture, arguments, model.get_submodule("stem"))
        if family in POOLED:
            _refit(model, *POOLED[family])
        elif "img_size" in refused or family in CONVOLUTIONAL:
            _halve_strides(model)
        return model

    timm_model.__name__ = architecture
    timm_model.__doc__ = f"timm's {architecture}, untrained, fitted to the image size.\n\n{timm_model.__doc__}"
    return timm_model


def _family(architecture: str) -> str:
    """Last part of the name of the timm module that defines ``architecture``."""
    from timm import model_entrypoint

    return str(model_entrypoint(architecture).__module__).rpartition(".")[2]


def _shape(family: str, image_size_px: int) -> dict[str, int]:
    """timm's arguments for this image size; ``_create`` drops those that a model does not take."""
    shape = {"img_size": image_size_px}
    if image_size_px < SMALL_PX and family in GRIDS:
        shape["patch_size"] = _patch_size(image_size_px, GRIDS[family])
        if family in WINDOWS:
            shape["window_size"] = WINDOWS[family]
    return shape


def _patch_size(image_size_px: int, grid: int) -> int:
    """Patch size for a grid of ``grid`` to ``grid / 2`` cells per side, preferably a divisor of the image size."""
    least = max(1, image_size_px // grid)
    return next((side for side in range(least, 2 * least + 1) if image_size_px % side == 0), least)


def _create(architecture: str, arguments: dict[str, Any]) -> tuple[nn.Module, set[str]]:
    """The model, and the arguments that it does not take; raises UsageError if one of them is an option above 0."""
    from timm import create_model

    refused: set[str] = set()
    while True:
        known = {key: value for key, value in arguments.items() if key not in refused}
        try:
            model: nn.Module = create_model(architecture, pretrained=False, **known)
        except TypeError as error:  # the error of the model's constructor; timm does not check arguments
            unknown = re.search(r"unexpected keyword argument(?:\(s\): \[| )'(\w+)'", str(error))
            if unknown is None or unknown[1] not in known:
                raise
            refused.add(unknown[1])
            option = OPTIONS.get(unknown[1])
            if option and arguments[unknown[1]] > 0:
                raise UsageError(f"model {architecture!r} has no {option}; leave out the option {option!r}") from None
        else:
            return model, refused


def _mixer(architecture: str, arguments: dict[str, Any], native: Any) -> nn.Module:
    """A token mixer with about ``MIXER_GRID`` cells per side; ``native`` is the stem that timm builds."""
    image_size_px = arguments["img_size"]
    patch_size = _patch_size(image_size_px, MIXER_GRID)
    many_px = image_size_px // patch_size * native.patch_size[0]  # size at which timm's patches give the same grid
    model, _ = _create(architecture, {**arguments, "img_size": many_px})
    stem: Any = model.get_submodule("stem")
    stem.set_input_size(img_size=image_size_px, patch_size=patch_size)
    stem.proj.reset_parameters()  # timm resamples the old weights, which suits trained ones
    return model


def _refit(model: nn.Module, conv_path: str, pool_path: str) -> None:
    """Make the stem keep the image size: stride 1, at most a 3x3 kernel, no pooling."""
    modules = dict(model.named_modules())
    stem = modules.get(conv_path)
    if isinstance(stem, nn.Conv2d) and max(stem.kernel_size) > 3:
        small = type(stem)(stem.in_channels, stem.out_channels, 3, stride=1, padding=1, bias=stem.bias is not None)
        nn.init.kaiming_normal_(small.weight, mode="fan_out", nonlinearity="relu")
        model.set_submodule(conv_path, small)
    else:  # a stem of several 3x3 convolutions, the first of stride 2
        _halve_strides(model)
    if pool_path in modules:
        model.set_submodule(pool_path, nn.Identity())


def _halve_strides(model: nn.Module) -> None:
    """Halve the stride of the convolutions that see the image, of which parallel branches have several.

    Convolutions without padding (patches) get the padding that keeps the size a multiple of the new stride.
    """
    for conv in model.modules():
        if isinstance(conv, nn.Conv2d) and conv.in_channels == IMAGE_CHANNELS and max(conv.stride) > 1:
            conv.stride = tuple(max(1, stride // 2) for stride in conv.stride)
            if conv.padding == (0, 0):
                kernels = zip(conv.kernel_size, conv.stride, strict=True)
                conv.padding = tuple((kernel - stride) // 2 for kernel, stride in kernels)


MODELS.pass_through(find, names)
