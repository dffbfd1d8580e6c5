"""The blocks that a report is made of: prose, lists, commands, tables, figures, details and sections of other blocks.

A format renders blocks and decides only how they look.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from cifar_ablate.analysis import Verdict


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
