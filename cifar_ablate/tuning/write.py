"""The best values as a study of their own: a readable file that says where they came from."""

from __future__ import annotations

import copy
import os
import shlex
from collections.abc import Mapping, Sequence
from datetime import UTC
from pathlib import Path
from typing import Any

import yaml

from cifar_ablate.errors import UsageError, not_written
from cifar_ablate.folder import write_atomically
from cifar_ablate.harmless import harmless, on_one_line
from cifar_ablate.passwords import without_password
from cifar_ablate.spec.component import COMPONENT_REGISTRIES, shown
from cifar_ablate.spec.delta import differences
from cifar_ablate.spec.load import load_study
from cifar_ablate.spec.merge import merge
from cifar_ablate.spec.overlay import Overlay
from cifar_ablate.spec.schema import Recipe, Study
from cifar_ablate.spec.space import compose, put
from cifar_ablate.spec.text import Tree, read_yaml
from cifar_ablate.spec.tune import Tuned
from cifar_ablate.tuning.result import ArmResult
from cifar_ablate.tuning.target import ENDING, Plain, check_target

LEFT_OUT = ("tune", "tuned", "published")
"""Sections that are not taken over: published figures are of other recipes."""
SECTIONS = ("tuned", "recipe", "baseline", "arms")
"""Each begins after an empty line."""

MAX_LINE = 90
"""Characters of a mapping that is written on one line."""


def write_tuned(source: Path, results: Sequence[ArmResult], path: Path, overlay: Overlay, command: str) -> None:
    """Write the study ``source`` with each tuned arm at its best values, found under ``overlay``, to ``path``.

    Raises what ``check_target`` raises, and OutputError.
    """
    study = load_study(source)
    done = [result for result in results if result.best is not None]
    check_target(path, study, [result.plan for result in done], overlay)
    if not done:
        raise UsageError("--write: no trial is complete yet; tune first")
    expected = {arm.name: arm.recipe.as_dict() for arm in study.arms}
    for result in done:
        _set_best(expected[result.plan.arm], result)
    content = _content(read_yaml(source).value, study, expected, done)
    text = _text(content, study, done, path, command)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.unfinished")
    try:
        unfinished.unlink(missing_ok=True)
        with unfinished.open("x", encoding="utf-8") as file:  # new: others may have laid a link in its place
            file.write(text)
        written, under_overlay = load_study(unfinished), load_study(unfinished, overlay)
    except OSError as error:
        raise not_written(path, error) from None
    finally:
        unfinished.unlink(missing_ok=True)
    if {arm.name: arm.recipe.as_dict() for arm in written.arms} != _valid(expected):
        raise RuntimeError(f"{path} would not say what was tuned")  # ours to mend, never the user's
    for result in done:
        if changed := differences(_tuned_recipe(result), under_overlay.arm(result.plan.arm).recipe):
            raise UsageError(
                f"--write: {shown(overlay.variant)} would change {', '.join(one.path for one in changed)} of arm "
                f"{shown(result.plan.arm)} after it was tuned; tune without that overlay, or without --write"
            )
    write_atomically(path, text)


def _tuned_recipe(result: ArmResult) -> Recipe:
    plan, best = result.plan, result.best
    if best is None or best.is_untuned:
        return plan.recipe
    return Recipe.model_validate(compose(plan.space, plan.values, lambda one: best.values[one.name])[0])


def _set_best(values: Plain, result: ArmResult) -> None:
    """Set what the best trial changed; the recipe as it stands changes nothing."""
    best = result.best
    if best is None or best.is_untuned:
        return
    for one in result.plan.space:
        if one.name in best.values:
            put(values, one.path, best.values[one.name])


def _content(raw: Plain, study: Study, expected: Mapping[str, Plain], done: Sequence[ArmResult]) -> Plain:
    """The study's mapping: as it was written, and in each arm what it takes to come to its expected recipe."""
    head = {key: value for key, value in raw.items() if key not in (*LEFT_OUT, "recipe", "baseline", "arms")}
    head["study"] = f"{study.name}{ENDING}"
    head["question"] = f"{study.question} Each arm at its own best {', '.join(one.name for one in study.space)}."
    arms: dict[str, Plain] = {}
    merged: dict[str, Plain] = {}
    for name in _parents_first(study):
        parent = None if name == study.baseline else study.arm(name).parent or study.baseline
        below = merge(Tree({}), Tree(raw.get("recipe") or {}), []).value if parent is None else merged[parent]
        delta = copy.deepcopy(raw["arms"][name] or {})
        plain = {key: value for key, value in delta.items() if key != "from"}
        got = Recipe.model_validate(merge(Tree(below), Tree(plain), []).value).as_dict()
        extra = _delta(got, Recipe.model_validate(expected[name]))
        arms[name] = _joined(delta, extra)
        plain = {key: value for key, value in arms[name].items() if key != "from"}
        merged[name] = merge(Tree(below), Tree(plain), []).value
    return {
        **head,
        "tuned": _provenance(study, done),
        **({"recipe": raw["recipe"]} if raw.get("recipe") else {}),
        **({"baseline": raw["baseline"]} if "baseline" in raw else {}),
        "arms": {name: arms[name] or None for name in raw["arms"]},
    }


