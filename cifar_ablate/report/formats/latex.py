"""A LaTeX document whose tables can be cut out; pdflatex and booktabs are all it needs."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from cifar_ablate.registry import FORMATS

if TYPE_CHECKING:
    from cifar_ablate.report.tables import Column, Table
    from cifar_ablate.report.types import Report, StudyReport

MAX_ROWS = 40
"""Longer tables go over several pages."""
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
    """A whole document for pdflatex: verdicts as a list, tables in booktabs, plain ASCII throughout.

    It has no figures: pdflatex does not read SVG. The markdown report writes them as files.
    """
    parts = [_HEAD + r"\begin{document}", r"\section*{Ablation report}"]
    for study in report.studies:
        parts += _study(study)
    return "\n\n".join([*parts, r"\end{document}"]) + "\n"


def _study(study: StudyReport) -> Iterator[str]:
    from cifar_ablate.analysis import label
    from cifar_ablate.report import tables

    yield rf"\subsection*{{{escape(study.label)}}}"
    yield rf"\emph{{{escape(study.question)}}}"
    yield escape(tables.facts(study))
    yield r"\subsubsection*{Verdicts}"
    for family in study.families:
        yield f"Comparisons {escape(family.name)}:"
        yield _list(
            rf"\textbf{{{escape(label(one.contrast.verdict))}}}: {escape(one.text)}" for one in family.comparisons
        )
    if not study.families:
        yield "A single arm has nothing to be compared with."
    yield escape(study.noise_text)
    if study.next_steps:
        yield r"\subsubsection*{What to do next}"
        yield _list(map(_with_code, study.next_steps))
    yield from _tuning(study)
    for family in study.families:
        yield _table(tables.verdict_table(study, family))
    yield _table(tables.arms_table(study))
    if said := [*(effect.sentence for effect in study.interactions), *filter(None, [study.interaction_note])]:
        yield r"\subsubsection*{Interactions}"
        yield _list(map(escape, said))
        yield _optional(tables.interactions_table(study))
    yield r"\subsubsection*{Classes}"
    yield escape(study.classes_text)
    yield _optional(tables.classes_table(study))
    if (calibration := tables.calibration_table(study)) is not None:
        yield r"\subsubsection*{Calibration}"
        yield _table(calibration)
    if study.published:
        yield r"\subsubsection*{Published against measured}"
        yield _list(escape(row.text) for row in study.published)
        yield _optional(tables.published_table(study))
    yield r"\subsubsection*{What the reader must know}"
    yield _list(rf"\textbf{{{escape(keyword)}}}: {_with_code(text)}" for keyword, text in study.must_know)
    yield r"\subsubsection*{How to reproduce}"
    yield _list(_reproduce(study))
    yield _table(tables.run_ids_table(study))


def _tuning(study: StudyReport) -> Iterator[str]:
    from cifar_ablate.report.tuned_tables import own_best_table, tuning_table

    tuning = study.tuning
    if tuning is None:
        return
    yield r"\subsubsection*{With each arm's own best recipe}"
    if tuning.missing:
        yield _with_code(tuning.missing)
    yield _list(map(escape, tuning.sentences))
    beside = own_best_table(tuning)
    if beside is not None:
        yield _list(escape(one.text) for one in tuning.comparisons)
        yield _table(beside)
    yield _table(tuning_table(tuning))


def _reproduce(study: StudyReport) -> Iterator[str]:
    again = study.reproduce
    for name, values in (("Command", again.commands), ("Commit", again.commits), ("Data digest", again.data_digests)):
        yield from (rf"{name}: \texttt{{{escape(value)}}}" for value in values)
    yield from (f"Environment: {escape(value)}" for value in again.versions)


def _list(lines: Iterable[str]) -> str:
    items = [f"\\item {line}" for line in lines]
    return "\n".join([r"\begin{itemize}", *items, r"\end{itemize}"]) if items else ""


def _optional(table: Table | None) -> str:
    """Nothing for a table that has nothing to show, or more columns than a page."""
    from cifar_ablate.report.tables import MAX_CLASS_COLUMNS

    return "" if table is None or len(table.columns) > MAX_CLASS_COLUMNS else _table(table)


def _table(table: Table) -> str:
    """A floating table, or one over several pages."""
    num_texts = sum(column.kind != "number" for column in table.columns)
    kinds = "".join(_column(column, len(table.columns), num_texts) for column in table.columns)
    head = " & ".join(_header(column, len(table.columns)) for column in table.columns) + r" \\"
    rows = [" & ".join(_cell(cell.text, cell.is_shown) for cell in row) + r" \\" for row in table.rows]
    caption = rf"\caption{{{escape(table.caption)}}}"
    if len(table.rows) > MAX_ROWS:
        top = [caption + r"\\", r"\toprule", head, r"\midrule", r"\endfirsthead"]
        top += [r"\toprule", head, r"\midrule", r"\endhead", r"\bottomrule", r"\endfoot"]
        body = [rf"\begin{{longtable}}{{{kinds}}}", *top, *rows, r"\end{longtable}"]
        return "\n".join([r"\begingroup\scriptsize", *body, r"\endgroup"])
    body = [rf"\begin{{tabular}}{{{kinds}}}", r"\toprule", head, r"\midrule", *rows, r"\bottomrule", r"\end{tabular}"]
    close = [r"\setlength{\tabcolsep}{1.5pt}"] if len(table.columns) > 11 else []
    return "\n".join([r"\begin{table}[htbp]", r"\centering\scriptsize", *close, caption, *body, r"\end{table}"])


def _cell(text: str, is_shown: bool) -> str:
    return rf"\textbf{{{escape(text)}}}" if is_shown else escape(text)


def _header(column: Column, num: int) -> str:
    """Of many columns of numbers one word to a line, so that they stand close."""
    if column.kind != "number" or num <= 6:
        return rf"\textbf{{{escape(column.title)}}}"
    words = r"\\".join(rf"\textbf{{{escape(word)}}}" for word in column.title.replace("-", "- ").split())
    return rf"\shortstack[r]{{{words}}}"


def _column(column: Column, num: int, num_texts: int) -> str:
    """The more columns, and the more of them text, the narrower those of text."""
    if column.kind == "number":
        return "r"
    widths = {"name": 17, "text": 14, "prose": 40} if num_texts > 3 else {"name": 24, "text": 18, "prose": 56}
    return f"L{{{widths[column.kind] if num <= 9 else 19 if num <= 11 else 14}mm}}"


def _with_code(text: str) -> str:
    """Escaped text, in which `code` is set as such."""
    pieces = text.split("`")
    if len(pieces) % 2 == 0:
        return escape(text)
    return "".join(rf"\texttt{{{escape(one)}}}" if index % 2 else escape(one) for index, one in enumerate(pieces))


def escape(text: str) -> str:
    """Text that LaTeX typesets as it is written, in one paragraph; what pdflatex has no letter for becomes ASCII."""
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
