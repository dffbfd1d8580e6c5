"""A LaTeX document whose tables can be cut out; pdflatex and booktabs are all it needs."""

from __future__ import annotations

import re
import unicodedata
from typing import TYPE_CHECKING

from cifar_ablate.registry import FORMATS
from cifar_ablate.report.blocks import Block, Cell, Column, Commands, Figure, Fold, Items, Prose, Section, Table, walk
from cifar_ablate.report.document import build_document

if TYPE_CHECKING:
    from cifar_ablate.report.types import Report

MAX_ROWS = 40
"""Longer tables go over several pages."""
MAX_COLUMNS = 20
HEADINGS = ("section", "subsection", "subsubsection", "paragraph")
_HEAD = r"""\documentclass[10pt,a4paper]{article}
\usepackage[margin=15mm]{geometry}
\usepackage{array,booktabs,longtable}
\newcolumntype{L}[1]{>{\raggedright\arraybackslash}p{#1}}
\renewcommand{\labelitemi}{\ensuremath{\bullet}}
\setlength{\parindent}{0pt}
\setlength{\parskip}{4pt}
\setlength{\tabcolsep}{2.5pt}
\setlength{\emergencystretch}{4em}
"""
SPECIAL = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_\allowbreak{}",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\ensuremath{<}",
    ">": r"\ensuremath{>}",
    "|": r"\ensuremath{|}",
    '"': "''",
    "`": r"\`{}",
    "[": "{[}",  # after a row's end or an \item, it would begin an option
    "]": "{]}",
    "*": "{*}",
    "-": "-{}",  # two of them stay two, and are no dash
    "+": r"+\allowbreak{}",
    "/": r"/\allowbreak{}",
    "\N{MINUS SIGN}": r"\ensuremath{-}",
    "\N{MULTIPLICATION SIGN}": r"\ensuremath{\times}",
    "\N{PLUS-MINUS SIGN}": r"\ensuremath{\pm}",
    "\N{RIGHTWARDS ARROW}": r"\ensuremath{\rightarrow}",
    "\N{LEFTWARDS ARROW}": r"\ensuremath{\leftarrow}",
    "\N{ALMOST EQUAL TO}": r"\ensuremath{\approx}",
    "\N{LESS-THAN OR EQUAL TO}": r"\ensuremath{\leq}",
    "\N{GREATER-THAN OR EQUAL TO}": r"\ensuremath{\geq}",
    "\N{DEGREE SIGN}": r"\ensuremath{^\circ}",
    "\N{MICRO SIGN}": r"\ensuremath{\mu}",
    "\N{EN DASH}": "--",
    "\N{EM DASH}": "---",
    "\N{HORIZONTAL ELLIPSIS}": "...",
    "\N{LEFT SINGLE QUOTATION MARK}": "`",
    "\N{RIGHT SINGLE QUOTATION MARK}": "'",
    "\N{LEFT DOUBLE QUOTATION MARK}": "``",
    "\N{RIGHT DOUBLE QUOTATION MARK}": "''",
    "ß": r"{\ss}",
    "æ": r"{\ae}",
    "Æ": r"{\AE}",
    "œ": r"{\oe}",
    "Œ": r"{\OE}",
    "ø": r"{\o}",
    "Ø": r"{\O}",
    "ł": r"{\l}",
    "Ł": r"{\L}",
    "ı": r"{\i}",
}
_MARKS = "\u0300\u0301\u0302\u0303\u0308\u0304\u0307\u030a\u030c\u030b\u0306\u0327\u0323\u0331"
ACCENTS = dict(zip(_MARKS, "`'^~\"=.rvHucdb", strict=True))
"""Marks over and under letters, as LaTeX writes them."""


@FORMATS.register("latex")
def latex(report: Report) -> str:
    """A whole document for pdflatex: tables in booktabs, plain ASCII throughout.

    It has no figures: pdflatex does not read SVG. The markdown report writes them as files.
    """
    document = build_document(report)
    parts = [_HEAD + r"\begin{document}", rf"\section*{{{escape(document.title)}}}", escape(document.missing)]
    parts += [_block(block, level) for level, block in walk(document.studies)]
    return "\n\n".join([*filter(None, parts), r"\end{document}"]) + "\n"


def _block(block: Block, level: int) -> str:  # noqa: PLR0911 - one for each kind of block
    match block:
        case Section():
            return rf"\{HEADINGS[level]}*{{{escape(block.title)}}}"
        case Prose(text, role, has_code):
            said = _with_code(text) if has_code else escape(text)
            return rf"\emph{{{said}}}" if role == "question" else said
        case Items():
            return _items(block)
        case Commands(lines):
            return "\\\\\n".join(rf"\texttt{{{escape(line)}}}" for line in lines)
        case Table():
            return _table(block)
        case Fold(_, blocks):  # paper does not fold
            return "\n\n".join(_block(one, inner_level) for inner_level, one in walk(blocks, level))
        case Figure():
            return ""


