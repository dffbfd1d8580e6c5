"""The tuning contract: what a shared recipe says of the arms, beside what each arm's own best recipe says."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

import pandas as pd

from cifar_ablate.analysis import Contrast, Verdict
from cifar_ablate.analysis.moves import Move, moves
from cifar_ablate.analysis.sentences import in_points
from cifar_ablate.analysis.verdicts import RULED
from cifar_ablate.records import StudyRecord
from cifar_ablate.report.accuracy import Study, spread
from cifar_ablate.report.reproduce import run_command
from cifar_ablate.report.tuned_fields import is_of_space
from cifar_ablate.report.tuned_words import budgets, comparison_text, only_test, searched, verdicts_text
from cifar_ablate.report.tuning_types import Change, TunedArmRow, TunedComparison, TuningReport
from cifar_ablate.spec.delta import differences_of
from cifar_ablate.spec.schema import Tuned

_KINDS = {
    Verdict.BETTER: "shown",
    Verdict.WORSE: "shown",
    Verdict.EQUIVALENT: "within",
    Verdict.DIVERGED: "diverged",
}
"""Of verdicts; all others are open."""
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
"""Of different verdicts, by their kinds."""
MAX_SEEDS_NAMED = 12


def shared_label(document: Mapping[str, Any]) -> str | None:
    """Label of the record with the shared recipe, of a study whose arms were tuned; None of any other."""
    tuned = document.get("tuned")
    base = tuned.get("study") if isinstance(tuned, Mapping) else None
    if base is None or base == document["study"]:
        return None
    return f"{base}@{document['variant']}" if document["variant"] else str(base)


def shared_labels(records: Iterable[StudyRecord]) -> list[str]:
    """Labels of records that the comparisons of these ask for, and that are not among them."""
    there = {record.label: shared_label(record.document) for record in records}
    return list(dict.fromkeys(label for label in there.values() if label is not None and label not in there))


def change_of(shared: Contrast | None, own: Contrast) -> Change:
    """What becomes of a verdict, by what one would do for it."""
    known = RULED | {Verdict.DIVERGED}
    if shared is None or shared.verdict not in known or own.verdict not in known:
        return Change.UNKNOWN
    before, after = (_KINDS.get(one.verdict, "open") for one in (shared, own))
    return Change.STANDS if shared.verdict is own.verdict else _CHANGES[before, after]


def tuning_report(study: Study, shared: Study | None) -> TuningReport | None:
    """The shared recipe beside each arm's own best; None of a study whose arms were not tuned."""
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


def _row(study: Study, shared: Study | None, tuned: Tuned, name: str) -> TunedArmRow:
    return TunedArmRow(
        name=name,
        tuned=tuned.arms.get(name),
        shared_test=spread(shared.by_seed(name, "test_accuracy").values()) if shared is not None else None,
        own_best_test=spread(study.by_seed(name, "test_accuracy").values()),
    )


def _missing(document: Mapping[str, Any], tuned: Tuned, label: str | None) -> str:
    if label is None:
        return f"This study says that it was tuned from itself ({tuned.study}), so there is no shared recipe beside it."
    own = document.get("file", "")
    file = str(PurePosixPath(own).with_name(f"{tuned.study}.yaml")) if own else ""
    command = run_command({"study": tuned.study, "file": file, "variant": document["variant"]})
    return (
        f"The record of the shared recipe, {label}, is not at hand, so nothing stands beside these verdicts: "
        f"`{command}` makes it."
    )


def _comparisons(study: Study, shared: Study | None) -> Iterator[TunedComparison]:
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


def _moves(study: Study, shared: Study | None, contrasts: Sequence[Contrast]) -> list[Move | None]:
    """How far differences moved; not with looks, whose seeds and levels were chosen by the differences."""
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


def _key(study: Study, arm: str) -> str:
    """What equal trainings share."""
    return str(study.arms[arm]["recipe_id"])


def unlike(study: Study, shared: Study) -> Iterator[str]:
    """In what two records differ beside the values that were searched, each in a sentence."""
    tuned, here, there = study.tuned, study.document, shared.document
    if tuned is None:
        return
    if tuned.variant != here["variant"]:
        was, now = (f"under {one}" if one else "without an overlay" for one in (tuned.variant, here["variant"]))
        yield f"values were searched {was}, and these runs are {now}."
    if here["seeds"] != there["seeds"]:
        yield f"seeds {_seeds(there)} with the shared recipe, {_seeds(here)} here."
    if list(here.get("looks", ())) != list(there.get("looks", ())):
        yield "one of the two has other looks, so their intervals have other levels."
    if here["margin"] != there["margin"]:
        yield f"the margin is {in_points(there['margin'])} with the shared recipe, {in_points(here['margin'])} here."
    if here["baseline"] != there["baseline"]:
        yield f"the baseline is {there['baseline']} with the shared recipe, {here['baseline']} here."
    yield from _unlike_arms(study, shared, tuned)


def _unlike_arms(study: Study, shared: Study, tuned: Tuned) -> Iterator[str]:
    if others := sorted(study.arms.keys() ^ shared.arms.keys()):
        yield f"only one of the two has {', '.join(others)}, so the families have other sizes."
    both = [name for name in study.arms if name in shared.arms]
    for what, key in (("images (data digest)", "data_digest"), ("precision", "precision")):
        if names := [name for name in both if study.arms[name][key] != shared.arms[name][key]]:
            yield f"other {what}: {', '.join(names)}."
    for name in both:
        found = differences_of(shared.arms[name]["recipe"], study.arms[name]["recipe"])
        fields = tuned.space if name in tuned.arms else ()
        if beside := [str(one) for one in found if not is_of_space(one, fields)]:
            yield f"{name} differs from its shared recipe in what was not searched, too: {'; '.join(beside)}."
    for side, record in (("with the shared recipe", shared), ("here", study)):
        wanted = 0 if record.looks else sum(len(arm["seeds"]) for arm in record.arms.values())
        if left := max(0, wanted - len(record.ended)):
            yield f"{side} {left} of {wanted} planned runs {'has' if left == 1 else 'have'} no result yet."


def _seeds(document: Mapping[str, Any]) -> str:
    seeds = [str(seed) for seed in document["seeds"]]
    return ", ".join(seeds[:MAX_SEEDS_NAMED]) + (", ..." if len(seeds) > MAX_SEEDS_NAMED else "")
