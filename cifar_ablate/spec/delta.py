"""Deltas of recipes: merge one into a recipe, and find the differences between two recipes.

A recipe has layers: the shared recipe, then arm on arm, then overlays. Every merged value keeps where it was written.
The rules of a delta:
- a mapping merges into the mapping below it; a scalar or list replaces the value below it;
- a component (data, model, optimizer, schedule) written as a string is ``{name: string}``;
- a component with another ``name`` replaces the one below as a whole, since SGD's options mean nothing to AdamW;
- null removes a key, which must exist (the shared recipe has nothing below it to remove);
- in an overlay, ``{times: x}`` scales the number below (whole numbers stay whole, at least 1), and ``key?`` sets an
  option only if the component has it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard

from cifar_ablate.errors import Problem, suggest
from cifar_ablate.spec.component import COMPONENT_REGISTRIES, shown
from cifar_ablate.spec.messages import has_option
from cifar_ablate.spec.schema import RECORDING_FIELDS, Recipe
from cifar_ablate.spec.text import MAX_INT, Path_, Tree, Written


def merge(base: Tree, delta: Tree, found: list[Problem], *, overlay: bool = False) -> Tree:
    """``base`` with ``delta`` merged into it; adds a problem to ``found`` for each value that does not fit."""
    merger = _Merger(base, delta, found, overlay)
    merger.written[()] = base.at(()) if base.value else delta.at(())
    return Tree(merger.mapping(_named(base.value), _named(delta.value), ()), merger.written)


def _named(recipe: Any) -> dict[str, Any]:
    """A recipe with each component that is a string written as ``{name: string}``."""
    return {
        key: {"name": value} if key in COMPONENT_REGISTRIES and isinstance(value, str) else value
        for key, value in recipe.items()
    }


class _Merger:
    def __init__(self, base: Tree, delta: Tree, found: list[Problem], overlay: bool) -> None:
        self.base, self.delta, self.found, self.overlay = base, delta, found, overlay
        self.written: dict[Path_, Written] = dict(base.written)
        self.inside, self.inside_delta = _inside(base.written), _inside(delta.written)

    def mapping(self, below: dict[str, Any], above: dict[str, Any], path: Path_) -> dict[str, Any]:
        merged = dict(below)
        for raw, value in above.items():
            key = raw.removesuffix("?") if self.overlay else raw
            if key != raw and not self._has_option(path, merged, above, key):
                continue
            if key not in merged and self._only_optional(value):
                continue  # no component is there to have these options
            where, source = (*path, key), (*path, raw)
            if value is None:
                self._remove(merged, key, where, source)
            elif self._scales(value):
                self._scale(merged, key, where, source, value["times"])
            elif isinstance(value, dict) and isinstance(merged.get(key), dict) and not _renamed(merged[key], value):
                self._mark(where, source)
                merged[key] = self.mapping(merged[key], value, where)
            else:
                self._forget(where)
                self._mark(where, source, deep=isinstance(value, list))
                merged[key] = self.mapping({}, value, where) if isinstance(value, dict) else value
        return merged

    def _has_option(self, path: Path_, below: dict[str, Any], above: dict[str, Any], option: str) -> bool:
        name = above.get("name", below.get("name"))
        return len(path) == 1 and isinstance(name, str) and has_option(path[0], name, option)

    def _only_optional(self, value: Any) -> bool:
        return self.overlay and isinstance(value, dict) and bool(value) and all(key.endswith("?") for key in value)

    def _scales(self, value: Any) -> bool:
        return self.overlay and isinstance(value, dict) and set(value) == {"times"}

    def _scale(self, merged: dict[str, Any], key: str, where: Path_, source: Path_, times: Any) -> None:
        number: object = merged.get(key)
        if not _is_number(number):
            self._complain(source, "there is no number here to scale; set a value instead of {times: ...}")
        elif not _is_number(times) or not 0 < times < MAX_INT:
            self._complain((*source, "times"), f"times must be a number above 0 (got {shown(times)})")
        else:
            self._mark(where, source, deep=True)
            if isinstance(number, int):
                merged[key] = max(1, round(number * times)) if number else 0  # 0 means "never"
            else:
                merged[key] = number * times

    def _remove(self, merged: dict[str, Any], key: str, where: Path_, source: Path_) -> None:
        if key not in merged:
            self._complain(source, self._nothing_to_remove(key, merged, of_augment=where[:-1] == ("augment",)))
            return
        del merged[key]
        self._forget(where)
        self._mark(where, source)  # so that "is required" points at the null that removed it

    def _nothing_to_remove(self, key: str, merged: dict[str, Any], *, of_augment: bool) -> str:
        if not self.base.value:  # in the shared recipe, null is a forgotten value
            return f"has no value; write {'{} for the defaults' if of_augment else 'one'}, or remove the line"
        cure = (
            "; remove the line, or write {} for the defaults" if of_augment else suggest(key, merged) or "; remove this"
        )
        return f"null removes a key, but there is none to remove here{cure}"

    def _forget(self, where: Path_) -> None:
        """Forget where a path and everything in it was written; looks at these paths only, not at the whole tree."""
        self.written.pop(where, None)
        for path in self.inside.pop(where, ()):
            self._forget(path)

    def _mark(self, where: Path_, source: Path_, *, deep: bool = False) -> None:
        if where not in self.written and where:
            self.inside.setdefault(where[:-1], {})[where] = None
        self.written[where] = self.delta.at(source)
        if deep:
            for path in self.inside_delta.get(source, ()):
                self._mark((*where, path[-1]), path, deep=True)

    def _complain(self, source: Path_, message: str) -> None:
        written = self.delta.at(source)
        self.found.append(Problem(written.location, written.path, message))


def _inside(written: Iterable[Path_]) -> dict[Path_, dict[Path_, None]]:
    """The direct children of each path, in order."""
    inside: dict[Path_, dict[Path_, None]] = {}
    for path in written:
        if path:
            inside.setdefault(path[:-1], {})[path] = None
    return inside


def _renamed(below: dict[str, Any], above: dict[str, Any]) -> bool:
    return "name" in above and above["name"] != below.get("name")


def _is_number(value: Any) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


# ---- what differs between two recipes


@dataclass(frozen=True)
class Difference:
    """One recipe field that differs; ``before`` or ``after`` is None if only the other recipe has it."""

    path: str
    before: Any
    after: Any

    @property
    def key(self) -> str:
        """The field's short name: ``hflip``, ``affine.p``, ``epochs``."""
        return self.path.removeprefix("augment.")

    def __str__(self) -> str:
        short = self.key
        if self.path.startswith("augment.") and "." not in short:
            if self.before is None:
                return f"+ {_with_options(short, self.after)}"
            if self.after is None:
                return f"- {short}"
        if self.path in ("model", "optimizer", "schedule", "data"):
            return f"{self.path} {_component(self.before)} -> {_component(self.after)}"
        before, after = _show(self.before), _show(self.after)
        if before == after:  # they differ in digits that are not shown
            before, after = repr(self.before), repr(self.after)
        return f"{short} {before} -> {after}"


