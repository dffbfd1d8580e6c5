"""A search space against every arm of its study, before anything is trained.

Each end of each range and each choice must make a valid recipe, under all conditions that it is tuned under.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from cifar_ablate.errors import Problem, suggest
from cifar_ablate.registry import AUGMENTATIONS
from cifar_ablate.spec.component import COMPONENT_REGISTRIES, shown
from cifar_ablate.spec.known import component_name, has_option, recipe_keys, unknown_key
from cifar_ablate.spec.messages import problems
from cifar_ablate.spec.schema import RECORDING_FIELDS, Loss, MovingAverage, Recipe
from cifar_ablate.spec.space import MISSING, Values, applies, present, put, same, value_at
from cifar_ablate.spec.text import Path_, Tree, Written, dotted
from cifar_ablate.spec.tune import MAX_CHOICES, Choice, Parameter, Range, Tune

FIXED = RECORDING_FIELDS | {"data", "train_size"}
"""Recipe fields that cannot be tuned: all trials train on the same images, and are written down alike."""
MAX_TRIED = 5000
"""Recipes that are tried out before anything is trained, at 0.1 ms each."""


def read_space(tune: Tune, tree: Tree, recipes: Mapping[str, Recipe]) -> tuple[tuple[Parameter, ...], list[Problem]]:
    """The fields of a space in the order in which they are set, and everything that is wrong with them.

    ``tree``: the ``tune`` section as it was written. ``recipes``: of all arms, without an overlay.
    """
    arms = {name: recipe.as_dict() for name, recipe in recipes.items()}
    parameters = [
        Parameter(name, _kind(name, entry), entry, tree.at(("space", name))) for name, entry in tune.space.items()
    ]
    found: list[Problem] = []
    for parameter in parameters:
        message = _misplaced(parameter, arms) or _misconditioned(parameter, parameters, arms)
        if message:
            found.append(Problem(parameter.written.origin, parameter.written.path, message))
    wrong = {problem.path for problem in found}
    ordered, circle = _in_order([one for one in parameters if one.written.path not in wrong])
    if circle:
        message = f"depends on itself, through {', '.join(one.name for one in circle)}; remove one of the conditions"
        return (), [Problem(circle[0].written.origin, circle[0].written.path, message)]
    if sum(_num_tried(parameter, ordered) for parameter in ordered) * len(arms) > MAX_TRIED:
        message = f"has over {MAX_TRIED:,} combinations of values, conditions and arms; list fewer values or conditions"
        return (), [*found, Problem(tree.at(("space",)).origin, tree.at(("space",)).path, message)]
    for parameter in ordered:
        found += _of_ends(parameter, ordered, arms, tree)
        if tune.sampler.name == "grid" and parameter.kind == "float" and getattr(parameter.entry, "step", 0) is None:
            message = "a grid needs a `step` for numbers, or a list of values"
            found.append(Problem(parameter.written.origin, parameter.written.path, message))
    return ordered, found


def _kind(name: str, entry: Range | Choice) -> Any:
    """Whole numbers where both ends are, and where the field takes nothing else."""
    if isinstance(entry, Choice):
        return "choice"
    if isinstance(entry.low, float) or isinstance(entry.high, float) or isinstance(entry.step, float):
        return "float"
    return "int" if any(_refuses_fractions(info) for info in _fields_at(tuple(name.split(".")))) else "float"


def _fields_at(path: Path_) -> list[FieldInfo]:
    """The fields that stand at this path, in any component."""
    first, last = path[0], path[-1]
    models: list[type[BaseModel]] = []
    if len(path) == 1:
        models = [Recipe]
    elif len(path) == 2 and first in COMPONENT_REGISTRIES:
        models = [COMPONENT_REGISTRIES[first].options(name) for name in COMPONENT_REGISTRIES[first].names()]
    elif len(path) == 2 and first in ("loss", "ema"):
        models = [Loss if first == "loss" else MovingAverage]
    elif len(path) == 3 and first == "augment" and path[1] in AUGMENTATIONS.names():
        models = [AUGMENTATIONS.options(path[1])]
    return [model.model_fields[last] for model in models if last in model.model_fields]


def _refuses_fractions(info: FieldInfo) -> bool:
    try:
        TypeAdapter(info.rebuild_annotation()).validate_python(1.5, strict=True)
    except ValidationError as error:
        return any(detail["type"].startswith("int") for detail in error.errors(include_url=False))
    return False


def _misplaced(parameter: Parameter, arms: Mapping[str, Values]) -> str:
    first, *rest = parameter.path
    if first not in Recipe.model_fields:
        return unknown_key((first,), {(): Recipe.model_fields})
    if first in FIXED:
        return f"{first} cannot be tuned: it is the same for all trials; set it in the recipe"
    most = 2 if first == "augment" else 1 if first in COMPONENT_REGISTRIES or first in ("loss", "ema") else 0
    if len(rest) > most or not all(rest):
        return f"is no field: {first} has no fields so deep; write one such as optimizer.lr or augment.mixup.alpha"
    is_whole = not rest and (first in COMPONENT_REGISTRIES or first in ("augment", "loss", "ema"))
    if is_whole and (isinstance(parameter.entry, Range) or first not in COMPONENT_REGISTRIES):
        examples = {"augment": "augment.mixup.alpha", "loss": "loss.label_smoothing", "ema": "ema.decay"}
        return f"is no single value; name a field in it, such as {examples.get(first, f'{first}.lr')}"
    return ""


def _misconditioned(parameter: Parameter, space: Sequence[Parameter], arms: Mapping[str, Values]) -> str:
    """What is wrong with the conditions of a field; empty where nothing is."""
    tuned = {one.name: one for one in space}
    for name, allowed in parameter.conditions.items():
        if len(allowed) > MAX_CHOICES:
            return f"`when` lists over {MAX_CHOICES} values of {name}; list fewer"
        path = tuple(name.split("."))
        if name == parameter.name:
            return f"is tuned only where {name} itself has some value; remove this condition"
        known = {value_at(values, path) for values in arms.values() if _is_plain(value_at(values, path))} - {MISSING}
        if name not in tuned and not known:
            fields = [*tuned, *Recipe.model_fields]
            near = suggest(name, [field for field in fields if field != parameter.name])
            return f"`when` asks for {name}, which neither the space nor the recipe has{near}"
        entry = tuned[name].entry if name in tuned else None
        if isinstance(entry, Choice):
            named = [one.get("name", True) if isinstance(one, Mapping) else one for one in entry.choices]
            known |= {one for one in named if _is_plain(one)}
            known |= {False} if path[0] == "augment" and None in entry.choices else set()
        if isinstance(entry, Range) and tuned[name].kind == "float" and entry.step is None:
            listed = " or ".join(map(shown, allowed))
            return f"`when` asks for {name} to be {listed}, which is never drawn from a range; list its values instead"
        for value in allowed:
            if not isinstance(entry, Range) and not any(same(value, one) for one in known):
                listed = ", ".join(sorted(map(shown, known)))
                return f"`when` asks for {name} to be {shown(value)}, which it never is; it is one of {listed}"
    return ""


def _in_order(parameters: Sequence[Parameter]) -> tuple[tuple[Parameter, ...], list[Parameter]]:
    """Each field after those that it depends on; or those that depend on each other in a circle."""
    left, ordered = list(parameters), []
    while left:
        ready = next((one for one in left if not any(_depends(one, other) for other in left if other != one)), None)
        if ready is None:
            return (), left
        left.remove(ready)
        ordered.append(ready)
    return tuple(ordered), []


def _depends(one: Parameter, other: Parameter) -> bool:
    paths = [one.path, *(tuple(name.split(".")) for name in one.conditions)]
    return any(path[: len(other.path)] == other.path for path in paths)


def _of_ends(parameter: Parameter, space: Sequence[Parameter], arms: Mapping[str, Values], tree: Tree) -> list[Problem]:
    """What is wrong with the recipes of the field's ends or choices, each said once, with its arms."""
    found: dict[Problem, list[str]] = {}
    where_it_applies = {
        name: fitting
        for name, values in arms.items()
        if (fitting := [one for one in settings(parameter, space, values) if applies(parameter, one)])
    }
    if not where_it_applies:
        message = "applies to no arm: its conditions exclude each other, or no arm meets them; change its `when`"
        return [Problem(parameter.written.origin, parameter.written.path, message)]
    for name, fitting in where_it_applies.items():
        for values in fitting:
            for problem in _of_setting(parameter, name, values, space, tree):
                found.setdefault(problem, []).append(name)
    places = {problem.origin: problem for problem in reversed(found)}  # the same mistake of several choices: once
    return [_with_arms(problem, found[problem], list(where_it_applies)) for problem in reversed(places.values())]


