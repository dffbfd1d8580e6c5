"""One run on its way to MLflow, as the courier sees it."""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

from cifar_ablate.folder import RunFolder, RunResult
from cifar_ablate.records import RunIdentity
from cifar_ablate.tracking.delivery import Delivery

MAX_OPENED = 20
"""So many ended runs are claimed at a time: each settles first, and its claim is renewed until it is delivered."""


@dataclass
class Parcel:
    """One run on its way to MLflow."""

    run: RunIdentity
    folder: RunFolder
    begun: float = field(default_factory=time.monotonic)
    """What is left in the end is told in this order."""
    delivery: Delivery | None = None
    has_news: bool = True
    outcome: str = ""
    """finished, diverged, failed or killed; empty while it is being trained."""
    result: RunResult | None = None
    reason: str = ""
    is_done: bool = False
    num_refusals: int = 0
    trouble: str = ""
    """Why it cannot be delivered, or could not be at the last attempt."""
    is_told: bool = False
    """Was it told that its epochs do not arrive? Once is enough."""
    checkpoint_trouble: str = ""
    not_before: float = -math.inf
    """Its next delivery, by the monotonic clock."""

    @property
    def is_unopened_end(self) -> bool:
        """Has it ended, and is it not claimed for its delivery yet?"""
        return bool(self.outcome) and self.delivery is None and not self.is_done

    @property
    def is_opened_end(self) -> bool:
        """Has it ended, and is it claimed until it is delivered? One in trouble shall not keep others waiting."""
        return bool(self.outcome) and self.delivery is not None and not (self.is_done or self.trouble)

    def wait_left(self) -> float:
        """Seconds until its news may be delivered; infinite where it has none."""
        if self.is_done or not self.has_news:
            return math.inf
        is_settling = self.delivery is not None and not self.delivery.is_confirmed
        if self.outcome and not is_settling:
            return 0.0
        return max(0.0, self.not_before - time.monotonic())


def in_turn(parcels: Collection[Parcel]) -> Iterator[Parcel]:
    """All but those of ended runs that wait until others are delivered."""
    room = MAX_OPENED - sum(parcel.is_opened_end for parcel in parcels)
    for parcel in parcels:
        room -= parcel.is_unopened_end
        if room >= 0 or not parcel.is_unopened_end:
            yield parcel
