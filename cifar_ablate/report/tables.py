"""The tables of a report as text: rounded and in words, nothing computed.

A cell that has nothing to show is empty; it never says None or nan.
"""

from __future__ import annotations

from cifar_ablate.analysis import Contrast, Interval, Verdict, label
from cifar_ablate.analysis.interactions import Move
from cifar_ablate.analysis.sentences import in_points, interval, level_name, points
from cifar_ablate.report.blocks import Cell, Column, Table
from cifar_ablate.report.formatting import duration, family_size, first_few
from cifar_ablate.report.tuned import CHANGES_IN_WORDS, setting
from cifar_ablate.report.types import (
    ArmRow,
    ClassEffect,
    Comparison,
    Family,
    MeanSd,
    RunRow,
    StudyReport,
    TunedArmRow,
    TuningReport,
)

MAX_CLASS_COLUMNS = 20
"""With more classes, classes are rows and arms are columns."""

SYMBOLS = {
    Verdict.BETTER: "\N{BLACK UP-POINTING TRIANGLE}",
    Verdict.WORSE: "\N{BLACK DOWN-POINTING TRIANGLE}",
    Verdict.EQUIVALENT: "\N{ALMOST EQUAL TO}",
    Verdict.NO_WORSE: "\N{GREATER-THAN OR EQUAL TO}",
    Verdict.NO_BETTER: "\N{LESS-THAN OR EQUAL TO}",
    Verdict.UNDECIDED: "?",
    Verdict.PROVISIONAL: "\N{HORIZONTAL ELLIPSIS}",
    Verdict.SINGLE_RUN: "1",
    Verdict.DIVERGED: "\N{MULTIPLICATION SIGN}",
}
"""A sign for each verdict: colour alone does not distinguish them."""


def number(value: float | None, decimals: int = 2) -> Cell:
    """A rounded number; only negative ones have a sign."""
    return Cell() if value is None else Cell(f"{value:,.{decimals}f}".replace("-", "\N{MINUS SIGN}"), value)


def difference(value: float | None, like: Interval | None = None) -> Cell:
    """Points, with their sign."""
    return Cell() if value is None else Cell(points(value, like=like), value)


def bounds(found: Interval | None, level: str = "") -> Cell:
    """An interval of points, sorted by its lower bound."""
    return Cell() if found is None else Cell(interval(found) + level, found[0])


def percent(value: float | None) -> Cell:
    """A relative change, with its sign."""
    return Cell() if value is None else Cell(f"{value:+.1f}%".replace("-", "\N{MINUS SIGN}"), value)


def percents(found: Interval | None) -> Cell:
    """An interval of accuracies."""
    return Cell() if found is None else Cell(f"{found[0]:.2f} to {found[1]:.2f}", found[0])


def p_value(p: float | None) -> Cell:
    """A p value with two or three decimals; never 0."""
    return Cell() if p is None else Cell("<0.001" if p < 0.001 else f"{p:.{3 if p < 0.1 else 2}f}", p)


def mean_and_sd(found: MeanSd | None, decimals: int = 2, marks: str = "") -> Cell:
    """A mean with its standard deviation over seeds in brackets, and ``marks`` after it."""
    if found is None:
        return Cell()
    sd = "" if found.sd is None else f" ({found.sd:.{decimals}f})"
    return Cell(f"{found.mean:.{decimals}f}{sd}{marks}", found.mean)