def _of_setting(
    parameter: Parameter, arm: str, values: Values, space: Sequence[Parameter], tree: Tree
) -> list[Problem]:
    above = parameter.path[:-1]
    if above[:1] in (("augment",), ("ema",)) and above != ("augment",) and not _is_there(values, above):
        message = f"arm {shown(arm)} has no {dotted(above)}; add `when: {{{dotted(above)}: true}}`, or give it one"
        if above == ("ema",):
            message = f"arm {shown(arm)} has no ema; write `ema: {{decay: ...}}` into the recipe"
        return [Problem(parameter.written.origin, parameter.written.path, message)]
    found: list[Problem] = []
    keys = ("",) * len(ends(parameter)) if isinstance(parameter.entry, Choice) else ("low", "high")
    for key, value in zip(keys, ends(parameter), strict=True):
        found += _problems_of(parameter, values, key, value, tree, space)
    return found


def _with_arms(problem: Problem, names: Sequence[str], all_names: Sequence[str]) -> Problem:
    names = list(dict.fromkeys(names))
    if len(names) == len(all_names) or problem.message.startswith("arm "):
        return problem
    listed = ", ".join(map(shown, names[:3])) + (", ..." if len(names) > 3 else "")
    return Problem(problem.origin, problem.path, f"{problem.message} (in {listed}); or add `when`")


