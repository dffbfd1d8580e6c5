"""Search spaces: apply their fields to a recipe, and check them against every arm before anything is trained.

Each end of a range and each choice must make a valid recipe, under all conditions that the field is tuned under.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from cifar_ablate.errors import Problem, suggest
from cifar_ablate.registry import AUGMENTATIONS
from cifar_ablate.spec.component import COMPONENT_REGISTRIES, ComponentOf, shown
from cifar_ablate.spec.messages import component_name, has_option, problems, recipe_keys, unknown_key
from cifar_ablate.spec.schema import (
    RECORDING_FIELDS,
    Choices,
    Loss,
    MovingAverage,
    Parameter,
    Range,
    Recipe,
    Tune,
)
from cifar_ablate.spec.text import Path_, Tree, Written, dotted

MISSING: Final = object()
"""Returned by ``present`` and ``value_at`` if there is no value."""
Values = dict[str, Any]
"""A recipe as plain nested values."""


def compose(space: Sequence[Parameter], recipe: Values, choose: Callable[[Parameter], Any]) -> tuple[Values, Values]:
    """A recipe with chosen values, and these values by field; ``choose`` is called for the fields that apply."""
    values, chosen = copy.deepcopy(recipe), {}
    for parameter in space:
        if applies(parameter, values):
            chosen[parameter.name] = choose(parameter)
            put(values, parameter.path, chosen[parameter.name])
    return values, chosen


def applies(parameter: Parameter, values: Values) -> bool:
    """Whether the other fields have the values that this one is tuned for."""
    return all(
        any(same(value_at(values, tuple(name.split("."))), one) for one in allowed)
        for name, allowed in parameter.conditions.items()
    )


def value_at(values: Mapping[str, Any], path: Path_) -> Any:
    """The value at ``path``: a component's name, True or False for an augmentation, MISSING if there is none."""
    found: Any = values
    for part in path:
        if not isinstance(found, Mapping) or part not in found:
            return False if len(path) == 2 and path[0] == "augment" else MISSING
        found = found[part]
    if len(path) == 2 and path[0] == "augment":
        return True
    return component_name(values, path[0]) if len(path) == 1 and path[0] in COMPONENT_REGISTRIES else found


def written_at(values: Mapping[str, Any], path: Path_) -> Any:
    """The whole value at ``path``; MISSING if there is none."""
    found: Any = values
    for part in path:
        found = found.get(part, MISSING) if isinstance(found, Mapping) else MISSING
    return found


def present(parameter: Parameter, values: Values) -> Any:
    """The field's value in a recipe: a number of the range or one of the choices, MISSING if it is neither."""
    entry, path = parameter.entry, parameter.path
    if isinstance(entry, Choices):
        return next((choice for choice in entry.choices if _is_at(values, path, choice)), MISSING)
    number = value_at(values, path)
    if isinstance(number, bool) or not isinstance(number, int | float) or not entry.low <= number <= entry.high:
        return MISSING
    if entry.step is not None:
        steps = (number - entry.low) / entry.step
        return number if math.isclose(steps, round(steps), abs_tol=1e-9) else MISSING
    return number


def put(values: Values, path: Path_, value: Any) -> None:
    """Set a field; a component of another name replaces the previous one, and None removes an augmentation."""
    *above, last = path
    inner = values
    for part in above:
        if inner.get(part) is None:
            inner[part] = {}
        inner = inner[part]
    if path[0] in COMPONENT_REGISTRIES and not above:
        inner[last] = _component(path[0], inner.get(last), value)
    elif path[0] == "augment" and len(path) == 2 and value is None:
        inner.pop(last, None)
    elif isinstance(value, Mapping) and isinstance(inner.get(last), Mapping):
        inner[last] = {**inner[last], **value}
    else:
        inner[last] = copy.deepcopy(value)


