"""GitHub markdown, with its figures as files beside it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING
from urllib.parse import quote

from cifar_ablate.registry import FORMATS
from cifar_ablate.report.blocks import Block, Cell, Commands, Figure, Fold, Items, Prose, Rendered, Section, Table, walk
from cifar_ablate.report.document import build_document

if TYPE_CHECKING:
    from cifar_ablate.report.types import Report

FIGURES = "figures"
"""Folder of the figures, beside the report."""


@FORMATS.register("markdown")
def markdown(report: Report) -> Rendered:
    """GitHub markdown, one section for each study's variant."""
    document = build_document(report, ink="#000000")
    files: dict[str, str] = {}
    parts = [f"# {document.title}", *([document.missing] if document.missing else [])]
    parts += [_block(block, level, files) for level, block in walk(document.studies, 2)]
    return Rendered("\n\n".join(parts) + "\n", files)


def _block(block: Block, level: int, files: dict[str, str]) -> str:  # noqa: PLR0911 - one for each kind
    match block:
        case Section():
            return f"{'#' * level} {escape(block.title)}"
        case Prose(text, role, has_code):
            said = keep_code(text) if has_code else escape(text)
            return f"**{said}**" if role == "question" else said
        case Items():
            return "\n".join(_items(block))
        case Commands(lines):
            return "\n".join(["```console", *(f"$ {line}" for line in lines), "```"])
        case Table():
            return _table(block)
        case Figure(name, _, caption, svg):
            path = f"{FIGURES}/{name}.svg"
            files[path] = svg
            return f"![{escape(caption)}]({quote(path)})\n\n*{escape(caption)}*"
        case Fold(summary, blocks):
            inner = [_block(one, inner_level, files) for inner_level, one in walk(blocks, level)]
            return "\n\n".join([f"<details><summary>{within(summary)}</summary>", *inner, "</details>"])


def _items(block: Items) -> Iterator[str]:
    for number, item in enumerate(block.items, 1):
        mark = f"{number}." if block.kind == "steps" else "-"
        term = f"**{escape(item.term)}**: " if item.term else ""
        yield f"{mark} {term}{keep_code(item.text) if block.has_code else escape(item.text)}"


def _table(found: Table) -> str:
    """A table under its caption; what stands out is bold, and so are the rows' names."""
    rule = "".join("---:|" if column.kind == "number" else "---|" for column in found.columns)
    lines = [f"{escape(found.caption)}\n", _row(within(column.title) for column in found.columns), f"|{rule}"]
    return "\n".join([*lines, *(_row(map(_cell, row, range(len(row)))) for row in found.rows)])


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(cell: Cell, index: int) -> str:
    text = within(cell.text)
    return f"**{text}**" if text and (index == 0 or cell.is_shown) else text


def keep_code(text: str) -> str:
    """Escaped text, in which `code` stays code."""
    pieces = text.split("`")
    if len(pieces) % 2 == 0 or "``" in text or any("<" in piece for piece in pieces[1::2]):
        return escape(text)  # markdown would pair them in another way, or not every reader leaves a tag in code alone
    first, *rest = pieces
    kept = (" ".join(piece.splitlines()) if index % 2 else within(piece) for index, piece in enumerate(rest, 1))
    return "`".join([escape(first) if first else "", *kept])


_BEGINS_A_BLOCK = re.compile(r"(#{1,6}(?=\s|$)|>|[-+](?=\s|$)|=+\s*$|-+\s*$)|(\d{1,9})([.)])(?=\s|$)")
_ENDS_A_HEADING = re.compile(r"(?<=\s)(?=#+\s*$)")


def escape(text: str) -> str:
    """Text that markdown and the HTML in it leave alone, also where it begins a line, an item or a heading."""
    shown = within(text)
    if shown[:1].isspace():  # an encoded blank indents nothing, and nothing after it begins a block
        shown = f"&#32;{shown[1:]}"
    shown = _ENDS_A_HEADING.sub(r"\\", shown)
    begins = _BEGINS_A_BLOCK.match(shown)
    if begins is None:
        return shown
    at = begins.start(3) if begins[3] else 0  # 1\. or \#
    return f"{shown[:at]}\\{shown[at:]}"


def within(text: str) -> str:
    """The same for text within a line or a cell of a table."""
    for character in "\\`*_|[]~":
        text = text.replace(character, "\\" + character)
    text = text.replace("&", "&amp;").replace("<", "&lt;")
    # GitHub looks for formulas after it has removed the backslashes, and leaves this alone
    return " ".join(text.replace("$", "<span>$</span>").splitlines())
