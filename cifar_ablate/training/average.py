"""An exponential moving average of a network's weights, evaluated in their place."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass
class Average:
    """A copy of a network whose weights and statistics follow: average = decay average + (1 - decay) weights.

    Every floating-point tensor is averaged, BatchNorm's statistics too, and others are copied, as timm's ModelEmaV3
    does. Nothing of an update is decided on the host, so it can be captured; torch's AveragedModel reads a counter.
    """

    model: nn.Module
    decay: float

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move towards the weights of ``model``."""
        mine, its = _tensors(self.model), _tensors(model)
        floating = [index for index, tensor in enumerate(mine) if tensor.is_floating_point()]
        torch._foreach_lerp_([mine[i] for i in floating], [its[i] for i in floating], 1 - self.decay)
        for index in set(range(len(mine))) - set(floating):
            mine[index].copy_(its[index])

    def restart(self, model: nn.Module) -> None:
        """Take the weights of ``model`` as they are."""
        self.model.load_state_dict(model.state_dict())


def average_of(model: nn.Module, decay: float) -> Average:
    """An average that starts at the weights of ``model``."""
    return Average(copy.deepcopy(model).requires_grad_(False), decay)


def _tensors(model: nn.Module) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]
