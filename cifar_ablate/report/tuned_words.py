"""Tuning in words: what was searched, what becomes of verdicts, and why only test accuracies count."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from cifar_ablate.analysis import Contrast, Verdict, label
from cifar_ablate.analysis.moves import Move
from cifar_ablate.analysis.sentences import count, interval, level_name, points
from cifar_ablate.report.tuned_fields import fields_in_words
from cifar_ablate.report.tuning_types import Change, TunedArmRow, TunedComparison, TuningReport
from cifar_ablate.spec.schema import label_of

if TYPE_CHECKING:
    from cifar_ablate.spec.schema import Tuned

IN_WORDS = {
    Change.STANDS: "stands",
    Change.REVERSED: "reversed",
    Change.LOST: "does not survive tuning",
    Change.FOUND: "appears only after tuning",
    Change.SETTLED: "within the margin only after tuning",
    Change.OPENED: "open again after tuning",
    Change.TRAINS: "diverged only before tuning",
    Change.DIVERGES: "diverges only after tuning",
    Change.OPEN: "open in both",
    Change.UNKNOWN: "",
}
"""Of a verdict on the shared recipe, for tables."""
_BECOMES = {
    Change.STANDS: "stands",
    Change.REVERSED: "is reversed by tuning",
    Change.LOST: "does not survive tuning",
    Change.FOUND: "appears only after tuning",
    Change.SETTLED: "is settled only after tuning",
    Change.OPENED: "is open again after tuning",
    Change.TRAINS: "diverged only with the shared recipe",
    Change.DIVERGES: "diverges only at the arms' own best",
    Change.OPEN: "stays open",
}
ONLY_TEST = (
    "The best of {trials} on validation images looks better than it is: part of its lead is luck, which was selected. "
    "Validation accuracies say what the search chose by, and only the columns of test accuracy say what it is worth. "
    "Intervals are for the values as found: another search may find others, and no interval here counts that."
)
MAX_NAMED = 6


def comparison_text(
    shared: Contrast | None, own: Contrast, change: Change, move: Move | None, *, is_at_hand: bool
) -> str:
    """A comparison with the shared recipe and with own best ones, in a sentence or two."""
    who = f"{own.arm} against {own.reference}"
    if shared is None:
        why = "the shared recipe has no such comparison" if is_at_hand else "the shared recipe is not at hand"
        return f"{who}: {_said(own)} with each arm's own best recipe; {why}."
    if change is Change.UNKNOWN:
        return (
            f"{who}: {_said(shared)} with the shared recipe, {_said(own)} with each arm's own best; whether the "
            "verdict stands cannot be said without both."
        )
    said = f"{who} {_BECOMES[change]}: {_said(shared)} with the shared recipe, "
    return f"{said}{_said(own)} with each arm's own best.{_moved(move, change)}"


def _said(one: Contrast) -> str:
    if one.estimate is None:
        return f"{label(one.verdict)}" if one.verdict is Verdict.DIVERGED else "no finished run"
    basis = f", {level_name(one.alpha)} CI {interval(one.ci95)}" if one.ci95 else ""
    return f"{label(one.verdict)} ({points(one.estimate, like=one.ci95)}{basis})"


def _moved(move: Move | None, change: Change) -> str:
    if move is None or (move.ci95 is None and move.estimate):
        return ""
    if move.ci95 is None:
        return " Both are of the same recipes: the search changed neither arm."
    moved = f" The difference moved by {points(move.estimate, like=move.ci95)} points (95% CI {interval(move.ci95)})"
    if change.is_flip and not move.is_shown:
        return f"{moved}: the verdict changed, but that the difference did is not shown."
    return f"{moved}."


def searched(tuned: Tuned) -> str:
    """What was searched, how, and on what."""
    listed = "; ".join(f"{name} ({words})" for name, words in tuned.space.items())
    under = f" under {tuned.variant}" if tuned.variant else ""
    return (
        f"Searched for each arm of {tuned.study}{under}: {listed}. Sampler {tuned.sampler}, pruner {tuned.pruner}, "
        f"{count(tuned.seeds, 'seed')} per trial, chosen by accuracy on {100 * tuned.val_fraction:g}% of the training "
        f"images, which trials were not trained on and runs are; {tuned.data}; last trial {tuned.date}."
    )


def verdicts_text(comparisons: Sequence[TunedComparison]) -> str:
    """How many verdicts flip and which, in a sentence; empty where none can be compared."""
    known = [one for one in comparisons if one.change is not Change.UNKNOWN]
    if not known:
        return ""
    flips = [one for one in known if one.change.is_flip]
    if not flips:
        said = f"{'The one verdict does not flip' if len(known) == 1 else f'None of {len(known)} verdicts flips'}"
        said += " with each arm's own best recipe"
    else:
        named = [f"{one.arm} against {one.reference} ({IN_WORDS[one.change]})" for one in flips]
        more = f"; and {len(named) - MAX_NAMED} more" if len(named) > MAX_NAMED else ""
        verb = "flips" if len(flips) == 1 else "flip"
        said = f"Of {count(len(known), 'verdict')}, {len(flips)} {verb} with each arm's own best recipe: "
        said += "; ".join(named[:MAX_NAMED]) + more
    stand, still = (sum(one.change is change for one in known) for change in (Change.STANDS, Change.OPEN))
    rest = [f"{stand} {'stands' if stand == 1 else 'stand'}"] if stand and flips else []
    rest += [f"{still} {'is' if still == 1 else 'are'} open in both, with another verdict"] if still else []
    unknown = len(comparisons) - len(known)
    rest += [f"{count(unknown, 'other')} cannot be compared"] if unknown else []
    return f"{said}{'; ' if rest else ''}{', '.join(rest)}."


def budgets(rows: Sequence[TunedArmRow]) -> Iterator[str]:
    """In what the searches of the arms were unequal."""
    if left := [row.name for row in rows if row.tuned is None]:
        yield (
            f"Not tuned, as written: {_listed(left)}. {'It is' if len(left) == 1 else 'They are'} compared with arms "
            "that were tuned, which favours those."
        )
    trials = {row.name: row.tuned.trials for row in rows if row.tuned}
    if len(set(trials.values())) > 1:
        yield f"Unequal budgets: {_by_number(trials, 'had', 'trial')}. More trials find better values."
    epochs = {row.name: row.tuned.epochs for row in rows if row.tuned}
    if epochs and 10 * max(epochs.values()) > 11 * min(epochs.values()):
        yield (
            f"Epochs trained in the search differ by more than a tenth: {_by_number(epochs, 'took', 'epoch')}. Arms "
            "that train longer, and trials that are not ended early, cost more."
        )


def _by_number(numbers: dict[str, int], verb: str, noun: str) -> str:
    """``base and mixup had 20 trials, cutmix 12``, the most first."""
    groups: dict[int, list[str]] = {}
    for name, number in sorted(numbers.items(), key=lambda one: -one[1]):
        groups.setdefault(number, []).append(name)
    parts = [
        f"{_listed(names)} {f'{verb} {count(number, noun)}' if index == 0 else f'{number:,}'}"
        for index, (number, names) in enumerate(groups.items())
    ]
    return _listed(parts, last=", ")


def _listed(names: Sequence[str], last: str = " and ") -> str:
    if len(names) > MAX_NAMED:
        return f"{', '.join(names[:MAX_NAMED])} and {len(names) - MAX_NAMED} more"
    return last.join([*([", ".join(names[:-1])] if len(names) > 1 else []), *names[-1:]])


def only_test(rows: Sequence[TunedArmRow]) -> str:
    """Why validation accuracies are no result."""
    most = max((row.tuned.trials for row in rows if row.tuned), default=0)
    return ONLY_TEST.format(trials=f"{most} trials" if most > 1 else "several trials")


def counterpart(tuned_label: str, tuning: TuningReport) -> tuple[str, str]:
    """What the reader of the shared recipe's report must know: a keyword and its text."""
    said = verdicts_text(tuning.comparisons) or "No verdict can be compared yet."
    return "Tuned counterpart", f"{tuned_label} has each arm at its own best {fields_in_words(tuning.fields)}. {said}"


def setting(name: str, value: Any) -> str:
    """A tuned field as it was set: ``optimizer.lr 0.03``."""
    return f"{name.removeprefix('augment.')} {f'{value:.4g}' if isinstance(value, float) else label_of(value)}"
