"""One row per comparison, for spreadsheets and data frames."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from cifar_ablate.registry import FORMATS
from cifar_ablate.text_safety import escape_csv_formula

if TYPE_CHECKING:
    from cifar_ablate.report.types import ArmRow, Comparison, Report, StudyReport, TunedComparison

COLUMNS = (
    "study",
    "family",
    "arm",
    "reference",
    "verdict",
    "difference",
    *("ci95_low", "ci95_high", "ci90_low", "ci90_high", "p_adjusted", "own_p_holm", "p_superior"),
    *("new_images_low", "new_images_high", "se", "df", "error_change_percent"),
    *("alpha", "num_comparisons", "is_paired", "look", "num_seeds", "num_seeds_reference"),
    *("num_diverged", "num_diverged_reference", "num_more_seeds", "num_more_seeds_low", "num_more_seeds_high"),
    *("margin", "num_finished", "num_started", "num_planned", "epochs"),
    *("test_accuracy", "test_accuracy_sd", "sd_floor", "train_accuracy", "train_accuracy_sd", "train_seconds"),
    *("published_accuracy", "differs", "text"),
    *("shared_verdict", "shared_difference", "shared_ci95_low", "shared_ci95_high", "verdict_change"),
    *("moved_by", "moved_ci95_low", "moved_ci95_high"),
    *("is_tuned", "tuned_trial", "tuned_val_accuracy", "tuned_present_val_accuracy"),
    *("tuned_trials", "tuned_pruned", "tuned_failed", "tuned_epochs", "tuned"),
)
SAME = (
    *("reference", "p_adjusted", "own_p_holm", "p_superior", "se", "df", "alpha", "num_comparisons", "is_paired"),
    *("look", "num_seeds", "num_seeds_reference", "num_diverged", "num_diverged_reference", "num_more_seeds"),
)
"""Columns with the name of a contrast's field."""
SAME_OF_ARM = ("num_finished", "num_started", "num_planned", "epochs", "sd_floor", "train_seconds")
"""Columns with the name of an arm's field."""


@FORMATS.register("csv")
def csv(report: Report) -> str:
    """One row per arm and comparison, full precision; an arm without comparisons (the baseline) has a row, too.

    Texts that a spreadsheet would run as formulas begin with an apostrophe. Read with
    ``pandas.read_csv(path, keep_default_na=False, na_values=[""])``: since an arm may have the name None or NA.
    """
    from csv import DictWriter
    from io import StringIO

    file = StringIO(newline="")
    writer = DictWriter(file, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for study in report.studies:
        writer.writerows({key: _cell(value) for key, value in row.items()} for row in _rows(study))
    return file.getvalue()


def _rows(study: StudyReport) -> Iterator[dict[str, Any]]:
    arms = {row.name: row for row in study.rows}
    compared = {one.contrast.arm for family in study.families for one in family.comparisons}
    for row in study.rows:
        if row.name not in compared:
            yield {**_of_arm(study, row), "differs": "; ".join(row.differs)}
    shared = {} if study.tuning is None else {(one.family, one.arm): one for one in study.tuning.comparisons}
    for family in study.families:
        for one in family.comparisons:
            arm = one.contrast.arm
            own = {**_of_arm(study, arms[arm]), "family": family.name, **_of_comparison(one)}
            yield {**own, **_shared(shared.get((family.name, arm)))}


def _of_arm(study: StudyReport, row: ArmRow) -> dict[str, Any]:
    published = {one.arm: one.published.accuracy for one in study.published}
    test, train = row.test_accuracy, row.train_accuracy
    return {
        **{name: getattr(row, name) for name in SAME_OF_ARM},
        "study": study.label,
        "arm": row.name,
        "margin": study.margin,
        "test_accuracy": test and test.mean,
        "test_accuracy_sd": test and test.sd,
        "train_accuracy": train and train.mean,
        "train_accuracy_sd": train and train.sd,
        "published_accuracy": published.get(row.name),
        **_tuned(study, row.name),
    }


def _tuned(study: StudyReport, arm: str) -> dict[str, Any]:
    """Cost and result of tuning for an arm; empty in a study without tuning."""
    rows = () if study.tuning is None else study.tuning.arms
    for row in (row for row in rows if row.name == arm):
        names = ("trial", "val_accuracy", "present_val_accuracy", "trials", "pruned", "failed", "epochs")
        return {
            "is_tuned": row.tuned is not None,
            **{f"tuned_{name}": getattr(row.tuned, name, None) for name in names},
        }
    return {}


def _shared(one: TunedComparison | None) -> dict[str, Any]:
    """The same comparison with the shared recipe, and how the verdict changed."""
    if one is None or one.shared is None:
        return {}
    return {
        "shared_verdict": one.shared.verdict.value,
        "shared_difference": one.shared.estimate,
        **_ends("shared_ci95", one.shared.ci95),
        "verdict_change": one.change.value,
        "moved_by": one.move and one.move.estimate,
        **_ends("moved_ci95", one.move.ci95 if one.move else None),
    }


def _of_comparison(one: Comparison) -> dict[str, Any]:
    found = one.contrast
    return {
        **{name: getattr(found, name) for name in SAME},
        "verdict": found.verdict.value,
        "difference": found.estimate,
        "error_change_percent": found.error_change,
        **_ends("ci95", found.ci95),
        **_ends("ci90", found.ci90),
        **_ends("new_images", one.new_images.ci if one.new_images else None),
        **_ends("num_more_seeds", found.num_more_seeds_range),
        "differs": "; ".join(one.differs),
        "tuned": "; ".join(one.tuned),
        "text": one.text,
    }


def _ends(name: str, found: tuple[float, float] | None) -> dict[str, float]:
    return {} if found is None else {f"{name}_low": found[0], f"{name}_high": found[1]}


def _cell(value: Any) -> Any:
    """Numbers as they are, without NaN; texts so that no spreadsheet runs them."""
    is_finite = not isinstance(value, float) or abs(value) < float("inf")
    return escape_csv_formula(value) if is_finite else ""
