"""How figures are drawn: SVG by matplotlib, legible in greyscale, the same colour for the same arm everywhere."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

INK = "#010203"
"""Stands for the colour of text and axes while drawing; the page decides which one that is."""
GROUND = "#fdfcfb"
"""Stands for what the figure is drawn on."""
GREY = "#8a8a8a"
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7a5195", "#a05a00")
"""Okabe and Ito's colours for all kinds of sight, the yellow left out, two darker ones added."""
MARKERS = "osD^vPXh"
DASHES = ("-", "--", "-.", ":")
_STYLE: Any = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Verdana", "Arial", "sans-serif"],
    "font.size": 10,
    "text.parse_math": False,  # an arm may be called $x$
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
}


@dataclass(frozen=True)
class Pen:
    """How an arm looks in every figure of its study; marker and dashes tell it apart without colour."""

    color: str
    marker: str
    dashes: str


def pens(arms: Sequence[str], baseline: str) -> dict[str, Pen]:
    """A pen for each arm; the baseline is drawn in the colour of the text."""
    others = [arm for arm in arms if arm != baseline]
    found = {
        arm: Pen(
            PALETTE[index % len(PALETTE)],
            MARKERS[(index + 1) % len(MARKERS)],
            DASHES[(index // len(PALETTE)) % len(DASHES)],
        )
        for index, arm in enumerate(others)
    }
    return {baseline: Pen(INK, MARKERS[0], "-")} | found


@contextmanager
def drawing(name: str) -> Iterator[None]:
    """In the block figures have our style, and ids that depend on ``name`` alone."""
    from matplotlib import rc_context

    with rc_context({**_STYLE, "svg.hashsalt": name}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # names in a script the font lacks
        yield


def new_canvas(width: float, height: float, columns: int = 1, rows: int = 1, **options: Any) -> tuple[Canvas, Any]:
    """A figure, in inches, and its axes (an array of them where there are several)."""
    from matplotlib.figure import Figure as Canvas  # not pyplot: no global state, no display

    canvas = Canvas(figsize=(width, height), layout="constrained")
    return canvas, canvas.subplots(rows, columns, squeeze=columns * rows == 1, **options)


def to_svg(canvas: Canvas, ink: str) -> str:
    """The figure as an SVG element; on white, or on the page's own ground where ink is ``currentColor``."""
    file = io.StringIO()
    canvas.savefig(file, format="svg", transparent=ink == "currentColor", metadata={"Date": None, "Creator": None})
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    text = re.sub(r"(?m)[ \t]+$", "", text)
    return text.replace(INK, ink).replace(GROUND, "var(--ground)" if ink == "currentColor" else "#ffffff")


def slug(label: str) -> str:
    """A study's label as part of a file's name, different for different labels."""
    plain = re.sub(r"[^a-z0-9._@-]", "-", label)
    return plain if plain == label and len(label) <= 100 else f"{plain[:60]}-{sha256(label.encode()).hexdigest()[:6]}"


def short(text: str, limit: int = 28) -> str:
    """A name that fits beside a figure."""
    return text if len(text) <= limit else f"{text[: limit - 1]}\N{HORIZONTAL ELLIPSIS}"


def note(axes: Axes, text: str) -> None:
    """A line of small print above the axes, at the left."""
    axes.set_title(text, loc="left", fontsize=9, color=INK)