def _component(part: str, below: Any, value: Any) -> Values:
    """A component as plain values: with the same name it keeps its options, with another it has the defaults."""
    given = {"name": value} if isinstance(value, str) else dict(value) if isinstance(value, Mapping) else {}
    if isinstance(below, Mapping) and below.get("name") == given.get("name"):
        return {**below, **given}
    with suppress(ValidationError):  # a required option may be a tuned field, which is set next
        return ComponentOf(COMPONENT_REGISTRIES[part]).validate(given).as_dict()
    return given


def _is_at(values: Values, path: Path_, choice: Any) -> bool:
    """Whether this choice is the recipe's value at ``path``."""
    found = written_at(values, path)
    if path[0] in COMPONENT_REGISTRIES and len(path) == 1:
        choice = {"name": choice} if isinstance(choice, str) else choice
    if isinstance(choice, Mapping):
        return isinstance(found, Mapping) and all(same(found.get(key, MISSING), choice[key]) for key in choice)
    return (choice is None and found is MISSING) or same(found, choice)


def same(one: Any, other: Any) -> bool:
    """Whether two values are equal: 1 equals 1.0, but not True."""
    return bool(one == other) and isinstance(one, bool) == isinstance(other, bool)


FIXED = RECORDING_FIELDS | {"data", "train_size"}
"""Recipe fields that cannot be tuned: all trials use the same images, and are recorded in the same way."""
MAX_TRIED = 5000
"""Maximum number of recipes that are validated to check a space, at 0.1 ms each.

A separate limit, since combinations of conditions grow as a product: a few lines can ask for billions.
"""


def read_space(tune: Tune, tree: Tree, recipes: Mapping[str, Recipe]) -> tuple[tuple[Parameter, ...], list[Problem]]:
    """The fields of a space in the order in which they are set, and every problem with them.

    Args:
        tune: The validated ``tune`` section.
        tree: The ``tune`` section with positions.
        recipes: Recipes of all arms by name, without an overlay.
    """
    arms = {name: recipe.as_dict() for name, recipe in recipes.items()}
    parameters = [
        Parameter(name, _kind(name, entry), entry, tree.at(("space", name))) for name, entry in tune.space.items()
    ]
    found: list[Problem] = []
    for parameter in parameters:
        message = _misplaced(parameter) or _misconditioned(parameter, parameters, arms)
        if message:
            found.append(Problem(parameter.written.location, parameter.written.path, message))
    wrong = {problem.path for problem in found}
    ordered, circle = _in_order([one for one in parameters if one.written.path not in wrong])
    if circle:
        message = f"depends on itself, through {', '.join(one.name for one in circle)}; remove one of the conditions"
        return (), [Problem(circle[0].written.location, circle[0].written.path, message)]
    if sum(_num_tried(parameter, ordered) for parameter in ordered) * len(arms) > MAX_TRIED:
        message = f"has over {MAX_TRIED:,} combinations of values, conditions and arms; list fewer values or conditions"
        return (), [*found, Problem(tree.at(("space",)).location, tree.at(("space",)).path, message)]
    for parameter in ordered:
        found += _of_ends(parameter, ordered, arms, tree)
        if tune.sampler.name == "grid" and parameter.kind == "float" and getattr(parameter.entry, "step", 0) is None:
            message = "a grid needs a `step` for numbers, or a list of values"
            found.append(Problem(parameter.written.location, parameter.written.path, message))
    return ordered, found


def _kind(name: str, entry: Range | Choices) -> Any:
    """int if both ends are whole numbers and the field requires them."""
    if isinstance(entry, Choices):
        return "choice"
    if isinstance(entry.low, float) or isinstance(entry.high, float) or isinstance(entry.step, float):
        return "float"
    return "int" if any(_refuses_fractions(info) for info in _fields_at(tuple(name.split(".")))) else "float"


def _fields_at(path: Path_) -> list[FieldInfo]:
    """The fields at this path, in any component."""
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