def verdict_table(study: StudyReport, family: Family) -> Table:
    """Every comparison of a family; the baseline's own row stands first where it is the reference of all."""
    rows = {row.name: row for row in study.rows}
    has_reference = any(one.contrast.reference != study.baseline for one in family.comparisons)
    lines = []
    if not has_reference and study.baseline in rows:
        own = rows[study.baseline]
        lines.append((*_who(own), *(Cell() for _ in range(6)), Cell("baseline"), Cell()))
    for one in family.comparisons:
        who = _who(rows[one.contrast.arm])
        reference = (Cell(one.contrast.reference),) if has_reference else ()
        lines.append((who[0], *reference, *who[1:], *_what(one)))
    titles = ["n ok/started", "Mean, %", "Seed sd (floor)", "Difference", "95% simultaneous CI", "Errors", "p adj."]
    titles += ["P(run beats run)", "New-image CI"]
    columns = (
        Column("Arm", "name"),
        *([Column("Against", "name")] if has_reference else []),
        *(Column(title) for title in titles),
        Column("Verdict", "text"),
        Column("Own-pair p (Holm)"),
    )
    caption = (
        f"Comparisons {family.name}, {family_size(family)}. Differences in points of test accuracy, last epoch; "
        "errors: relative change of the mean test error."
    )
    if any(one.contrast.num_seeds != rows[one.contrast.arm].num_finished for one in family.comparisons):
        caption += " Each difference is that of its look; means are over all finished runs."
    return Table(f"verdicts-{study.families.index(family) + 1}", caption, columns, tuple(lines))


def _who(row: ArmRow) -> tuple[Cell, ...]:
    """An arm's name, runs, mean and spread."""
    started, found = Cell(f"{row.num_finished}/{row.num_started}", row.num_finished), row.test_accuracy
    if found is None:
        return Cell(row.name), started, Cell(_why_no_accuracy(row)), Cell()
    sd = Cell()
    if found.sd is not None:
        floor = "" if row.sd_floor is None else f" ({row.sd_floor:.2f})"
        sd = Cell(f"{found.sd:.2f}{floor}{', luckily small' if row.is_sd_lucky else ''}", found.sd)
    return Cell(row.name), started, Cell(f"{found.mean:.2f}{_marks(row)}", found.mean), sd


def _why_no_accuracy(row: ArmRow) -> str:
    return "none finished" if row.num_started else "not run"


def _marks(row: ArmRow) -> str:
    """What distinguishes accuracies that were measured in another way."""
    return ", flip-averaged" if row.is_flip_averaged else ""


def _what(one: Comparison) -> tuple[Cell, ...]:
    found = one.contrast
    level = "" if found.alpha == 0.05 else f" ({level_name(found.alpha)})"
    level = " (alone)" if found.is_diverged else level
    p, own_p = (None, None) if found.is_diverged else (found.p_adjusted, found.own_p_holm)
    return (
        difference(found.estimate, found.ci95),
        bounds(found.ci95, level),
        percent(found.error_change),
        p_value(p),
        number(found.p_superior),
        _new_images(one),
        Cell(label(found.verdict), verdict=found.verdict),
        p_value(own_p),
    )


def _new_images(one: Comparison) -> Cell:
    found = one.new_images
    if found is None:
        return Cell()
    marks = [f"{found.num_seeds} shared seeds"] if found.has_fewer_seeds(one.contrast) else []
    marks += ["alone"] if one.contrast.is_diverged else []
    return bounds(found.ci, f" ({', '.join(marks)})" if marks else "")


def arms_table(study: StudyReport) -> Table:
    """The arms: changes, runs, accuracies and training time."""
    published = {row.arm: row.published for row in study.published}
    has_published = any(row.name in published for row in study.rows)
    columns = [Column("Arm", "name"), Column("Differs by", "prose"), Column("Epochs"), Column("n ok/planned")]
    columns += [Column("Test, % (sd)"), Column("Train, % (sd)"), Column("Training time")]
    columns += [Column("Published, %")] if has_published else []
    lines = []
    for row in study.rows:
        accuracy, marks = row.test_accuracy, _marks(row)
        cells = [Cell(row.name), Cell(_differs(row, study.baseline)), number(row.epochs, 0), _runs_of(row)]
        cells += [mean_and_sd(accuracy, marks=marks) if accuracy is not None else Cell(_why_no_accuracy(row))]
        cells += [mean_and_sd(row.train_accuracy, marks=marks), seconds(row.train_seconds)]
        if has_published:
            figure = published.get(row.name)
            cells.append(Cell() if figure is None else Cell(f"{figure.accuracy:g}", figure.accuracy))
        lines.append(tuple(cells))
    caption = "Accuracy of the last epoch, mean over seeds; training time of one run, mean over the finished ones."
    return Table("arms", caption, tuple(columns), tuple(lines))


