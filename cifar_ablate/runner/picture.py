"""A PNG of rows of small images, with a label on the left of each row and a caption above each image."""

from __future__ import annotations

import textwrap
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cifar_ablate.data.types import Images
from cifar_ablate.errors import UsageError
from cifar_ablate.record.folder import atomic

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DPI = 100
CELL_PX = 96
"""Approximate side of an enlarged image; the factor is an integer, so that each pixel is a square."""
GAP_PX, MARGIN_PX, LABEL_PX, TITLE_PX, NAME_LINE_PX, LINE_PX = 8, 20, 190, 66, 16, 13
MAX_PX = 30_000
"""Maximum side of the picture; the renderer's limit is 65,535."""
DARK, GREY, RULE = "#1f2328", "#6e7781", 225


@dataclass(frozen=True)
class Row:
    """A row of images."""

    name: str
    note: str
    images: Images
    """uint8 [N, H, W, 3]."""
    captions: tuple[tuple[str, ...], ...]
    """Lines above each image."""

    @property
    def factor(self) -> int:
        """Side of an image's pixel in the picture."""
        return max(1, round(CELL_PX / int(self.images.shape[1])))

    @property
    def cell_px(self) -> int:
        """Side of an image in the picture."""
        return int(self.images.shape[1]) * self.factor

    @property
    def caption_px(self) -> int:
        """Height of the captions."""
        return LINE_PX * max(map(len, self.captions)) + 5

    def label(self) -> tuple[list[str], list[str]]:
        """The name and the note, wrapped to the width of the label."""
        return textwrap.wrap(self.name, 24), textwrap.wrap(self.note, 33)

    @property
    def height_px(self) -> int:
        """Height of the whole row."""
        name, note = self.label()
        return (
            max(self.caption_px + self.cell_px, self.caption_px + NAME_LINE_PX * len(name) + LINE_PX * len(note))
            + GAP_PX
        )


def draw_rows(rows: Sequence[Row], title: str, subtitle: str, path: Path) -> None:
    """Draw the rows; raises OutputError if ``path`` cannot be written, UsageError if the picture is too large."""
    from matplotlib.figure import Figure  # not pyplot: no global state, no display

    width = 2 * MARGIN_PX + LABEL_PX + max(len(row.images) * (row.cell_px + GAP_PX) - GAP_PX for row in rows)
    height = TITLE_PX + MARGIN_PX + sum(row.height_px + GAP_PX for row in rows)
    if max(width, height) > MAX_PX:
        raise UsageError(
            f"the picture would be {width:,} x {height:,} px; name fewer arms with --arm, or ask for fewer --images"
        )
    canvas = np.full((height, width, 3), 255, np.uint8)
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI)
    num = (width - 2 * MARGIN_PX) // 10  # characters of this size
    title = title if len(title) <= num else f"{title[: num - 1]}…"
    _write(figure, MARGIN_PX, MARGIN_PX, title, size=10.5, weight="bold")
    _write(figure, MARGIN_PX, MARGIN_PX + 20, subtitle, size=8.5, color=GREY)
    top = TITLE_PX
    for row in rows:
        canvas[top, MARGIN_PX : width - MARGIN_PX] = RULE
        _draw_row(figure, canvas, row, top + GAP_PX)
        top += row.height_px + GAP_PX
    figure.figimage(canvas)
    with atomic(path) as temporary, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # class names in a script the font lacks
        figure.savefig(temporary, dpi=DPI, format="png", pil_kwargs={"optimize": True})


def _draw_row(figure: Figure, canvas: Images, row: Row, top: int) -> None:
    """Copy the images of a row into the canvas, and add its texts to the figure."""
    image_top = top + row.caption_px
    y = image_top
    name, note = row.label()
    for line in name:
        _write(figure, MARGIN_PX, y, line, size=9.5, weight="bold")
        y += NAME_LINE_PX
    for line in note:
        _write(figure, MARGIN_PX, y, line, size=7.5, color=GREY)
        y += LINE_PX
    for i, (image, caption) in enumerate(zip(row.images, row.captions, strict=True)):
        left = MARGIN_PX + LABEL_PX + i * (row.cell_px + GAP_PX)
        large = image.repeat(row.factor, axis=0).repeat(row.factor, axis=1)
        canvas[image_top : image_top + row.cell_px, left : left + row.cell_px] = large
        for j, line in enumerate(caption):
            y = image_top - 3 - LINE_PX * (len(caption) - j)
            _write(figure, left, y, _fitted(line, row.cell_px), size=7.5, color=GREY if j else DARK)


def _fitted(caption: str, width_px: int) -> str:
    """A caption as wide as its image: a long class name is cut, and its weight kept."""
    num = width_px // 6
    name, _, weight = caption.rpartition(" ")
    if len(caption) <= num:
        return caption
    if name and weight.replace(".", "").isdigit():
        return f"{name[: max(1, num - len(weight) - 2)]}… {weight}"
    return f"{caption[: num - 1]}…"


def _write(
    figure: Figure, x: int, y: int, text: str, *, size: float, weight: str = "normal", color: str = DARK
) -> None:
    """Text with its upper left corner at (x, y) px from the upper left corner of the picture; ``size`` in points."""
    width, height = figure.get_size_inches() * DPI
    where = (x / width, 1 - y / height)
    figure.text(*where, text, va="top", ha="left", parse_math=False, size=size, weight=weight, color=color)
