"""The figures of a report, as SVG.

Drawn by matplotlib, which is imported only here and only where a figure is drawn. They can be read in greyscale, and an
arm has the same colour in all of them.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from math import ceil, nan
from statistics import fmean
from typing import TYPE_CHECKING, Any

from cifar_ablate.analysis import Contrast, label
from cifar_ablate.analysis.images import Bin
from cifar_ablate.analysis.sentences import in_points, points
from cifar_ablate.report.blocks import Figure
from cifar_ablate.report.types import MAX_ARMS, Comparison, StudyReport

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

MINUS = "\N{MINUS SIGN}"
INK = "#010203"
"""Placeholder for the colour of text and axes, which the page decides."""
GROUND = "#fdfcfb"
"""Placeholder for the background."""
GREY = "#8a8a8a"
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7a5195", "#a05a00")
"""Okabe and Ito's colours, safe for colour-blind readers, with two darker ones instead of the yellow."""
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
_SVG, _XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
_MEASURES = {"d", "x", "y", "transform", "style"}
_NUMBER = re.compile(r"-?\d+\.\d+")
PITCH = 2.6
"""Lines from one comparison to the next: two rows and a gap."""


@dataclass(frozen=True)
class Pen:
    """How an arm is drawn in every figure of its study; marker and dashes distinguish it without colour."""

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
    """Draws figures in our style, with ids that depend on ``name`` alone."""
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
    text = _lighter(file.getvalue())
    return text.replace(INK, ink).replace(GROUND, "var(--ground)" if ink == "currentColor" else "#ffffff")


def _lighter(svg: str) -> str:
    """The same picture in a third of matplotlib's bytes: hundredths of a point, no unused ids, groups and styles."""
    from xml.etree import ElementTree

    for prefix, address in (("", _SVG), ("xlink", _XLINK)):
        ElementTree.register_namespace(prefix, address)
    root = ElementTree.fromstring(svg)  # noqa: S314 - matplotlib wrote it a moment ago
    for metadata in root.findall(f"{{{_SVG}}}metadata"):
        root.remove(metadata)
    elements = list(root.iter())
    styles = {f"#{one.get('id')}": _declarations(one.get("style", "")) for one in elements}
    named = {name for one in elements for value in one.attrib.values() for name in re.findall(r"#[\w.-]+", value)}
    for one in elements:
        if f"#{one.get('id')}" not in named:
            one.attrib.pop("id", None)
        if one.get("transform", "").startswith("rotate(-0 "):
            del one.attrib["transform"]
        if style := one.attrib.pop("style", ""):
            known = {"font-size: 10px", f"fill: {INK}"} | styles.get(one.get(f"{{{_XLINK}}}href", ""), set())
            own = [said for said in style.split("; ") if said not in known and not said.startswith("font-family")]
            one.attrib |= {"style": ";".join(own)} if own else {}
        for name in one.attrib.keys() & _MEASURES:
            one.set(name, _NUMBER.sub(_hundredths, " ".join(one.attrib[name].split())))
    root.set("style", f"font: 10px {', '.join(_STYLE['font.sans-serif'])}; fill: {INK}")
    _flatten(root)
    return ElementTree.tostring(root, encoding="unicode") + "\n"


def _hundredths(found: re.Match[str]) -> str:
    return f"{float(found[0]):.2f}".rstrip("0").rstrip(".")


def _declarations(style: str) -> set[str]:
    return set(style.split("; "))


def _flatten(element: Element) -> None:
    """Replace groups that do nothing by what they hold, and indentation by line ends."""
    children: list[Element] = []
    for child in element:
        _flatten(child)
        children += [child] if child.attrib or child.tag != f"{{{_SVG}}}g" else list(child)
    element[:] = children
    element.tail = "\n"
    if children:
        element.text = "\n"


def slug(label: str) -> str:
    """A study's label as part of a file's name, different for different labels."""
    plain = re.sub(r"[^a-z0-9._@-]", "-", label)
    return plain if plain == label and len(label) <= 100 else f"{plain[:60]}-{sha256(label.encode()).hexdigest()[:6]}"


def short(text: str, limit: int = 28) -> str:
    """A name that fits beside a figure, in characters that XML allows."""
    text = re.sub("[\ufffe\uffff]", "\N{REPLACEMENT CHARACTER}", text)
    return text if len(text) <= limit else f"{text[: limit - 1]}\N{HORIZONTAL ELLIPSIS}"


def note(axes: Axes, text: str) -> None:
    """A line of small print above the axes, at the left."""
    axes.set_title(text, loc="left", fontsize=9, color=INK)


