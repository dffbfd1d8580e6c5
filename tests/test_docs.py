"""What the pages in docs/ name exists: files, and faults that tests inflict."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *ROOT.glob("*/README.md")]


def test_every_link_leads_to_a_file() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / target.replace("%40", "@")).exists(), f"{page.name}: {target}"


def faults_in_tests() -> Iterator[str]:
    """Patterns of the names of faults that tests call ``tried`` with."""
    for path in (ROOT / "tests").glob("test_*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        names: dict[str, list[ast.expr]] = {}
        for node in ast.walk(tree):
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                names.setdefault(node.targets[0].id, []).append(node.value)
            if isinstance(node, ast.keyword) and node.arg:
                names.setdefault(node.arg, []).append(node.value)
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "tried":
                yield from patterns(node.args[0], names)


def patterns(value: ast.expr, names: dict[str, list[ast.expr]]) -> Iterator[str]:
    if isinstance(value, ast.Constant):
        yield re.escape(str(value.value))
    elif isinstance(value, ast.JoinedStr):
        yield "".join(re.escape(str(one.value)) if isinstance(one, ast.Constant) else ".+" for one in value.values)
    elif isinstance(value, ast.IfExp):
        yield from patterns(value.body, names)
        yield from patterns(value.orelse, names)
    elif isinstance(value, ast.Name):
        others = {name: of for name, of in names.items() if name != value.id}
        for one in names.get(value.id, []):
            yield from patterns(one, others)


def test_the_rows_of_the_page_on_reliability_are_the_faults_that_tests_inflict() -> None:
    page = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([^|]+) \| \d+ \| \d+ \|", page.partition("## Beside others")[0], re.MULTILINE)
    faults = set(faults_in_tests())
    assert len(faults) > 30
    assert [row for row in rows if not any(re.fullmatch(fault, row) for fault in faults)] == []
    assert [fault for fault in faults if not any(re.fullmatch(fault, row) for row in rows)] == []
