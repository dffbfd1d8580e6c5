"""Optimizers by name: implementations of torch and timm, with an explicit choice of the parameters that decay.

timm exempts biases and norms from weight decay without saying so; torch decays all parameters. Here
``decay_norm_and_bias`` chooses, and its default is torch's.
"""

from __future__ import annotations

from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from cifar_ablate.fields import Fraction, NonNegativeFloat, PositiveFloat
from cifar_ablate.registry import OPTIMIZERS


def check_sgd(*, momentum: float, nesterov: bool, **_: object) -> None:
    if nesterov and momentum == 0:
        raise ValueError("nesterov: true needs momentum above 0; set momentum, such as 0.9")


@OPTIMIZERS.register("sgd", check=check_sgd)
def sgd(
    model: nn.Module,
    *,
    lr: PositiveFloat,
    momentum: Fraction = 0.0,
    nesterov: bool = False,
    weight_decay: NonNegativeFloat = 0.0,
    decay_norm_and_bias: bool = True,
) -> torch.optim.Optimizer:
    """Stochastic gradient descent with (Nesterov) momentum; weight decay is added to the gradient (torch.optim.SGD)."""
    groups = parameter_groups(model, weight_decay, decay_norm_and_bias)
    return _fused(torch.optim.SGD, groups, lr=lr, momentum=momentum, nesterov=nesterov)


@OPTIMIZERS.register("adamw")
def adamw(
    model: nn.Module,
    *,
    lr: PositiveFloat,
    betas: Annotated[tuple[Fraction, Fraction], Field(strict=False)] = (0.9, 0.999),
    eps: PositiveFloat = 1e-8,
    weight_decay: NonNegativeFloat = 0.01,
    decay_norm_and_bias: bool = True,
) -> torch.optim.Optimizer:
    """Adam with decoupled weight decay (torch.optim.AdamW, arXiv 1711.05101)."""
    groups = parameter_groups(model, weight_decay, decay_norm_and_bias)
    return _fused(torch.optim.AdamW, groups, lr=lr, betas=betas, eps=eps)


@OPTIMIZERS.register("muon")
def muon(
    model: nn.Module,
    *,
    lr: PositiveFloat,
    momentum: Fraction = 0.95,
    nesterov: bool = True,
    weight_decay: NonNegativeFloat = 0.0,
    decay_norm_and_bias: bool = True,
) -> torch.optim.Optimizer:
    """Orthogonalised momentum for weight matrices and flattened convolutions, AdamW for the rest (timm's Muon)."""
    from timm.optim.muon import Muon  # noqa: TID251  torch.optim.Muon takes 2-D weights only, so no convolution

    groups = parameter_groups(model, weight_decay, decay_norm_and_bias)
    optimizer: torch.optim.Optimizer = Muon(groups, lr=lr, momentum=momentum, nesterov=nesterov)
    return optimizer


def _fused(kind: type[torch.optim.Optimizer], groups: list[dict[str, Any]], **options: Any) -> torch.optim.Optimizer:
    """An optimizer with torch's fused kernel, on contiguous views of the parameters.

    On a CPU the kernel copies the gradient of every tensor that is not contiguous, such as a channels_last weight. That
    makes it three times as slow, which is an eighth of a step at batch size 16.
    """
    parameters = [parameter for group in groups for parameter in group["params"]]
    orders = [_memory_order(parameter) for parameter in parameters]
    views = {id(one): one.detach().permute(order) for one, order in zip(parameters, orders, strict=True)}
    groups = [group | {"params": [views[id(one)] for one in group["params"]]} for group in groups]
    optimizer: torch.optim.Optimizer = kind(groups, fused=True, **options)  # type: ignore[call-arg]

    def move_gradients_to_views(*_: Any) -> None:
        for one, order in zip(parameters, orders, strict=True):
            views[id(one)].grad = None if one.grad is None else one.grad.permute(order)
            one.grad = None  # the optimizer's zero_grad resets only the views

    def free_gradients(*_: Any) -> None:
        for view in views.values():  # else the gradients take up memory during the next backward pass
            view.grad = None

    optimizer.register_step_pre_hook(move_gradients_to_views)
    optimizer.register_step_post_hook(free_gradients)
    return optimizer


def _memory_order(tensor: Tensor) -> tuple[int, ...]:
    """The dimensions in memory order: (0, 2, 3, 1) for a channels_last weight."""
    if tensor.ndim == 4 and not tensor.is_contiguous() and tensor.is_contiguous(memory_format=torch.channels_last):
        return 0, 2, 3, 1
    return tuple(range(tensor.ndim))


def parameter_groups(model: nn.Module, weight_decay: float, decay_norm_and_bias: bool) -> list[dict[str, Any]]:
    """Groups of parameters for a torch optimizer: one, or two if 1-D parameters (norms, biases) do not decay."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if decay_norm_and_bias:
        return [{"params": parameters, "weight_decay": weight_decay}]
    return [
        {"params": [parameter for parameter in parameters if parameter.ndim > 1], "weight_decay": weight_decay},
        {"params": [parameter for parameter in parameters if parameter.ndim <= 1], "weight_decay": 0.0},
    ]
