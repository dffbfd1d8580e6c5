"""Load a study: read its YAML, check names, merge each arm's layers, apply the overlay, and validate."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from pydantic import ValidationError

from cifar_ablate.errors import MAX_PROBLEMS, Location, Problem, StudyError, short, suggest
from cifar_ablate.spec.component import shown
from cifar_ablate.spec.delta import merge
from cifar_ablate.spec.messages import in_file_order, problems, recipe_keys, study_keys
from cifar_ablate.spec.overlay import Overlay
from cifar_ablate.spec.schema import RECORDING_FIELDS, Arm, Parameter, Published, Recipe, Study, StudyFile, seeds_of
from cifar_ablate.spec.space import read_space
from cifar_ablate.spec.text import MAX_NODES, Path_, Tree, dotted, read_yaml

MAX_ARM_NAME = 80
"""Maximum length of an arm's name."""
MAX_SUGGESTIONS = 10
"""Maximum number of unknown arm names with a suggestion: in a study of 3,000 arms each takes 50 ms."""
EXAMPLE = "study: NAME, question: ..., recipe: {...}, arms: {...}"


def load_studies(paths: Sequence[Path], overlay: Overlay | None = None) -> list[Study]:
    """All studies of a command line; raises StudyError with the problems of all files."""
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
            found.append(Problem(read_yaml(path).at(("study",)).location, "study", message))
        studies[study.name] = (study, path)
    if found:
        raise StudyError(found)
    return [study for study, _ in studies.values()]


def load_study(path: Path, overlay: Overlay | None = None) -> Study:
    """One study, resolved and validated; raises StudyError with every problem in it, in file order."""
    overlay = overlay or Overlay()
    tree = read_yaml(path)
    file, found = _top_level(tree)
    if file is None:
        raise StudyError(in_file_order(found))
    found += _name_problems(file, tree)
    merged, recipes, more = _resolve(file, tree)
    found += more or _twins(file, tree, recipes)
    space: tuple[Parameter, ...] = ()
    if file.tune is not None and not more:
        space, wrong = read_space(file.tune, tree.sub("tune"), recipes)
        found += wrong
    if found:  # before the overlay, which must not hide a mistake
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
    """The path relative to the current folder; only the name of a file outside of it."""
    here = Path.cwd()
    full = (here / path).absolute()
    return full.relative_to(here).as_posix() if full.is_relative_to(here) else path.name


def _top_level(tree: Tree) -> tuple[StudyFile | None, list[Problem]]:
    """The top level without its invalid parts, if the arms can still be checked, else None; and its problems."""
    if not isinstance(tree.value, dict):
        message = f"{'is empty' if tree.value is None else 'is not a study'}; a study is a mapping: {EXAMPLE}"
        return None, [Problem(tree.at(()).location, "", message)]
    if "profile" in tree.value and "arms" not in tree.value:
        where = tree.at(("profile",))
        return None, [Problem(where.location, where.path, "is for profiles; give this file as --profile FILE")]
    try:
        return StudyFile.model_validate(tree.value), []
    except ValidationError as error:
        found = problems(error, tree, study_keys(tree.value), top=True)
        wrong = {str(detail["loc"][0]) for detail in error.errors(include_url=False)}
    if wrong & {"recipe", "baseline", "arms"}:
        return None, found
    sound = {key: value for key, value in tree.value.items() if key not in wrong}
    return StudyFile.model_validate({"study": "unnamed", "question": "none", **sound}), found


def _resolve(file: StudyFile, tree: Tree) -> tuple[dict[str, Tree], dict[str, Recipe], list[Problem]]:
    """The merged values and the recipe of each valid arm, and the problems of the others."""
    deltas = tree.sub("arms").parts()
    shared_problems: list[Problem] = []
    shared = merge(Tree({}), tree.sub("recipe"), shared_problems)
    layers: dict[str, tuple[Tree, list[Problem]]] = {}

    merged: dict[str, Tree] = {}
    found: dict[str, list[Problem]] = {}
    num_values = 0
    for arm in file.arms:
        chain = _lineage(file, arm)
        known = next((place for place in range(len(chain), 0, -1) if chain[place - 1] in layers), 0)
        below, inherited = layers[chain[known - 1]] if known else (shared, shared_problems)
        for name in chain[known:]:
            delta, mine = deltas[name], list(inherited)
            plain = {key: value for key, value in delta.value.items() if key != "from"}
            below, inherited = layers[name] = merge(below, Tree(plain, delta.written), mine), mine
            num_values += len(below.written)
            if num_values > MAX_NODES:
                where = tree.at(("arms", name))
                message = (
                    f"with this arm, the merged arms have over {MAX_NODES:,} values; remove what is no field of a "
                    "recipe, or divide the study"
                )
                return {}, {}, [Problem(where.location, where.path, message)]
        if chain:
            merged[arm], found[arm] = below, inherited
    return (merged, *_validated(merged, found))


def _overlaid(merged: dict[str, Tree], overlay: Overlay) -> tuple[dict[str, Recipe], list[Problem]]:
    found: dict[str, list[Problem]] = {name: [] for name in merged}
    return _validated({name: overlay.apply(tree, found[name]) for name, tree in merged.items()}, found)


