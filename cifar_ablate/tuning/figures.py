"""A tuning in two pictures, for MLflow: how it went, and which fields mattered."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from cifar_ablate.folder import atomic
from cifar_ablate.tuning.result import ArmResult

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK, BEST, GREY = "#3b6ea5", "#c2571a", "#9aa3ad"


def draw_history(result: ArmResult, path: Path) -> None:
    """Accuracy of each trial on the validation part, and the best so far; a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 4.0), layout="constrained")
    axes = figure.add_subplot()
    complete = [(one.number, one.val_accuracy) for one in result.trials if one.val_accuracy is not None]
    pruned = [(one.number, one.curve[-1][1]) for one in result.trials if one.state == "pruned" and one.curve]
    if pruned:
        axes.scatter(*zip(*pruned, strict=True), color=GREY, marker="x", label="pruned (at its last epoch)")
    if complete:
        axes.scatter(*zip(*complete, strict=True), color=INK, label="complete", zorder=3)
        axes.step(*zip(*result.best_so_far(), strict=True), where="post", color=BEST, label="best so far")
    present = result.present
    if present is not None and present.val_accuracy is not None:
        axes.axhline(present.val_accuracy, color=GREY, linestyle=":", label="the recipe as it stands")
    failed = [one.number for one in result.trials if one.state == "failed"]
    for number in failed:
        axes.axvline(number, color=GREY, linewidth=0.8, alpha=0.6)
    # an arm may be called $x$
    axes.set_title(f"{result.plan.study.label}, {result.plan.arm}: {result.num_tried} trials", parse_math=False)
    axes.set(
        xlabel="trial" + (" (lines: failed)" if failed else ""),
        ylabel=f"accuracy on {len(result.plan.data.test_labels):,} validation images, %",
    )
    axes.legend(loc="best", fontsize=8)
    _save(figure, path)


def draw_importances(result: ArmResult, path: Path) -> None:
    """Share of the variance of accuracy that each tuned field explains; a PNG."""
    from matplotlib.figure import Figure

    shares = sorted(result.importances.items(), key=lambda item: item[1])
    figure = Figure(figsize=(7.2, 1.4 + 0.4 * len(shares)), layout="constrained")
    axes = figure.add_subplot()
    bars = axes.barh([name for name, _ in shares], [share for _, share in shares], color=INK)
    axes.bar_label(bars, fmt="%.2f", padding=3)
    axes.set(xlim=(0, 1.1), xlabel="share of the variance of accuracy (fANOVA)")
    title = f"{result.plan.study.label}, {result.plan.arm}: what mattered, of {result.counts['complete']} trials"
    axes.set_title(title, parse_math=False)
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    """Write a PNG of 64 colours: a third of the bytes that matplotlib writes, and no difference to see."""
    from PIL import Image

    drawn = BytesIO()
    figure.savefig(drawn, dpi=110, format="png")
    with atomic(path) as temporary:
        Image.open(drawn).convert("RGB").quantize(64, dither=Image.Dither.NONE).save(temporary, "png", optimize=True)