def _differs(row: ArmRow, baseline: str) -> str:
    if row.parent is None:
        return "baseline"
    said = "; ".join(row.differs)
    return said if row.parent == baseline else f"from {row.parent}: {said}"


def _runs_of(row: ArmRow) -> Cell:
    """Finished of planned runs, and the outcomes of the others."""
    others = [f"{count} {outcome}" for outcome, count in sorted(row.outcomes.items()) if outcome != "finished"]
    said = f"{row.num_finished}/{row.num_planned}"
    return Cell(f"{said} ({', '.join(others)})" if others else said, row.num_finished)


def seconds(value: float | None) -> Cell:
    """A duration, sorted by its seconds."""
    return Cell() if value is None else Cell(duration(value), value)


def classes_table(study: StudyReport) -> Table | None:
    """Arms by classes (many classes: classes by arms); None without per-class differences."""
    if not study.class_effects:
        return None
    found = {(one.arm, one.class_name): one for one in study.class_effects}
    arms = list(dict.fromkeys(one.arm for one in study.class_effects))
    classes = list(dict.fromkeys(one.class_name for one in study.class_effects))
    references = ", ".join(dict.fromkeys(one.reference for one in study.class_effects))
    caption = f"Difference against {references} on the images of each class, points."
    caption += " Marked ones stand out." if any(one.is_shown for one in study.class_effects) else ""
    if len(classes) <= MAX_CLASS_COLUMNS:
        rows = tuple((Cell(arm), *(_class(found.get((arm, name))) for name in classes)) for arm in arms)
        return Table("classes", caption, (Column("Arm", "name"), *map(Column, classes)), rows)
    rows = tuple((Cell(name), *(_class(found.get((arm, name))) for arm in arms)) for name in classes)
    return Table("classes", caption, (Column("Class", "name"), *map(Column, arms)), rows)


def _class(effect: ClassEffect | None) -> Cell:
    if effect is None:
        return Cell()
    return Cell(points(effect.estimate), effect.estimate, is_shown=effect.is_shown)


def interactions_table(study: StudyReport) -> Table | None:
    """Main effects and interactions; None where the design estimates none."""
    if not study.interactions:
        return None
    titles = ("Points", "95% simultaneous CI", "p adj.", "Added alone", "On top of all")
    columns = (Column("Effect", "name"), Column("Kind", "text"), *map(Column, titles))
    rows = tuple(
        (
            Cell(one.name),
            Cell(one.kind),
            difference(one.estimate, one.ci95),
            bounds(one.ci95),
            p_value(one.p_adjusted),
            difference(one.added),
            difference(one.removed),
        )
        for one in study.interactions
    )
    return Table("interactions", "Effects that the design can estimate, one family.", columns, rows)


def calibration_table(study: StudyReport) -> Table | None:
    """NLL and ECE on the test images; None where neither was recorded."""
    if not study.calibration:
        return None
    rows = tuple((Cell(one.arm), mean_and_sd(one.nll, 3), mean_and_sd(one.ece, 3)) for one in study.calibration)
    columns = (Column("Arm", "name"), Column("NLL, nats (sd)"), Column("ECE (sd)"))
    return Table("calibration", "On the test images, mean over finished runs; lower is better in both.", columns, rows)