def _differences(study: StudyReport, arms: dict[str, Pen]) -> tuple[Canvas, str] | None:
    shown = [(family.name, one) for family in study.families for one in family.comparisons if one.contrast.ci95]
    if not shown:
        return None
    canvas, axes = new_canvas(8.2, 0.9 + 0.36 * (len(shown) + len(study.families)))
    ticks: list[tuple[float, str]] = []
    line = 0.0
    for index, (family, one) in enumerate(shown):
        if index == 0 or family != shown[index - 1][0]:
            ticks.append((-line, family))
            line += 1
        _forest_row(axes, -line, one, arms[one.contrast.arm])
        ticks.append((-line, f"{short(one.contrast.arm)} {MINUS} {short(one.contrast.reference, 20)}"))
        line += 1
    axes.axvspan(-study.margin, study.margin, color=GREY, alpha=0.25, lw=0)
    axes.axvline(0, color=INK, lw=0.8)
    axes.set_yticks([at for at, _ in ticks], [text for _, text in ticks])
    for tick in axes.get_yticklabels():
        if tick.get_text() in {family for family, _ in shown}:
            tick.set_style("italic")
    axes.tick_params(axis="y", length=0)
    axes.set(ylim=(-line + 0.4, 0.6), xlabel="difference in test accuracy, points")
    levels = ", each at the level of its look" if study.looks else ""
    caption = (
        f"Differences with simultaneous 95% (thin) and 90% (thick) intervals{levels}; the band is your margin of "
        f"{in_points(study.margin)}. A filled mark is a difference that was shown."
    )
    return canvas, caption


def _forest_row(axes: Any, y: float, one: Comparison, pen: Pen) -> None:
    contrast = one.contrast
    (low, high), (low90, high90) = contrast.ci95 or (0, 0), contrast.ci90 or (0, 0)
    is_shown = contrast.verdict in ("better", "worse")
    axes.plot([low, high], [y, y], color=pen.color, lw=1)
    axes.plot([low90, high90], [y, y], color=pen.color, lw=3.2, solid_capstyle="butt")
    face = pen.color if is_shown else GROUND
    axes.plot(contrast.estimate, y, marker=pen.marker, ms=7, mfc=face, mec=pen.color, mew=1.4)
    said = f"{points(contrast.estimate or 0.0)}\N{EN SPACE}{label(contrast.verdict)}"
    axes.text(1.01, y, said, transform=axes.get_yaxis_transform(), fontsize=9, va="center")


def _seeds(study: StudyReport, arms: dict[str, Pen]) -> tuple[Canvas, str] | None:
    values: dict[str, dict[int, float]] = {row.name: {} for row in study.rows}
    for run in study.runs:
        if run.test_accuracy:
            values[run.arm][run.seed] = run.test_accuracy
    values = {arm: by_seed for arm, by_seed in values.items() if by_seed}
    if not values:
        return None
    canvas, axes = new_canvas(max(5.0, 1.3 * len(values) + 1.2), 3.8)
    names = list(values)
    for seed in sorted({seed for by_seed in values.values() for seed in by_seed}):
        line = [(x, values[arm][seed]) for x, arm in enumerate(names) if seed in values[arm]]
        axes.plot([x for x, _ in line], [y for _, y in line], color=GREY, lw=0.7, alpha=0.8, zorder=1)
    for x, arm in enumerate(names):
        pen, heights = arms[arm], list(values[arm].values())
        axes.plot([x] * len(heights), heights, pen.marker, color=pen.color, ms=6, mec="white", mew=0.6, zorder=2)
        axes.plot([x - 0.22, x + 0.22], [fmean(heights)] * 2, color=pen.color, lw=2.4, zorder=3)
    axes.set_xticks(range(len(names)), [short(arm, 18) for arm in names], rotation=0 if len(names) < 7 else 35)
    axes.set(ylabel="test accuracy, %", xlim=(-0.5, len(names) - 0.5))
    return canvas, "Test accuracy of every run, its mean as a bar. Thin lines join the runs of one seed."


