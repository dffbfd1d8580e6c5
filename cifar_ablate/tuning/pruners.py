"""Pruners by name: which trials are ended early, between two epochs. Optuna's own.

A pruner is a function ``(num_epochs, *, options) -> BasePruner``; ``num_epochs`` of a whole trial, all seeds together.
Where a trial has several seeds, they are trained one after the other, and its epochs are counted on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from cifar_ablate.fields import NonNegativeInt, PositiveInt
from cifar_ablate.registry import PRUNERS

if TYPE_CHECKING:
    from optuna.pruners import BasePruner
else:
    BasePruner = Any


@PRUNERS.register("median")
def median(
    num_epochs: int,
    *,
    startup_trials: NonNegativeInt = 5,
    warmup_epochs: NonNegativeInt = 1,
    every_epochs: PositiveInt = 1,
) -> BasePruner:
    """End a trial whose best epoch so far is under the median of the others' at this epoch (Optuna's MedianPruner).

    The first ``startup_trials`` run to their end; each trial has ``warmup_epochs``, and is then asked every
    ``every_epochs``. A schedule that falls late looks bad early: give it a longer warm-up.
    """
    from optuna.pruners import MedianPruner

    return MedianPruner(n_startup_trials=startup_trials, n_warmup_steps=warmup_epochs, interval_steps=every_epochs)


@PRUNERS.register("hyperband")
def hyperband(
    num_epochs: int, *, min_epochs: PositiveInt = 1, reduction_factor: Annotated[int, Field(ge=2)] = 3
) -> BasePruner:
    """Successive halving in several brackets (arXiv 1603.06560): rungs at ``min_epochs`` times powers of the factor.

    At a rung, one in ``reduction_factor`` goes on (Optuna's HyperbandPruner).
    """
    from optuna.pruners import HyperbandPruner

    return HyperbandPruner(
        min_resource=min_epochs, max_resource=max(num_epochs, min_epochs), reduction_factor=reduction_factor
    )


@PRUNERS.register("none")
def none(num_epochs: int) -> BasePruner:
    """Every trial is trained to its end."""
    from optuna.pruners import NopPruner

    return NopPruner()
