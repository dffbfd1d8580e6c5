"""Which keys a study knows, and where a key belongs that stands in the wrong place."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from typing import Any

from cifar_ablate.errors import MAX_NAME, UnknownNameError, suggest
from cifar_ablate.registry import AUGMENTATIONS, PRUNERS, SAMPLERS, Registry
from cifar_ablate.spec.component import COMPONENT_REGISTRIES, shown
from cifar_ablate.spec.schema import Loss, Published, Recipe, StudyFile
from cifar_ablate.spec.text import Path_
from cifar_ablate.spec.tune import Choice, Range, Tune, Tuned, TunedArm

Known = Mapping[Path_, Iterable[str]]
"""The keys of each closed mapping, by its path."""


def study_keys(study: Mapping[str, Any]) -> Known:
    """Keys that the top level of a study knows, and each of its published figures."""
    published = study.get("published")
    arms = published if isinstance(published, dict) else {}
    keys: dict[Path_, Iterable[str]] = {("published", arm): Published.model_fields for arm in arms}
    tune = study.get("tune")
    space = tune.get("space") if isinstance(tune, dict) else None
    for field, entry in space.items() if isinstance(space, dict) else ():
        is_choice = isinstance(entry, dict) and "choices" in entry
        keys["tune", "space", field] = (Choice if is_choice else Range).model_fields
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
    """Keys that each mapping of this recipe knows."""
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
    """The name under ``part`` of a recipe's plain values, None where there is none."""
    value = recipe.get(part) if isinstance(recipe, Mapping) else None
    name = value.get("name") if isinstance(value, Mapping) else value
    return name if isinstance(name, str) else None


def has_option(part: str, name: str, option: str) -> bool:
    """Whether the component ``name`` of a recipe's ``part`` has this option; False for names that nobody knows."""
    try:
        return part in COMPONENT_REGISTRIES and option in COMPONENT_REGISTRIES[part].options(name).model_fields
    except UnknownNameError:
        return False  # the validation of the recipe says it better


def unknown_key(path: Path_, known: Known, *, top: bool = False, arm: bool = False) -> str:
    """A sentence about a key that no schema has: ``top`` in a study or profile, else in a recipe (of an ``arm``)."""
    key, here = path[-1], path[:-1]
    near = suggest(key, [*known.get(here, ()), *(["from"] if arm and not here else [])])
    if here:
        others = _entries_with(COMPONENT_REGISTRIES[here[0]], key) if here[0] in COMPONENT_REGISTRIES else []
        tail = f", which is an option of {' and '.join(others)}{near}" if others else _elsewhere(path)
    elif top:
        tail = "; it belongs under `recipe`" if key in Recipe.model_fields else _elsewhere(path, under="recipe.")
    else:
        tail = _in_recipe(key) or _elsewhere(path)
    return f"unknown key {shown(key)}{tail or near or '; remove it, for there are no options here'}"


def _in_recipe(key: str) -> str:
    """What to do about a key that often stands in a recipe by mistake."""
    if key in ("recipe", "from"):
        return {"recipe": "; write the recipe's keys here without it", "from": "; only an arm has it"}[key]
    if key in StudyFile.model_fields:
        return "; it belongs at the top of the study"
    first, _, rest = key.partition(".")
    if rest and first in Recipe.model_fields and len(key) <= MAX_NAME:
        return f"; write it nested: {first}: {{{rest.replace('.', ': {')}: ...{'}' * (rest.count('.') + 1)}"
    return ""


def _elsewhere(path: Path_, *, under: str = "") -> str:
    """The places in a recipe where this key may stand; ``under`` is put before each."""
    if path[-1].endswith("?"):
        return "; only options of a component may end with ?, in profiles and --set"
    places = [place for place in _places(path[-1]) if place != ".".join(path)]
    listed = [repr(f"{under}{place}") for place in places[:3]] + (["..."] if len(places) > 3 else [])
    return f"; did you mean {' or '.join(listed)}?" if listed else ""


def _entries_with(registry: Registry, option: str) -> list[str]:
    return [name for name in registry.names() if option in registry.options(name).model_fields]


@functools.lru_cache(maxsize=1024)  # asked again for each of the arms that share a wrong key
def _places(key: str) -> list[str]:
    """Paths in a recipe where ``key`` may stand."""
    if key == "name":
        return []
    places = [key] if key in Recipe.model_fields else []
    places += [f"{part}.{key}" for part, registry in COMPONENT_REGISTRIES.items() if _entries_with(registry, key)]
    places += [f"loss.{key}"] if key in Loss.model_fields else []
    places += [f"augment.{key}"] if key in AUGMENTATIONS.names() else []
    return places + [f"augment.{name}.{key}" for name in _entries_with(AUGMENTATIONS, key)]
