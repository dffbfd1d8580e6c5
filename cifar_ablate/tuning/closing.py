"""What a ``tune`` command says at its end, and its exit code."""

from __future__ import annotations

from collections.abc import Iterator

from cifar_ablate.runner.summary import INTERRUPTED, MAX_NAMED
from cifar_ablate.tuning.display import in_words
from cifar_ablate.tuning.result import ArmResult
from cifar_ablate.tuning.run import TuneSummary


def lines_of(summary: TuneSummary, *, is_written: bool = False) -> Iterator[str]:
    """Each arm's best, what it cost, and what it is worth; ``is_written``: a study of it is written next."""
    for result in summary.results:
        yield from _of_arm(result)
    most = max((result.num_tried for result in summary.results), default=0)
    if most > 1:
        num = len(summary.results[0].plan.data.test_labels)
        yield (
            f"The best of {most} trials on {num:,} validation images looks better than it is; the test images were not "
            f"looked at. {'Run' if is_written else 'Write it down with --write, and run'} the study of it to learn "
            "what it is worth."
        )
    if len({(result.num_tried, result.plan.num_wanted) for result in summary.results}) > 1:
        yield "The arms have unequal budgets so far; an ablation of them would not be fair."
    if any(one.can_be_retried for result in summary.results for one in result.trials):
        yield "Try failed trials again with --retry failed once the cause is gone."
    if under_way(summary):
        yield "Other commands are still at work on some trials: they add theirs, and --write waits for them."
    if summary.stopped_because:
        yield f"Stopped: {summary.stopped_because}. The same command again does what is left."
    for name, trouble in summary.undelivered[:MAX_NAMED]:
        yield f"not delivered: {name}" + (f": {trouble}" if trouble else "")
    if summary.is_offline:
        yield "MLflow was left alone: the same command without --offline delivers what it lacks."
    elif summary.undelivered:
        yield "The same command again delivers what MLflow lacks."


def exit_code(summary: TuneSummary, *, is_unwritten: bool = False) -> int:
    """130 after a signal; 1 where it stopped, MLflow lacks something, an arm has no value, or what was to be written is
    not (``is_unwritten``); else 0.
    """
    if summary.signal:
        return INTERRUPTED
    nothing = any(result.best is None for result in summary.results)
    return 1 if summary.stopped_because or summary.undelivered or nothing or is_unwritten else 0


def under_way(summary: TuneSummary) -> bool:
    """Has another command trials of these arms, so that they are not done?"""
    return any(result.counts["running"] and not result.is_done for result in summary.results)


def _of_arm(result: ArmResult) -> Iterator[str]:
    counts, best, gain = result.counts, result.best, result.gain
    listed = ", ".join(f"{counts[state]} {state}" for state in ("complete", "pruned", "failed") if counts[state])
    wanted, num = result.plan.num_wanted, result.num_tried
    of = f"{num} of {wanted}" if num <= wanted else f"{num}"  # a larger number was wanted before
    head = f"{result.plan.arm}: {of} trials ({listed or 'none has ended'})"
    if counts["running"]:
        head += f", {counts['running']} with another command"
    if best is None:
        yield f"{head}; none has come to a value"
    elif best.is_present:
        yield f"{head}; nothing was better than the recipe as it stands, val {best.val_accuracy:.2f}%"
    else:
        more = "" if gain is None else f", {gain:+.2f} points over the recipe as it stands"
        yield f"{head}; best is trial {best.number}, val {best.val_accuracy:.2f}%{more}: {in_words(best.values)}"
    if result.importances:
        shares = ", ".join(f"{name} {share:.0%}" for name, share in result.importances.items())
        yield f"  of the differences between complete trials, {shares} (fANOVA)"
    for one in result.trials:
        if one.state == "failed":
            yield f"  failed: trial {one.number} ({in_words(one.values)}): {one.reason}"
