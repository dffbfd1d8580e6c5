"""YAML file to resolved study: merge each arm's layers, apply the overlay, validate, and say where it is wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pydantic import ValidationError

from cifar_ablate.errors import MAX_TOLD, Origin, Problem, StudyError
from cifar_ablate.spec.arms import lineage, name_problems
from cifar_ablate.spec.component import shown
from cifar_ablate.spec.known import recipe_keys, study_keys
from cifar_ablate.spec.merge import merge
from cifar_ablate.spec.messages import in_file_order, problems
from cifar_ablate.spec.overlay import Overlay
from cifar_ablate.spec.schema import RECORDING_FIELDS, Arm, Published, Recipe, Study, StudyFile, seeds_of
from cifar_ablate.spec.space_check import read_space
from cifar_ablate.spec.text import Tree, dotted, read_yaml
from cifar_ablate.spec.tune import Parameter

MAX_VALUES = 150_000
"""In the recipes of all arms: some 20 are in one, and a thousand arms may state as many again."""
MAX_LAYER = 1000
"""Values in the shared recipe, and in one arm."""
EXAMPLE = "study: NAME, question: ..., recipe: {...}, arms: {...}"


def load_studies(paths: Sequence[Path], overlay: Overlay | None = None) -> list[Study]:
    """All studies of a command line; raises StudyError with the problems of every file at once."""
    found: list[Problem] = []
    studies: dict[str, tuple[Study, Path]] = {}
    for path in dict.fromkeys(paths):
        try:
            study = load_study(path, overlay)
        except StudyError as error:
            found.extend(error.problems)
            continue
        if study.name in studies:
            message = f"{shown(study.name)} is already the name of {studies[study.name][1]}; each study needs its own"
            found.append(Problem(read_yaml(path).at(("study",)).origin, "study", message))
        studies[study.name] = (study, path)
    if found:
        raise StudyError(found)
    return [study for study, _ in studies.values()]


def load_study(path: Path, overlay: Overlay | None = None) -> Study:
    """One study, resolved and validated; raises StudyError with every problem found, in file order."""
    overlay = overlay or Overlay()
    tree = read_yaml(path)
    file, found = _top_level(tree)
    if file is None:
        raise StudyError(in_file_order(found))
    if too_many := _too_many_values(file, tree):
        raise StudyError(in_file_order([*found, *too_many]))
    found += name_problems(file, tree)
    merged, recipes, more = _resolve(file, tree)
    found += more or _twins(file, tree, recipes)
    space: tuple[Parameter, ...] = ()
    if file.tune is not None and not more:
        space, wrong = read_space(file.tune, tree.sub("tune"), recipes)
        found += wrong
    if found:  # a study is valid by itself, so that an overlay never hides what is wrong with it
        raise StudyError(in_file_order(found))
    if overlay.layers:
        recipes, found = _overlaid(merged, overlay)
        found = found or _twins(file, tree, recipes, overlay.variant)
        if found:
            raise StudyError(found)
    seeds, looks = seeds_of(file.seeds if overlay.seeds is None else overlay.seeds)
    return Study(
        name=file.study,
        question=file.question,
        seeds=seeds,
        margin=float(file.margin),
        baseline=file.baseline,
        arms=tuple(Arm(name, (file.arms[name] or {}).get("from"), recipe) for name, recipe in recipes.items()),
        published={
            name: value if isinstance(value, Published) else Published(accuracy=float(value))
            for name, value in file.published.items()
        },
        variant=overlay.variant,
        looks=looks,
        expected_sd=file.expected_sd,
        file=_from_here(path),
        space=space,
        tune=file.tune,
        tuned=file.tuned,
    )


def _from_here(path: Path) -> str:
    """As a command names it; what lies outside of the folder by its name alone, as the rest is this machine's."""
    here = Path.cwd()
    full = (here / path).absolute()
    return full.relative_to(here).as_posix() if full.is_relative_to(here) else path.name


def _top_level(tree: Tree) -> tuple[StudyFile | None, list[Problem]]:
    """The file's top level; where parts of it are wrong, without them if the arms can still be checked, else None."""
    if not isinstance(tree.value, dict):
        message = f"{'is empty' if tree.value is None else 'is not a study'}; a study is a mapping: {EXAMPLE}"
        return None, [Problem(tree.at(()).origin, "", message)]
    if "profile" in tree.value and "arms" not in tree.value:
        where = tree.at(("profile",))
        return None, [Problem(where.origin, where.path, "is for profiles; give this file as --profile FILE")]
    try:
        return StudyFile.model_validate(tree.value), []
    except ValidationError as error:
        found = problems(error, tree, study_keys(tree.value), top=True)
        wrong = {str(detail["loc"][0]) for detail in error.errors(include_url=False)}
    if wrong & {"recipe", "baseline", "arms"}:
        return None, found
    sound = {key: value for key, value in tree.value.items() if key not in wrong}
    return StudyFile.model_validate({"study": "unnamed", "question": "none", **sound}), found


