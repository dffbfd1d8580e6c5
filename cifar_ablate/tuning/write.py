"""Write the best values as a study: the user's file with these values, and a section that says where they came from."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from datetime import UTC
from pathlib import Path
from typing import Any

from cifar_ablate.errors import UsageError, not_written
from cifar_ablate.record.folder import write_atomically
from cifar_ablate.spec.component import COMPONENT_REGISTRIES, shown
from cifar_ablate.spec.delta import differences, merge
from cifar_ablate.spec.edit import as_node, read_document, set_value, without_sections, write_document
from cifar_ablate.spec.load import load_study
from cifar_ablate.spec.overlay import Overlay
from cifar_ablate.spec.schema import Recipe, Study, Tuned
from cifar_ablate.spec.space import compose, put
from cifar_ablate.spec.text import Tree, read_yaml
from cifar_ablate.text_safety import redact_url, sanitize, sanitize_line
from cifar_ablate.tuning.result import ArmResult
from cifar_ablate.tuning.target import ENDING, Plain, check_target

LEFT_OUT = ("tune", "tuned", "published")
"""Sections that are not copied; published figures belong to other recipes."""


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
    text = _edited(source, study, expected, done)
    text = _header(study, done, path, command) + ("\n" if text.startswith("#") else "") + text
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.unfinished")
    try:
        unfinished.unlink(missing_ok=True)
        with unfinished.open("x", encoding="utf-8") as file:  # "x": never through a link that someone else put there
            file.write(text)
        written, under_overlay = load_study(unfinished), load_study(unfinished, overlay)
    except OSError as error:
        raise not_written(path, error) from None
    finally:
        unfinished.unlink(missing_ok=True)
    if {arm.name: arm.recipe.as_dict() for arm in written.arms} != _valid(expected):
        raise RuntimeError(f"{path} would not say what was tuned")  # a bug, not a user's mistake
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
    """Set the values of the best trial, unless it is the recipe as it was written."""
    best = result.best
    if best is None or best.is_untuned:
        return
    for one in result.plan.space:
        if one.name in best.values:
            put(values, one.path, best.values[one.name])


def _edited(source: Path, study: Study, expected: Mapping[str, Plain], done: Sequence[ArmResult]) -> str:
    """The study's text with its arms at their expected recipes, and with the section ``tuned`` at its end."""
    tree = read_yaml(source)
    document = read_document(without_sections(source.read_text(encoding="utf-8-sig"), tree, LEFT_OUT))
    for section in LEFT_OUT:
        document.pop(section, None)
    document["study"] = f"{study.name}{ENDING}"
    question = f"{study.question.strip()} Each arm at its own best {', '.join(one.name for one in study.space)}."
    document["question"] = as_node(question)
    for name, (before, after) in _arms(tree.value, study, expected).items():
        set_value(document["arms"], name, before, after)
    document["tuned"] = as_node(_provenance(study, done))
    above, section, below = write_document(document).rpartition("\ntuned:")
    return f"{above.rstrip()}\n{section}{below}" if section else below


def _arms(raw: Plain, study: Study, expected: Mapping[str, Plain]) -> dict[str, tuple[Plain, Plain]]:
    """Each arm as it was written, and with what it needs to have its expected recipe."""
    arms: dict[str, tuple[Plain, Plain]] = {}
    merged: dict[str, Plain] = {}
    for name in _parents_first(study):
        parent = None if name == study.baseline else study.arm(name).parent or study.baseline
        below = merge(Tree({}), Tree(raw.get("recipe") or {}), []).value if parent is None else merged[parent]
        written = raw["arms"][name] or {}
        got = Recipe.model_validate(_merged(below, written)).as_dict()
        arms[name] = written, _joined(written, _delta(got, Recipe.model_validate(expected[name])))
        merged[name] = _merged(below, arms[name][1])
    return arms


def _merged(below: Plain, arm: Plain) -> Plain:
    values: Plain = merge(Tree(below), Tree({key: value for key, value in arm.items() if key != "from"}), []).value
    return values


def _parents_first(study: Study) -> list[str]:
    ordered = [study.baseline]
    left = [arm for arm in study.arms if arm.name != study.baseline]
    while left:
        ready = [arm for arm in left if (arm.parent or study.baseline) in ordered]
        ordered += [arm.name for arm in ready]
        left = [arm for arm in left if arm not in ready]
    return ordered


def _delta(got: Plain, wanted: Recipe) -> Plain:
    """The smallest delta that turns ``got`` into ``wanted``."""
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
    """An arm as it was written, with the tuned values in their places."""
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


def _header(study: Study, done: Sequence[ArmResult], path: Path, command: str) -> str:
    again = " ".join(["cifar-ablate run", sanitize_line(shlex.quote(str(path))), *_overlay_words(command)])
    num = max(result.num_tried for result in done)
    return (
        f"# The arms of {study.name}, each at its own best values of {num} trials, chosen by validation images.\n"
        "# The best of many trials looks better than it is. To measure it on the test images, run\n"
        f"#   {again}\n"
        f"# Written by: {written_by(command)}\n"
    )


def written_by(command: str) -> str:
    """The command on one line, without passwords."""
    return sanitize(" ".join(" ".join(shlex.quote(redact_url(word)) for word in shlex.split(command)).split()))


def _overlay_words(command: str) -> list[str]:
    """The ``--profile`` and ``--set`` options of the command."""
    words, found = shlex.split(command), []
    for index, word in enumerate(words):
        if word in ("--profile", "--set"):
            found += [word, sanitize_line(shlex.quote(words[index + 1]))]
        elif word.startswith(("--profile=", "--set=")):
            found.append(sanitize_line(shlex.quote(word)))
    return found


def _valid(expected: Mapping[str, Plain]) -> dict[str, Plain]:
    return {name: Recipe.model_validate(values).as_dict() for name, values in expected.items()}
