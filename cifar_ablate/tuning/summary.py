"""The last lines of ``tune``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from cifar_ablate.runner.summary import CommandSummary, undelivered_lines
from cifar_ablate.tuning.display import describe_values
from cifar_ablate.tuning.result import ArmResult


@dataclass(frozen=True, kw_only=True)
class TuneSummary(CommandSummary):
    """How a ``tune`` command ended."""

    results: tuple[ArmResult, ...]

    @property
    def has_failed(self) -> bool:
        """Whether an arm has no complete trial."""
        return any(result.best is None for result in self.results)

    @property
    def is_under_way(self) -> bool:
        """Whether another command still trains trials that are wanted."""
        return any(result.counts["running"] and not result.is_done for result in self.results)


def tune_lines(summary: TuneSummary, *, is_written: bool = False) -> Iterator[str]:
    """Each arm's result, then what to do next. ``is_written``: the study of the best values is written next."""
    for result in summary.results:
        yield from _arm_lines(result)
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
    if summary.is_under_way:
        yield "Other commands are still at work on some trials: they add theirs, and --write waits for them."
    if summary.stopped_because:
        yield f"Stopped: {summary.stopped_because}. The same command again does what is left."
    yield from undelivered_lines(summary.undelivered)
    if summary.is_offline:
        yield "Nothing was sent to MLflow: the same command without --offline delivers what it lacks."
    elif summary.undelivered:
        yield "The same command again delivers what MLflow lacks."


def _arm_lines(result: ArmResult) -> Iterator[str]:
    counts, best, gain = result.counts, result.best, result.gain
    listed = ", ".join(f"{counts[state]} {state}" for state in ("complete", "pruned", "failed") if counts[state])
    wanted, num = result.plan.num_wanted, result.num_tried
    of = f"{num} of {wanted}" if num <= wanted else f"{num}"  # an earlier command wanted more
    head = f"{result.plan.arm}: {of} trials ({listed or 'none has ended'})"
    if counts["running"]:
        head += f", {counts['running']} with another command"
    if best is None:
        yield f"{head}; no trial is complete"
    elif best.is_untuned:
        yield f"{head}; nothing was better than the recipe as it stands, val {best.val_accuracy:.2f}%"
    else:
        more = "" if gain is None else f", {gain:+.2f} points over the recipe as it stands"
        yield f"{head}; best is trial {best.number}, val {best.val_accuracy:.2f}%{more}: {describe_values(best.values)}"
    if result.importances:
        shares = ", ".join(f"{name} {share:.0%}" for name, share in result.importances.items())
        yield f"  importance of the fields, by complete trials (fANOVA): {shares}"
    for one in result.trials:
        if one.state == "failed":
            yield f"  failed: trial {one.number} ({describe_values(one.values)}): {one.reason}"
