"""Parse YAML into plain values that remember where they were written.

Scalars follow the YAML 1.2 core schema: YAML 1.1 reads ``5e-4`` as a string and ``no`` as false. Keys are always
strings: an arm may be called ``no`` or ``1``. Duplicate keys, tags and aliases that contain themselves are errors.

PyYAML composes the nodes. ruamel.yaml, which writes studies (``tuning/write.py``), is not used here: it takes twice as
long, and the same positions, limits and messages would have to be built around its nodes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

from cifar_ablate.errors import Location, Problem, StudyError, short

Path_ = tuple[str, ...]
MAX_BYTES = 500_000
"""Maximum size of a study file."""
MAX_NODES = 10_000
"""Maximum number of values in a study: in the file with its aliases expanded, and in all its arms after merging.

20,000 values take over a second to read. Aliases can make a small file huge ("billion laughs").
"""
MAX_DEPTH = 40
"""Maximum nesting: what walks a tree is recursive, and Python's recursion limit is 1,000 calls."""
MAX_INT = 2**63 - 1
"""Largest whole number that the record (SQLite, PostgreSQL) can hold."""

_PLAIN_TAGS = frozenset(f"tag:yaml.org,2002:{kind}" for kind in ("str", "map", "seq"))
_NOT_TEXT = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\ud800-\udfff]")  # what YAML refuses unescaped
_INT = re.compile(r"[-+]?[0-9]{1,99}|0o[0-7]{1,99}|0x[0-9a-fA-F]{1,99}")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_SPECIAL = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
    **dict.fromkeys((".inf", ".Inf", ".INF", "+.inf", "+.Inf", "+.INF"), float("inf")),
    **dict.fromkeys(("-.inf", "-.Inf", "-.INF"), float("-inf")),
    **dict.fromkeys((".nan", ".NaN", ".NAN"), float("nan")),
}
_CURES = {  # part of PyYAML's message -> cure; {line} is where the bracket, quote or block begins
    r"found character '\t'": "indent with spaces, not tabs",
    "that cannot start any token": "put the value in quotes",
    "mapping values are not allowed here": "put text that holds ': ' in quotes, or check the indentation",
    "found unexpected end of stream": "close the quote that opens in line {line}",
    "but got '?'": "put the key in quotes",
    "expected ',' or": "close the bracket that opens in line {line}",
    "could not find expected ':'": "write `key: value`, with a space after the colon",
    "but found another document": "keep one document to a file, without ---",
    "expected <block end>": "check the brackets and the indentation of the block that begins in line {line}",
    "expected the node content": "a value is missing",
    "undefined alias": "write the value out, or put it in quotes",
    "duplicate anchor": "write the value out",
}


@dataclass(frozen=True)
class Written:
    """Where a value was written: its location and its dotted path in that file."""

    location: Location
    path: str


@dataclass(frozen=True)
class Tree:
    """A plain value (dict, list or scalar) and, for each path in it, where it was written."""

    value: Any
    written: dict[Path_, Written] = field(default_factory=dict)

    def at(self, path: Path_) -> Written:
        """Where ``path`` was written; if it is not in the file, where its nearest parent was."""
        return self.written.get(self.nearest(path)) or Written(Location("?"), dotted(path))

    def nearest(self, path: Path_) -> Path_:
        """The longest prefix of ``path`` that was written."""
        return next((path[:length] for length in range(len(path), 0, -1) if path[:length] in self.written), ())

    def sub(self, key: str) -> Tree:
        """The subtree under ``key``, with relative paths; an empty mapping if the key is absent or null."""
        inner = {path[1:]: where for path, where in self.written.items() if path and path[0] == key}
        value = self.value.get(key)
        return Tree({} if value is None else value, inner or {(): self.at((key,))})

    def parts(self) -> dict[str, Tree]:
        """``sub`` of every key, in a single pass over the paths."""
        written: dict[str, dict[Path_, Written]] = {}
        for path, where in self.written.items():
            if path:
                written.setdefault(path[0], {})[path[1:]] = where
        return {
            key: Tree({} if value is None else value, written.get(key) or {(): self.at((key,))})
            for key, value in self.value.items()
        }