def settings(parameter: Parameter, space: Sequence[Parameter], recipe: Values) -> list[Values]:
    """A recipe with each setting of the fields that this one depends on under which it is tuned."""
    found = [copy.deepcopy(recipe)]
    for other in space:
        if other == parameter:
            break
        if _depends(parameter, other):
            wanted = parameter.conditions.get(other.name, ())
            found = [each for values in found for each in _set_to(other, wanted, values)]
    return found


def _num_tried(parameter: Parameter, space: Sequence[Parameter]) -> int:
    """At most so many recipes of an arm are tried for this field: its ends under every setting that it depends on."""
    num = len(ends(parameter))
    for other in space:
        if other == parameter:
            break
        if _depends(parameter, other):
            wanted = len(parameter.conditions.get(other.name, ()))
            num *= max(1, wanted or (len(ends(other)) if isinstance(other.entry, Choice) else 1))
    return num


def _set_to(other: Parameter, wanted: Sequence[Any], values: Values) -> list[Values]:
    if not applies(other, values):
        return [values]
    if isinstance(other.entry, Choice):
        options = [one for one in other.entry.choices if not wanted or any(_names(one, value) for value in wanted)]
    else:
        options = list(wanted) or [other.entry.low]
    found = []
    for option in options:
        found.append(copy.deepcopy(values))
        if present(other, values) != option:
            put(found[-1], other.path, option)
    return found


def _problems_of(
    parameter: Parameter, values: Values, key: str, value: Any, tree: Tree, space: Sequence[Parameter]
) -> list[Problem]:
    tried = copy.deepcopy(values)
    put(tried, parameter.path, value)
    whole = tree.at(("space", parameter.name))
    written = tree.at(("space", parameter.name, key)) if key else whole
    marks: dict[Path_, Written] = {parameter.path[:length]: written for length in range(len(parameter.path) + 1)}
    marks |= {(*parameter.path, str(inner)): written for inner in (value if isinstance(value, Mapping) else ())}
    try:
        Recipe.model_validate(tried)
    except ValidationError as error:
        # what a choice lacks is set next where it is tuned, too
        set_next = {one.path for one in space if one != parameter and _depends(one, parameter)}
        if all(tuple(map(str, detail["loc"])) in set_next for detail in error.errors(include_url=False)):
            return []
        found = []
        for said in problems(error, Tree(tried, marks), recipe_keys(tried)):
            if said.message.startswith(f"unknown key {shown(parameter.path[-1])}"):
                found.append(Problem(whole.origin, whole.path, said.message + _condition_for(parameter, space)))
            else:
                named = f"{whole.path}.{key}" if key else whole.path
                found.append(Problem(said.origin, named, said.message))
        return list(dict.fromkeys(found))
    return []


def _condition_for(parameter: Parameter, space: Sequence[Parameter]) -> str:
    """What to write where only some of the tuned components have an option."""
    part, option = parameter.path[0], parameter.path[-1]
    if part not in COMPONENT_REGISTRIES or len(parameter.path) != 2:
        return ""
    chosen = [one.entry.choices for one in space if one.path == (part,) and isinstance(one.entry, Choice)]
    names = [component_name({part: choice}, part) for choices in chosen for choice in choices]
    having = [name for name in names if name and has_option(part, name, option)]
    return f"; write `when: {{{part}: [{', '.join(having)}]}}`" if having else ""


def ends(parameter: Parameter) -> list[Any]:
    """The choices of a field, or the ends of its range."""
    entry = parameter.entry
    return list(entry.choices) if isinstance(entry, Choice) else [entry.low, entry.high]


def _is_there(values: Values, path: Path_) -> bool:
    return value_at(values, path) not in (MISSING, None, False)


def _names(choice: Any, value: Any) -> bool:
    """Does a choice give the field this value, as conditions ask for it?"""
    if isinstance(choice, Mapping):
        return value is True if "name" not in choice else same(choice["name"], value)
    return value is False if choice is None and isinstance(value, bool) else same(choice, value)


def _is_plain(value: Any) -> bool:
    return value is None or value is MISSING or isinstance(value, str | int | float | bool)