def _items(block: Items) -> str:
    name = "enumerate" if block.kind == "steps" else "itemize"
    lines = [rf"\begin{{{name}}}"]
    for item in block.items:
        term = rf"\textbf{{{escape(item.term)}}}: " if item.term else ""
        lines.append(rf"\item {term}{_with_code(item.text) if block.has_code else escape(item.text)}")
    return "\n".join([*lines, rf"\end{{{name}}}"])


def _table(table: Table) -> str:
    """A floating table, or one over several pages."""
    kept = [index for index, column in enumerate(table.columns) if not column.is_wide_only]
    columns = [table.columns[index] for index in kept]
    caption = escape(table.caption)
    if len(columns) > MAX_COLUMNS:
        return f"{caption} {len(columns)} columns are too many for a page: see the report in another format."
    num_texts = sum(column.kind not in ("number", "id") for column in columns)
    kinds = "".join(_column(column, len(columns), num_texts) for column in columns)
    head = " & ".join(_header(column, len(columns)) for column in columns) + r" \\"
    rows = [" & ".join(_cell(row[index]) for index in kept) + r" \\" for row in table.rows]
    if len(rows) > MAX_ROWS:
        top = [rf"\caption{{{caption}}}\\", r"\toprule", head, r"\midrule", r"\endfirsthead"]
        top += [r"\toprule", head, r"\midrule", r"\endhead", r"\bottomrule", r"\endfoot"]
        body = [rf"\begin{{longtable}}{{{kinds}}}", *top, *rows, r"\end{longtable}"]
        return "\n".join([r"\begingroup\scriptsize", *body, r"\endgroup"])
    body = [rf"\begin{{tabular}}{{{kinds}}}", r"\toprule", head, r"\midrule", *rows, r"\bottomrule", r"\end{tabular}"]
    close = [r"\setlength{\tabcolsep}{1.5pt}"] if len(columns) > 11 else []
    top = [r"\begin{table}[htbp]", r"\centering\scriptsize", *close, rf"\caption{{{caption}}}"]
    return "\n".join([*top, *body, r"\end{table}"])


def _cell(cell: Cell) -> str:
    return rf"\textbf{{{escape(cell.text)}}}" if cell.is_shown else escape(cell.text)


def _header(column: Column, num: int) -> str:
    """A column's title; between many columns of numbers one word to a line, to save width."""
    if column.kind != "number" or num <= 6:
        return rf"\textbf{{{escape(column.title)}}}"
    words = r"\\".join(rf"\textbf{{{escape(word)}}}" for word in column.title.replace("-", "- ").split())
    return rf"\shortstack[r]{{{words}}}"


def _column(column: Column, num: int, num_texts: int) -> str:
    """The more columns, and the more of them text, the narrower those of text."""
    if column.kind in ("number", "id"):
        return "r" if column.kind == "number" else "l"
    widths = {"name": 17, "text": 14, "prose": 40} if num_texts > 3 else {"name": 24, "text": 18, "prose": 56}
    return f"L{{{widths[column.kind] if num <= 9 else 19 if num <= 11 else 14}mm}}"


def _with_code(text: str) -> str:
    """Escaped text with `code` in typewriter."""
    pieces = text.split("`")
    if len(pieces) % 2 == 0:
        return escape(text)
    return "".join(rf"\texttt{{{escape(one)}}}" if index % 2 else escape(one) for index, one in enumerate(pieces))


def escape(text: str) -> str:
    """Text that LaTeX typesets literally, in one paragraph; letters that pdflatex lacks become ASCII."""
    escaped = "".join(map(_character, unicodedata.normalize("NFC", re.sub(r"\s+", " ", text))))
    return re.sub(r"\+\\allowbreak\{\}(?=[\d.])", "+", escaped)  # a number keeps its sign


def _character(character: str) -> str:
    if character in SPECIAL:
        return SPECIAL[character]
    if " " <= character <= "~":
        return character
    letter, *marks = list(unicodedata.normalize("NFD", character))
    if letter.isascii() and letter.isalpha() and len(marks) == 1 and marks[0] in ACCENTS:
        return rf"\{ACCENTS[marks[0]]}{{{letter}}}"
    plain = [one for one in unicodedata.normalize("NFKD", character) if " " <= one <= "~"]
    return "".join(SPECIAL.get(one, one) for one in plain) or f"{{[}}U+{ord(character):04X}{{]}}"
