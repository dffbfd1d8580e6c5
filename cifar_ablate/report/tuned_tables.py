"""The tables of a tuned study as text, for every format that people read: rounded and in words, nothing computed."""

from __future__ import annotations

from cifar_ablate.analysis import Contrast, label
from cifar_ablate.analysis.interactions import Move
from cifar_ablate.analysis.sentences import interval, level_name, points
from cifar_ablate.report.tables import Cell, Column, Table, mean_and_sd, number
from cifar_ablate.report.tuned_words import IN_WORDS, setting
from cifar_ablate.report.tuning_types import TunedArmRow, TuningReport


def own_best_table(tuning: TuningReport) -> Table | None:
    """Every comparison with the shared recipe and with own best ones; None where the shared one is not at hand."""
    if not tuning.is_at_hand or not tuning.comparisons:
        return None
    columns = (
        Column("Arm", "name"),
        Column("Against", "name"),
        Column("Shared recipe (95% CI)"),
        Column("Verdict, shared", "text"),
        Column("Own best (95% CI)"),
        Column("Verdict, own best", "text"),
        Column("Moved by (95% CI)"),
        Column("After tuning", "text"),
    )
    rows = tuple(
        (
            Cell(one.arm),
            Cell(one.reference),
            *_side(one.shared),
            *_side(one.own_best),
            _move(one.move),
            Cell(IN_WORDS[one.change], is_shown=one.change.is_flip),
        )
        for one in tuning.comparisons
    )
    caption = (
        f"With each arm's own best recipe: the comparisons of {tuning.shared}, whose arms share one recipe, beside "
        "these. Points of test accuracy, each with the simultaneous interval of its family."
    )
    return Table("own-best", caption, columns, rows)


def _side(one: Contrast | None) -> tuple[Cell, Cell]:
    if one is None:
        return Cell(), Cell("not compared")
    said = Cell(label(one.verdict), verdict=one.verdict)
    if one.estimate is None:
        return Cell(), said
    level = "" if one.alpha == 0.05 else f"{level_name(one.alpha)}: "
    bounds = f" ({level}{interval(one.ci95)})" if one.ci95 else ""
    return Cell(points(one.estimate, like=one.ci95) + bounds, one.estimate), said


def _move(move: Move | None) -> Cell:
    if move is None:
        return Cell()
    if move.ci95 is None:
        return Cell() if move.estimate else Cell("same runs", 0.0)
    return Cell(f"{points(move.estimate, like=move.ci95)} ({interval(move.ci95)})", move.estimate)


def tuning_table(tuning: TuningReport) -> Table:
    """What the search cost and found, by arm."""
    titles = ("Best trial", "Val. as it stood, %", "Val. of the best, %", "Trials", "Pruned", "Failed", "Epochs")
    columns = [Column("Arm", "name"), *map(Column, titles), Column("Set to", "prose")]
    columns += [Column("Test, shared, % (sd)")] if tuning.is_at_hand else []
    columns += [Column("Test, own best, % (sd)")]
    rows = tuple(_row(row, is_at_hand=tuning.is_at_hand) for row in tuning.arms)
    caption = (
        "What the search cost and found. Validation accuracy is of the chosen trial, on images held out of the "
        "training set; test accuracy is of these studies' runs, mean over seeds."
    )
    return Table("tuning", caption, tuple(columns), rows)


def _row(row: TunedArmRow, *, is_at_hand: bool) -> tuple[Cell, ...]:
    tests = (*([mean_and_sd(row.shared_test)] if is_at_hand else []), mean_and_sd(row.own_best_test))
    found = row.tuned
    if found is None:
        return (Cell(row.name), Cell("not tuned"), *(Cell() for _ in range(7)), *tests)
    present = found.present_val_accuracy
    counts = (found.trials, found.pruned, found.failed, found.epochs)
    return (
        Cell(row.name),
        Cell(f"{found.trial}{' (as it stood)' if found.is_present else ''}", found.trial),
        Cell("not finite") if present is None else number(present),
        number(found.val_accuracy),
        *(number(one, 0) for one in counts),
        Cell("; ".join(setting(name, value) for name, value in found.values.items())),
        *tests,
    )
