"""Overlays: a profile and ``--set`` options, laid over every arm after the arms are resolved.

An overlay makes a variant of a study with a record of its own. It may scale (``epochs: {times: 0.3}``), so that what
differs between arms stays different, and may name options that only some components have (``width?: 16``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError

from cifar_ablate.errors import Origin, Problem, StudyError, UnknownNameError, UsageError, suggest
from cifar_ablate.fields import NonNegativeInt, PositiveInt
from cifar_ablate.spec.merge import merge
from cifar_ablate.spec.messages import COMPONENT_REGISTRIES, problems
from cifar_ablate.spec.schema import Recipe, Spec
from cifar_ablate.spec.text import Tree, Written, parse_yaml, read_yaml, scalar

PROFILES = resources.files("cifar_ablate.spec") / "profiles"


class ProfileFile(Spec):
    """Top level of a profile's YAML."""

    profile: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
    """Name: what stands behind the @ of the variant."""
    purpose: str = ""
    """What the profile is for, in one sentence."""
    seeds: PositiveInt | Annotated[list[NonNegativeInt], Field(min_length=1)] | None = None
    """Replaces the study's seeds."""
    recipe: dict[str, Any] = {}
    """Laid over every arm's recipe."""


@dataclass(frozen=True)
class Overlay:
    """Layers applied in order; ``variant`` is what stands behind the @ in the study's label."""

    layers: tuple[Tree, ...] = ()
    variant: str = ""
    seeds: int | list[int] | None = None

    def apply(self, recipe: Tree) -> Tree:
        """The recipe with every layer laid over it; raises StudyError where a layer does not fit."""
        for layer in self.layers:
            recipe = merge(recipe, layer, overlay=True, knows=_knows)
        return recipe


def _knows(component: str, name: str, option: str) -> bool:
    registry = COMPONENT_REGISTRIES.get(component)
    try:
        return registry is not None and option in registry.options(name).model_fields
    except UnknownNameError:
        return False  # the validation of the recipe says it better


def load_overlay(profile: str | None, settings: Sequence[str]) -> Overlay:
    """Overlay of ``--profile NAME|FILE`` and ``--set KEY=VALUE`` options, in this order.

    Raises UsageError for an unknown profile or a malformed option, StudyError for a profile that is not valid.
    """
    layers: list[Tree] = []
    names: list[str] = []
    seeds: int | list[int] | None = None
    if profile:
        tree, file = _load_profile(profile)
        layers.append(tree.sub("recipe"))
        names.append(file.profile)
        seeds = file.seeds
    for setting in settings:
        key, value = _parse_setting(setting)
        names.append(f"{'.'.join(key)}={setting.partition('=')[2].strip()}")
        if key == ["seeds"]:
            seeds = _check_seeds(value, setting)
        else:
            layers.append(_setting_tree(key, value, setting))
    variant = ",".join(names)
    if len(variant) > 200:
        raise UsageError(
            "the options make a variant's name of over 200 characters; put them into a profile FILE instead"
        )
    return Overlay(tuple(layers), variant, seeds)


def profile_names() -> list[str]:
    """Names of the built-in profiles."""
    return sorted(item.name.removesuffix(".yaml") for item in PROFILES.iterdir() if item.name.endswith(".yaml"))


def _load_profile(profile: str) -> tuple[Tree, ProfileFile]:
    if profile in profile_names():
        tree = parse_yaml((PROFILES / f"{profile}.yaml").read_text(encoding="utf-8"), f"profile {profile}")
    elif profile.endswith((".yaml", ".yml")) or Path(profile).is_file():
        tree = read_yaml(Path(profile))
    else:
        tail = suggest(profile, profile_names())
        raise UsageError(f"--profile {profile}: there is no such profile{tail} (or name a YAML file)")
    if not isinstance(tree.value, dict):
        raise StudyError([Problem(tree.at(()).origin, "", "a profile is a mapping: profile: NAME, recipe: {...}")])
    try:
        return tree, ProfileFile.model_validate(tree.value)
    except ValidationError as error:
        raise StudyError(problems(error, tree, {(): ProfileFile.model_fields})) from None


def _parse_setting(setting: str) -> tuple[list[str], Any]:
    key, equals, text = setting.partition("=")
    parts = [part.strip() for part in key.strip().split(".")]
    if not equals or not all(parts) or not text.strip():
        raise UsageError(f"--set {setting}: write it as KEY=VALUE, such as --set optimizer.lr=0.1")
    if parts[0] != "seeds" and parts[0] not in Recipe.model_fields:
        tail = suggest(parts[0], ["seeds", *Recipe.model_fields])
        raise UsageError(f"--set {setting}: unknown key {parts[0]!r}{tail}")
    return parts, parse_yaml(text, f"--set {setting}").value


def _check_seeds(value: Any, setting: str) -> int | list[int]:
    try:
        seeds = ProfileFile(profile="set", seeds=value).seeds
    except ValidationError:
        seeds = None
    if seeds is None:
        raise UsageError(f"--set {setting}: seeds are a number of them, or a list such as [0, 1, 2]")
    return seeds


def _setting_tree(key: list[str], value: Any, setting: str) -> Tree:
    where = Written(Origin(f"--set {setting}"), "")
    tree: Any = value
    for part in reversed(key):
        tree = {part: tree}
    written = {tuple(key[:length]): where for length in range(len(key) + 1)}
    return Tree(tree, written)


def model_options(name: str, settings: Sequence[str]) -> dict[str, Any]:
    """Validated options of a model from ``--set KEY=VALUE``; raises UsageError where one is not an option of it."""
    try:
        registry = COMPONENT_REGISTRIES["model"]
        given = {setting.partition("=")[0].strip(): scalar(setting.partition("=")[2].strip()) for setting in settings}
        return registry.options(name)(**given).model_dump()
    except ValidationError as error:
        detail = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in detail["loc"])
        tail = suggest(key, registry.options(name).model_fields)
        raise UsageError(f"--set {key}: {detail['msg'].lower()} for model {name!r}{tail}") from None
