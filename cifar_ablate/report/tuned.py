"""Studies whose arms were tuned: each comparison with the shared recipe, and the same with each arm's own best.

A field that was searched may differ between arms and confounds nothing: each arm is at its own best value.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import pandas as pd

from cifar_ablate.analysis import Contrast, Verdict, label
from cifar_ablate.analysis.interactions import Move, moves
from cifar_ablate.analysis.sentences import count, in_points, interval, level_name, points
from cifar_ablate.analysis.verdicts import RULED
from cifar_ablate.record.types import StudyRecord
from cifar_ablate.report.formatting import first_few, listed, run_command
from cifar_ablate.report.recorded_study import RecordedStudy
from cifar_ablate.report.types import Change, TunedArmRow, TunedComparison, TuningReport
from cifar_ablate.spec.delta import Difference, differences_of
from cifar_ablate.spec.schema import Tuned, label_of

_KINDS = {
    Verdict.BETTER: "shown",
    Verdict.WORSE: "shown",
    Verdict.EQUIVALENT: "within",
    Verdict.DIVERGED: "diverged",
}
"""What a verdict says; all others leave the comparison open."""
_CHANGES = {
    ("shown", "shown"): Change.REVERSED,
    ("shown", "within"): Change.LOST,
    ("shown", "open"): Change.LOST,
    ("within", "shown"): Change.FOUND,
    ("open", "shown"): Change.FOUND,
    ("open", "within"): Change.SETTLED,
    ("within", "open"): Change.OPENED,
    ("open", "open"): Change.OPEN,
    **{("diverged", after): Change.TRAINS for after in ("shown", "within", "open")},
    **{(before, "diverged"): Change.DIVERGES for before in ("shown", "within", "open")},
}
"""What a change from one verdict to another one is, by what they say."""


@dataclass(frozen=True)
class RecipeDifferences:
    """What differs between the recipes of two arms."""

    changes: tuple[Difference, ...]
    """Differences that confound an effect where there are several."""
    tuned: tuple[Difference, ...]
    """Differences in fields that were searched for at least one of the two."""

    @property
    def in_words(self) -> tuple[str, ...]:
        """All differences; those that the search found are marked."""
        return (*map(str, self.changes), *(f"{one} (tuned)" for one in self.tuned))


def between(study: RecordedStudy, before: str, after: str) -> RecipeDifferences:
    """What differs between two arms."""
    found = differences_of(study.arms[before]["recipe"], study.arms[after]["recipe"])
    tuned = study.tuned
    if tuned is None or not {before, after} & tuned.arms.keys():
        return RecipeDifferences(tuple(found), ())
    return RecipeDifferences(
        tuple(one for one in found if not is_of_space(one, tuned.space)),
        tuple(one for one in found if is_of_space(one, tuned.space)),
    )


def is_of_space(one: Difference, space: Iterable[str]) -> bool:
    """Is a difference within the fields of a search space, with every value that it adds or removes?"""
    fields = tuple(space)
    if _is_within(one.path, fields):
        return True
    if one.before is not None and one.after is not None:
        return False
    leaves = _leaves(one.path, one.before if one.after is None else one.after)
    return all(_is_within(path, fields) for path in leaves)  # such as `ema`, where `ema.decay` was searched


def _is_within(path: str, fields: Iterable[str]) -> bool:
    return any(path == field or path.startswith(f"{field}.") for field in fields)


def _leaves(path: str, value: Any) -> Iterator[str]:
    if not isinstance(value, Mapping):
        yield path
        return
    for name, inner in value.items():
        yield from _leaves(f"{path}.{name}", inner)


def fields_in_words(space: Iterable[str]) -> str:
    """``optimizer.lr and schedule``."""
    return listed([name.removeprefix("augment.") for name in space], last=" and ", most=4)


def own_best_sentence(study: RecordedStudy, arm: str, reference: str, found: RecipeDifferences) -> str:
    """At which values of the searched fields two arms are compared; empty where neither was tuned."""
    tuned = study.tuned
    if tuned is None or not {arm, reference} & tuned.arms.keys():
        return ""
    fields = fields_in_words(tuned.space)
    if {arm, reference} <= tuned.arms.keys():
        said = f"They are compared each at its own best {fields}"
        return f"{said}, and differ in nothing else." if found.tuned and not found.changes else f"{said}."
    best, other = (arm, reference) if arm in tuned.arms else (reference, arm)
    said = f"{best} is at its own best {fields}, {other} was not tuned"
    return f"{said}: part of the difference may come from the search." if found.tuned else f"{said}."


def shared_label(document: Mapping[str, Any]) -> str | None:
    """Label of the record of the shared recipe; None for a study whose arms were not tuned."""
    tuned = document.get("tuned")
    base = tuned.get("study") if isinstance(tuned, Mapping) else None
    if base is None or base == document["study"]:
        return None
    return f"{base}@{document['variant']}" if document["variant"] else str(base)


def shared_labels(records: Iterable[StudyRecord]) -> list[str]:
    """Labels of the shared recipes of these records, without those that are among them."""
    there = {record.label: shared_label(record.document) for record in records}
    return list(dict.fromkeys(label for label in there.values() if label is not None and label not in there))


def change_of(shared: Contrast | None, own: Contrast) -> Change:
    """How a verdict changes from the shared recipe to own best ones, by the decision that follows from it."""
    known = RULED | {Verdict.DIVERGED}
    if shared is None or shared.verdict not in known or own.verdict not in known:
        return Change.UNKNOWN
    before, after = (_KINDS.get(one.verdict, "open") for one in (shared, own))
    return Change.STANDS if shared.verdict is own.verdict else _CHANGES[before, after]


def tuning_report(study: RecordedStudy, shared: RecordedStudy | None) -> TuningReport | None:
    """Comparison of the shared recipe with each arm's own best; None for a study whose arms were not tuned."""
    tuned, label = study.tuned, shared_label(study.document)
    if tuned is None:
        return None
    arms = tuple(_row(study, shared, tuned, name) for name in study.arms)
    comparisons = tuple(_comparisons(study, shared))
    differ = tuple(unlike(study, shared)) if shared is not None else ()
    uneven = tuple(budgets(arms))
    missing = "" if shared is not None else _missing(study.document, tuned, label)
    said = (verdicts_text(comparisons), *(f"Not like with like: {one}" for one in differ), *uneven)
    return TuningReport(
        study=tuned.study,
        shared=label or tuned.study,
        is_at_hand=shared is not None,
        fields=tuned.space,
        sampler=tuned.sampler,
        pruner=tuned.pruner,
        seeds=tuned.seeds,
        val_fraction=tuned.val_fraction,
        data=tuned.data,
        date=tuned.date,
        arms=arms,
        comparisons=comparisons,
        unlike=differ,
        budgets=uneven,
        missing=missing,
        sentences=tuple(filter(None, (*said, searched(tuned), only_test(arms)))),
    )