def published_table(study: StudyReport) -> Table | None:
    """Published figures and ours; None where none was given."""
    if not study.published:
        return None
    titles = ("Published, %", "Measured, % (sd)", "Difference", "95% CI of the mean", "95% range of one more run")
    rows = tuple(
        (
            Cell(one.arm),
            Cell(f"{one.published.accuracy:g}", one.published.accuracy),
            mean_and_sd(one.measured),
            difference(one.difference),
            percents(one.mean_interval),
            percents(one.run_interval),
        )
        for one in study.published
    )
    caption = "Published figures and ours; differences are ours minus the published one, in points."
    return Table("published", caption, (Column("Arm", "name"), *map(Column, titles)), rows)


def runs_table(study: StudyReport) -> Table:
    """Every run, with its id in MLflow."""
    columns = [Column("Arm", "name"), Column("Seed"), Column("Outcome", "text")]
    columns += [Column("Test, %"), *(Column(title, is_wide_only=True) for title in ("Train, %", "NLL", "ECE", "Time"))]
    columns += [Column("Run id", "id"), Column("Fingerprint", "id", is_wide_only=True)]
    return Table("runs", "Every run of the study.", tuple(columns), tuple(map(_run, study.runs)))


def _run(run: RunRow) -> tuple[Cell, ...]:
    outcome = f"{run.outcome}: {run.reason}" if run.reason else run.outcome
    accuracies = (number(run.test_accuracy), number(run.train_accuracy), number(run.nll, 3), number(run.ece, 3))
    before, after = (Cell(run.arm), Cell(str(run.seed), run.seed), Cell(outcome)), (run.run_id, run.fingerprint)
    return (*before, *accuracies, seconds(run.train_seconds), *map(Cell, after))


def facts(study: StudyReport) -> str:
    """Data, seeds, precision and margin in a line."""
    looks = f" (looks at {', '.join(map(str, study.looks))})" if study.looks else ""
    return (
        f"Data: {'; '.join(study.data)}. Baseline: {study.baseline}. Seeds: {first_few(study.seeds)}{looks}. "
        f"Precision: {', '.join(study.precision)}. Margin: {in_points(study.margin)}."
    )


def own_best_table(tuning: TuningReport) -> Table | None:
    """Every comparison with the shared recipe and with own best ones; None without a record of the shared one."""
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
            Cell(CHANGES_IN_WORDS[one.change][0], is_shown=one.change.is_flip),
        )
        for one in tuning.comparisons
    )
    caption = (
        f"The comparisons of {tuning.shared}, whose arms share one recipe, and the same with each arm's own best "
        "recipe. Points of test accuracy, each with the simultaneous interval of its family."
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
    """Cost and result of the search, by arm."""
    titles = ("Best trial", "Val. as written, %", "Val. of the best, %", "Trials", "Pruned", "Failed", "Epochs")
    columns = [Column("Arm", "name"), *map(Column, titles), Column("Set to", "prose")]
    columns += [Column("Test, shared, % (sd)")] if tuning.is_at_hand else []
    columns += [Column("Test, own best, % (sd)")]
    rows = tuple(_tuned_arm(row, is_at_hand=tuning.is_at_hand) for row in tuning.arms)
    caption = (
        "Cost and result of the search. Validation accuracy is of the selected trial, on images held out of the "
        "training set; test accuracy is of these studies' runs, mean over seeds."
    )
    return Table("tuning", caption, tuple(columns), rows)


def _tuned_arm(row: TunedArmRow, *, is_at_hand: bool) -> tuple[Cell, ...]:
    tests = (*([mean_and_sd(row.shared_test)] if is_at_hand else []), mean_and_sd(row.own_best_test))
    found = row.tuned
    if found is None:
        return (Cell(row.name), Cell("not tuned"), *(Cell() for _ in range(7)), *tests)
    present = found.present_val_accuracy
    counts = (found.trials, found.pruned, found.failed, found.epochs)
    return (
        Cell(row.name),
        Cell(f"{found.trial}{' (as written)' if found.is_present else ''}", found.trial),
        Cell("not finite") if present is None else number(present),
        number(found.val_accuracy),
        *(number(one, 0) for one in counts),
        Cell("; ".join(setting(name, value) for name, value in found.values.items())),
        *tests,
    )