def _parents_first(study: Study) -> list[str]:
    ordered = [study.baseline]
    left = [arm for arm in study.arms if arm.name != study.baseline]
    while left:
        ready = [arm for arm in left if (arm.parent or study.baseline) in ordered]
        ordered += [arm.name for arm in ready]
        left = [arm for arm in left if arm not in ready]
    return ordered


def _delta(got: Plain, wanted: Recipe) -> Plain:
    """What has to be written over ``got`` to come to ``wanted``, in as few words as it takes."""
    whole, short = wanted.as_dict(), wanted.as_dict(defaults=False)
    found = _difference(got, whole)
    for key in COMPONENT_REGISTRIES:
        if got[key]["name"] != whole[key]["name"]:
            found[key] = short.get(key, {"name": whole[key]["name"]})
    return found


def _difference(before: Mapping[str, Any], after: Mapping[str, Any]) -> Plain:
    found: Plain = {name: None for name in before if name not in after}
    for name, value in after.items():
        earlier = before.get(name)
        if isinstance(value, Mapping) and isinstance(earlier, Mapping):
            inner = _difference(earlier, value)
            found |= {name: inner} if inner else {}
        elif name not in before or earlier != value:
            found[name] = value
    return found


def _joined(delta: Plain, extra: Plain) -> Plain:
    """An arm's own words with the tuned values in their places."""
    joined = dict(delta)
    for key, value in extra.items():
        below = joined.get(key)
        if key in COMPONENT_REGISTRIES and isinstance(below, str):
            below = {"name": below}
        is_other = isinstance(value, Mapping) and "name" in value
        if isinstance(value, Mapping) and isinstance(below, Mapping) and not is_other:
            joined[key] = _joined(dict(below), dict(value))
        else:
            joined[key] = value
    return joined


def _provenance(study: Study, done: Sequence[ArmResult]) -> Plain:
    plan = done[0].plan
    ended = [one.ended.astimezone(UTC) for result in done for one in result.trials if one.ended is not None]
    tuned = Tuned(
        study=study.name,
        variant=plan.study.variant,
        date=f"{max(ended):%Y-%m-%d}",
        data="; ".join(dict.fromkeys(result.plan.data.describe() for result in done)),
        space=plan.protocol["space"],
        sampler=plan.protocol["sampler"],
        sampler_seed=plan.tune.seed,
        pruner=plan.protocol["pruner"],
        seeds=plan.tune.seeds,
        val_fraction=plan.tune.val_fraction,
        arms={result.plan.arm: result.provenance() for result in done},
    )
    return tuned.model_dump(mode="json")


def _text(content: Plain, study: Study, done: Sequence[ArmResult], path: Path, command: str) -> str:
    again = " ".join(["cifar-ablate run", on_one_line(shlex.quote(str(path))), *_overlay_words(command)])
    num = max(result.num_tried for result in done)
    lines = [
        f"# The arms of {study.name}, each at its own best values of {num} trials, chosen by validation images:",
        "# the best of many looks better than it is. What they are worth on the test images says",
        f"#   {again}",
        f"# Written by: {_written_by(command)}",
    ]
    text = yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=200)
    for line in text.splitlines():
        lines.append(f"\n{line}" if line.partition(":")[0] in SECTIONS else line)
    return "\n".join(lines) + "\n"


class _Dumper(yaml.SafeDumper):
    """Short mappings on one line, others as blocks."""

    def represent_mapping(self, tag: str, mapping: Any, flow_style: bool | None = None) -> yaml.MappingNode:
        node = super().represent_mapping(tag, mapping, flow_style)
        pairs = [part for pair in node.value for part in pair]
        is_plain = all(isinstance(part, yaml.ScalarNode) for part in pairs)
        node.flow_style = is_plain and sum(len(part.value) + 2 for part in pairs) <= MAX_LINE
        return node


def _written_by(command: str) -> str:
    """The command on one line, without the password of a storage."""
    return harmless(" ".join(" ".join(shlex.quote(without_password(word)) for word in shlex.split(command)).split()))


def _overlay_words(command: str) -> list[str]:
    """``--profile`` and ``--set`` of the command, as they were given."""
    words, found = shlex.split(command), []
    for index, word in enumerate(words):
        if word in ("--profile", "--set"):
            found += [word, on_one_line(shlex.quote(words[index + 1]))]
        elif word.startswith(("--profile=", "--set=")):
            found.append(on_one_line(shlex.quote(word)))
    return found


def _valid(expected: Mapping[str, Plain]) -> dict[str, Plain]:
    return {name: Recipe.model_validate(values).as_dict() for name, values in expected.items()}
