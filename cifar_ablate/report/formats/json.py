"""Every number of the report as JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cifar_ablate.registry import FORMATS

if TYPE_CHECKING:
    from cifar_ablate.report.types import Report

FORMAT = 1
"""Raised when a field changes its name or meaning; new fields do not raise it."""


@FORMATS.register("json")
def json(report: Report) -> str:
    """Strict JSON in the order of the report: unknown numbers are null, intervals lists of two."""
    from json import dumps

    # no indentation: with it, the encoder is Python's own and takes ten times as long
    studies = ",\n".join(dumps(_plain(study), allow_nan=False, ensure_ascii=False) for study in report.studies)
    return f'{{"format": {FORMAT}, "studies": [\n{studies}\n]}}\n'


def _plain(value: Any) -> Any:
    """Dataclasses and mappings as objects, sequences as lists, enums as their value, no NaN."""
    from collections.abc import Mapping
    from dataclasses import fields, is_dataclass
    from enum import Enum
    from math import isfinite

    def plain(value: Any) -> Any:
        found = value
        if isinstance(value, Enum):
            found = value.value
        elif isinstance(value, float):
            found = float(value) if isfinite(value) else None
        elif isinstance(value, tuple | list):
            found = [plain(one) for one in value]
        elif is_dataclass(value):
            found = {field.name: plain(getattr(value, field.name)) for field in fields(value)}
        elif isinstance(value, Mapping):
            found = {str(key): plain(one) for key, one in value.items()}
        elif hasattr(value, "model_dump"):  # a published figure is a model of the study's YAML
            found = plain(value.model_dump())
        elif hasattr(value, "item"):  # a number of numpy's
            found = plain(value.item())
        return found

    return plain(value)
