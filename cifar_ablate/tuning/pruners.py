"""Pruners by name: which trials are ended early, between two epochs. Optuna's own.

A pruner is a function ``(num_epochs, *, options) -> BasePruner``; ``num_epochs`` of a whole trial, all seeds together.
Where a trial has several seeds, they are trained one after the other, and its epochs are counted on.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from cifar_ablate.fields import Fraction, NonNegativeInt, PositiveInt
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
    warmup: Fraction = 0.1,
    every_epochs: PositiveInt = 1,
) -> BasePruner:
    """End a trial whose best epoch so far is under the median of the others' at this epoch (Optuna's MedianPruner).

    The first ``startup_trials`` run to their end; each trial has the share ``warmup`` of its epochs (rounded up), and
    is then asked every ``every_epochs``. A schedule that falls late looks bad early: give it a longer warm-up. It is a
    share, so that a profile with fewer epochs prunes as the study does.
    """
    from optuna.pruners import MedianPruner

    num_warmup = _epochs(warmup, num_epochs)
    return MedianPruner(n_startup_trials=startup_trials, n_warmup_steps=num_warmup, interval_steps=every_epochs)


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


def can_prune(name: str, options: Mapping[str, Any], num_epochs: int) -> bool:
    """Is there an epoch before the last one at which this pruner is asked? Of ``none``, and of others: yes."""
    first = {"median": _epochs(options.get("warmup", 0), num_epochs), "hyperband": options.get("min_epochs", 1)}
    return name not in first or max(1, int(first[name])) < num_epochs


def _epochs(share: float, num_epochs: int) -> int:
    """Rounded up, but not for the last digit of a product such as 0.7 * 10."""
    return math.ceil(round(share * num_epochs, 6))
