"""Several trainings on one device in turn: while the device is at one's step, the host issues the next one's.

On a GPU each has a stream of its own, so steps that leave parts of the device idle overlap. One thread does it all: no
capture, no allocation and no random draw of one run can come in the middle of another's step, so what is trained beside
a run changes nothing of it: not a bit on a CPU. On a GPU equal runs differ in their last bits, side by side or not.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from cifar_ablate.device import on_stream
from cifar_ablate.training.epoch import Steps


class Crowded(Exception):  # noqa: N818  no error: it has to wait
    """A training found no room beside the others."""


@dataclass
class Turn:
    """One training's place among those that take turns."""

    lane: int
    """From 0; what a lane keeps is used by one training at a time."""
    num_lanes: int
    """So many may be trained at the same time."""


Work = Callable[[Turn], Steps[None]]


@dataclass
class _Lane:
    turn: Turn
    stream: Any
    work: Work | None = None
    steps: Steps[None] | None = None


@dataclass
class _Round:
    """All lanes, and the work that waits for one."""

    lanes: list[_Lane] = field(default_factory=list)

    def num_active(self) -> int:
        return sum(lane.steps is not None for lane in self.lanes)


def take_turns(
    works: Sequence[Work], side_by_side: int, stream_of: Callable[[int], Any] = lambda lane: None
) -> list[Work]:
    """Do all, ``side_by_side`` at a time, one step each in turn; gives those that were too crowded, not done.

    ``stream_of``: a lane's torch.cuda.Stream, or None.
    """
    waiting, crowded, everyone = deque(works), [], _Round()
    num_lanes = min(side_by_side, len(works))
    for number in range(num_lanes):
        stream = stream_of(number) if num_lanes > 1 else None
        everyone.lanes.append(_Lane(Turn(number, num_lanes), stream))
    try:
        while waiting or everyone.num_active():
            for lane in everyone.lanes:
                if lane.steps is None and waiting:
                    lane.work = waiting.popleft()
                    lane.steps = lane.work(lane.turn)
                if lane.steps is None:
                    continue
                try:
                    with on_stream(lane.stream):
                        next(lane.steps)
                except StopIteration:
                    lane.steps = None
                except Crowded:
                    lane.steps = None
                    crowded += [lane.work] if lane.work else []
    finally:
        for lane in everyone.lanes:
            if lane.steps is not None:
                lane.steps.close()
    return crowded