def _validated(merged: dict[str, Tree], found: dict[str, list[Problem]]) -> tuple[dict[str, Recipe], list[Problem]]:
    """Recipes of the merged arms, and each problem once: those ``found`` while merging and those of validation."""
    recipes: dict[str, Recipe] = {}
    arms_with: dict[Problem, list[str]] = {}
    checked: list[str] = []
    for name, tree in merged.items():
        if len(arms_with) > MAX_PROBLEMS:
            break
        checked.append(name)
        mine = list(found[name])
        try:
            recipes[name] = Recipe.model_validate(tree.value)
        except ValidationError as error:
            reported = {problem.path for problem in mine}  # a value that did not merge is also missing
            mine += [each for each in problems(error, tree, recipe_keys(tree.value)) if each.path not in reported]
        for problem in dict.fromkeys(mine):
            arms_with.setdefault(problem, []).append(name)
    arms_that_have: dict[tuple[Location, str], set[str]] = {(one.location, one.path): set() for one in arms_with}
    for name in checked if arms_with else ():
        for where in merged[name].written.values():
            if (where.location, where.path) in arms_that_have:
                arms_that_have[where.location, where.path].add(name)
    return recipes, [
        _with_arms(problem, arms, arms_that_have[problem.location, problem.path]) for problem, arms in arms_with.items()
    ]


def _with_arms(problem: Problem, arms: list[str], all_arms: set[str]) -> Problem:
    """The problem, with its arms named if the value is valid in another of ``all_arms`` that have it."""
    if all_arms <= set(arms):
        return problem
    listed = ", ".join(map(shown, arms[:3])) + (", ..." if len(arms) > 3 else "")
    return replace(problem, message=f"{problem.message} (in {'arm' if len(arms) == 1 else 'arms'} {listed})")


def _twins(file: StudyFile, tree: Tree, recipes: dict[str, Recipe], variant: str = "") -> list[Problem]:
    """Arms with equal recipes: their runs would be the same, and their difference exactly 0."""
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
            message = f"is the same recipe as {shown(twin)}; remove one, or change one of them"
        found.append(Problem(tree.at(("arms", name)).location, dotted(("arms", name)), message))
    return found


# ---- names of arms


def _name_problems(file: StudyFile, tree: Tree) -> list[Problem]:
    """Invalid names of arms, and references to arms that do not exist."""
    found: list[Problem] = []
    circles = _circles(file)

    def complain(path: Path_, message: str) -> None:
        found.append(Problem(tree.at(path).location, dotted(path), message))

    def no_arm(name: str, others: Iterable[str]) -> str:
        near = suggest(name, others) if len(found) < MAX_SUGGESTIONS else ""
        return f"there is no arm {shown(name)}{near or '; name one that exists'}"

    if file.baseline not in file.arms:
        missing = f"is required, since no arm is called 'baseline'{suggest(file.baseline, file.arms)}"
        complain(("baseline",), no_arm(file.baseline, file.arms) if "baseline" in tree.value else missing)
    for name in file.arms:
        if not 1 <= len(name) <= MAX_ARM_NAME or name != name.strip() or not name.isprintable():
            message = f"must be a name of 1 to {MAX_ARM_NAME} printable characters, without spaces at its ends"
            complain(("arms", name), message)
        wrong = _wrong_parent(file, name, circles, no_arm)
        if wrong:
            complain(("arms", name, "from"), wrong)
    for name in file.published:
        if name not in file.arms:
            complain(("published", name), no_arm(name, file.arms))
    for name in file.tuned.arms if file.tuned is not None else ():
        if name not in file.arms:
            complain(("tuned", "arms", name), no_arm(name, file.arms))
    return found


def _lineage(file: StudyFile, name: str) -> list[str]:
    """The arms that ``name`` is built from, itself last; [] if one is missing or they form a circle."""
    chain: dict[str, None] = {}
    parent: object = name
    while parent is not None:
        if not isinstance(parent, str) or parent not in file.arms or parent in chain:
            return []
        chain[parent] = None
        parent = _parent(file, parent)
    return list(chain)[::-1]


def _parent(file: StudyFile, name: str) -> object:
    default = None if name == file.baseline else file.baseline
    return (file.arms[name] or {}).get("from", default)


def _wrong_parent(
    file: StudyFile, name: str, circles: Mapping[str, Sequence[str]], no_arm: Callable[[str, Iterable[str]], str]
) -> str:
    delta = file.arms[name] or {}
    if "from" not in delta:
        return ""
    parent = delta["from"]
    if name == file.baseline:
        return "the baseline differs from no arm; remove this, and write the baseline's own values"
    if not isinstance(parent, str):
        cure = "put it in quotes" if isinstance(parent, int | float) else "remove it to differ from the baseline"
        return f"must be the name of an arm (got {shown(parent)}); {cure}"
    if parent not in file.arms:
        return no_arm(parent, (arm for arm in file.arms if arm != name))
    if name in circles:  # reported once, at its first arm
        first = [short(arm) for arm in circles[name][:5]] + (["..."] if len(circles[name]) > 5 else [])
        return f"forms a circle: {' -> '.join([*first, name])}; let one of them differ from the baseline"
    return ""


def _circles(file: StudyFile) -> dict[str, list[str]]:
    """Circles of arms by their first arm in the file; each arm is visited once."""
    place = {name: number for number, name in enumerate(file.arms)}
    seen: set[object] = set()
    circles: dict[str, list[str]] = {}
    for name in file.arms:
        walk: dict[str, int] = {}
        here: object = name
        while isinstance(here, str) and here in file.arms and here not in seen:
            walk[here] = len(walk)
            seen.add(here)
            here = _parent(file, here)
        if isinstance(here, str) and here in walk:
            circle = list(walk)[walk[here] :]
            first = circle.index(min(circle, key=place.__getitem__))
            circles[circle[first]] = circle[first:] + circle[:first]
    return circles
