"""YAML text to plain values that remember where they were written.

Scalars follow the YAML 1.2 core schema, since YAML 1.1 reads ``5e-4`` as a string and ``no`` as false. Keys are always
names: an arm called ``no`` or ``1`` is a name. A key given twice, a tag, or an alias that contains itself is an error.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from cifar_ablate.errors import Origin, Problem, StudyError

Path_ = tuple[str, ...]
MAX_BYTES = 1_000_000
MAX_NODES = 50_000  # aliases can make a small file huge ("billion laughs")
MAX_DEPTH = 40

_INT = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_SPECIAL = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
    **dict.fromkeys((".inf", ".Inf", ".INF", "+.inf"), float("inf")),
    **dict.fromkeys(("-.inf", "-.Inf", "-.INF"), float("-inf")),
    **dict.fromkeys((".nan", ".NaN", ".NAN"), float("nan")),
}


@dataclass(frozen=True)
class Written:
    """Where one value was written: its origin and its dotted path in that file."""

    origin: Origin
    path: str


@dataclass(frozen=True)
class Tree:
    """A plain value (dict, list, scalar) and, for each path in it, where it was written."""

    value: Any
    written: dict[Path_, Written] = field(default_factory=dict)

    def at(self, path: Path_) -> Written:
        """Where ``path`` was written; for a path that is not in the file, its nearest parent."""
        for length in range(len(path), -1, -1):
            if path[:length] in self.written:
                return self.written[path[:length]]
        return Written(Origin("?"), ".".join(path))

    def sub(self, key: str) -> Tree:
        """The subtree under ``key``, with paths relative to it; an absent or null one is an empty mapping."""
        inner = {path[1:]: where for path, where in self.written.items() if path and path[0] == key}
        value = self.value.get(key)
        return Tree({} if value is None else value, inner or {(): self.at((key,))})


def scalar(text: str) -> Any:
    """Value of a plain (unquoted) scalar by the YAML 1.2 core schema."""
    if text in _SPECIAL:
        return _SPECIAL[text]
    if _INT.fullmatch(text):
        return int(text, 0) if text.startswith(("0o", "0x")) else int(text)
    return float(text) if _FLOAT.fullmatch(text) else text


def read_yaml(path: Path) -> Tree:
    """Read a file; raises StudyError with file, line and column for anything that is not clean YAML."""
    source = str(path)
    try:
        if path.stat().st_size > MAX_BYTES:
            raise StudyError([Problem(Origin(source), "", f"is over {MAX_BYTES:,} bytes; is this a study?")])
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise StudyError([Problem(Origin(source), "", _missing(path))]) from None
    except IsADirectoryError:
        raise StudyError([Problem(Origin(source), "", f"is a folder; name its files: {path}/*.yaml")]) from None
    except UnicodeDecodeError:
        raise StudyError([Problem(Origin(source), "", "is not UTF-8 text; save it as UTF-8")]) from None
    except OSError as error:
        raise StudyError([Problem(Origin(source), "", f"cannot be read: {error.strerror}")]) from None
    return parse_yaml(text, source)


def parse_yaml(text: str, source: str) -> Tree:
    """Parse one YAML document; ``source`` names it in messages."""
    try:
        node = yaml.compose(text, Loader=yaml.BaseLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        origin = Origin(source, mark.line + 1, mark.column + 1) if mark else Origin(source)
        raise StudyError([Problem(origin, "", f"is not valid YAML: {error.problem or error.context}")]) from None
    except yaml.YAMLError as error:
        raise StudyError([Problem(Origin(source), "", f"is not valid YAML: {error}".replace("\n", " "))]) from None
    except RecursionError:
        raise StudyError([Problem(Origin(source), "", "is nested too deeply for a study")]) from None
    builder = _Builder(source)
    value = builder.build(node, ()) if node is not None else None
    if builder.problems:
        raise StudyError(builder.problems)
    return Tree(value, builder.written or {(): Written(Origin(source), "")})


class _Builder:
    """Walks the node graph once, collecting values, marks and problems."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.written: dict[Path_, Written] = {}
        self.problems: list[Problem] = []
        self.num_nodes = 0

    def build(self, node: yaml.Node, path: Path_) -> Any:
        origin = Origin(self.source, node.start_mark.line + 1, node.start_mark.column + 1)
        self.written.setdefault(path, Written(origin, ".".join(path)))
        self.num_nodes += 1
        if self.num_nodes > MAX_NODES or len(path) > MAX_DEPTH:
            raise StudyError(
                [Problem(origin, "", "aliases or nesting make this study too large; write it out plainly")]
            )
        if node.tag not in {f"tag:yaml.org,2002:{kind}" for kind in ("str", "map", "seq")}:
            self.problems.append(Problem(origin, ".".join(path), f"tag {node.tag!r} is not supported; remove it"))
            return None
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            return [self.build(item, (*path, str(index))) for index, item in enumerate(node.value)]
        return scalar(node.value) if node.style is None else node.value

    def _mapping(self, node: yaml.MappingNode, path: Path_) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key_node, value_node in node.value:
            origin = Origin(self.source, key_node.start_mark.line + 1, key_node.start_mark.column + 1)
            if not isinstance(key_node, yaml.ScalarNode):
                self.problems.append(Problem(origin, ".".join(path), "a key must be a name, not a list or mapping"))
                continue
            key = key_node.value
            where = (*path, key)
            if key in values:
                first = self.written[where].origin
                self.problems.append(Problem(origin, ".".join(where), f"is given twice (first in line {first.line})"))
                continue
            if key == "<<":
                message = "merge keys are not supported; use `from:` to build one arm on another"
                self.problems.append(Problem(origin, ".".join(where), message))
                continue
            self.written[where] = Written(origin, ".".join(where))
            values[key] = self.build(value_node, where)
        return values


def _missing(path: Path) -> str:
    """A sentence about a file that is not there, with the nearest one that is."""
    from difflib import get_close_matches

    near = get_close_matches(path.name, [item.name for item in path.parent.glob("*.y*ml")], n=1)
    return "does not exist" + (f"; did you mean {path.parent / near[0]}?" if near else "")
