"""One self-contained HTML page."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from cifar_ablate.registry import FORMATS

if TYPE_CHECKING:  # `report --help` lists the formats, and must wait neither for pandas nor for jinja2
    from cifar_ablate.report.tuning_types import TuningReport
    from cifar_ablate.report.types import Figure, Report, StudyReport


@FORMATS.register("html")
def html(report: Report) -> str:
    """One self-contained page: figures inline, tables that sort, dark and light, made for print, too."""
    from base64 import b64encode
    from hashlib import sha256
    from importlib.resources import files

    from jinja2 import Environment, PackageLoader, StrictUndefined

    from cifar_ablate.report.tables import SYMBOLS

    templates = files("cifar_ablate.report") / "templates"
    style, script = ((templates / name).read_text(encoding="utf-8") for name in ("report.css", "report.js"))
    environment = Environment(
        loader=PackageLoader("cifar_ablate.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("report.html.j2")
    return page.render(
        studies=[_shown(study, f"study-{index}") for index, study in enumerate(report.studies, 1)],
        symbols=SYMBOLS,
        style=style,
        script=script,
        # the page runs this one script, and no other that a name might smuggle in
        script_hash=b64encode(sha256(script.encode()).digest()).decode(),
    )


def _shown(study: StudyReport, anchor: str) -> dict[str, Any]:
    """A study as the template takes it; ``anchor`` begins the ids of its elements."""
    from cifar_ablate.analysis import label
    from cifar_ablate.report import tables
    from cifar_ablate.report.figures import draw_figures

    figures = [
        {"figure": figure, "svg": _inlined(figure, f"{anchor}-figure-{index}-")}
        for index, figure in enumerate(draw_figures(study, ink="currentColor"), 1)
    ]
    return {
        "anchor": anchor,
        "study": study,
        "facts": tables.facts(study),
        "label": label,
        "verdicts": [tables.verdict_table(study, family) for family in study.families],
        "tuning": None if study.tuning is None else _tuning(study.tuning),
        "arms": tables.arms_table(study),
        "figures": figures,
        "classes": tables.classes_table(study),
        "interactions": tables.interactions_table(study),
        "calibration": tables.calibration_table(study),
        "published": tables.published_table(study),
        "runs": tables.runs_table(study),
    }


def _tuning(tuning: TuningReport) -> dict[str, Any]:
    from cifar_ablate.report.tuned_tables import own_best_table, tuning_table

    return {"own_best": own_best_table(tuning), "cost": tuning_table(tuning)}


def _inlined(figure: Figure, own: str) -> str:
    """A figure as it stands within a page: named, and with ids of its own, for those of two figures may be the same."""
    from html import escape

    svg = re.sub(r"<[a-zA-Z][^>]*>", lambda tag: _with_own_ids(tag[0], own), figure.svg[figure.svg.index("<svg") :])
    return svg.replace("<svg", f'<svg role="img" aria-label="{escape(figure.title)}"', 1)


def _with_own_ids(tag: str, own: str) -> str:
    """An opening tag whose id, and references to ids, begin with ``own``."""
    return re.sub(r"""(\sid="|url\(['"]?#|href="#)""", rf"\g<1>{own}", tag)