def dotted(path: Path_) -> str:
    """A path as text, such as ``arms.all.augment``; quotes parts with control characters or spaces at their ends."""
    short = (part if len(part) <= 90 else part[:87] + "..." for part in path)
    return ".".join(part if part.isprintable() and part and part == part.strip() else repr(part) for part in short)


def scalar(text: str) -> Any:
    """Value of a plain (unquoted) scalar in the YAML 1.2 core schema."""
    if text in _SPECIAL:
        return _SPECIAL[text]
    if _INT.fullmatch(text):
        return int(text, 0) if text.startswith(("0o", "0x")) else int(text)
    return float(text) if _FLOAT.fullmatch(text) else text


def read_yaml(path: Path) -> Tree:
    """Read a file; raises StudyError with file, line and column if it cannot be read or is not valid YAML."""
    source = dotted((str(path),))
    return parse_yaml(_read_text(path, source), source)


def _read_text(path: Path, source: str) -> str:
    data = b""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)  # a pipe or a device does not know its size
        if len(data) > MAX_BYTES:
            raise StudyError([Problem(Location(source), "", f"is over {MAX_BYTES:,} bytes; name a study file")])
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        location = _place(source, data[: error.start].decode("utf-8-sig", "replace"))
        message = "is not UTF-8 text; save the file with this encoding"
    except FileNotFoundError:
        location, message = Location(source), "does not exist" + _near_file(path)
    except IsADirectoryError:
        location, message = Location(source), f"is a folder; name the files in it: {source}/*.yaml"
    except OSError as error:
        location, message = Location(source), f"cannot be read: {error.strerror}; name a YAML file that you may read"
    raise StudyError([Problem(location, "", message)])


def parse_yaml(text: str, source: str) -> Tree:
    """Parse one YAML document; ``source`` names it in messages."""
    loader: _Loader | None = None
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return Tree(None, {(): Written(Location(source), "")})
        builder = _Builder(source)
        value = builder.build(node, ())
    except yaml.MarkedYAMLError as error:
        raise StudyError([_invalid(error, source)]) from None
    except StudyError:
        raise
    except (ValueError, OverflowError):  # PyYAML fails on "\UFFFFFFFF" and on a version of 5,000 digits
        at = loader.get_mark() if loader else None
        location = Location(source, at.line + 1, at.column + 1) if at else Location(source)
        message = "is not valid YAML: there is no such character or version; write the text out plainly"
        raise StudyError([Problem(location, "", message)]) from None
    except yaml.reader.ReaderError as error:
        message = f"holds the control character U+{_code(error.character):04X}; remove it"
        raise StudyError([Problem(_place(source, text[: error.position]), "", message)]) from None
    if builder.problems:
        raise StudyError(builder.problems)
    return Tree(value, builder.written)


def _invalid(error: yaml.MarkedYAMLError, source: str) -> Problem:
    problem, mark, begin = str(error.problem or error.context), error.problem_mark, error.context_mark
    if "unexpected end of stream" in problem and begin:  # point at the open quote, not at the end of the file
        mark = begin
    line = begin.line + 1 if begin else mark.line + 1 if mark else 1
    cure = next((cure for key, cure in _CURES.items() if key in problem), "put text with such signs in quotes")
    if isinstance(error, _TooLarge):
        return Problem(Location(source, line, mark.column + 1 if mark else None), "", problem)
    said = f"{short(problem.removeprefix('but '))}; {cure.format(line=line)}"
    location = Location(source, mark.line + 1, mark.column + 1) if mark else Location(source)
    return Problem(location, "", f"is not valid YAML: {said}")


class _TooLarge(yaml.MarkedYAMLError):
    """The file has too many values, or nests them too deeply."""


