"""A report as blocks: what it says, in which order. Each format that people read renders these blocks, and no more.

`build_document` makes the blocks from the numbers of a `Report`; a format walks them and decides only how they look:
prose, lists, commands, tables, figures, folds, and sections of other blocks.
Nothing heavy is imported before a document is built, so that a format can import its blocks at the top of its file.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from cifar_ablate.report.blocks import Block, Commands, Document, Fold, Item, Items, Prose, Section, Table

if TYPE_CHECKING:
    from cifar_ablate.report.types import Report, Reproduce, StudyReport, TuningReport


def build_document(report: Report, *, ink: str | None = None) -> Document:
    """The blocks of a report.

    Args:
        report: Its numbers and sentences.
        ink: Colour of text and axes in figures, ``currentColor`` for that of the page; None for no figures.
    """
    missing = "" if report.studies else "No study is recorded yet."
    return Document("Ablation report", tuple(_study(study, ink) for study in report.studies), missing)


def _study(study: StudyReport, ink: str | None) -> Section:
    from cifar_ablate.report import tables

    head = [Prose(study.question, "question"), Prose(tables.facts(study), "facts")]
    if study.is_variant:
        variant = "A variant: recorded under an overlay, not with the recipes as the study states them."
        head.append(Prose(variant, "facts"))
    return Section(study.label, "study", (*head, *_sections(study, ink)))


def _sections(study: StudyReport, ink: str | None) -> Iterator[Section]:
    from cifar_ablate.report import tables

    yield _verdicts(study)
    if study.tuning is not None:
        yield Section("With each arm's own best recipe", "own-best", tuple(_tuning(study.tuning)))
    if study.families:
        compared = tuple(tables.verdict_table(study, family) for family in study.families)
        yield Section("Comparisons", "comparisons", compared)
    yield Section("Arms", "arms", (tables.arms_table(study),))
    if ink is not None:
        from cifar_ablate.report.figures import draw_figures

        if figures := draw_figures(study, ink=ink):
            yield Section("Figures", "figures", figures)
    yield Section("Classes", "classes", _blocks(Prose(study.classes_text), tables.classes_table(study)))
    if study.interactions or study.interaction_note:
        note = Prose(study.interaction_note) if study.interaction_note else None
        effects = _sentences(effect.sentence for effect in study.interactions)
        yield Section("Interactions", "interactions", _blocks(note, effects, tables.interactions_table(study)))
    if study.calibration:
        yield Section("Calibration", "calibration", _blocks(tables.calibration_table(study)))
    if study.published:
        beside = _sentences(row.text for row in study.published)
        yield Section("Published and measured", "published", _blocks(beside, tables.published_table(study)))
    terms = tuple(Item(text, keyword) for keyword, text in study.must_know)
    yield Section("What you must know", "must-know", (Items(terms, "terms", has_code=True),))
    yield Section("How to reproduce", "reproduce", _reproduce(study.reproduce, tables.runs_table(study)))


def _verdicts(study: StudyReport) -> Section:
    """The verdicts of each family; beside them how large noise is, and what to do next."""
    from cifar_ablate.analysis import label

    families = tuple(
        Section(
            f"{family.name[0].upper()}{family.name[1:]}",
            f"verdicts-{index}",
            (
                Items(
                    tuple(
                        Item(one.text, label(one.contrast.verdict), one.contrast.verdict) for one in family.comparisons
                    ),
                    "verdicts",
                ),
            ),
        )
        for index, family in enumerate(study.families, 1)
    )
    alone = Prose("One arm alone has nothing to be compared with: add an arm.")
    aside = [Section("How large noise is", "noise", (Prose(study.noise_text),))]
    if study.next_steps:
        steps = Items(tuple(map(Item, study.next_steps)), "steps", has_code=True)
        aside.append(Section("What to do next", "next-steps", (steps,)))
    return Section("Verdicts", "verdicts", families or (alone,), tuple(aside))


def _tuning(tuning: TuningReport) -> Iterator[Block]:
    from cifar_ablate.report.tables import own_best_table, tuning_table

    if tuning.missing:
        yield Prose(tuning.missing, has_code=True)
    yield from _blocks(_sentences(tuning.sentences))
    own_best = own_best_table(tuning)
    if own_best is not None:
        yield own_best
        yield from _blocks(_sentences(one.text for one in tuning.comparisons))
    yield tuning_table(tuning)


def _reproduce(again: Reproduce, runs: Table) -> tuple[Block, ...]:
    terms = [Item(f"`{commit}`", "Commit") for commit in again.commits]
    terms += [Item(version, "Environment") for version in again.versions]
    terms += [Item(f"`{digest}`", "Data digest") for digest in again.data_digests]
    fold = Fold("Every run, with its id in MLflow", (runs,)) if runs.rows else None
    return _blocks(Commands(again.commands), Items(tuple(terms), "terms", has_code=True) if terms else None, fold)


def _sentences(texts: Iterable[str]) -> Items | None:
    items = tuple(map(Item, texts))
    return Items(items) if items else None


def _blocks(*found: Block | None) -> tuple[Block, ...]:
    """Those that there are."""
    return tuple(block for block in found if block is not None)
