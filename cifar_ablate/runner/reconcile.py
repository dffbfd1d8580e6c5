"""Plan minus record is what is left to do."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from cifar_ablate.plan import PlannedRun
from cifar_ablate.records import RecordedRun, worth


@dataclass(frozen=True)
class Reconciled:
    """The runs of a plan, by what the record says of them."""

    done: tuple[PlannedRun, ...]
    failed: tuple[tuple[PlannedRun, str], ...]
    """Failed before, with the reason; they are tried again only when asked for."""
    todo: tuple[PlannedRun, ...]


def reconcile(
    runs: Sequence[PlannedRun],
    recorded: Iterable[RecordedRun],
    *,
    retry_failed: bool = False,
    has_ended: Callable[[PlannedRun], bool] = lambda run: False,
) -> Reconciled:
    """Sort planned runs into done, failed and to do. Finished and diverged are both results: done.

    ``has_ended``: its folder holds a result of either kind, which the record may have missed.
    """
    outcomes: dict[tuple[str, str], RecordedRun] = {}
    for record in recorded:
        key = (record.arm, record.fingerprint)
        if key not in outcomes or worth(record) > worth(outcomes[key]):
            outcomes[key] = record
    done: list[PlannedRun] = []
    failed: list[tuple[PlannedRun, str]] = []
    todo: list[PlannedRun] = []
    for run in runs:
        found = outcomes.get((run.arm, run.fingerprint))
        if found is not None and found.outcome in ("finished", "diverged"):
            done.append(run)
        elif found is not None and found.outcome == "failed" and not retry_failed and not has_ended(run):
            failed.append((run, found.reason))
        else:
            todo.append(run)
    return Reconciled(tuple(done), tuple(failed), tuple(todo))
