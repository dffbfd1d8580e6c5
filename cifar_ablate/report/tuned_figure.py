"""The figure of a tuned study: each difference with the shared recipe, and below it with each arm's own best."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cifar_ablate.analysis import Contrast, label
from cifar_ablate.analysis.sentences import in_points, points
from cifar_ablate.report.canvas import GREY, GROUND, INK, Pen, new_canvas, short
from cifar_ablate.report.types import StudyReport

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas

MINUS = "\N{MINUS SIGN}"
PITCH = 2.6
"""Lines from one comparison to the next: two rows and a gap."""


def draw_own_best(study: StudyReport, arms: dict[str, Pen]) -> tuple[Canvas, str] | None:
    """Shared recipe and own best, side by side; None without intervals of both."""
    tuning = study.tuning
    pairs = [] if tuning is None else [(one, one.shared) for one in tuning.comparisons]
    shown = [(one, shared) for one, shared in pairs if shared is not None and shared.ci95 and one.own_best.ci95]
    if not shown:
        return None
    canvas, axes = new_canvas(8.2, 0.9 + 0.27 * PITCH * len(shown))
    ticks: list[tuple[float, str]] = []
    for index, (one, shared) in enumerate(shown):
        y, pen = -PITCH * index, arms[one.arm]
        _row(axes, y, shared, pen, dashes=(0, (4, 2)))
        _row(axes, y - 1, one.own_best, pen, is_bold=one.change.is_flip)
        ticks.append((y, f"{short(one.arm, 22)} {MINUS} {short(one.reference, 18)}, shared"))
        ticks.append((y - 1, "own best"))
    axes.axvspan(-study.margin, study.margin, color=GREY, alpha=0.25, lw=0)
    axes.axvline(0, color=INK, lw=0.8)
    axes.set_yticks([at for at, _ in ticks], [text for _, text in ticks])
    axes.tick_params(axis="y", length=0)
    axes.set(ylim=(-PITCH * (len(shown) - 1) - 1.7, 0.7), xlabel="difference in test accuracy, points")
    return canvas, (
        "Each difference with the shared recipe (dashed) and with each arm's own best (solid), with simultaneous 95% "
        f"intervals; the band is your margin of {in_points(study.margin)}. A filled mark is a difference that was "
        "shown; a verdict in bold is one on which one would do something else now."
    )


def _row(axes: Any, y: float, contrast: Contrast, pen: Pen, *, dashes: Any = "-", is_bold: bool = False) -> None:
    low, high = contrast.ci95 or (0, 0)
    axes.plot([low, high], [y, y], color=pen.color, lw=2 if dashes == "-" else 1.2, ls=dashes)
    face = pen.color if contrast.verdict in ("better", "worse") else GROUND
    axes.plot(contrast.estimate, y, marker=pen.marker, ms=7, mfc=face, mec=pen.color, mew=1.4)
    weight = "bold" if is_bold else "normal"
    said = f"{points(contrast.estimate or 0.0)}\N{EN SPACE}{label(contrast.verdict)}"
    axes.text(1.01, y, said, transform=axes.get_yaxis_transform(), fontsize=9, va="center", weight=weight)
