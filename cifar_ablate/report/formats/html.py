"""One self-contained HTML page."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from cifar_ablate.registry import FORMATS
from cifar_ablate.report.blocks import Figure
from cifar_ablate.report.document import build_document

if TYPE_CHECKING:
    from cifar_ablate.report.types import Report


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
    environment.filters |= {"kind": lambda block: type(block).__name__, "inlined": _inlined}
    return environment.get_template("report.html.j2").render(
        document=build_document(report, ink="currentColor"),
        symbols=SYMBOLS,
        style=style,
        script=script,
        # the page runs this one script, and no other that a name might smuggle in
        script_hash=b64encode(sha256(script.encode()).digest()).decode(),
    )


def _inlined(figure: Figure, anchor: str) -> str:
    """A figure's SVG for a page: named, its ids beginning with ``anchor`` and its name, since figures may share ids."""
    from hashlib import sha256
    from html import escape

    own = f"{anchor}-{sha256(figure.name.encode()).hexdigest()[:6]}-"
    svg = re.sub(r"<[a-zA-Z][^>]*>", lambda tag: _with_own_ids(tag[0], own), figure.svg)
    return svg.replace("<svg", f'<svg role="img" aria-label="{escape(figure.title)}"', 1)


def _with_own_ids(tag: str, own: str) -> str:
    """An opening tag whose id, and references to ids, begin with ``own``."""
    return re.sub(r"""(\sid="|url\(['"]?#|href="#)""", rf"\g<1>{own}", tag)
