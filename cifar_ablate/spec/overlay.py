"""Overlays: a profile and ``--set`` options, merged into every arm after the arms are resolved.

An overlay makes a variant of a study, with a separate record. It may scale values (``epochs: {times: 0.3}``), so that
arms keep their differences, and may set options that only some components have (``width?: 16``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from cifar_ablate.errors import Location, Problem, StudyError, UsageError, suggest
from cifar_ablate.registry import MODELS, Registry
from cifar_ablate.spec.component import COMPONENT_REGISTRIES, Label, Spec, shown
from cifar_ablate.spec.delta import merge
from cifar_ablate.spec.messages import Known, in_file_order, problems, unknown_key
from cifar_ablate.spec.schema import Recipe, Seeds
from cifar_ablate.spec.text import MAX_DEPTH, Path_, Tree, Written, dotted, parse_yaml, read_yaml, scalar

MAX_VARIANT = 180
"""Maximum length of a variant: MLflow's database limits an experiment's name, STUDY@VARIANT, to 256 characters."""
SeedsWritten = int | list[int] | dict[str, list[int]]
"""Seeds as written in a study or an overlay; see ``seeds_of``."""
PROFILES = resources.files("cifar_ablate.spec") / "profiles"


class ProfileFile(Spec):
    """Top level of a profile's YAML."""

    profile: Label
    """Name of the profile, and of the variant after the @."""
    purpose: str = ""
    """What the profile is for, in one sentence."""
    seeds: Seeds | None = None
    """Replaces the study's seeds."""
    recipe: dict[str, Any] = Field(default={})
    """Merged into every arm's recipe."""


@dataclass(frozen=True)
class Overlay:
    """Layers to merge in order; ``variant`` is the part after the @ in the study's label."""

    layers: tuple[Tree, ...] = ()
    variant: str = ""
    seeds: SeedsWritten | None = None

    def apply(self, recipe: Tree, found: list[Problem]) -> Tree:
        """The recipe with every layer merged into it; adds a problem to ``found`` for each value that does not fit."""
        for layer in self.layers:
            recipe = merge(recipe, layer, found, overlay=True)
        return recipe


def load_overlay(profile: str | None, settings: Sequence[str]) -> Overlay:
    """The overlay of ``--profile NAME|FILE`` and ``--set KEY=VALUE`` options, in this order.

    Raises UsageError for an unknown profile or an invalid option, and StudyError for an invalid profile.
    """
    layers: list[Tree] = []
    names: list[str] = []
    seeds: SeedsWritten | None = None
    if profile is not None:
        tree, file = _load_profile(profile)
        layers.append(tree.sub("recipe"))
        names.append(file.profile)
        seeds = file.seeds
    for setting in settings:
        key, value = _parse_setting(setting)
        names.append(f"{'.'.join(key)}={setting.partition('=')[2].strip()}")
        if key[0] == "seeds":
            seeds = _check_seeds(value if len(key) == 1 else None, setting)
        else:
            layers.append(_setting_tree(key, value, setting))
    variant = ",".join(names)
    if len(variant) > MAX_VARIANT:
        raise UsageError(
            f"--set: the options make a variant's name of over {MAX_VARIANT} characters; put them into a profile FILE"
        )
    found = [problem for layer in layers for problem in _optional_problems(layer)]
    if found:
        raise StudyError(found)
    return Overlay(tuple(layers), variant, seeds)


def profile_names() -> list[str]:
    """Names of the built-in profiles."""
    return sorted(item.name.removesuffix(".yaml") for item in PROFILES.iterdir() if item.name.endswith(".yaml"))


def _load_profile(profile: str) -> tuple[Tree, ProfileFile]:
    built_in = profile in profile_names()
    if built_in:
        tree = parse_yaml((PROFILES / f"{profile}.yaml").read_text(encoding="utf-8"), f"profile {profile}")
    elif profile.endswith((".yaml", ".yml")) or _is_file(profile):
        tree = read_yaml(Path(profile))
    else:
        tail = suggest(profile, profile_names())
        raise UsageError(f"--profile {dotted((profile,))}: there is no such profile{tail} (or name a YAML file)")
    if not isinstance(tree.value, dict):
        what = "is empty" if tree.value is None else "is not a profile"
        message = f"{what}; a profile is a mapping: profile: NAME, recipe: {{...}}"
        raise StudyError([Problem(tree.at(()).location, "", message)])
    if "study" in tree.value and "profile" not in tree.value:
        message = "is for studies; give this file without --profile, or a profile FILE with `profile: NAME`"
        raise StudyError([Problem(tree.at(("study",)).location, "study", message)])
    try:
        file = ProfileFile.model_validate(tree.value)
    except ValidationError as error:
        known: Known = {(): ProfileFile.model_fields}
        raise StudyError(in_file_order(problems(error, tree, known, top=True))) from None
    where, message = tree.at(("profile",)), ""
    if not built_in and file.profile in profile_names():
        message = f"{shown(file.profile)} is the name of a built-in profile; choose another"
    elif file.seeds is None and not file.recipe:
        message = "changes nothing; give it `recipe`, `seeds` or both"
    if message:
        raise StudyError([Problem(where.location, where.path, message)])
    return tree, file