def _too_many_values(file: StudyFile, tree: Tree) -> list[Problem]:
    """Where one recipe is so large that merging it into every arm would take minutes."""
    wheres = [("recipe",), *(("arms", name) for name in file.arms)]
    inner = dict.fromkeys(wheres, 0)
    for path in tree.written:
        for length in (1, 2):
            if path[:length] in inner:
                inner[path[:length]] += 1
    message = f"holds over {MAX_LAYER:,} values, more than a recipe has fields; remove what is no field of it"
    return [Problem(tree.at(where).origin, dotted(where), message) for where in wheres if inner[where] > MAX_LAYER]


def _resolve(file: StudyFile, tree: Tree) -> tuple[dict[str, Tree], dict[str, Recipe], list[Problem]]:
    """Each arm's merged values and its recipe, without those that cannot be had, and why they cannot."""
    deltas = tree.sub("arms").parts()
    shared_problems: list[Problem] = []
    shared = merge(Tree({}), tree.sub("recipe"), shared_problems)
    layers: dict[str, tuple[Tree, list[Problem]]] = {}

    merged: dict[str, Tree] = {}
    found: dict[str, list[Problem]] = {}
    num_values = 0
    for arm in file.arms:
        chain = lineage(file, arm)
        known = next((place for place in range(len(chain), 0, -1) if chain[place - 1] in layers), 0)
        below, inherited = layers[chain[known - 1]] if known else (shared, shared_problems)
        for name in chain[known:]:
            delta, mine = deltas[name], list(inherited)
            plain = {key: value for key, value in delta.value.items() if key != "from"}
            below, inherited = layers[name] = merge(below, Tree(plain, delta.written), mine), mine
        if chain:
            merged[arm], found[arm] = below, inherited
            num_values += len(below.written)
        if num_values > MAX_VALUES:
            where = tree.at(("arms", arm))
            message = f"is where the arms together come to over {MAX_VALUES:,} values; divide the study"
            return {}, {}, [Problem(where.origin, where.path, message)]
    return (merged, *_validated(merged, found))


def _overlaid(merged: dict[str, Tree], overlay: Overlay) -> tuple[dict[str, Recipe], list[Problem]]:
    found: dict[str, list[Problem]] = {name: [] for name in merged}
    return _validated({name: overlay.apply(tree, found[name]) for name, tree in merged.items()}, found)


def _validated(merged: dict[str, Tree], found: dict[str, list[Problem]]) -> tuple[dict[str, Recipe], list[Problem]]:
    """Recipes of the merged arms, and every problem once: those ``found`` while merging, and those of validation."""
    recipes: dict[str, Recipe] = {}
    arms_with: dict[Problem, list[str]] = {}
    looked_at: list[str] = []
    for name, tree in merged.items():
        if len(arms_with) > MAX_TOLD:  # each takes a look for near names
            break
        looked_at.append(name)
        mine = list(found[name])
        try:
            recipes[name] = Recipe.model_validate(tree.value)
        except ValidationError as error:
            said = {problem.path for problem in mine}  # what is wrong there already is also missing now
            mine += [each for each in problems(error, tree, recipe_keys(tree.value)) if each.path not in said]
        for problem in dict.fromkeys(mine):
            arms_with.setdefault(problem, []).append(name)
    arms_that_have: dict[tuple[Origin, str], set[str]] = {(one.origin, one.path): set() for one in arms_with}
    for name in looked_at if arms_with else ():
        for where in merged[name].written.values():
            if (where.origin, where.path) in arms_that_have:
                arms_that_have[where.origin, where.path].add(name)
    return recipes, [
        _with_arms(problem, arms, arms_that_have[problem.origin, problem.path]) for problem, arms in arms_with.items()
    ]


def _with_arms(problem: Problem, arms: list[str], all_arms: set[str]) -> Problem:
    """Name the arms of a problem whose value is all right in another arm (of ``all_arms`` that have it)."""
    if all_arms <= set(arms):
        return problem
    listed = ", ".join(map(shown, arms[:3])) + (", ..." if len(arms) > 3 else "")
    return replace(problem, message=f"{problem.message} (in {'arm' if len(arms) == 1 else 'arms'} {listed})")


def _twins(file: StudyFile, tree: Tree, recipes: dict[str, Recipe], variant: str = "") -> list[Problem]:
    """Two arms with one recipe would be the same runs twice, and their difference exactly 0."""
    seen: dict[str, str] = {}
    found: list[Problem] = []
    for name, recipe in recipes.items():
        trained = repr({key: value for key, value in recipe.as_dict().items() if key not in RECORDING_FIELDS})
        twin = seen.setdefault(trained, name)
        if twin == name:
            continue
        if variant:
            message = (
                f"is the same recipe as {shown(twin)} under {shown(variant)}; overlay less, or scale: {{times: 2}}"
            )
        elif not file.arms[name]:
            message = f"states no difference from {shown(twin)}; state one, or remove the arm"
        else:
            message = f"is the same recipe as {shown(twin)}; remove one, or let them differ"
        found.append(Problem(tree.at(("arms", name)).origin, dotted(("arms", name)), message))
    return found
