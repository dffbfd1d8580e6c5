"""Edit the YAML text of a study: what is not changed keeps its comments, order and quoting.

Scalars are edited as text: ruamel.yaml resolves none of them, so that ``5e-4``, ``null`` and ``no`` are written back as
they were. ``scalar`` in ``text.py`` says what they mean.
"""

from __future__ import annotations

import io
from collections.abc import Collection, Mapping
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.resolver import VersionedResolver
from ruamel.yaml.scalarstring import SingleQuotedScalarString
from ruamel.yaml.tokens import CommentToken

from cifar_ablate.spec.text import Tree, scalar

MAX_LINE = 90
"""Maximum length of a new mapping that is written on one line."""
_UNLIMITED = 1 << 30
"""Line width at which ruamel.yaml wraps no text."""


class _NothingResolved(VersionedResolver):
    """Leaves every plain scalar a string."""

    @property
    def versioned_resolver(self) -> dict[str, Any]:
        return {}


def _yaml() -> YAML:
    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = _UNLIMITED
    yaml.Resolver = _NothingResolved
    return yaml


def read_document(text: str) -> CommentedMap:
    """The study's top level, with strings for all scalars; ``text`` must be a valid study."""
    document: CommentedMap = _yaml().load(text)
    _name_nulls(document)
    return document


def write_document(document: CommentedMap) -> str:
    """The document as text."""
    text = io.StringIO()
    _yaml().dump(document, text)
    return text.getvalue()


def without_sections(text: str, tree: Tree, sections: Collection[str]) -> str:
    """The text without these top-level sections and the comments directly above them.

    A section that defines an anchor is kept, since the anchor may be used elsewhere; so are those of a study in flow
    style, which has no lines of its own for them.
    """
    lines = text.splitlines(keepends=True)
    places = [tree.written[(key,)].location for key in tree.value]
    if any(place.column != 1 for place in places):
        return text
    starts = [(place.line or 1) - 1 for place in places]
    dropped: set[int] = set()
    for key, start, end in zip(tree.value, starts, [*starts[1:], len(lines)], strict=True):
        first, last = start, end
        while not lines[last - 1].strip() or lines[last - 1].startswith("#"):
            last -= 1  # comments above the next section belong to that one
        while first > starts[0] and lines[first - 1].startswith("#"):
            first -= 1
        if key in sections and not any("&" in line for line in lines[start:last]):
            dropped.update(range(first, last))
    kept: list[str] = []
    for number, line in enumerate(lines):
        is_second_empty_line = number - 1 in dropped and kept and not kept[-1].strip() and not line.strip()
        if number not in dropped and not is_second_empty_line:
            kept.append(line)
    return "".join(kept).rstrip() + "\n"


def set_value(parent: CommentedMap, key: str, before: Any, after: Any) -> None:
    """Change ``parent[key]`` from one plain value to another, and edit only what differs.

    A mapping that lacks a key of the one before replaces it as a whole. So does one for a mapping with an anchor, which
    other places use, too.
    """
    inner = parent.get(key)
    if before == after:
        return
    is_inside = isinstance(inner, CommentedMap) and isinstance(after, Mapping) and before.keys() <= after.keys()
    if is_inside and inner.anchor.value is None:
        for name, value in after.items():
            set_value(inner, name, before.get(name, _ABSENT), value)
        return
    comment = _take_comment(parent, key) if key in parent else _take_comment_after(parent)
    parent[key] = as_node(after, one_line=True)
    if comment is not None:
        parent.ca.items[key] = [None, None, comment, None]


_ABSENT = object()


def as_node(value: Any, *, one_line: bool = False) -> Any:
    """A plain value as ruamel.yaml writes it: mappings on one line if they are short."""
    if isinstance(value, Mapping):
        node = CommentedMap((key, as_node(inner)) for key, inner in value.items())
        is_short = all(isinstance(inner, str) for inner in node.values()) and len(str(dict(node))) <= MAX_LINE
        if one_line or is_short:
            node.fa.set_flow_style()
        return node
    if isinstance(value, list | tuple):
        items = CommentedSeq(map(as_node, value))
        items.fa.set_flow_style()
        return items
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, str):
        return value if scalar(value) == value else SingleQuotedScalarString(value)
    return repr(value)


def _name_nulls(node: Any) -> None:
    """Write ``null`` for a value that is left out in flow style, as in ``{hflip: }``: ruamel.yaml would quote it."""
    for key, inner in list(node.items() if isinstance(node, CommentedMap) else ()):
        if type(inner) is str and not inner and node.fa.flow_style():
            node[key] = "null"
        _name_nulls(inner)
    for inner in node if isinstance(node, CommentedSeq) else ():
        _name_nulls(inner)


def _last_value(parent: Any, key: Any) -> tuple[Any, Any]:
    """The collection and key of the last value in the block at ``parent[key]``; ruamel.yaml keeps comments there."""
    inner = parent[key]
    while isinstance(inner, CommentedMap | CommentedSeq) and inner and not inner.fa.flow_style():
        parent, key = inner, list(inner)[-1] if isinstance(inner, CommentedMap) else len(inner) - 1
        inner = parent[key]
    return parent, key


def _take_comment(parent: CommentedMap, key: str) -> CommentToken | None:
    """The comment at the end of ``parent[key]``, which also holds all lines up to the next key."""
    holder, last = _last_value(parent, key)
    found = holder.ca.items.get(last) or [None] * 4
    comment: CommentToken | None = found[2 if isinstance(holder, CommentedMap) else 0]
    return comment


def _take_comment_after(parent: CommentedMap) -> CommentToken | None:
    """The comment lines that follow the last key of a block: they come after a key that is added to it."""
    if not parent or parent.fa.flow_style():
        return None
    comment = _take_comment(parent, list(parent)[-1])
    if comment is None or "\n" not in comment.value:
        return None
    own, _, following = comment.value.partition("\n")
    comment.value = f"{own}\n"
    return CommentToken(f"\n{following}", comment.start_mark, None) if following else None