def _is_file(name: str) -> bool:
    try:
        return Path(name).is_file()
    except (OSError, ValueError):  # too long for a file name, or with a null character
        return False


def _parse_setting(setting: str) -> tuple[list[str], Any]:
    option = f"--set {dotted((setting,))}"
    key, equals, text = setting.partition("=")
    parts = [part.strip() for part in key.strip().split(".")]
    if not equals or not all(parts) or not text.strip() or not setting.isprintable():
        raise UsageError(f"{option}: write it as KEY=VALUE, such as --set optimizer.lr=0.1")
    if len(parts) > MAX_DEPTH:
        raise UsageError(f"{option}: no recipe field is this deep; write one such as optimizer.lr")
    if parts[0] != "seeds" and parts[0] not in Recipe.model_fields:
        first = tuple(parts[:1])
        raise UsageError(f"{option}: {unknown_key(first, {(): ['seeds', *Recipe.model_fields]})}")
    return parts, parse_yaml(text, option).value


def _optional_problems(layer: Tree) -> list[Problem]:
    """Each ``key?`` that no component has, and that would silently change nothing."""
    found: list[Problem] = []
    for path, written in layer.written.items():
        if not path or not path[-1].endswith("?"):
            continue
        registry = COMPONENT_REGISTRIES.get(path[0]) if len(path) == 2 else None
        if registry is None:
            message = f"only options of {', '.join(COMPONENT_REGISTRIES)} may end with ?; remove it"
        else:
            message = _unknown_option(registry, path[-1].removesuffix("?"))
        if message:
            found.append(Problem(written.location, written.path, message))
    return found


def _unknown_option(registry: Registry, option: str) -> str:
    known = {key for name in registry.names() for key in registry.options(name).model_fields}
    if registry is MODELS and option not in known:  # importing timm takes seconds
        known |= registry.options("timm/resnet18").model_fields.keys()
    return "" if option in known else f"no {registry.kind} has an option {shown(option)}{suggest(option, known)}"


def _check_seeds(value: Any, setting: str) -> SeedsWritten:
    seeds, found = None, []
    try:
        seeds = ProfileFile(profile="set", seeds=value).seeds
    except ValidationError as error:
        if isinstance(value, dict) and "looks" in value:
            found = problems(error, _setting_tree(["seeds"], value, setting), {}, top=True)
    if found:
        raise UsageError("\n".join(map(str, found)))
    if seeds is None:
        raise UsageError(
            f"--set {setting}: seeds are a number of them, or a list such as [0, 1, 2], or {{looks: [5, 8, 12]}}"
        )
    return seeds


def _setting_tree(key: list[str], value: Any, setting: str) -> Tree:
    location = Location(f"--set {setting}")
    tree: Any = value
    for part in reversed(key):
        tree = {part: tree}
    written: dict[Path_, Written] = {}

    def mark(path: Path_, inner: Any) -> None:
        written[path] = Written(location, dotted(path))
        for name, below in inner.items() if isinstance(inner, dict) else ():
            mark((*path, name), below)

    mark((), tree)
    return Tree(tree, written)


def model_options(name: str, settings: Sequence[str]) -> dict[str, Any]:
    """Validated options of a model from ``--set KEY=VALUE``; raises UsageError for an invalid one."""
    given: dict[str, Any] = {}
    written: dict[Path_, Written] = {(): Written(Location(f"model {name}"), "")}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals or not setting.isprintable():
            raise UsageError(f"--set {dotted((setting,))}: write it as KEY=VALUE, such as --set width=16")
        given[key.strip()] = scalar(text.strip())
        written[(key.strip(),)] = Written(Location(f"--set {setting}"), "")
    options = MODELS.options(name)
    try:
        return options(**given).model_dump()
    except ValidationError as error:
        known: Known = {(): options.model_fields}
        raise UsageError("\n".join(map(str, problems(error, Tree(given, written), known)))) from None
