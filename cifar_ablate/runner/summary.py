"""How a command ended: what it says at its end, and its exit code."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from cifar_ablate.plan import PlannedRun

INTERRUPTED = 130
MAX_NAMED = 5
"""Maximum number of undelivered runs that are listed by name."""
SYNC_CURE = "Their results are in mlruns/runs; `cifar-ablate sync` tries again to deliver them."
_WORDS = {
    "shared": "trained before, now recorded",
    "elsewhere": "left to another run command",
    "stopped": "interrupted",
}


@dataclass(frozen=True, kw_only=True)
class CommandSummary:
    """What the summaries of ``run`` and ``tune`` share."""

    stopped_because: str
    """Why the command stopped before its plan was done; empty: it did not."""
    signal: str
    """The signal that stopped it, if one did."""
    undelivered: tuple[tuple[str, str], ...]
    """Names of runs that MLflow does not have completely, with what MLflow said."""
    is_offline: bool = False

    @property
    def has_failed(self) -> bool:
        """Whether something that was trained has no result."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class RunSummary(CommandSummary):
    """How a ``run`` command ended."""

    kinds: Counter[str]
    """Number of runs by how they ended: a kind of ``Ended``."""
    num_done_before: int
    num_failed_before: int
    num_not_tried: int
    """Runs that were left because the command stopped."""
    failures: tuple[tuple[PlannedRun, str], ...]
    """Runs that failed, now or before, and runs with a damaged folder, with the reason."""
    waiting: tuple[str, ...] = ()
    """Looks that wait for runs, in words."""

    @property
    def has_failed(self) -> bool:
        return bool(self.failures)


@dataclass(frozen=True)
class SyncSummary:
    """How a ``sync`` command ended, in names of runs."""

    delivered: tuple[str, ...]
    undelivered: tuple[tuple[str, str], ...]
    """With the reason."""
    running: tuple[str, ...]
    """Runs that are left to the commands that train them."""


def lines_of(summary: RunSummary) -> Iterator[str]:
    """The last lines of ``run``: counts, then each failure, then what to do next."""
    words = _WORDS | ({"shared": "trained before"} if summary.is_offline else {})
    said = [f"{count} {words.get(kind, kind)}" for kind, count in summary.kinds.items()]
    said += [f"{summary.num_done_before} skipped as done"] if summary.num_done_before else []
    said += [f"{summary.num_failed_before} skipped as failed"] if summary.num_failed_before else []
    said += [f"{summary.num_not_tried} not tried"] if summary.num_not_tried else []
    is_well = not (exit_code(summary) or summary.is_offline or summary.kinds.get("elsewhere"))
    yield "Runs: " + (", ".join(said) or "none") + (". Next: cifar-ablate report" if is_well else "")
    for run, reason in summary.failures:
        yield f"failed: {run.name}: {reason}"
    if summary.stopped_because:
        yield f"Stopped: {summary.stopped_because}"
    if summary.kinds.get("failed") or summary.num_failed_before:
        yield "Try them again with --retry failed once the cause is gone."
    if summary.undelivered and summary.is_offline:
        yield f"{len(summary.undelivered)} runs wait in mlruns/runs; `cifar-ablate sync` delivers what MLflow lacks."
    elif summary.undelivered:
        yield from undelivered_lines(summary.undelivered)
        yield SYNC_CURE
    yield from summary.waiting
    if summary.stopped_because or summary.kinds.get("stopped"):
        yield "The same command again does what is left."


def exit_code(summary: CommandSummary) -> int:
    """130 after a signal, 1 if anything failed or is left, else 0."""
    if summary.signal:
        return INTERRUPTED
    is_missing = summary.undelivered and not summary.is_offline
    return 1 if summary.has_failed or summary.stopped_because or is_missing else 0


def lines_of_sync(synced: SyncSummary) -> Iterator[str]:
    """The last lines of ``sync``."""
    yield f"Runs: {len(synced.delivered)} delivered" + (f", {len(synced.running)} running" if synced.running else "")
    if synced.undelivered:
        yield from undelivered_lines(synced.undelivered)
        yield SYNC_CURE


def undelivered_lines(runs: tuple[tuple[str, str], ...]) -> Iterator[str]:
    """The first runs that MLflow does not have, with the reason, and how many more there are."""
    for name, trouble in runs[:MAX_NAMED]:
        yield f"not delivered: {name}" + (f": {trouble}" if trouble else "")
    if len(runs) > MAX_NAMED:
        yield f"not delivered: {len(runs) - MAX_NAMED} more"
