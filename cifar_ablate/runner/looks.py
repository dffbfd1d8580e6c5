"""Which runs a study's looks ask for, and what each look says; derived from what is recorded, every time.

Nothing is kept between two looks, so a command that was killed, one that runs beside it, and one on another machine
decide the same. The decision itself is ``cifar_ablate.analysis.looks``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cifar_ablate.plan import Plan, PlannedRun
from cifar_ablate.record.folder import RunFolder
from cifar_ablate.record.types import Key, RecordedRun, families_of, frame_of
from cifar_ablate.runner.status import RunStatus, by_training, status

if TYPE_CHECKING:
    from cifar_ablate.analysis.looks import LooksTaken
    from cifar_ablate.analysis.verdicts import Contrast

MAX_NAMED = 3


@dataclass(frozen=True)
class LookState:
    """Which runs a study wants now; a study without looks wants all its runs."""

    plan: Plan
    statuses: Mapping[Key, RunStatus]
    results: Sequence[RecordedRun]
    """Runs of the plan that have a result."""
    looks: LooksTaken | None
    """None in a study without looks."""

    def asks_for(self, run: PlannedRun) -> bool:
        """Is this run wanted now?"""
        return self.looks is None or self.plan.study.seeds.index(run.seed) < self.looks.wanted.get(run.arm, 0)

    def may_ask_for(self, run: PlannedRun) -> bool:
        """Will this run be wanted if a contrast of its arm stays open?"""
        pending = self.looks.pending if self.looks is not None else None
        if pending is None or self.asks_for(run):
            return False
        return self.looks is not None and self.looks.wanted[run.arm] == pending.num_seeds

    def look_before(self, run: PlannedRun) -> int:
        """Number of seeds of the look after which a run may be wanted."""
        index = self.plan.study.seeds.index(run.seed)
        return max((look for look in self.plan.study.looks if look <= index), default=0)

    def missing(self) -> list[PlannedRun]:
        """Runs that the next look waits for."""
        if self.looks is None or self.looks.pending is None:
            return []
        there = {(run.arm, run.seed) for run in self.results}
        return [run for run in self.plan.runs if self.asks_for(run) and (run.arm, run.seed) not in there]

    def taken(self) -> list[int]:
        """Number of seeds of each completed look."""
        return [look.num_seeds for look in self.looks.taken] if self.looks is not None else []

    def runs_of_look(self, num_seeds: int) -> list[RecordedRun]:
        """The results that a look was taken with."""
        first = set(self.plan.study.seeds[:num_seeds])
        return [run for run in self.results if run.seed in first]

    def said_at(self, num_seeds: int) -> list[str]:
        """One line for each contrast that was open at this look: its sentence, and what comes next."""
        at = _take(self.plan, self.runs_of_look(num_seeds))
        follows = f"Goes on to {at.pending.num_seeds} seeds." if at.pending else "Not decided at the last look."
        return [
            f"{self.plan.study.label}, look at {num_seeds} seeds: {contrast.sentence} "
            f"{_closed(contrast) if contrast.verdict.is_decided else follows}"
            for family in at.families
            for contrast in family
            if contrast.look == num_seeds
        ]


def _closed(contrast: Contrast) -> str:
    return "Closed: a run diverged, and more seeds give no verdict." if contrast.is_diverged else "Decided."


def look_state(plan: Plan, recorded: Sequence[RecordedRun], runs_root: Path) -> LookState:
    """Which runs a study wants, given its runs in MLflow and in the run folders."""
    known = by_training(recorded)
    statuses = {
        run.key: status(known.get((run.arm, run.fingerprint), ()), RunFolder(runs_root / run.fingerprint))
        for run in plan.runs
    }
    results = [one for run in plan.runs if (one := statuses[run.key].as_recorded(run)) is not None]
    return LookState(plan, statuses, results, _take(plan, results) if plan.study.looks else None)


def _take(plan: Plan, results: Sequence[RecordedRun]) -> LooksTaken:
    from cifar_ablate.analysis.looks import LooksTaken, take_looks  # its libraries take a second, for looks alone

    study = plan.study
    families = list(families_of(plan.document).values())
    if not families:  # one arm: nothing is ever open
        return LooksTaken((), (), None, {study.baseline: study.looks[0]})
    return take_looks(frame_of(results), looks=study.looks, seeds=study.seeds, families=families, margin=study.margin)


LEFT_OUT = "left out by --arm or --seed"


def waiting_line(state: LookState, why: Callable[[PlannedRun], str]) -> str:
    """Which runs the next look waits for, and why each is missing; empty if it waits for none."""
    missing = state.missing()
    if not missing or state.looks is None or state.looks.pending is None:
        return ""
    reasons = [why(run) for run in missing]
    named = [f"{run.arm} seed {run.seed} ({reason})" for run, reason in zip(missing[:MAX_NAMED], reasons, strict=False)]
    named += [f"{len(missing) - MAX_NAMED} more"] if len(missing) > MAX_NAMED else []
    runs = "1 run" if len(missing) == 1 else f"{len(missing)} runs"
    look = f"the look at {state.looks.pending.num_seeds} seeds"
    cure = "without --arm and --seed it gets them" if LEFT_OUT in reasons else "the same command goes on then"
    return f"{state.plan.study.label}: {look} waits for {runs}: {', '.join(named)}; {cure}."
