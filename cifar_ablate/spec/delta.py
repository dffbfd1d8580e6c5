"""What differs between two recipes, in the fewest words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cifar_ablate.spec.schema import RECORDING_FIELDS, Recipe


@dataclass(frozen=True)
class Difference:
    """One recipe field that differs; ``before`` or ``after`` is None where only the other recipe has it."""

    path: str
    before: Any
    after: Any

    @property
    def key(self) -> str:
        """The field in the fewest words: ``hflip``, ``affine.p``, ``epochs``."""
        return self.path.removeprefix("augment.")

    def __str__(self) -> str:
        short = self.path.removeprefix("augment.")
        if self.path.startswith("augment.") and "." not in short:
            if self.before is None:
                return f"+ {_named(short, self.after)}"
            if self.after is None:
                return f"- {short}"
        if self.path in ("model", "optimizer", "schedule", "data"):
            return f"{self.path} {_component(self.before)} -> {_component(self.after)}"
        before, after = _show(self.before), _show(self.after)
        if before == after:  # they differ further back than is shown
            before, after = repr(self.before), repr(self.after)
        return f"{short} {before} -> {after}"


def differences(before: Recipe, after: Recipe) -> list[Difference]:
    """Fields in which ``after`` differs from ``before``; fields that only decide what is recorded are left out."""
    return differences_of(before.as_dict(), after.as_dict())


def differences_of(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[Difference]:
    """The same for recipes as plain nested values, as the record keeps them."""
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
    return _named(value["name"], value) if isinstance(value, Mapping) else _show(value)


def _named(name: str, options: Mapping[str, Any]) -> str:
    listed = ", ".join(f"{key} {_show(value)}" for key, value in options.items() if key != "name")
    return f"{name} ({listed})" if listed else name


def _show(value: Any) -> str:
    if value is None:
        return "none"
    return f"{value:g}" if isinstance(value, float) else str(value)
