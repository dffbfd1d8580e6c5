"""Layers of a recipe: shared recipe, then arm on arm, then overlays; every value keeps where it was written.

Rules (the whole grammar of a delta):
- a mapping merges into the mapping below it; a scalar or list replaces;
- a component (data, model, optimizer, schedule) written as a string is ``{name: string}``;
- a component with another ``name`` replaces the one below whole, since options of SGD mean nothing to AdamW;
- null removes a key, and must find it (in the shared recipe there is nothing below it to find);
- in an overlay, ``{times: x}`` scales the number below (whole numbers stay whole, at least 1), and ``key?`` sets an
  option only where the component has it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeGuard

from cifar_ablate.errors import Problem, suggest
from cifar_ablate.spec.component import COMPONENT_REGISTRIES, shown
from cifar_ablate.spec.text import MAX_INT, Path_, Tree, Written

Knows = Callable[[str, str, str], bool]
"""(component, name, option) -> does this component have this option?"""


def merge(
    base: Tree, delta: Tree, found: list[Problem], *, overlay: bool = False, knows: Knows = lambda *_: False
) -> Tree:
    """``delta`` laid over ``base``; where it cannot be applied, a problem is added to ``found``."""
    merger = _Merger(base, delta, found, overlay, knows)
    merger.written[()] = base.at(()) if base.value else delta.at(())
    return Tree(merger.mapping(_named(base.value), _named(delta.value), ()), merger.written)


def _named(recipe: Any) -> dict[str, Any]:
    """A recipe in which a component given as a string is spelled ``{name: string}``."""
    return {
        key: {"name": value} if key in COMPONENT_REGISTRIES and isinstance(value, str) else value
        for key, value in recipe.items()
    }


class _Merger:
    def __init__(self, base: Tree, delta: Tree, found: list[Problem], overlay: bool, knows: Knows) -> None:
        self.base, self.delta, self.found, self.overlay, self.knows = base, delta, found, overlay, knows
        self.written: dict[Path_, Written] = dict(base.written)
        self.inside, self.inside_delta = _inside(base.written), _inside(delta.written)

    def mapping(
        self, below: dict[str, Any], above: dict[str, Any], path: Path_, *, is_marked: bool = False
    ) -> dict[str, Any]:
        merged = dict(below)
        for raw, value in above.items():
            key = raw.removesuffix("?") if self.overlay else raw
            if key != raw and not self._has_option(path, merged, above, key):
                continue
            if key not in merged and self._only_optional(value):
                continue  # there is no component that could have these options
            where, source = (*path, key), (*path, raw)
            if value is None:
                self._remove(merged, key, where, source)
            elif self._scales(value):
                self._scale(merged, key, where, source, value["times"])
            elif isinstance(value, dict) and isinstance(merged.get(key), dict) and not _renamed(merged[key], value):
                self._mark(where, source)
                merged[key] = self.mapping(merged[key], value, where)
            else:
                if is_marked and key == raw and key not in merged and source in self.delta.written:
                    self._mark(where, source)  # what it holds was marked with what it stands in
                else:
                    self._forget(where)
                    self._mark(where, source, deep=True)
                merged[key] = self.mapping({}, value, where, is_marked=True) if isinstance(value, dict) else value
        return merged

    def _has_option(self, path: Path_, below: dict[str, Any], above: dict[str, Any], option: str) -> bool:
        name = above.get("name", below.get("name"))
        return len(path) == 1 and isinstance(name, str) and self.knows(path[0], name, option)

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
                merged[key] = max(1, round(number * times)) if number else 0  # 0 means "never": no multiple of it
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
        if not self.base.value:  # the shared recipe: null is a value that was forgotten
            return f"has no value; write {'{} for the defaults' if of_augment else 'one'}, or remove the line"
        cure = (
            "; remove the line, or write {} for the defaults" if of_augment else suggest(key, merged) or "; remove this"
        )
        return f"null removes a key, but there is none to remove here{cure}"

    def _forget(self, where: Path_) -> None:
        """What was written at a path, and within it; only that is looked at, as an arm may state a thousand values."""
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
        self.found.append(Problem(written.origin, written.path, message))


def _inside(written: Iterable[Path_]) -> dict[Path_, dict[Path_, None]]:
    """The paths straight in each path, in their order."""
    inside: dict[Path_, dict[Path_, None]] = {}
    for path in written:
        if path:
            inside.setdefault(path[:-1], {})[path] = None
    return inside


def _renamed(below: dict[str, Any], above: dict[str, Any]) -> bool:
    return "name" in above and above["name"] != below.get("name")


def _is_number(value: Any) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)