def _row(study: RecordedStudy, shared: RecordedStudy | None, tuned: Tuned, name: str) -> TunedArmRow:
    return TunedArmRow(
        name=name,
        tuned=tuned.arms.get(name),
        shared_test=shared.mean_sd(name, "test_accuracy") if shared is not None else None,
        own_best_test=study.mean_sd(name, "test_accuracy"),
    )


def _missing(document: Mapping[str, Any], tuned: Tuned, label: str | None) -> str:
    if label is None:
        return f"This study says that it was tuned from itself ({tuned.study}), so it has no shared recipe."
    own = document.get("file", "")
    file = str(PurePosixPath(own).with_name(f"{tuned.study}.yaml")) if own else ""
    command = run_command({"study": tuned.study, "file": file, "variant": document["variant"]})
    return (
        f"The record of the shared recipe, {label}, is missing, so these verdicts are compared with nothing: "
        f"`{command}` makes it."
    )


def _comparisons(study: RecordedStudy, shared: RecordedStudy | None) -> Iterator[TunedComparison]:
    before = {} if shared is None else shared.compared.families
    for family, of_family in study.compared.families.items():
        theirs = {(one.arm, one.reference): one for one in before.get(family, ())}
        found = _moves(study, shared, of_family)
        for own, move in zip(of_family, found, strict=True):
            other = theirs.get((own.arm, own.reference))
            change = change_of(other, own)
            yield TunedComparison(
                family=family,
                arm=own.arm,
                reference=own.reference,
                shared=other,
                own_best=own,
                change=change,
                move=None if other is None else move,
                text=comparison_text(other, own, change, move, is_at_hand=shared is not None),
            )


