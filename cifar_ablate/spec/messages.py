"""Words for what pydantic finds: which keys are known, where a misplaced key belongs, and what a value must be."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from cifar_ablate.errors import MAX_NAME, MAX_PROBLEMS, Problem, UnknownNameError, suggest
from cifar_ablate.registry import AUGMENTATIONS, PRUNERS, SAMPLERS, Registry
from cifar_ablate.spec.component import COMPONENT_REGISTRIES, shown
from cifar_ablate.spec.schema import Choices, Loss, Published, Range, Recipe, StudyFile, Tune, Tuned, TunedArm
from cifar_ablate.spec.text import Path_, Tree, dotted, scalar

Known = Mapping[Path_, Iterable[str]]
"""The keys of each closed mapping, by its path."""


def study_keys(study: Mapping[str, Any]) -> Known:
    """The known keys of a study, except those of its recipes."""
    published = study.get("published")
    arms = published if isinstance(published, dict) else {}
    keys: dict[Path_, Iterable[str]] = {("published", arm): Published.model_fields for arm in arms}
    tune = study.get("tune")
    space = tune.get("space") if isinstance(tune, dict) else None
    for field, entry in space.items() if isinstance(space, dict) else ():
        is_choice = isinstance(entry, dict) and "choices" in entry
        keys["tune", "space", field] = (Choices if is_choice else Range).model_fields
    for part, registry in (("sampler", SAMPLERS), ("pruner", PRUNERS)):
        name = component_name(tune, part)
        if name in registry.names():
            keys["tune", part] = ["name", *registry.options(name).model_fields]
    tuned = study.get("tuned")
    tuned_arms = tuned.get("arms") if isinstance(tuned, dict) else None
    for arm in tuned_arms if isinstance(tuned_arms, dict) else ():
        keys["tuned", "arms", arm] = TunedArm.model_fields
    return keys | {(): StudyFile.model_fields, ("tune",): Tune.model_fields, ("tuned",): Tuned.model_fields}


def recipe_keys(recipe: Mapping[str, Any]) -> Known:
    """The known keys of each mapping in a recipe."""
    keys: dict[Path_, Iterable[str]] = {(): Recipe.model_fields, ("loss",): Loss.model_fields}
    for part, registry in COMPONENT_REGISTRIES.items():
        name = component_name(recipe, part)
        try:
            keys[(part,)] = ["name", *registry.options(name or "").model_fields]
        except UnknownNameError:
            continue
    augment = recipe.get("augment")
    for name in augment if isinstance(augment, dict) else ():
        if name in AUGMENTATIONS.names():
            keys["augment", name] = AUGMENTATIONS.options(name).model_fields
    return keys


def component_name(recipe: Any, part: str) -> str | None:
    """The component's name under ``part`` of a recipe's plain values, or None."""
    value = recipe.get(part) if isinstance(recipe, Mapping) else None
    name = value.get("name") if isinstance(value, Mapping) else value
    return name if isinstance(name, str) else None


def has_option(part: str, name: str, option: str) -> bool:
    """Whether the component ``name`` of a recipe's ``part`` has this option; False for unknown names."""
    try:
        return part in COMPONENT_REGISTRIES and option in COMPONENT_REGISTRIES[part].options(name).model_fields
    except UnknownNameError:
        return False  # the validation of the recipe reports it


def unknown_key(path: Path_, known: Known, *, top: bool = False, arm: bool = False) -> str:
    """The message for an unknown key: ``top`` of a study or profile, else of a recipe (of an ``arm``)."""
    key, here = path[-1], path[:-1]
    near = suggest(key, [*known.get(here, ()), *(["from"] if arm and not here else [])])
    if here:
        others = _entries_with(COMPONENT_REGISTRIES[here[0]], key) if here[0] in COMPONENT_REGISTRIES else []
        tail = f", which is an option of {' and '.join(others)}{near}" if others else _elsewhere(path)
    elif top:
        tail = "; it belongs under `recipe`" if key in Recipe.model_fields else _elsewhere(path, under="recipe.")
    else:
        tail = _in_recipe(key) or _elsewhere(path)
    return f"unknown key {shown(key)}{tail or near or '; remove it, since there are no options here'}"


def _in_recipe(key: str) -> str:
    """The cure for a key that is often put into a recipe by mistake."""
    if key in ("recipe", "from"):
        return {"recipe": "; write the recipe's keys here without it", "from": "; only an arm has it"}[key]
    if key in StudyFile.model_fields:
        return "; it belongs at the top of the study"
    first, _, rest = key.partition(".")
    if rest and first in Recipe.model_fields and len(key) <= MAX_NAME:
        return f"; write it nested: {first}: {{{rest.replace('.', ': {')}: ...{'}' * (rest.count('.') + 1)}"
    return ""


def _elsewhere(path: Path_, *, under: str = "") -> str:
    """Suggested places of a key in a recipe, each prefixed by ``under``."""
    if path[-1].endswith("?"):
        return "; only options of a component may end with ?, in profiles and --set"
    places = [place for place in _places(path[-1]) if place != ".".join(path)]
    listed = [repr(f"{under}{place}") for place in places[:3]] + (["..."] if len(places) > 3 else [])
    return f"; did you mean {' or '.join(listed)}?" if listed else ""


def _entries_with(registry: Registry, option: str) -> list[str]:
    return [name for name in registry.names() if option in registry.options(name).model_fields]


@functools.lru_cache(maxsize=1024)  # many arms may share a wrong key
def _places(key: str) -> list[str]:
    """Paths in a recipe that end with ``key``."""
    if key == "name":
        return []
    places = [key] if key in Recipe.model_fields else []
    places += [f"{part}.{key}" for part, registry in COMPONENT_REGISTRIES.items() if _entries_with(registry, key)]
    places += [f"loss.{key}"] if key in Loss.model_fields else []
    places += [f"augment.{key}"] if key in AUGMENTATIONS.names() else []
    return places + [f"augment.{name}.{key}" for name in _entries_with(AUGMENTATIONS, key)]


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
    """One pydantic error about the value at ``path`` of ``tree``."""

    kind: str
    context: Mapping[str, Any]
    value: Any
    path: Path_
    tree: Tree
    known: Known
    top: bool

    @property
    def got(self) -> str:
        """``(got ...)``, with a cure for a value that is nearly right."""
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
    """Problems of a failed validation of ``tree``: the ``top`` level of a study or profile, else a recipe."""
    found: dict[Path_, dict[str, Finding]] = {}
    for detail in error.errors(include_url=False):
        if len(found) > MAX_PROBLEMS:
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
            listed.append(Problem(written.location, named, message))
    return listed


def in_file_order(found: Iterable[Problem]) -> list[Problem]:
    """Each problem once, from the top of the file to its end."""
    return sorted(dict.fromkeys(found), key=lambda problem: (problem.location.line or 0, problem.location.column or 0))


def _written_path(tree: Tree, loc: list[str], kind: str) -> Path_:
    """Pydantic's location without the parts that are not in the file, such as the members of unions."""
    path: Path_ = ()
    for index, part in enumerate(loc):
        if (*path, part) in tree.written or (kind == "missing" and index == len(loc) - 1):
            path = (*path, part)
    return path


def _join(findings: list[Finding], others: list[Path_]) -> str:
    """One message about one value; several findings come from the members of a union.

    If a member has the value's type, its finding is used, else the types are listed: "must be a number or text".
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
