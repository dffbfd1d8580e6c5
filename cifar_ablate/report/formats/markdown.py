"""GitHub markdown, with its figures as files beside it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING
from urllib.parse import quote

from cifar_ablate.registry import FORMATS

if TYPE_CHECKING:  # `report --help` lists the formats, and must not wait for pandas
    from cifar_ablate.report.tables import Cell, Table
    from cifar_ablate.report.types import Comparison, Figure, Rendered, Report, StudyReport

FIGURES = "figures"
"""Folder of the figures, beside the report."""


@FORMATS.register("markdown")
def markdown(report: Report) -> Rendered:
    """GitHub markdown, one section per study's variant."""
    from cifar_ablate.report.figures import draw_figures
    from cifar_ablate.report.types import Rendered

    parts = ["# Ablation report"]
    files: dict[str, str] = {}
    for study in report.studies:
        figures = draw_figures(study)
        files |= {f"{FIGURES}/{figure.name}.svg": figure.svg for figure in figures}
        parts += _study(study, figures)
    return Rendered("\n\n".join(parts) + "\n", files)


def _study(study: StudyReport, figures: Sequence[Figure]) -> Iterator[str]:
    from cifar_ablate.report.tables import facts

    yield f"## {escape(study.label)}"
    yield f"**{escape(study.question)}**"
    yield escape(facts(study))
    yield "### Verdicts"
    yield from _verdicts(study)
    yield from _tuning(study)
    yield "### Table"
    yield from _tables(study)
    if figures:
        yield "### Figures"
        for figure in figures:
            yield f"![{escape(figure.caption)}]({quote(f'{FIGURES}/{figure.name}.svg')})\n\n*{escape(figure.caption)}*"
    yield from _classes(study)
    yield from _calibration(study)
    yield from _published(study)
    yield "### What you must know"
    yield bullets(f"**{escape(keyword)}**: {escape(text)}" for keyword, text in study.must_know)
    yield "### How to reproduce"
    yield from _reproduce(study)


def _verdicts(study: StudyReport) -> Iterator[str]:
    if not study.families:
        yield "One arm alone has nothing to be compared with: add an arm."
    for family in study.families:
        if len(study.families) > 1:
            yield f"{family.name[0].upper()}{family.name[1:]}:"
        yield bullets(_with_badge(one) for one in family.comparisons)
    yield escape(study.noise_text)
    if study.interactions:
        yield "Do the changes depend on each other?"
        yield bullets(escape(effect.sentence) for effect in study.interactions)
    if study.interaction_note:
        yield escape(study.interaction_note)
    if study.next_steps:
        yield "**What to do next**"
        yield bullets(keep_code(step) for step in study.next_steps)


def _with_badge(comparison: Comparison) -> str:
    from cifar_ablate.analysis import label

    return f"**{label(comparison.contrast.verdict)}**: {escape(comparison.text)}"


def _tuning(study: StudyReport) -> Iterator[str]:
    from cifar_ablate.report.tuned_tables import own_best_table, tuning_table

    tuning = study.tuning
    if tuning is None:
        return
    yield "### With each arm's own best recipe"
    if tuning.missing:
        yield keep_code(tuning.missing)
    yield bullets(map(escape, tuning.sentences))
    beside = own_best_table(tuning)
    if beside is not None:
        yield table(beside)
        yield bullets(escape(one.text) for one in tuning.comparisons)
    yield table(tuning_table(tuning))


def _tables(study: StudyReport) -> Iterator[str]:
    from cifar_ablate.report.tables import arms_table, interactions_table, verdict_table

    for family in study.families:
        yield table(verdict_table(study, family))
    effects = interactions_table(study)
    if effects is not None:
        yield table(effects)
    yield table(arms_table(study))


def _classes(study: StudyReport) -> Iterator[str]:
    from cifar_ablate.report.tables import classes_table

    yield "### Classes"
    yield escape(study.classes_text)
    found = classes_table(study)
    if found is not None:
        yield table(found)


def _calibration(study: StudyReport) -> Iterator[str]:
    from cifar_ablate.report.tables import calibration_table

    found = calibration_table(study)
    if found is not None:
        yield "### Calibration"
        yield table(found)


def _published(study: StudyReport) -> Iterator[str]:
    from cifar_ablate.report.tables import published_table

    found = published_table(study)
    if found is not None:
        yield "### Published against measured"
        yield bullets(escape(row.text) for row in study.published)
        yield table(found)


def _reproduce(study: StudyReport) -> Iterator[str]:
    from cifar_ablate.report.tables import runs_table

    again = study.reproduce
    yield "```console\n" + "\n".join(f"$ {command}" for command in again.commands) + "\n```"
    lines = [f"Commit: {escape(commit)}" for commit in again.commits]
    lines += [escape(version) for version in again.versions]
    lines += [f"Data digest: {escape(digest)}" for digest in again.data_digests]
    yield bullets(lines)
    if study.runs:
        yield f"<details><summary>Runs</summary>\n\n{table(runs_table(study))}\n\n</details>"


def table(found: Table) -> str:
    """A table, under its caption; what a class shows is bold, and so are the rows' names."""
    titles = [within(column.title) for column in found.columns]
    rule = "".join("---:|" if column.kind == "number" else "---|" for column in found.columns)
    lines = [f"{escape(found.caption)}\n", f"| {' | '.join(titles)} |", f"|{rule}"]
    lines += [f"| {' | '.join(_cell(cell, index) for index, cell in enumerate(row))} |" for row in found.rows]
    return "\n".join(lines)


def _cell(cell: Cell, index: int) -> str:
    text = within(cell.text)
    return f"**{text}**" if cell.text and (index == 0 or cell.is_shown) else text


def bullets(lines: Iterator[str] | Sequence[str]) -> str:
    """A list."""
    return "\n".join(f"- {line}" for line in lines)


def keep_code(text: str) -> str:
    """Escaped text, in which `code` stays code."""
    pieces = text.split("`")
    if len(pieces) % 2 == 0 or "``" in text:  # markdown would pair them in another way
        return escape(text)
    first, *rest = pieces
    kept = (piece if index % 2 else within(piece) for index, piece in enumerate(rest, 1))
    return "`".join([escape(first) if first else "", *kept])


_BEGINS_A_BLOCK = re.compile(r"(#{1,6}(?=\s|$)|>|[-+](?=\s|$)|=+\s*$|-+\s*$)|(\d{1,9})([.)])(?=\s|$)")
_ENDS_A_HEADING = re.compile(r"(?<=\s)(?=#+\s*$)")


def escape(text: str) -> str:
    """Text that markdown and the HTML in it leave alone, also where it begins a line, an item or a heading."""
    shown = within(text)
    if shown[:1].isspace():  # a blank that is spelled out indents nothing, and nothing after it begins anything
        shown = f"&#32;{shown[1:]}"
    shown = _ENDS_A_HEADING.sub(r"\\", shown)
    begins = _BEGINS_A_BLOCK.match(shown)
    if begins is None:
        return shown
    at = begins.start(3) if begins[3] else 0  # 1\. or \#
    return f"{shown[:at]}\\{shown[at:]}"


def within(text: str) -> str:
    """The same for what stands within a line or a cell of a table."""
    for character in "\\`*_|[]~":
        text = text.replace(character, "\\" + character)
    text = text.replace("&", "&amp;").replace("<", "&lt;")
    # GitHub looks for formulas after it has taken the backslashes away, and takes this way out
    return " ".join(text.replace("$", "<span>$</span>").splitlines())