def _moves(study: RecordedStudy, shared: RecordedStudy | None, contrasts: Sequence[Contrast]) -> list[Move | None]:
    """By how much differences moved; unknown with looks, where the differences decided seeds and levels."""
    none: list[Move | None] = [None] * len(contrasts)
    if shared is None or study.looks or shared.looks:
        return none
    asked = [one for one in contrasts if {one.arm, one.reference} <= shared.arms.keys()]
    values: dict[str, pd.Series] = {}
    for side in (shared, study):
        for name in side.arms:
            if not any(run.arm == name and run.outcome == "diverged" for run in side.ended):
                values[_key(side, name)] = side.accuracies(name).sort_index()
    sides = [tuple(_key(side, name) for side in (shared, study) for name in (one.arm, one.reference)) for one in asked]
    found = dict(zip(((one.arm, one.reference) for one in asked), moves(values, sides), strict=True))  # type: ignore[arg-type]
    return [found.get((one.arm, one.reference)) for one in contrasts]


def _key(study: RecordedStudy, arm: str) -> str:
    """The same for equal recipes."""
    return str(study.arms[arm]["recipe_id"])


def unlike(study: RecordedStudy, shared: RecordedStudy) -> Iterator[str]:
    """Differences between two records other than the values that were searched, each as a sentence."""
    tuned, here, there = study.tuned, study.document, shared.document
    if tuned is None:
        return
    if tuned.variant != here["variant"]:
        was, now = (f"under {one}" if one else "without an overlay" for one in (tuned.variant, here["variant"]))
        yield f"the values were searched {was}, these runs are {now}."
    if here["seeds"] != there["seeds"]:
        yield f"seeds {first_few(there['seeds'])} with the shared recipe, {first_few(here['seeds'])} here."
    if list(here.get("looks", ())) != list(there.get("looks", ())):
        yield "the two have different looks, so their intervals have different levels."
    if here["margin"] != there["margin"]:
        yield f"the margin is {in_points(there['margin'])} with the shared recipe, {in_points(here['margin'])} here."
    if here["baseline"] != there["baseline"]:
        yield f"the baseline is {there['baseline']} with the shared recipe, {here['baseline']} here."
    yield from _unlike_arms(study, shared, tuned)


def _unlike_arms(study: RecordedStudy, shared: RecordedStudy, tuned: Tuned) -> Iterator[str]:
    if others := sorted(study.arms.keys() ^ shared.arms.keys()):
        yield f"only one of the two has {', '.join(others)}, so the families differ in size."
    both = [name for name in study.arms if name in shared.arms]
    for what, key in (("images (data digest)", "data_digest"), ("precision", "precision")):
        if names := [name for name in both if study.arms[name][key] != shared.arms[name][key]]:
            yield f"different {what}: {', '.join(names)}."
    for name in both:
        found = differences_of(shared.arms[name]["recipe"], study.arms[name]["recipe"])
        fields = tuned.space if name in tuned.arms else ()
        if beside := [str(one) for one in found if not is_of_space(one, fields)]:
            yield f"{name} differs from its shared recipe also in what was not searched: {'; '.join(beside)}."
    for side, record in (("with the shared recipe", shared), ("here", study)):
        wanted = 0 if record.looks else sum(len(arm["seeds"]) for arm in record.arms.values())
        if left := max(0, wanted - len(record.ended)):
            yield f"{side} {left} of {wanted} planned runs {'has' if left == 1 else 'have'} no result yet."


CHANGES_IN_WORDS = {
    Change.STANDS: ("stands", "stands"),
    Change.REVERSED: ("reversed", "is reversed by tuning"),
    Change.LOST: ("does not survive tuning", "does not survive tuning"),
    Change.FOUND: ("appears only after tuning", "appears only after tuning"),
    Change.SETTLED: ("within the margin only after tuning", "is settled only after tuning"),
    Change.OPENED: ("open again after tuning", "is open again after tuning"),
    Change.TRAINS: ("diverged only before tuning", "diverged only with the shared recipe"),
    Change.DIVERGES: ("diverges only after tuning", "diverges only at the arms' own best"),
    Change.OPEN: ("open in both", "stays open"),
    Change.UNKNOWN: ("", ""),
}
"""How a verdict changed: in a table, and after "A against B"."""
ONLY_TEST = (
    "The best of {trials} on validation images looks better than it is, because the search also selects lucky results. "
    "Validation accuracies show what the search selected by; only the columns of test accuracy show what it is worth. "
    "Intervals hold for the values that were found: another search may find others, and no interval covers that."
)


