"""Pydantic's findings in the words of a person, each at the place where the value was written."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from cifar_ablate.errors import MAX_TOLD, Problem, suggest
from cifar_ablate.spec.component import COMPONENT_REGISTRIES, shown
from cifar_ablate.spec.known import Known, component_name, unknown_key
from cifar_ablate.spec.text import Path_, Tree, dotted, scalar

_EXAMPLES = {
    "study": "study: my-study",
    "question": "question: Does it help?",
    "arms": "arms: {baseline: , longer: {epochs: 60}}",
    "profile": "profile: quick",
    "data": "data: cifar10",
    "model": "model: resnet18-compact",
    "epochs": "epochs: 30",
    "optimizer": "optimizer: {name: sgd, lr: 0.1}",
}


@dataclass(frozen=True)
class Finding:
    """One finding of pydantic about the value at ``path`` of ``tree``."""

    kind: str
    context: Mapping[str, Any]
    value: Any
    path: Path_
    tree: Tree
    known: Known
    top: bool

    @property
    def got(self) -> str:
        """``(got ...)``, and what to do about a value that is nearly right."""
        if isinstance(self.value, Mapping) and set(self.value) == {"times"}:
            return f" (got {shown(self.value)}); {{times: ...}} is for profiles and --set only"
        cure = ""
        if isinstance(self.value, str) and isinstance(scalar(self.value), int | float):
            cure = "; remove the quotes"
        elif self.kind == "string_type" and isinstance(self.value, int | float):
            cure = "; put it in quotes"
        elif self.kind.startswith("int_") and isinstance(self.value, float) and self.value.is_integer():
            cure = f"; write {self.value:.0f}"
        return f" (got {shown(self.value)}){cure}"


def problems(error: ValidationError, tree: Tree, known: Known, *, top: bool = False) -> list[Problem]:
    """Problems of one failed validation of ``tree``: the ``top`` level of a study or profile, else a recipe."""
    found: dict[Path_, dict[str, Finding]] = {}
    for detail in error.errors(include_url=False):
        if len(found) > MAX_TOLD:
            break
        kind, loc = detail["type"], detail["loc"]
        context = dict(detail.get("ctx", {}))
        if kind == "missing" and isinstance(loc[-1], int):  # of a tuple
            kind, context, loc = "too_few", {"num": loc[-1] + 1}, loc[:-1]
        path = _written_path(tree, [str(part) for part in loc], kind)
        found.setdefault(path, {})[kind] = Finding(kind, context, detail["input"], path, tree, known, top)
    listed: list[Problem] = []
    for path, findings in found.items():
        message = _join(list(findings.values()), [other for other in found if other != path])
        if message:
            written, rest = tree.at(path), path[len(tree.nearest(path)) :]
            named = ".".join(filter(None, [written.path, dotted(rest)]))
            listed.append(Problem(written.origin, named, message))
    return listed


def in_file_order(found: Iterable[Problem]) -> list[Problem]:
    """Each problem once, from the top of the file to its end."""
    return sorted(dict.fromkeys(found), key=lambda problem: (problem.origin.line or 0, problem.origin.column or 0))


def _written_path(tree: Tree, loc: list[str], kind: str) -> Path_:
    """Pydantic's location without what is not in the file (it also names the members of unions)."""
    path: Path_ = ()
    for index, part in enumerate(loc):
        if (*path, part) in tree.written or (kind == "missing" and index == len(loc) - 1):
            path = (*path, part)
    return path


def _join(findings: list[Finding], others: list[Path_]) -> str:
    """One message about one value; several findings are what the members of a union have to say.

    The member that has the value's type knows best. Where none has, the types are listed: "must be a number or text".
    """
    better = [finding for finding in findings if finding.kind not in _TYPES]
    if better:
        return "; ".join(dict.fromkeys(_SENTENCES.get(finding.kind, _plain)(finding) for finding in better))
    path = findings[0].path
    if any(other[: len(path)] == path for other in others):
        return ""
    types = dict.fromkeys(_TYPES[finding.kind] for finding in findings)
    *first, last = types
    listed = f"{', '.join(first)} or {last}" if first else last
    return f"must be {listed}{findings[0].got}"


def _required(finding: Finding) -> str:
    part, key = finding.path[0], finding.path[-1]
    name = component_name(finding.tree.value, part)
    if len(finding.path) == 2 and part in COMPONENT_REGISTRIES and name:
        return f"is required by {name}; write {part}: {{name: {name}, {key}: ...}}"
    example = _EXAMPLES.get(key) if len(finding.path) == 1 else None
    return f"is required, such as `{example}`" if example else f"is required; add `{key}: ...`"


def _unknown(finding: Finding) -> str:
    arm = finding.tree.at(finding.path).path.startswith("arms.")
    return unknown_key(finding.path, finding.known, top=finding.top, arm=arm)


def _not_one_of(finding: Finding) -> str:
    expected = str(finding.context["expected"])
    near = suggest(str(finding.value), [name.strip("' ") for name in expected.replace(" or ", ",").split(",")])
    return f"must be one of {expected}{finding.got}" + (near if "did you mean" in near else "")


def _plain(finding: Finding) -> str:
    message = finding.kind.replace("_", " ")
    return f"is not usable: {message}{finding.got}"


def _limit(key: str, words: str) -> Callable[[Finding], str]:
    def sentence(finding: Finding) -> str:
        limit = finding.context[key]
        return f"must be {words} {format(limit, 'g') if isinstance(limit, float) else limit}{finding.got}"

    return sentence


_NAME = "must be lower-case letters, digits, dots, dashes and underscores, at most 64, the first a letter or digit"
_TYPES = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "text",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
}
_SENTENCES: dict[str, Callable[[Finding], str]] = {
    "extra_forbidden": _unknown,
    "missing": _required,
    "ablate": lambda finding: str(finding.context["message"]),
    "literal_error": _not_one_of,
    "string_pattern_mismatch": lambda finding: _NAME + finding.got,
    "string_too_short": lambda _: "must not be empty",
    "too_short": lambda _: "must not be empty",
    "string_too_long": lambda finding: f"must be at most {finding.context['max_length']} characters long",
    "too_long": lambda finding: f"must have at most {finding.context['max_length']} items",
    "too_few": lambda finding: f"must have {finding.context['num']} items{finding.got}",
    "finite_number": lambda finding: "must be a finite number" + finding.got,
    "greater_than_equal": _limit("ge", "at least"),
    "greater_than": _limit("gt", "more than"),
    "less_than_equal": _limit("le", "at most"),
    "less_than": _limit("lt", "less than"),
}