class _Loader(yaml.BaseLoader):
    """Composes nodes, and stops at the first one that exceeds ``MAX_NODES`` or ``MAX_DEPTH``."""

    num_nodes = depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        self.num_nodes += 1
        self.depth += 1
        if self.num_nodes > MAX_NODES or self.depth > MAX_DEPTH + 1:
            what = "is nested too deeply; close the brackets" if self.num_nodes <= MAX_NODES else _TOO_MANY
            raise _TooLarge(problem=what, problem_mark=self.peek_event().start_mark)  # type: ignore[no-untyped-call]
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


_TOO_MANY = f"holds more than {MAX_NODES:,} values; divide the study"


class _Builder:
    """Walks the node graph once and collects values, positions and problems."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.written: dict[Path_, Written] = {}
        self.problems: list[Problem] = []
        self.num_nodes = 0
        self.open_nodes: list[yaml.Node] = []

    def build(self, node: yaml.Node, path: Path_) -> Any:
        location = self._location(node)
        self.written.setdefault(path, Written(location, dotted(path)))
        self.num_nodes += 1
        if any(node is outer for outer in self.open_nodes):
            self._complain(node, path, "holds an alias of itself; write the value out")
            return None
        if self.num_nodes > MAX_NODES or len(path) > MAX_DEPTH:
            message = f"aliases expand this study to over {MAX_NODES:,} values, or nest them too deeply; write them out"
            raise StudyError([*self.problems, Problem(location, "", message)])
        if node.tag not in _PLAIN_TAGS:
            self._complain(node, path, f"the tag {short(node.tag)!r} is not supported; remove it")
            return None
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, path)
        self.open_nodes.append(node)
        if isinstance(node, yaml.MappingNode):
            value: Any = self._mapping(node, path)
        else:
            value = [self.build(item, (*path, str(index))) for index, item in enumerate(node.value)]
        self.open_nodes.pop()
        return value

    def _scalar(self, node: yaml.ScalarNode, path: Path_) -> Any:
        self._check_text(node, path)
        value = scalar(node.value) if node.style is None else node.value
        if isinstance(value, int) and abs(value) > MAX_INT:
            self._complain(node, path, f"whole numbers go up to {MAX_INT}; write a smaller one, or put it in quotes")
        return value

    def _mapping(self, node: yaml.MappingNode, path: Path_) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                self._complain(key_node, path, "a key must be a name, not a list or mapping; put it in quotes")
                continue
            where = (*path, key_node.value)
            if key_node.value in values:
                line = self.written[where].location.line
                self._complain(key_node, where, f"is given twice (first in line {line}); keep one of them")
            elif key_node.value == "<<":
                message = "merge keys are not supported; use `from:` to build one arm on another"
                self._complain(key_node, where, message)
            else:
                self._check_text(key_node, where)
                self.written[where] = Written(self._location(key_node), dotted(where))
                values[key_node.value] = self.build(value_node, where)
        return values

    def _check_text(self, node: yaml.ScalarNode, path: Path_) -> None:
        found = _NOT_TEXT.search(node.value)
        if found:
            self._complain(node, path, f"holds the control character U+{ord(found[0]):04X}; remove it")

    def _complain(self, node: yaml.Node, path: Path_, message: str) -> None:
        self.problems.append(Problem(self._location(node), dotted(path), message))

    def _location(self, node: yaml.Node) -> Location:
        return Location(self.source, node.start_mark.line + 1, node.start_mark.column + 1)


def _code(character: int | str) -> int:
    return character if isinstance(character, int) else ord(character)  # an int at run time, a str in the stubs


def _place(source: str, before: str) -> Location:
    """Line and column of the character that follows ``before``."""
    return Location(source, before.count("\n") + 1, len(before) - before.rfind("\n"))


def _near_file(path: Path) -> str:
    folder = path.parent
    near = get_close_matches(path.name, [item.name for item in folder.glob("*.y*ml")], n=1)
    if near:
        return f"; did you mean {dotted((str(folder / near[0]),))}?"
    return "; name a study file" if folder.is_dir() else f"; there is no folder {dotted((str(folder),))} either"
