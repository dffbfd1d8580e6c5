"""Groups that wait for a place."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from operator import length_hint

from cifar_ablate.runner.messages import Group


class Pending:
    """Groups that wait for a place; each is asked for when there is one."""

    def __init__(self, groups: Iterable[Group]) -> None:
        self.fresh: Iterator[Group] = iter(groups)
        self.returned: deque[Group] = deque()
        """What lost processes left of theirs."""

    @property
    def may_have_more(self) -> bool:
        """Of a list it is known; of what is made one by one only when there is no next one."""
        return bool(self.returned) or length_hint(self.fresh, 1) > 0

    def take(self) -> Group | None:
        group = self.returned.popleft() if self.returned else next(self.fresh, None)
        if group is None:
            self.fresh = iter(())
        return group

    def give_back(self, groups: Sequence[Group]) -> None:
        self.returned.extendleft(groups)

    def clear(self) -> None:
        self.fresh = iter(())
        self.returned.clear()