def comparison_text(
    shared: Contrast | None, own: Contrast, change: Change, move: Move | None, *, is_at_hand: bool
) -> str:
    """A comparison with the shared recipe and with own best ones, in words."""
    who = f"{own.arm} against {own.reference}"
    if shared is None:
        why = "the shared recipe has no such comparison" if is_at_hand else "the record of the shared recipe is missing"
        return f"{who}: {_said(own)} with each arm's own best recipe; {why}."
    if change is Change.UNKNOWN:
        return (
            f"{who}: {_said(shared)} with the shared recipe, {_said(own)} with each arm's own best; whether the "
            "verdict stands is not known without both."
        )
    said = f"{who} {CHANGES_IN_WORDS[change][1]}: {_said(shared)} with the shared recipe, "
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
        return " Both have the same recipes: the search changed neither arm."
    moved = f" The difference moved by {points(move.estimate, like=move.ci95)} points (95% CI {interval(move.ci95)})"
    if change.is_flip and not move.is_shown:
        return f"{moved}: the verdict changed, but the data do not show that the difference did."
    return f"{moved}."


def searched(tuned: Tuned) -> str:
    """What was searched, how, and on which data."""
    space = "; ".join(f"{name} ({words})" for name, words in tuned.space.items())
    under = f" under {tuned.variant}" if tuned.variant else ""
    return (
        f"Searched for each arm of {tuned.study}{under}: {space}. Sampler {tuned.sampler}, pruner {tuned.pruner}, "
        f"{count(tuned.seeds, 'seed')} per trial, chosen by accuracy on {100 * tuned.val_fraction:g}% of the training "
        f"images, which trials were not trained on and runs are; {tuned.data}; last trial {tuned.date}."
    )


def verdicts_text(comparisons: Sequence[TunedComparison]) -> str:
    """How many verdicts change and which; empty where none can be compared."""
    known = [one for one in comparisons if one.change is not Change.UNKNOWN]
    if not known:
        return ""
    flips = [one for one in known if one.change.is_flip]
    if not flips:
        said = f"{'The one verdict does not flip' if len(known) == 1 else f'None of {len(known)} verdicts flips'}"
        said += " with each arm's own best recipe"
    else:
        named = [f"{one.arm} against {one.reference} ({CHANGES_IN_WORDS[one.change][0]})" for one in flips]
        verb = "flips" if len(flips) == 1 else "flip"
        said = f"Of {count(len(known), 'verdict')}, {len(flips)} {verb} with each arm's own best recipe: "
        said += listed(named, "; ")
    stand, still = (sum(one.change is change for one in known) for change in (Change.STANDS, Change.OPEN))
    rest = [f"{stand} {'stands' if stand == 1 else 'stand'}"] if stand and flips else []
    rest += [f"{still} {'is' if still == 1 else 'are'} open in both, with a different verdict"] if still else []
    unknown = len(comparisons) - len(known)
    rest += [f"{count(unknown, 'other')} cannot be compared"] if unknown else []
    return f"{said}{'; ' if rest else ''}{', '.join(rest)}."


def budgets(rows: Sequence[TunedArmRow]) -> Iterator[str]:
    """Ways in which the searches of the arms were unequal."""
    if left := [row.name for row in rows if row.tuned is None]:
        yield (
            f"Not tuned, as written: {listed(left, last=' and ')}. {'It is' if len(left) == 1 else 'They are'} "
            "compared with arms that were tuned, which favours those."
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
        f"{listed(names, last=' and ')} {f'{verb} {count(number, noun)}' if index == 0 else f'{number:,}'}"
        for index, (number, names) in enumerate(groups.items())
    ]
    return listed(parts)


def only_test(rows: Sequence[TunedArmRow]) -> str:
    """Why validation accuracies are not results."""
    most = max((row.tuned.trials for row in rows if row.tuned), default=0)
    return ONLY_TEST.format(trials=f"{most} trials" if most > 1 else "several trials")


def counterpart(tuned_label: str, tuning: TuningReport) -> tuple[str, str]:
    """A caveat for the report of the shared recipe: a keyword and its text."""
    said = verdicts_text(tuning.comparisons) or "No verdict can be compared yet."
    return "Tuned counterpart", f"{tuned_label} has each arm at its own best {fields_in_words(tuning.fields)}. {said}"


def setting(name: str, value: Any) -> str:
    """A tuned field and its value: ``optimizer.lr 0.03``."""
    return f"{name.removeprefix('augment.')} {f'{value:.4g}' if isinstance(value, float) else label_of(value)}"
