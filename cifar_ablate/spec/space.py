"""What a search space means for a recipe: which of its fields apply, what they are at present, and setting them."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

from pydantic import ValidationError

from cifar_ablate.spec.component import COMPONENT_REGISTRIES, ComponentOf
from cifar_ablate.spec.known import component_name
from cifar_ablate.spec.text import Path_
from cifar_ablate.spec.tune import Choice, Parameter

MISSING: Final = object()
"""What ``present`` and ``value_at`` give where there is no value."""
Values = dict[str, Any]
"""A recipe as plain nested values."""


def compose(space: Sequence[Parameter], recipe: Values, choose: Callable[[Parameter], Any]) -> tuple[Values, Values]:
    """A recipe with chosen values, and those values by field; ``choose`` is asked for the fields that apply."""
    values, chosen = copy.deepcopy(recipe), {}
    for parameter in space:
        if applies(parameter, values):
            chosen[parameter.name] = choose(parameter)
            put(values, parameter.path, chosen[parameter.name])
    return values, chosen


def applies(parameter: Parameter, values: Values) -> bool:
    """Do the other fields have the values that this one is tuned for?"""
    return all(
        any(same(value_at(values, tuple(name.split("."))), one) for one in allowed)
        for name, allowed in parameter.conditions.items()
    )


def value_at(values: Mapping[str, Any], path: Path_) -> Any:
    """The value at ``path``: a component's name, true or false for an augmentation; MISSING where there is none."""
    found: Any = values
    for part in path:
        if not isinstance(found, Mapping) or part not in found:
            return False if len(path) == 2 and path[0] == "augment" else MISSING
        found = found[part]
    if len(path) == 2 and path[0] == "augment":
        return True
    return component_name(values, path[0]) if len(path) == 1 and path[0] in COMPONENT_REGISTRIES else found


def written_at(values: Mapping[str, Any], path: Path_) -> Any:
    """What stands at ``path``, whole; MISSING where nothing does."""
    found: Any = values
    for part in path:
        found = found.get(part, MISSING) if isinstance(found, Mapping) else MISSING
    return found


def present(parameter: Parameter, values: Values) -> Any:
    """What the field is in a recipe: a number of the range, one of the choices, or MISSING where it is neither."""
    entry, path = parameter.entry, parameter.path
    if isinstance(entry, Choice):
        return next((choice for choice in entry.choices if _is_at(values, path, choice)), MISSING)
    number = value_at(values, path)
    if isinstance(number, bool) or not isinstance(number, int | float) or not entry.low <= number <= entry.high:
        return MISSING
    if entry.step is not None:
        steps = (number - entry.low) / entry.step
        return number if math.isclose(steps, round(steps), abs_tol=1e-9) else MISSING
    return number


def put(values: Values, path: Path_, value: Any) -> None:
    """Set a field; a component of another name takes the place of the one before, and null removes an augmentation."""
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
    """A component as plain values: options under the same name stay, those of another name are the defaults."""
    given = {"name": value} if isinstance(value, str) else dict(value) if isinstance(value, Mapping) else {}
    if isinstance(below, Mapping) and below.get("name") == given.get("name"):
        return {**below, **given}
    with suppress(ValidationError):  # an option that is required may be tuned, and is set next
        return ComponentOf(COMPONENT_REGISTRIES[part]).validate(given).as_dict()
    return given


def _is_at(values: Values, path: Path_, choice: Any) -> bool:
    """Is this choice what the recipe has at ``path``?"""
    found = written_at(values, path)
    if path[0] in COMPONENT_REGISTRIES and len(path) == 1:
        choice = {"name": choice} if isinstance(choice, str) else choice
    if isinstance(choice, Mapping):
        return isinstance(found, Mapping) and all(same(found.get(key, MISSING), choice[key]) for key in choice)
    return (choice is None and found is MISSING) or same(found, choice)


def same(one: Any, other: Any) -> bool:
    """Equal, and of one kind: 1 is 1.0, but not true."""
    return bool(one == other) and isinstance(one, bool) == isinstance(other, bool)
