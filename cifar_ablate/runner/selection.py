"""The runs of a plan that ``--arm`` and ``--seed`` select."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cifar_ablate.errors import UsageError, suggest
from cifar_ablate.plan import Plan, PlannedRun
from cifar_ablate.runner.looks import LookState


@dataclass(frozen=True)
class RunSelection:
    """The arms and seeds to train; empty: all."""

    arms: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()

    def __call__(self, run: PlannedRun) -> bool:
        return (not self.arms or run.arm in self.arms) and (not self.seeds or run.seed in self.seeds)

    def check(self, states: Sequence[LookState]) -> None:
        """Raise UsageError for an arm or seed whose runs no look asks for."""
        chosen = [(one, run) for one in states for run in one.plan.runs if self(run)]
        for arm in self.arms:
            _check(f"--arm {arm}", [(one, run) for one, run in chosen if run.arm == arm])
        for seed in self.seeds:
            _check(f"--seed {seed}", [(one, run) for one, run in chosen if run.seed == seed])


def _check(option: str, chosen: Sequence[tuple[LookState, PlannedRun]]) -> None:
    if not any(one.asks_for(run) for one, run in chosen):
        where = "; ".join(dict.fromkeys(_where(one) for one, _ in chosen))
        raise UsageError(f"{option}: no look has asked for such a run: {where}; leave {option} out")


def select_runs(plans: Sequence[Plan], arms: Sequence[str] | None, seeds: Sequence[int] | None) -> RunSelection:
    """The runs that --arm and --seed select; raises UsageError for an arm or seed that no plan has."""
    names = {run.arm for plan in plans for run in plan.runs}
    known = {run.seed for plan in plans for run in plan.runs}
    for arm in arms or ():
        if arm not in names:
            raise UsageError(f"--arm {arm}: no study named has such an arm{suggest(arm, names)}")
    for seed in seeds or ():
        if seed not in known:
            raise UsageError(
                f"--seed {seed}: no study named has this seed; planned: {', '.join(map(str, sorted(known)))}"
            )
    return RunSelection(tuple(arms or ()), tuple(seeds or ()))


def _where(state: LookState) -> str:
    label, looks = state.plan.study.label, state.looks
    if looks is not None and looks.pending is not None:
        return f"{label} waits for its look at {looks.pending.num_seeds} seeds, and later ones follow from that"
    return f"all that {label} compares is decided, or its last look was taken"
