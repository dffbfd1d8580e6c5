"""Which runs a study's looks ask for, and what each look says; derived from what is recorded, each time anew.

Nothing is kept between two looks, so a command that was killed, another one beside it, and one on another machine all
come to the same. What decides is ``cifar_ablate.analysis.looks``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cifar_ablate.errors import RecordError
from cifar_ablate.folder import RunFolder
from cifar_ablate.plan import Plan, PlannedRun
from cifar_ablate.records import RecordedRun, families_of, frame_of, worth

if TYPE_CHECKING:
    from cifar_ablate.analysis.looks import LooksTaken
    from cifar_ablate.analysis.verdicts import Contrast

ENDED = ("finished", "diverged")
MAX_NAMED = 3


def results_of(plan: Plan, recorded: Sequence[RecordedRun], runs_root: Path) -> list[RecordedRun]:
    """The plan's runs that ended in a result, from the record, and from their folders where that lacks it."""
    best: dict[tuple[str, str], RecordedRun] = {}
    for record in sorted(recorded, key=worth):
        best[record.arm, record.fingerprint] = record
    found = []
    for run in plan.runs:
        known = best.get((run.arm, run.fingerprint))
        mine = known if known is not None and known.outcome in ENDED else _from_folder(run, runs_root)
        if mine is not None:
            found.append(mine)
    return found


def _from_folder(run: PlannedRun, runs_root: Path) -> RecordedRun | None:
    with suppress(RecordError):  # a damaged folder holds no result; who trains the run tells of it
        result = RunFolder(runs_root / run.fingerprint).result()
        if result is not None and result.status in ENDED:
            metrics = {**result.metrics, "train_seconds": result.train_seconds}
            return RecordedRun(
                "", run.arm, run.seed, run.fingerprint, run.recipe_id, result.status, result.reason, metrics
            )
    return None


@dataclass(frozen=True)
class Standing:
    """Where a study's looks stand. A study without looks asks for all its runs."""

    plan: Plan
    results: Sequence[RecordedRun]
    looks: LooksTaken | None
    """None in a study without looks."""

    def asks_for(self, run: PlannedRun) -> bool:
        """Is this run wanted by now?"""
        return self.looks is None or self.plan.study.seeds.index(run.seed) < self.looks.wanted.get(run.arm, 0)

    def may_ask_for(self, run: PlannedRun) -> bool:
        """Is this run wanted if a contrast of its arm stays open?"""
        pending = self.looks.pending if self.looks is not None else None
        if pending is None or self.asks_for(run):
            return False
        return self.looks is not None and self.looks.wanted[run.arm] == pending.num_seeds

    def look_before(self, run: PlannedRun) -> int:
        """Seeds of the look after which a run may be asked for."""
        index = self.plan.study.seeds.index(run.seed)
        return max((look for look in self.plan.study.looks if look <= index), default=0)

    def missing(self) -> list[PlannedRun]:
        """Runs that the next look waits for."""
        if self.looks is None or self.looks.pending is None:
            return []
        there = {(run.arm, run.seed) for run in self.results}
        return [run for run in self.plan.runs if self.asks_for(run) and (run.arm, run.seed) not in there]

    def taken(self) -> list[int]:
        """Seeds of the looks that were complete."""
        return [look.num_seeds for look in self.looks.taken] if self.looks is not None else []

    def runs_of_look(self, num_seeds: int) -> list[RecordedRun]:
        """The results that a look was taken with."""
        first = set(self.plan.study.seeds[:num_seeds])
        return [run for run in self.results if run.seed in first]

    def said_at(self, num_seeds: int) -> list[str]:
        """One line for each contrast that was open at this look: its sentence, and what follows."""
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


def stand(plan: Plan, recorded: Sequence[RecordedRun], runs_root: Path) -> Standing:
    """Where a study's looks stand by what the record and the run folders hold."""
    results = results_of(plan, recorded, runs_root)
    return Standing(plan, results, _take(plan, results) if plan.study.looks else None)


def _take(plan: Plan, results: Sequence[RecordedRun]) -> LooksTaken:
    from cifar_ablate.analysis.looks import LooksTaken, take_looks  # its libraries take a second, for looks alone

    study = plan.study
    families = list(families_of(plan.document).values())
    if not families:  # one arm: nothing is ever open
        return LooksTaken((), (), None, {study.baseline: study.looks[0]})
    return take_looks(frame_of(results), looks=study.looks, seeds=study.seeds, families=families, margin=study.margin)


LEFT_OUT = "left out by --arm or --seed"


def waiting_line(standing: Standing, why: Callable[[PlannedRun], str]) -> str:
    """Which runs the next look waits for, and why each of them is not there; empty where it waits for none."""
    missing = standing.missing()
    if not missing or standing.looks is None or standing.looks.pending is None:
        return ""
    reasons = [why(run) for run in missing]
    named = [f"{run.arm} seed {run.seed} ({reason})" for run, reason in zip(missing[:MAX_NAMED], reasons, strict=False)]
    named += [f"{len(missing) - MAX_NAMED} more"] if len(missing) > MAX_NAMED else []
    runs = "1 run" if len(missing) == 1 else f"{len(missing)} runs"
    look = f"the look at {standing.looks.pending.num_seeds} seeds"
    cure = "without --arm and --seed it gets them" if LEFT_OUT in reasons else "the same command goes on then"
    return f"{standing.plan.study.label}: {look} waits for {runs}: {', '.join(named)}; {cure}."
