"""YAML file to resolved study: merge the layers of every arm, apply the overlay, validate, and say where it is wrong."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from cifar_ablate.errors import Problem, StudyError, suggest
from cifar_ablate.spec.merge import merge
from cifar_ablate.spec.messages import problems, recipe_keys, study_keys
from cifar_ablate.spec.overlay import Overlay
from cifar_ablate.spec.schema import Arm, Published, Recipe, Study, StudyFile
from cifar_ablate.spec.text import Path_, Tree, read_yaml

MAX_ARM_NAME = 80


def load_studies(paths: Sequence[Path], overlay: Overlay | None = None) -> list[Study]:
    """All studies of a command line; raises StudyError with the problems of every file at once."""
    found: list[Problem] = []
    studies: list[Study] = []
    sources: dict[str, Path] = {}
    for path in dict.fromkeys(paths):
        try:
            study = load_study(path, overlay)
        except StudyError as error:
            found.extend(error.problems)
            continue
        if study.name in sources:
            message = f"{study.name!r} is already the name of {sources[study.name]}; each study needs its own"
            found.append(Problem(read_yaml(path).at(("study",)).origin, "study", message))
        sources[study.name] = path
        studies.append(study)
    if found:
        raise StudyError(found)
    return studies


def load_study(path: Path, overlay: Overlay | None = None) -> Study:
    """One study, resolved and validated; raises StudyError with every problem found, in file order."""
    overlay = overlay or Overlay()
    tree = read_yaml(path)
    if not isinstance(tree.value, dict):
        example = "study: NAME, question: ..., recipe: {...}, arms: {...}"
        raise StudyError([Problem(tree.at(()).origin, "", f"a study is a mapping ({example}); this file has none")])
    try:
        file = StudyFile.model_validate(tree.value)
    except ValidationError as error:
        raise StudyError(_sorted(problems(error, tree, study_keys()))) from None
    found = [*_name_problems(file, tree)]
    if found:
        raise StudyError(_sorted(found))
    arms, found = _resolve_arms(file, tree, overlay)
    if not found:
        found = _twins(arms, tree, overlay)
    if found:
        raise StudyError(_sorted(found))
    return Study(
        name=file.study,
        question=file.question,
        seeds=_seed_list(overlay.seeds if overlay.seeds is not None else file.seeds),
        margin=float(file.margin),
        baseline=file.baseline,
        arms=tuple(arms),
        published={
            name: value if isinstance(value, Published) else Published(accuracy=float(value))
            for name, value in file.published.items()
        },
        variant=overlay.variant,
    )


def _seed_list(seeds: int | list[int]) -> tuple[int, ...]:
    return tuple(range(seeds)) if isinstance(seeds, int) else tuple(seeds)


def _name_problems(file: StudyFile, tree: Tree) -> list[Problem]:
    """What is wrong with names and their references, before any recipe is looked at."""
    found: list[Problem] = []

    def complain(path: Path_, message: str) -> None:
        found.append(Problem(tree.at(path).origin, ".".join(path), message))

    if isinstance(file.seeds, list) and len(set(file.seeds)) < len(file.seeds):
        complain(("seeds",), "lists a seed twice; a repeated seed gives the same run again")
    if file.baseline not in file.arms:
        complain(
            ("baseline",), f"there is no arm {file.baseline!r} to be the baseline{suggest(file.baseline, file.arms)}"
        )
    for name, delta in file.arms.items():
        if not name or len(name) > MAX_ARM_NAME or name != name.strip() or not name.isprintable():
            complain(("arms", name), f"an arm's name is 1 to {MAX_ARM_NAME} printable characters, no space at its ends")
        parent = (delta or {}).get("from")
        if "from" not in (delta or {}):
            continue
        if name == file.baseline:
            complain(
                ("arms", name, "from"), "the baseline is what the others differ from; write its own values instead"
            )
        elif not isinstance(parent, str) or parent not in file.arms:
            complain(("arms", name, "from"), f"there is no arm {parent!r}{suggest(str(parent), file.arms)}")
        elif loop := _loop(file, name):
            complain(("arms", name, "from"), f"goes round in a circle: {' -> '.join(loop)}")
    for name in file.published:
        if name not in file.arms:
            complain(("published", name), f"there is no arm {name!r}{suggest(name, file.arms)}")
    return found


def _parent(file: StudyFile, name: str) -> str | None:
    parent = (file.arms[name] or {}).get("from")
    if parent is None and name != file.baseline:
        return file.baseline
    return parent


def _loop(file: StudyFile, name: str) -> list[str]:
    chain, parent = [name], _parent(file, name)
    while isinstance(parent, str) and parent in file.arms:
        if parent in chain:
            return [*chain, parent] if parent == name else []
        chain.append(parent)
        parent = _parent(file, parent)
    return []


def _resolve_arms(file: StudyFile, tree: Tree, overlay: Overlay) -> tuple[list[Arm], list[Problem]]:
    shared, deltas = tree.sub("recipe"), tree.sub("arms")
    resolved: dict[str, Tree] = {}
    found: dict[Problem, None] = {}

    def resolve(name: str) -> Tree:
        if name not in resolved:
            delta = deltas.sub(name)
            plain = {key: value for key, value in delta.value.items() if key != "from"}
            parent = _parent(file, name)
            below = merge(Tree({}), shared) if parent is None else resolve(parent)
            resolved[name] = merge(below, Tree(plain, delta.written))
        return resolved[name]

    arms: list[Arm] = []
    for name in file.arms:
        try:
            recipe = overlay.apply(resolve(name))
            arms.append(Arm(name, (file.arms[name] or {}).get("from"), validate_recipe(recipe)))
        except StudyError as error:
            found.update(dict.fromkeys(error.problems))
    return arms, list(found)


def validate_recipe(tree: Tree) -> Recipe:
    """The merged values of one arm as a Recipe; raises StudyError located where each value was written."""
    try:
        return Recipe.model_validate(tree.value)
    except ValidationError as error:
        raise StudyError(problems(error, tree, recipe_keys(tree.value))) from None


def _twins(arms: list[Arm], tree: Tree, overlay: Overlay) -> list[Problem]:
    """Two arms with one recipe would be the same runs twice, and their difference exactly 0."""
    seen: dict[str, str] = {}
    found: list[Problem] = []
    for arm in arms:
        recipe: Any = repr(arm.recipe.as_dict())
        if recipe in seen:
            under = f" under {overlay.variant!r}" if overlay.variant else ""
            message = f"is the same recipe as {seen[recipe]!r}{under}; remove one, or let them differ"
            found.append(Problem(tree.at(("arms", arm.name)).origin, f"arms.{arm.name}", message))
        seen.setdefault(recipe, arm.name)
    return found


def _sorted(found: list[Problem]) -> list[Problem]:
    return sorted(
        found, key=lambda problem: (problem.origin.source, problem.origin.line or 0, problem.origin.column or 0)
    )
