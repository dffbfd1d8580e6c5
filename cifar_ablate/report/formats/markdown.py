"""GitHub markdown, with its figures as files beside it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING
from urllib.parse import quote

from cifar_ablate.registry import FORMATS

if TYPE_CHECKING:  # `report --help` lists the formats, and must not wait for pandas
    from cifar_ablate.report.types import ArmRow, Comparison, Family, Figure, Rendered, Report, StudyReport

VERDICTS = (
    "arm",
    "n ok/started",
    "mean %",
    "seed sd (floor)",
    "difference",
    "95% CI, simultaneous",
    "p adj",
    "P(run beats run)",
    "95% CI, new images",
    "verdict",
    "own p (Holm)",
)
ARMS = ("arm", "differs by", "epochs", "seeds ok/planned", "train % (sd)", "test % (sd)", "train time")
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
    from cifar_ablate.analysis.sentences import count

    yield f"## {escape(study.label)}"
    yield f"**{escape(study.question)}**"
    yield f"{escape('; '.join(study.data))}. {count(len(study.rows), 'arm')}, {count(len(study.runs), 'run')}."
    yield "### Verdicts"
    yield from _verdicts(study)
    yield "### Table"
    yield from _tables(study)
    if figures:
        yield "### Figures"
        for figure in figures:
            yield f"![{escape(figure.caption)}]({quote(f'{FIGURES}/{figure.name}.svg')})\n\n*{escape(figure.caption)}*"
    yield "### Classes"
    yield escape(study.classes_text)
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


def _tables(study: StudyReport) -> Iterator[str]:
    by_name = {row.name: row for row in study.rows}
    for index, family in enumerate(study.families):
        rows = [_baseline_cells(by_name[study.baseline])] if index == 0 else []
        rows += [_verdict_cells(one, by_name[one.contrast.arm], family) for one in family.comparisons]
        title = f"Against {escape(study.baseline)}" if index == 0 else f"{family.name[0].upper()}{family.name[1:]}"
        yield f"{title}, differences in points:\n\n{table(VERDICTS, rows, num_text=1)}"
    yield f"The arms:\n\n{table(ARMS, [_arm_cells(study, row) for row in study.rows], num_text=2)}"


def _verdict_cells(one: Comparison, row: ArmRow, family: Family) -> list[str]:
    from cifar_ablate.analysis import label
    from cifar_ablate.analysis.sentences import interval, points
    from cifar_ablate.report import words

    contrast = one.contrast
    against = "" if family.name == "against the baseline" else f" \N{MINUS SIGN} {escape(contrast.reference)}"
    return [
        f"**{escape(contrast.arm)}**{against}",
        words.ok_of_started(row),
        words.mean(row),
        words.sd_with_floor(row),
        "" if contrast.estimate is None else points(contrast.estimate),
        interval(contrast.ci95) if contrast.ci95 else "",
        words.p_value(contrast.p_adjusted),
        "" if contrast.p_superior is None else f"{contrast.p_superior:.2f}",
        interval(one.new_images.ci) if one.new_images else "",
        label(contrast.verdict),
        words.p_value(contrast.own_p_holm),
    ]


def _baseline_cells(row: ArmRow) -> list[str]:
    from cifar_ablate.report import words

    cells = [words.ok_of_started(row), words.mean(row), words.sd_with_floor(row)]
    return [f"**{escape(row.name)}**", *cells, *[""] * 5, "baseline", ""]


def _arm_cells(study: StudyReport, row: ArmRow) -> list[str]:
    from cifar_ablate.report import words

    return [
        f"**{escape(row.name)}**",
        escape(words.differs(row, study.baseline)),
        str(row.epochs),
        words.ok_of_planned(row),
        words.with_sd(row.train_accuracy) + words.averaged(row),
        words.with_sd(row.test_accuracy) + words.averaged(row),
        words.duration(row.train_seconds),
    ]


def _calibration(study: StudyReport) -> Iterator[str]:
    from cifar_ablate.report.words import with_sd

    if study.calibration:
        yield "### Calibration"
        columns = ("arm", "NLL, nats (sd)", "ECE (sd)")
        rows = [[escape(one.arm), with_sd(one.nll, 3), with_sd(one.ece, 3)] for one in study.calibration]
        yield table(columns, rows, num_text=1)


def _published(study: StudyReport) -> Iterator[str]:
    if study.published:
        yield "### Published against measured"
        yield bullets(escape(row.text) for row in study.published)


def _reproduce(study: StudyReport) -> Iterator[str]:
    again = study.reproduce
    yield "```console\n" + "\n".join(f"$ {command}" for command in again.commands) + "\n```"
    lines = [f"Commit: {escape(commit)}" for commit in again.commits]
    lines += [escape(version) for version in again.versions]
    lines += [f"Data digest: {digest}" for digest in again.data_digests]
    yield bullets(lines)
    if study.runs:
        ids = "\n".join(f"| {escape(run.arm)} | {run.seed} | {run.outcome} | `{run.run_id}` |" for run in study.runs)
        head = "| arm | seed | outcome | MLflow run |\n|---|---:|---|---|"
        yield f"<details><summary>Runs</summary>\n\n{head}\n{ids}\n\n</details>"


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, num_text: int) -> str:
    """A table whose first ``num_text`` columns are text and the others figures."""
    lines = ["| " + " | ".join(columns) + " |"]
    lines.append("|" + "|".join("---" if index < num_text else "---:" for index in range(len(columns))) + "|")
    return "\n".join([*lines, *("| " + " | ".join(cells) + " |" for cells in rows)])


def bullets(lines: Iterator[str] | Sequence[str]) -> str:
    """A list."""
    return "\n".join(f"- {line}" for line in lines)


def keep_code(text: str) -> str:
    """Escaped text, in which `code` stays code."""
    pieces = text.split("`")
    return "`".join(piece if index % 2 else escape(piece) for index, piece in enumerate(pieces))


def escape(text: str) -> str:
    """Text that markdown and the HTML in it leave alone, also within a table's cell."""
    for character in "\\`*_|[]~":
        text = text.replace(character, "\\" + character)
    return text.replace("&", "&amp;").replace("<", "&lt;").replace("\n", " ")
