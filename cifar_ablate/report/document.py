"""A report as blocks: what it says, in which order. Each format that people read renders these blocks, and no more.

`build_document` makes the blocks from the numbers of a `Report`; a format walks them and decides only how they look:
prose, lists, commands, tables, figures, folds, and sections of other blocks.
Nothing heavy is imported before a document is built, so that a format can import its blocks at the top of its file.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from cifar_ablate.analysis import Verdict
    from cifar_ablate.report.types import Report, Reproduce, StudyReport, TuningReport


@dataclass(frozen=True)
class Prose:
    """A paragraph."""

    text: str
    role: Literal["plain", "question", "facts"] = "plain"
    has_code: bool = False
    """`Code` stands between backquotes."""


@dataclass(frozen=True)
class Item:
    """A line of a list."""

    text: str
    term: str = ""
    """What the text is about; empty in lists of sentences."""
    verdict: Verdict | None = None
    """Whose label is the term."""


@dataclass(frozen=True)
class Items:
    """A list; ``steps`` are numbered, ``verdicts`` and ``terms`` have a term for each item."""

    items: tuple[Item, ...]
    kind: Literal["sentences", "steps", "verdicts", "terms"] = "sentences"
    has_code: bool = False
    """`Code` stands between backquotes in the texts."""


@dataclass(frozen=True)
class Commands:
    """Commands for a shell, one a line."""

    lines: tuple[str, ...]


@dataclass(frozen=True)
class Cell:
    """What a cell of a table says, and the number that it is sorted by."""

    text: str = ""
    value: float | None = None
    """None where cells are sorted by their text."""
    verdict: Verdict | None = None
    is_shown: bool = False
    """It stands out: bold, on colour or marked."""


@dataclass(frozen=True)
class Column:
    """A column's title, and what it holds."""

    title: str
    kind: Literal["name", "text", "prose", "number", "id"] = "number"
    is_wide_only: bool = False
    """A narrow page leaves it out."""


@dataclass(frozen=True)
class Table:
    """Rows of cells, one cell for each column; the first one names the row."""

    name: str
    """Of letters and dashes; unique within a study."""
    caption: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]


@dataclass(frozen=True)
class Figure:
    """A drawn figure."""

    name: str
    """Of its file, without the ending; of letters, digits, ``.``, ``_``, ``@`` and dashes."""
    title: str
    caption: str
    """What is seen, also for those who cannot see it."""
    svg: str


@dataclass(frozen=True)
class Fold:
    """Blocks under a summary, folded where a format can fold."""

    summary: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Section:
    """Blocks under a heading."""

    title: str
    name: str
    """Of letters and dashes; unique within a study."""
    blocks: tuple[Block, ...]
    aside: tuple[Section, ...] = ()
    """Sections that go with this one: beside it on a wide page, after it elsewhere."""


Block = Prose | Items | Commands | Table | Figure | Fold | Section


@dataclass(frozen=True)
class Document:
    """A report; one section for each study's variant."""

    title: str
    studies: tuple[Section, ...]
    missing: str = ""
    """What to say where there is no study."""


@dataclass(frozen=True)
class Rendered:
    """A report in one format, with the files that belong beside it."""

    text: str
    files: dict[str, str] = field(default_factory=dict)
    """Content by path, relative to the folder of the report."""


def walk(blocks: Iterable[Block], level: int = 1) -> Iterator[tuple[int, Block]]:
    """Every block in reading order, with the level of its heading or of the section around it.

    Sections are entered, folds are not: a format decides how to show those.
    """
    for block in blocks:
        yield level, block
        if isinstance(block, Section):
            yield from walk((*block.blocks, *block.aside), level + 1)


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
