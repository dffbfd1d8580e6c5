"""Fields that a search has set: where arms differ in them, each stands at its own best, and nothing is confounded."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from cifar_ablate.report.accuracy import Study
from cifar_ablate.spec.delta import Difference, differences_of

MAX_NAMED = 4


@dataclass(frozen=True)
class Between:
    """What differs between the recipes of two arms."""

    changes: tuple[Difference, ...]
    """That the arms make; with more than one, an effect is confounded."""
    tuned: tuple[Difference, ...]
    """In fields that were searched for at least one of the two."""

    @property
    def in_words(self) -> tuple[str, ...]:
        """Everything, and what of it was found by the search."""
        return (*map(str, self.changes), *(f"{one} (tuned)" for one in self.tuned))


def between(study: Study, before: str, after: str) -> Between:
    """What differs between two arms; without a search all of it are changes."""
    found = differences_of(study.arms[before]["recipe"], study.arms[after]["recipe"])
    tuned = study.tuned
    if tuned is None or not {before, after} & tuned.arms.keys():
        return Between(tuple(found), ())
    return Between(
        tuple(one for one in found if not is_of_space(one, tuned.space)),
        tuple(one for one in found if is_of_space(one, tuned.space)),
    )


def is_of_space(one: Difference, space: Iterable[str]) -> bool:
    """Lies a difference in the fields of a space, at or below them, with all that it brings?"""
    fields = tuple(space)
    if _is_within(one.path, fields):
        return True
    if one.before is not None and one.after is not None:
        return False
    brought = list(_leaves(one.path, one.before if one.after is None else one.after))
    return all(_is_within(path, fields) for path in brought)  # as of `ema`, where `ema.decay` was searched


def _is_within(path: str, fields: Iterable[str]) -> bool:
    return any(path == field or path.startswith(f"{field}.") for field in fields)


def _leaves(path: str, value: Any) -> Iterator[str]:
    if not isinstance(value, Mapping):
        yield path
        return
    for name, inner in value.items():
        yield from _leaves(f"{path}.{name}", inner)


def fields_in_words(space: Iterable[str]) -> str:
    """``optimizer.lr and schedule``."""
    names = [name.removeprefix("augment.") for name in space]
    if len(names) > MAX_NAMED:
        return f"{', '.join(names[: MAX_NAMED - 1])} and {len(names) - MAX_NAMED + 1} more fields"
    return " and ".join([*([", ".join(names[:-1])] if len(names) > 1 else []), *names[-1:]])


def own_best_sentence(study: Study, arm: str, reference: str, found: Between) -> str:
    """At which of the searched values two arms are compared; empty where neither was tuned."""
    tuned = study.tuned
    if tuned is None or not {arm, reference} & tuned.arms.keys():
        return ""
    fields = fields_in_words(tuned.space)
    if {arm, reference} <= tuned.arms.keys():
        said = f"They are compared each at its own best {fields}"
        return f"{said}, and differ in nothing else." if found.tuned and not found.changes else f"{said}."
    best, other = (arm, reference) if arm in tuned.arms else (reference, arm)
    said = f"{best} is at its own best {fields}, {other} was not tuned"
    return f"{said}: part of the difference may come from the search." if found.tuned else f"{said}."
