"""The figures of a report, as SVG."""

from __future__ import annotations

from cifar_ablate.report.types import Figure, StudyReport


def draw_figures(study: StudyReport, *, ink: str = "#000000") -> tuple[Figure, ...]:
    """Every figure that the study has numbers for; ``ink`` is the colour of text and axes (or ``currentColor``)."""
    return ()