def _curves(study: StudyReport, arms: dict[str, Pen]) -> tuple[Canvas, str] | None:
    if not any(len(curve) > 1 for by_seed in study.curves.values() for curve in by_seed.values()):
        return None
    canvas, axes = new_canvas(8.2, max(4.0, 0.6 + 0.22 * len(study.rows)))  # room for the legend
    for arm, by_seed in study.curves.items():
        pen = arms[arm]
        for curve in by_seed.values():
            axes.plot(*zip(*curve, strict=True), color=pen.color, lw=0.6, alpha=0.45)
        longest = max(len(curve) for curve in by_seed.values())
        whole = [dict(curve) for curve in by_seed.values() if len(curve) == longest]  # not those that diverged early
        shared = set.intersection(*(set(curve) for curve in whole))
        mean = [(epoch, fmean(curve[epoch] for curve in whole)) for epoch in sorted(shared)]
        if mean:
            axes.plot(
                *zip(*mean, strict=True),
                color=pen.color,
                lw=2,
                ls=pen.dashes,
                marker=pen.marker,
                ms=4.5,
                markevery=max(1, len(mean) // 8),
                label=short(arm),
            )
    axes.set(xlabel="epoch", ylabel="test accuracy, %")
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=9)
    note(axes, "not used for selection")
    return canvas, "Test accuracy by epoch: every seed (thin) and the mean over seeds (thick). Not used for selection."


def _classes(study: StudyReport, arms: dict[str, Pen]) -> tuple[Canvas, str] | None:
    effects = study.class_effects
    classes = list(dict.fromkeys(one.class_name for one in effects))
    if not effects or len(classes) > 20:
        return None
    names = list(dict.fromkeys(one.arm for one in effects))
    limit = max(1e-6, *(abs(one.estimate) for one in effects))
    canvas, axes = new_canvas(max(5.5, 0.72 * len(classes) + 2.4), 1.2 + 0.42 * len(names))
    from matplotlib import colormaps

    shades = colormaps["RdBu"]
    for one in effects:
        x, y = classes.index(one.class_name), -names.index(one.arm)
        face = shades(0.5 + 0.3 * one.estimate / limit) if one.is_shown else "none"
        axes.add_patch(_cell(x, y, face, is_shown=one.is_shown))
        axes.text(
            x,
            y,
            f"{one.estimate:+.{0 if abs(one.estimate) >= 100 else 1}f}".replace("-", MINUS),
            ha="center",
            va="center",
            fontsize=9,
            weight="bold" if one.is_shown else "normal",
            color="#111111" if one.is_shown else INK,
        )
    axes.set(xlim=(-0.5, len(classes) - 0.5), ylim=(-len(names) + 0.5, 0.5))
    axes.set_xticks(range(len(classes)), [short(name, 14) for name in classes], rotation=35)
    axes.set_yticks([-index for index in range(len(names))], [short(arm) for arm in names])
    axes.tick_params(length=0)
    for side in axes.spines.values():
        side.set_visible(False)
    kept = sum(one.is_shown for one in effects)
    caption = (
        f"Difference against {study.baseline} on each class, points. Bold cells on colour ({kept} of {len(effects)}) "
        "are significant by Benjamini and Hochberg at 5%; do not read the plain ones as effects."
    )
    return canvas, caption


def _cell(x: float, y: float, face: Any, *, is_shown: bool) -> Any:
    from matplotlib.patches import Rectangle

    edge, width = (INK, 1.4) if is_shown else (GREY, 0.3)
    return Rectangle((x - 0.5, y - 0.5), 1, 1, fc=face, ec=edge, lw=width, clip_on=False)


def _reliability(study: StudyReport, arms: dict[str, Pen]) -> tuple[Canvas, str] | None:
    shown = [one for one in study.calibration if one.bins]
    if not shown:
        return None
    rows = ceil(len(shown) / 4)
    columns = ceil(len(shown) / rows)
    canvas, grid = new_canvas(2.2 * columns + 0.5, 2.45 * rows, columns, rows, sharex=True, sharey=True)
    panels = [grid] if len(shown) == 1 else list(grid.flat)
    for axes, one in zip(panels, shown, strict=False):
        pen = arms[one.arm]
        axes.plot([0, 1], [0, 1], color=GREY, lw=0.8)
        total = sum(bin_.num for bin_ in one.bins)
        gaps = [(bin_.confidence, end) for bin_ in one.bins for end in (bin_.confidence, bin_.accuracy, nan)]
        axes.plot(*zip(*gaps, strict=True), color=pen.color, lw=1, alpha=0.7)
        by_size: dict[int, list[Bin]] = {}
        for bin_ in one.bins:
            by_size.setdefault(round(2 + 7 * (bin_.num / total) ** 0.5), []).append(bin_)
        for size, bins in by_size.items():
            at = [(bin_.confidence, bin_.accuracy) for bin_ in bins]
            axes.plot(*zip(*at, strict=True), pen.marker, color=pen.color, ms=size)
        said = "".join(
            f"{name} {one_of.mean:.3f}  " for name, one_of in (("NLL", one.nll), ("ECE", one.ece)) if one_of is not None
        )
        note(axes, f"{short(one.arm, 22)}\n{said.strip()}")
        axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
    for axes in panels[len(shown) :]:
        axes.set_axis_off()
    canvas.supxlabel("confidence", fontsize=10)
    canvas.supylabel("accuracy", fontsize=10)
    return canvas, (
        "Reliability over 15 bins, all runs of an arm together: on the line, confidence equals accuracy; below it, "
        "the network is overconfident. Larger marks hold more predictions."
    )


