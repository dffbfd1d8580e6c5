"""YAML text to plain values that remember where they were written.

Scalars follow the YAML 1.2 core schema, since YAML 1.1 reads ``5e-4`` as a string and ``no`` as false. Keys are always
names: an arm called ``no`` or ``1`` is a name. A key given twice, a tag, or an alias that contains itself is an error.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

from cifar_ablate.errors import Origin, Problem, StudyError, short

Path_ = tuple[str, ...]
MAX_BYTES = 500_000
MAX_NODES = 10_000  # half a second of PyYAML; and aliases can make a small file huge ("billion laughs")
MAX_DEPTH = 40
MAX_INT = 2**63 - 1

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
_CURES = {  # what PyYAML says -> what to do; {line} is where the bracket, quote or block begins that it was reading
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
        return self.written.get(self.nearest(path)) or Written(Origin("?"), dotted(path))

    def nearest(self, path: Path_) -> Path_:
        """The longest beginning of ``path`` that was written."""
        return next((path[:length] for length in range(len(path), 0, -1) if path[:length] in self.written), ())

    def sub(self, key: str) -> Tree:
        """The subtree under ``key``, with paths relative to it; an absent or null one is an empty mapping."""
        inner = {path[1:]: where for path, where in self.written.items() if path and path[0] == key}
        value = self.value.get(key)
        return Tree({} if value is None else value, inner or {(): self.at((key,))})

    def parts(self) -> dict[str, Tree]:
        """``sub`` of every key, in one walk: a thousand arms would take a million looks otherwise."""
        written: dict[str, dict[Path_, Written]] = {}
        for path, where in self.written.items():
            if path:
                written.setdefault(path[0], {})[path[1:]] = where
        return {
            key: Tree({} if value is None else value, written.get(key) or {(): self.at((key,))})
            for key, value in self.value.items()
        }


def dotted(path: Path_) -> str:
    """``arms.all.augment``; a part that would not show, or would reach into the terminal, is quoted and escaped."""
    short = (part if len(part) <= 90 else part[:87] + "..." for part in path)
    return ".".join(part if part.isprintable() and part and part == part.strip() else repr(part) for part in short)


def scalar(text: str) -> Any:
    """Value of a plain (unquoted) scalar by the YAML 1.2 core schema."""
    if text in _SPECIAL:
        return _SPECIAL[text]
    if _INT.fullmatch(text):
        return int(text, 0) if text.startswith(("0o", "0x")) else int(text)
    return float(text) if _FLOAT.fullmatch(text) else text


def read_yaml(path: Path) -> Tree:
    """Read a file; raises StudyError with file, line and column for anything that is not clean YAML."""
    source = dotted((str(path),))
    return parse_yaml(_read_text(path, source), source)


def _read_text(path: Path, source: str) -> str:
    data = b""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)  # of a pipe or a device the size is not known before
        if len(data) > MAX_BYTES:
            raise StudyError([Problem(Origin(source), "", f"is over {MAX_BYTES:,} bytes; name a study file")])
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        origin = _place(source, data[: error.start].decode("utf-8-sig", "replace"))
        message = "is not UTF-8 text; save the file with this encoding"
    except FileNotFoundError:
        origin, message = Origin(source), "does not exist" + _near_file(path)
    except IsADirectoryError:
        origin, message = Origin(source), f"is a folder; name the files in it: {source}/*.yaml"
    except OSError as error:
        origin, message = Origin(source), f"cannot be read: {error.strerror}; name a YAML file that you may read"
    raise StudyError([Problem(origin, "", message)])


def parse_yaml(text: str, source: str) -> Tree:
    """Parse one YAML document; ``source`` names it in messages."""
    loader: _Loader | None = None
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return Tree(None, {(): Written(Origin(source), "")})
        builder = _Builder(source)
        value = builder.build(node, ())
    except yaml.MarkedYAMLError as error:
        raise StudyError([_invalid(error, source)]) from None
    except StudyError:
        raise
    except (ValueError, OverflowError):  # "\UFFFFFFFF" and a version of 5,000 digits are too much for PyYAML itself
        at = loader.get_mark() if loader else None
        origin = Origin(source, at.line + 1, at.column + 1) if at else Origin(source)
        message = "is not valid YAML: there is no such character or version; write the text out plainly"
        raise StudyError([Problem(origin, "", message)]) from None
    except yaml.reader.ReaderError as error:
        message = f"holds the control character U+{_code(error.character):04X}; remove it"
        raise StudyError([Problem(_place(source, text[: error.position]), "", message)]) from None
    if builder.problems:
        raise StudyError(builder.problems)
    return Tree(value, builder.written)


def _invalid(error: yaml.MarkedYAMLError, source: str) -> Problem:
    problem, mark, begin = str(error.problem or error.context), error.problem_mark, error.context_mark
    if "unexpected end of stream" in problem and begin:  # the quote is what has to be mended, not the end of the file
        mark = begin
    line = begin.line + 1 if begin else mark.line + 1 if mark else 1
    cure = next((cure for key, cure in _CURES.items() if key in problem), "put text with such signs in quotes")
    if isinstance(error, _TooLarge):
        return Problem(Origin(source, line, mark.column + 1 if mark else None), "", problem)
    said = f"{short(problem.removeprefix('but '))}; {cure.format(line=line)}"
    origin = Origin(source, mark.line + 1, mark.column + 1) if mark else Origin(source)
    return Problem(origin, "", f"is not valid YAML: {said}")


class _TooLarge(yaml.MarkedYAMLError):
    """A file that would take too long to read."""


class _Loader(yaml.BaseLoader):
    """Composes nodes, and gives up at once where there are too many or too deep ones."""

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
    """Walks the node graph once, collecting values, marks and problems."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.written: dict[Path_, Written] = {}
        self.problems: list[Problem] = []
        self.num_nodes = 0
        self.open_nodes: list[yaml.Node] = []

    def build(self, node: yaml.Node, path: Path_) -> Any:
        origin = self._origin(node)
        self.written.setdefault(path, Written(origin, dotted(path)))
        self.num_nodes += 1
        if any(node is outer for outer in self.open_nodes):
            self._complain(node, path, "holds an alias of itself; write the value out")
            return None
        if self.num_nodes > MAX_NODES or len(path) > MAX_DEPTH:
            message = "aliases or nesting make this study too large; write it out plainly"
            raise StudyError([*self.problems, Problem(origin, "", message)])
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
                line = self.written[where].origin.line
                self._complain(key_node, where, f"is given twice (first in line {line}); keep one of them")
            elif key_node.value == "<<":
                message = "merge keys are not supported; use `from:` to build one arm on another"
                self._complain(key_node, where, message)
            else:
                self._check_text(key_node, where)
                self.written[where] = Written(self._origin(key_node), dotted(where))
                values[key_node.value] = self.build(value_node, where)
        return values

    def _check_text(self, node: yaml.ScalarNode, path: Path_) -> None:
        found = _NOT_TEXT.search(node.value)
        if found:
            self._complain(node, path, f"holds the control character U+{ord(found[0]):04X}; remove it")

    def _complain(self, node: yaml.Node, path: Path_, message: str) -> None:
        self.problems.append(Problem(self._origin(node), dotted(path), message))

    def _origin(self, node: yaml.Node) -> Origin:
        return Origin(self.source, node.start_mark.line + 1, node.start_mark.column + 1)


def _code(character: int | str) -> int:
    return character if isinstance(character, int) else ord(character)  # PyYAML gives a number, its stubs promise text


def _place(source: str, before: str) -> Origin:
    """Line and column of the character that follows ``before``."""
    return Origin(source, before.count("\n") + 1, len(before) - before.rfind("\n"))


def _near_file(path: Path) -> str:
    folder = path.parent
    near = get_close_matches(path.name, [item.name for item in folder.glob("*.y*ml")], n=1)
    if near:
        return f"; did you mean {dotted((str(folder / near[0]),))}?"
    return "; name a study file" if folder.is_dir() else f"; there is no folder {dotted((str(folder),))} either"