def differences(before: Recipe, after: Recipe) -> list[Difference]:
    """Fields in which ``after`` differs from ``before``, without fields that only change what is recorded."""
    return differences_of(before.as_dict(), after.as_dict())


def differences_of(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[Difference]:
    """Like ``differences``, for recipes as plain nested values, as in the record."""
    found: list[Difference] = []
    for name in (name for name in new if name not in RECORDING_FIELDS):
        found.extend(_compare(name, old.get(name), new[name]))
    return found


def _compare(path: str, old: Any, new: Any) -> list[Difference]:
    if old == new:
        return []
    both = isinstance(old, Mapping) and isinstance(new, Mapping)
    if not both or old.get("name") != new.get("name"):
        return [Difference(path, old, new)]
    found: list[Difference] = []
    for key in dict.fromkeys([*old, *new]):
        found.extend(_compare(f"{path}.{key}", old.get(key), new.get(key)))
    return found


def _component(value: Any) -> str:
    return _with_options(value["name"], value) if isinstance(value, Mapping) else _show(value)


def _with_options(name: str, options: Mapping[str, Any]) -> str:
    listed = ", ".join(f"{key} {_show(value)}" for key, value in options.items() if key != "name")
    return f"{name} ({listed})" if listed else name


def _show(value: Any) -> str:
    if value is None:
        return "none"
    return f"{value:g}" if isinstance(value, float) else str(value)
