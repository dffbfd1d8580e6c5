"""Names in a study, and which arm each arm differs from."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from cifar_ablate.errors import Problem, short, suggest
from cifar_ablate.spec.component import shown
from cifar_ablate.spec.schema import StudyFile
from cifar_ablate.spec.text import Path_, Tree, dotted

MAX_ARM_NAME = 80
MAX_NEAR = 20
"""Names of one file for which a near one is looked for."""


def name_problems(file: StudyFile, tree: Tree) -> list[Problem]:
    """What is wrong with the names of arms and with what refers to them."""
    found: list[Problem] = []

    circles = _circles(file)

    def complain(path: Path_, message: str) -> None:
        found.append(Problem(tree.at(path).origin, dotted(path), message))

    def no_arm(name: str, others: Iterable[str]) -> str:
        near = suggest(name, others) if len(found) < MAX_NEAR else ""  # one of a thousand is looked for in 10 ms
        return f"there is no arm {shown(name)}{near or '; name one that there is'}"

    if file.baseline not in file.arms:
        missing = f"is required, since no arm is called 'baseline'{suggest(file.baseline, file.arms)}"
        complain(("baseline",), no_arm(file.baseline, file.arms) if "baseline" in tree.value else missing)
    for name in file.arms:
        if not 1 <= len(name) <= MAX_ARM_NAME or name != name.strip() or not name.isprintable():
            message = f"must be a name of 1 to {MAX_ARM_NAME} printable characters, with no space at its ends"
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


def lineage(file: StudyFile, name: str) -> list[str]:
    """The arms that ``name`` is built from, itself last; [] where one of them is missing or goes round in a circle."""
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
    if name in circles:  # said once, at its first arm
        first = [short(arm) for arm in circles[name][:5]] + (["..."] if len(circles[name]) > 5 else [])
        return f"goes round in a circle: {' -> '.join([*first, name])}; let one of them differ from the baseline"
    return ""


def _circles(file: StudyFile) -> dict[str, list[str]]:
    """Every circle of arms, from the arm that the file names first, by this arm; each arm is walked over once."""
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