def _misplaced(parameter: Parameter) -> str:
    first, *rest = parameter.path
    if first not in Recipe.model_fields:
        return unknown_key((first,), {(): Recipe.model_fields})
    if first in FIXED:
        return f"{first} cannot be tuned: it is the same for all trials; set it in the recipe"
    most = 2 if first == "augment" else 1 if first in COMPONENT_REGISTRIES or first in ("loss", "ema") else 0
    if len(rest) > most or not all(rest):
        return f"is not a field: {first} has no fields this deep; write one such as optimizer.lr or augment.mixup.alpha"
    is_whole = not rest and (first in COMPONENT_REGISTRIES or first in ("augment", "loss", "ema"))
    if is_whole and (isinstance(parameter.entry, Range) or first not in COMPONENT_REGISTRIES):
        examples = {"augment": "augment.mixup.alpha", "loss": "loss.label_smoothing", "ema": "ema.decay"}
        return f"is not a single value; name a field in it, such as {examples.get(first, f'{first}.lr')}"
    return ""


def _misconditioned(parameter: Parameter, space: Sequence[Parameter], arms: Mapping[str, Values]) -> str:
    """The first problem with the conditions of a field; empty if there is none."""
    tuned = {one.name: one for one in space}
    for name, allowed in parameter.conditions.items():
        path = tuple(name.split("."))
        if name == parameter.name:
            return "cannot depend on its own value; remove this condition"
        known = {value_at(values, path) for values in arms.values() if _is_plain(value_at(values, path))} - {MISSING}
        if name not in tuned and not known:
            fields = [*tuned, *Recipe.model_fields]
            near = suggest(name, [field for field in fields if field != parameter.name])
            return f"`when` asks for {name}, which neither the space nor the recipe has{near}"
        entry = tuned[name].entry if name in tuned else None
        if isinstance(entry, Choices):
            named = [one.get("name", True) if isinstance(one, Mapping) else one for one in entry.choices]
            known |= {one for one in named if _is_plain(one)}
            known |= {False} if path[0] == "augment" and None in entry.choices else set()
        if isinstance(entry, Range) and tuned[name].kind == "float" and entry.step is None:
            listed = " or ".join(map(shown, allowed))
            return f"`when` asks for {name} to be {listed}, which is never drawn from a range; list its values instead"
        possible = {(one, isinstance(one, bool)) for one in known}  # as ``same`` compares them
        for value in allowed if not isinstance(entry, Range) else ():
            if not _is_plain(value) or (value, isinstance(value, bool)) not in possible:
                listed = ", ".join(sorted(map(shown, known))[:12]) + (", ..." if len(known) > 12 else "")
                return f"`when` asks for {name} to be {shown(value)}, which it never is; it is one of {listed}"
    return ""


def _in_order(parameters: Sequence[Parameter]) -> tuple[tuple[Parameter, ...], list[Parameter]]:
    """The fields, each after those that it depends on; and the fields that form a circle, if any."""
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
    """Problems of the recipes that the field's ends or choices make, each once, with its arms."""
    found: dict[Problem, list[str]] = {}
    where_it_applies = {
        name: fitting
        for name, values in arms.items()
        if (fitting := [one for one in settings(parameter, space, values) if applies(parameter, one)])
    }
    if not where_it_applies:
        message = "applies to no arm: its conditions exclude each other, or no arm meets them; change its `when`"
        return [Problem(parameter.written.location, parameter.written.path, message)]
    for name, fitting in where_it_applies.items():
        for values in fitting:
            for problem in _of_setting(parameter, name, values, space, tree):
                found.setdefault(problem, []).append(name)
    places = {
        problem.location: problem for problem in reversed(found)
    }  # one problem per place, if several choices share it
    return [_with_arms(problem, found[problem], list(where_it_applies)) for problem in reversed(places.values())]


def _of_setting(
    parameter: Parameter, arm: str, values: Values, space: Sequence[Parameter], tree: Tree
) -> list[Problem]:
    above = parameter.path[:-1]
    if above[:1] in (("augment",), ("ema",)) and above != ("augment",) and not _is_there(values, above):
        message = f"arm {shown(arm)} has no {dotted(above)}; add `when: {{{dotted(above)}: true}}`, or give it one"
        if above == ("ema",):
            message = f"arm {shown(arm)} has no ema; write `ema: {{decay: ...}}` into the recipe"
        return [Problem(parameter.written.location, parameter.written.path, message)]
    found: list[Problem] = []
    keys = ("",) * len(ends(parameter)) if isinstance(parameter.entry, Choices) else ("low", "high")
    for key, value in zip(keys, ends(parameter), strict=True):
        found += _problems_of(parameter, values, key, value, tree, space)
    return found


