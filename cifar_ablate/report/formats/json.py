"""Every number of the report as JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cifar_ablate.registry import FORMATS

if TYPE_CHECKING:
    from cifar_ablate.report.types import Report

FORMAT = 1
"""Raised when a field changes its name or meaning; new fields do not raise it."""


@FORMATS.register("json")
def json(report: Report) -> str:
    """Strict JSON in the order of the report: unknown numbers are null, intervals lists of two."""
    from pydantic_core import to_json

    studies = ",\n".join(
        to_json(study, inf_nan_mode="null", fallback=lambda number: number.item()).decode() for study in report.studies
    )
    return f'{{"format": {FORMAT}, "studies": [\n{studies}\n]}}\n'
