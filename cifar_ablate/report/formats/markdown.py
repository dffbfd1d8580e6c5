"""GitHub markdown."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cifar_ablate.registry import FORMATS

if TYPE_CHECKING:  # `report --help` lists the formats, and must not wait for pandas
    from cifar_ablate.report.build import ArmRow, Paired, Report, Spread, StudyReport
    from cifar_ablate.spec.schema import Published

COLUMNS = (
    "arm",
    "differs by",
    "epochs",
    "seeds ok/planned",
    "train % (sd)",
    "test % (sd)",
    "vs baseline",
    "vs parent",
    "published %",
    "train time",
)


@FORMATS.register("markdown")
def markdown(report: Report) -> str:
    """GitHub markdown, one section per study's variant."""
    parts = ["# Ablation report", *(_study(study) for study in report.studies), _READING]
    return "\n\n".join(parts) + "\n"


_READING = """\
## How to read this

Test accuracy is that of the last epoch, never of the best one: the mean over seeds, with the standard deviation between
seeds in brackets. Train accuracy is measured after the last epoch, on the training images without augmentation.
Differences are in points, over the seeds that both arms share; the parent is the arm that a row differs from, where
that is not the baseline. These differences carry no intervals yet: one that is not large against the standard deviation
is not a finding. Where an arm differs in more than one thing, the difference cannot be put down to any one of them."""


def _study(study: StudyReport) -> str:
    lines = [f"## {escape(study.label)}", "", f"**{escape(study.question)}**", ""]
    data = "; ".join(study.data)
    seeds = ", ".join(str(seed) for seed in study.seeds)
    lines += [f"Data: {escape(data)}. Seeds: {seeds}. Precision: {', '.join(study.precision)}.", ""]
    lines.append("| " + " | ".join(COLUMNS) + " |")
    lines.append("|" + "|".join("---" if index < 2 else "---:" for index in range(len(COLUMNS))) + "|")
    lines += [_row(study, row) for row in study.rows]
    notes = [
        f"Published for {escape(row.name)}: {escape(row.published.note)}"
        for row in study.rows
        if row.published and row.published.note
    ]
    if study.is_variant and any(row.published for row in study.rows):
        notes.insert(0, "Published figures are for the study as published; this is a variant of it, not a repetition.")
    if averaged := [escape(row.name) for row in study.rows if row.is_flip_averaged]:
        notes.append(
            f"Flip-averaged ({', '.join(averaged)}): test-time augmentation; a prediction is the mean over an image "
            "and its mirror image. Compare only with figures that were made so, too."
        )
    if averaged := [escape(row.name) for row in study.rows if row.is_weight_averaged]:
        notes.append(f"Evaluated with an exponential moving average of the weights: {', '.join(averaged)}.")
    if study.num_superseded:
        notes.append(
            f"Left out: {_count(study.num_superseded, 'run')} of recipes or seeds that this study no longer has."
        )
    notes += [f"Not finished: {escape(failure)}" for failure in study.failures]
    if notes:
        lines += ["", *(f"- {note}" for note in notes)]
    return "\n".join(lines)


def _row(study: StudyReport, row: ArmRow) -> str:
    differs = "baseline" if row.parent is None else "; ".join(row.differs)
    if row.parent not in (None, study.baseline):
        differs = f"from {row.parent}: {differs}"
    cells = (
        f"**{escape(row.name)}**",
        escape(differs),
        str(row.epochs),
        _seeds(row),
        _spread(row.train_accuracy) + _averaged(row),
        _spread(row.test_accuracy) + _averaged(row),
        _signed(row.vs_baseline),
        _signed(row.vs_parent),
        _published(row.published),
        _duration(row.train_seconds),
    )
    return "| " + " | ".join(cells) + " |"


def _seeds(row: ArmRow) -> str:
    others = [f"{count} {outcome}" for outcome, count in sorted(row.outcomes.items()) if outcome != "finished"]
    return f"{row.num_finished}/{row.num_planned}" + (f" ({', '.join(others)})" if others else "")


def _spread(spread: Spread | None) -> str:
    if spread is None:
        return "not run"
    return f"{spread.mean:.2f}" + ("" if spread.sd is None else f" ({spread.sd:.2f})")


def _averaged(row: ArmRow) -> str:
    return ", flip-averaged" if row.is_flip_averaged and row.test_accuracy is not None else ""


def _published(published: Published | None) -> str:
    return "" if published is None else f"{published.accuracy:g}" + (" (see note)" if published.note else "")


def _signed(paired: Paired | None) -> str:
    if paired is None:
        return ""
    return f"{paired.points:+.2f}" + (" (one seed)" if paired.num == 1 else "")


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return ""
    if seconds < 100:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def escape(text: str) -> str:
    """Text that markdown and the HTML in it leave alone, also within a table's cell."""
    for character in "\\`*_|[]~":
        text = text.replace(character, "\\" + character)
    return text.replace("&", "&amp;").replace("<", "&lt;").replace("\n", " ")
