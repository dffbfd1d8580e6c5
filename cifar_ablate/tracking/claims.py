"""Which process trains a run, as tags of its MLflow run: machines that share a tracking server share no locks.

Each process that wants a run writes a claim under a key of its own, so no claim overwrites another, and then reads all
of them. The oldest claim of a process that is alive wins; who loses takes its own back and says so. Claims are read
again with every heartbeat, so that two machines whose claims crossed on the way are one before long.
"""

from __future__ import annotations

import json
import math
import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace

from cifar_ablate.owner import NOT_WHAT_WAS_WRITTEN, Owner, owner_from, this_process
from cifar_ablate.tracking.clock import now

PREFIX = "ablate.claim."
HEARTBEAT_SECONDS = 30.0
STALE_SECONDS = 300.0
"""A process of another machine that was silent for so long is taken for dead: ten heartbeats.

One whose heartbeats lie so far in the future, too: its clock is wrong, and nobody would ever take its run over.
"""


@dataclass(frozen=True)
class Claim:
    """A process says that it trains a run."""

    owner: Owner
    claimed: float
    """When, in seconds since 1970, by the clock that machines share (``clock.py``), as all times here."""
    beat: float
    """When it last said that it is alive."""
    delivers: bool = False
    """It trains nothing, and will be done in a moment: the run has ended, and MLflow gets what it missed of it."""
    tag: str = field(default_factory=lambda: f"{PREFIX}{uuid.uuid4().hex[:8]}")

    def is_alive(self) -> bool:
        """Does its process still train? One of this machine can be looked for, of another one its heartbeat tells."""
        return self.owner.is_alive() if self.owner.is_here() else self.silent_seconds < STALE_SECONDS

    @property
    def silent_seconds(self) -> float:
        """Since its last heartbeat, by a clock that also runs while a machine sleeps."""
        return abs(now() - self.beat)

    def beating(self, *, delivers: bool) -> Claim:
        """The same claim, alive now; one that was silent for too long has lost its age to those who came since."""
        beat = now()
        claimed = self.claimed if self.silent_seconds < STALE_SECONDS else beat
        return replace(self, claimed=claimed, beat=beat, delivers=delivers)

    def to_text(self) -> str:
        """The tag's value."""
        return json.dumps({**asdict(self.owner), "claimed": self.claimed, "beat": self.beat, "delivers": self.delivers})


def new_claim(*, delivers: bool) -> Claim:
    """A claim of this process, made now."""
    claimed = now()
    return Claim(this_process(), claimed, claimed, delivers)


def claims_of(tags: Mapping[str, str]) -> list[Claim]:
    """All claims among a run's tags, the oldest first."""
    claims = []
    for name, text in tags.items():
        if name.startswith(PREFIX):
            with suppress(*NOT_WHAT_WAS_WRITTEN):
                owner, values = owner_from(text), json.loads(text)
                claimed, beat = float(values["claimed"]), float(values["beat"])
                if owner is not None and math.isfinite(claimed) and math.isfinite(beat):
                    claims.append(Claim(owner, claimed, beat, values.get("delivers") is True, name))
    return sorted(claims, key=lambda claim: (claim.claimed, claim.tag))


def winner_of(tags: Mapping[str, str], *, ours: str = "") -> Claim | None:
    """The claim that holds: the oldest one of a process that is alive. The tag ``ours`` is of the process that asks."""
    return next((claim for claim in claims_of(tags) if claim.tag == ours or claim.is_alive()), None)
