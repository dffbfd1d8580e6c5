"""Pydantic's findings in the words of a person, each at the place where the value was written."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel, ValidationError

from cifar_ablate.errors import Problem, UnknownNameError, suggest
from cifar_ablate.registry import AUGMENTATIONS, DATA, MODELS, OPTIMIZERS, SCHEDULES
from cifar_ablate.spec.schema import Recipe, StudyFile
from cifar_ablate.spec.text import Tree

COMPONENT_REGISTRIES = {"data": DATA, "model": MODELS, "optimizer": OPTIMIZERS, "schedule": SCHEDULES}

_KINDS = {
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "bool_type": "must be true or false",
    "string_type": "must be text",
    "list_type": "must be a list",
    "tuple_type": "must be a list",
    "dict_type": "must be a mapping",
    "model_type": "must be a mapping",
    "model_attributes_type": "must be a mapping",
    "finite_number": "must be a finite number",
}
_LIMITS = {
    "greater_than_equal": ("ge", "must be at least {}"),
    "greater_than": ("gt", "must be more than {}"),
    "less_than_equal": ("le", "must be at most {}"),
    "less_than": ("lt", "must be less than {}"),
}


def problems(error: ValidationError, tree: Tree, known: dict[tuple[str, ...], Iterable[str]]) -> list[Problem]:
    """Problems of one failed validation of ``tree``; ``known`` holds the keys of each closed mapping."""
    found: list[Problem] = []
    alternatives: dict[tuple[str, ...], list[str]] = {}
    for detail in error.errors(include_url=False):
        path = _written_path(tree, [str(part) for part in detail["loc"]], detail["type"])
        alternatives.setdefault(path, []).append(_sentence(dict(detail), path, known))
    for path, messages in alternatives.items():
        written = tree.at(path)
        dotted = written.path if path in tree.written else ".".join(filter(None, [written.path, *_rest(tree, path)]))
        found.append(Problem(written.origin, dotted, _join(messages)))
    return found


def study_keys() -> dict[tuple[str, ...], Iterable[str]]:
    """Keys that the top level of a study knows."""
    return {(): StudyFile.model_fields}


def recipe_keys(recipe: dict[str, Any]) -> dict[tuple[str, ...], Iterable[str]]:
    """Keys that each mapping of this recipe knows, by path."""
    keys: dict[tuple[str, ...], Iterable[str]] = {(): Recipe.model_fields}
    for name, info in Recipe.model_fields.items():
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            keys[(name,)] = info.annotation.model_fields
    for part, registry in COMPONENT_REGISTRIES.items():
        value = recipe.get(part)
        if isinstance(value, dict) and isinstance(value.get("name"), str):
            try:
                keys[(part,)] = ["name", *registry.options(value["name"]).model_fields]
            except UnknownNameError:
                continue
    augment = recipe.get("augment")
    for name in augment if isinstance(augment, dict) else ():
        if name in AUGMENTATIONS.names():
            keys["augment", name] = AUGMENTATIONS.options(name).model_fields
    return keys


def _written_path(tree: Tree, loc: list[str], kind: str) -> tuple[str, ...]:
    """The part of pydantic's location that exists in the file (it also names union members), plus a missing key."""
    path: list[str] = []
    for index, part in enumerate(loc):
        if (*path, part) in tree.written or (kind == "missing" and index == len(loc) - 1):
            path.append(part)
        else:
            break
    return tuple(path)


def _rest(tree: Tree, path: tuple[str, ...]) -> tuple[str, ...]:
    for length in range(len(path), -1, -1):
        if path[:length] in tree.written:
            return path[length:]
    return path


def _sentence(detail: dict[str, Any], path: tuple[str, ...], known: dict[tuple[str, ...], Iterable[str]]) -> str:
    kind, context, value = detail["type"], detail.get("ctx", {}), detail["input"]
    got = f" (got {_short(value)})"
    if kind == "extra_forbidden":
        return f"unknown key {path[-1]!r}{suggest(path[-1], known.get(path[:-1], ()))}"
    if kind == "missing":
        return "is required"
    if kind == "ablate":
        return str(context["message"])
    if kind in _KINDS:
        return _KINDS[kind] + got
    if kind in _LIMITS:
        key, words = _LIMITS[kind]
        return words.format(_number(context[key])) + got
    if kind == "literal_error":
        return f"must be one of {context['expected']}" + got + _near(value, context["expected"])
    if kind == "string_pattern_mismatch":
        return "must be a name of lower-case letters, digits, dots and dashes" + got
    if kind in ("string_too_short", "too_short"):
        return "must not be empty"
    if kind == "string_too_long":
        return f"must be at most {context['max_length']} characters"
    return str(detail["msg"])[0].lower() + str(detail["msg"])[1:] + got


def _near(value: Any, expected: str) -> str:
    tail = suggest(str(value), [name.strip("' ") for name in expected.replace(" or ", ",").split(",")])
    return tail if "did you mean" in tail else ""


def _join(messages: list[str]) -> str:
    """Several findings about one value are the members of a union: "must be a number or a mapping (got 'x')"."""
    unique = list(dict.fromkeys(messages))
    kinds = [message.partition(" (got ") for message in unique]
    if len(unique) > 1 and all(head.startswith("must be ") and got for head, got, _ in kinds):
        heads = [head.removeprefix("must be ") for head, _, _ in kinds]
        return "must be " + " or ".join(dict.fromkeys(heads)) + kinds[0][1] + kinds[0][2]
    return "; ".join(unique)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _number(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