def _with_arms(problem: Problem, names: Sequence[str], all_names: Sequence[str]) -> Problem:
    names = list(dict.fromkeys(names))
    if len(names) == len(all_names) or problem.message.startswith("arm "):
        return problem
    listed = ", ".join(map(shown, names[:3])) + (", ..." if len(names) > 3 else "")
    return Problem(problem.location, problem.path, f"{problem.message} (in {listed}); or add `when`")


def settings(parameter: Parameter, space: Sequence[Parameter], recipe: Values) -> list[Values]:
    """Copies of a recipe, one for each setting of the fields that this one depends on."""
    found = [copy.deepcopy(recipe)]
    for other in space:
        if other == parameter:
            break
        if _depends(parameter, other):
            wanted = parameter.conditions.get(other.name, ())
            found = [each for values in found for each in _set_to(other, wanted, values)]
    return found


def _num_tried(parameter: Parameter, space: Sequence[Parameter]) -> int:
    """Maximum number of recipes per arm to check this field: its ends under every setting that it depends on."""
    num = len(ends(parameter))
    for other in space:
        if other == parameter:
            break
        if _depends(parameter, other):
            wanted = len(parameter.conditions.get(other.name, ()))
            num *= max(1, wanted or (len(ends(other)) if isinstance(other.entry, Choices) else 1))
    return num


def _set_to(other: Parameter, wanted: Sequence[Any], values: Values) -> list[Values]:
    if not applies(other, values):
        return [values]
    if isinstance(other.entry, Choices):
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
        # an option that a choice lacks may be tuned, and is set next
        set_next = {one.path for one in space if one != parameter and _depends(one, parameter)}
        if all(tuple(map(str, detail["loc"])) in set_next for detail in error.errors(include_url=False)):
            return []
        found = []
        for problem in problems(error, Tree(tried, marks), recipe_keys(tried)):
            if problem.message.startswith(f"unknown key {shown(parameter.path[-1])}"):
                found.append(Problem(whole.location, whole.path, problem.message + _condition_for(parameter, space)))
            else:
                named = f"{whole.path}.{key}" if key else whole.path
                found.append(Problem(problem.location, named, problem.message))
        return list(dict.fromkeys(found))
    return []


def _condition_for(parameter: Parameter, space: Sequence[Parameter]) -> str:
    """The cure if only some of the tuned components have an option."""
    part, option = parameter.path[0], parameter.path[-1]
    if part not in COMPONENT_REGISTRIES or len(parameter.path) != 2:
        return ""
    chosen = [one.entry.choices for one in space if one.path == (part,) and isinstance(one.entry, Choices)]
    names = [component_name({part: choice}, part) for choices in chosen for choice in choices]
    having = [name for name in names if name and has_option(part, name, option)]
    return f"; write `when: {{{part}: [{', '.join(having)}]}}`" if having else ""


def ends(parameter: Parameter) -> list[Any]:
    """The choices of a field, or the ends of its range."""
    entry = parameter.entry
    return list(entry.choices) if isinstance(entry, Choices) else [entry.low, entry.high]


def _is_there(values: Values, path: Path_) -> bool:
    return value_at(values, path) not in (MISSING, None, False)


def _names(choice: Any, value: Any) -> bool:
    """Whether a choice gives the field this value, as a condition names it."""
    if isinstance(choice, Mapping):
        return value is True if "name" not in choice else same(choice["name"], value)
    return value is False if choice is None and isinstance(value, bool) else same(choice, value)


def _is_plain(value: Any) -> bool:
    return value is None or value is MISSING or isinstance(value, str | int | float | bool)