def _width(study: StudyReport, arms: dict[str, Pen]) -> tuple[Canvas, str] | None:
    width = study.width
    if width is None:
        return None
    canvas, axes = new_canvas(6.4, 3.4)
    axes.plot(width.num_seeds, width.half_widths, color=INK, lw=1.6)
    now = width.half_widths[width.num_seeds.index(width.now)]
    axes.plot(width.now, now, "o", color=INK, ms=7)
    axes.annotate(
        f"now: {width.now} seeds, \N{PLUS-MINUS SIGN}{now:.2f}",
        (width.now, now),
        (8, 6),
        textcoords="offset points",
        fontsize=9,
    )
    lines = [(study.margin, "--", f"your margin, {study.margin:g}")] if study.margin > 0 else []
    if width.test_set_floor is not None:
        lines.append((width.test_set_floor, ":", f"floor for new images, {width.test_set_floor:.2f}"))
    axes.set_yscale("log")
    lowest = min([height for height, _, _ in lines], default=0.0)
    for height, dashes, said in lines:
        axes.axhline(height, color=GREY, ls=dashes, lw=1.2)
        side = "top" if height == lowest and len(lines) > 1 else "bottom"  # the two may lie on each other
        axes.text(width.num_seeds[-1], height * (0.96 if side == "top" else 1), said, ha="right", va=side, fontsize=9)
    axes.set_ylim(bottom=0.6 * min(lowest or now, *width.half_widths))
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set(xlabel="seeds per arm", ylabel="half the 95% interval, points")
    return canvas, (
        "Expected half-width of a simultaneous 95% interval on this test set with more seeds, at the observed spread. "
        "Intervals for new images cannot get below the dotted floor with more seeds, only with a larger test set."
    )


def _own_best(study: StudyReport, arms: dict[str, Pen]) -> tuple[Canvas, str] | None:
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
        _own_best_row(axes, y, shared, pen, dashes=(0, (4, 2)))
        _own_best_row(axes, y - 1, one.own_best, pen, is_bold=one.change.is_flip)
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
        "shown; a verdict in bold changes the decision."
    )


def _own_best_row(
    axes: Any, y: float, contrast: Contrast, pen: Pen, *, dashes: Any = "-", is_bold: bool = False
) -> None:
    low, high = contrast.ci95 or (0, 0)
    axes.plot([low, high], [y, y], color=pen.color, lw=2 if dashes == "-" else 1.2, ls=dashes)
    face = pen.color if contrast.verdict in ("better", "worse") else GROUND
    axes.plot(contrast.estimate, y, marker=pen.marker, ms=7, mfc=face, mec=pen.color, mew=1.4)
    weight = "bold" if is_bold else "normal"
    said = f"{points(contrast.estimate or 0.0)}\N{EN SPACE}{label(contrast.verdict)}"
    axes.text(1.01, y, said, transform=axes.get_yaxis_transform(), fontsize=9, va="center", weight=weight)


Draw = Callable[[StudyReport, dict[str, Pen]], "tuple[Canvas, str] | None"]
DRAWN: tuple[tuple[str, Draw], ...] = (
    ("Differences", _differences),
    ("Own best recipes", _own_best),
    ("Seeds", _seeds),
    ("Curves", _curves),
    ("Classes", _classes),
    ("Reliability", _reliability),
    ("Width of intervals", _width),
)


MINUS = "\N{MINUS SIGN}"


def draw_figures(study: StudyReport, *, ink: str = "#000000") -> tuple[Figure, ...]:
    """Every figure that the study has numbers for; ``ink`` is the colour of text and axes (or ``currentColor``)."""
    return tuple(_figures(study, ink))


def _figures(study: StudyReport, ink: str) -> Iterator[Figure]:
    if len(study.rows) > MAX_ARMS:
        return
    arms = pens([row.name for row in study.rows], study.baseline)
    for title, draw in DRAWN:
        name = f"{slug(study.label)}-{title.split()[0].lower()}"
        with drawing(name):
            found = draw(study, arms)
            if found is not None:
                canvas, caption = found
                yield Figure(name, title, caption, to_svg(canvas, ink))
