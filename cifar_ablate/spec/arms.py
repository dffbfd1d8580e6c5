"""Names in a study, and which arm each arm differs from."""

from __future__ import annotations

from cifar_ablate.errors import Problem, suggest
from cifar_ablate.spec.component import shown
from cifar_ablate.spec.schema import StudyFile
from cifar_ablate.spec.text import Path_, Tree, dotted

MAX_ARM_NAME = 80


def name_problems(file: StudyFile, tree: Tree) -> list[Problem]:
    """What is wrong with the names of arms and with what refers to them."""
    found: list[Problem] = []

    def complain(path: Path_, message: str) -> None:
        found.append(Problem(tree.at(path).origin, dotted(path), message))

    if file.baseline not in file.arms:
        arms = suggest(file.baseline, file.arms)
        missing = "is required, since no arm is called 'baseline'" if "baseline" not in tree.value else ""
        complain(("baseline",), (missing or f"there is no arm {shown(file.baseline)}") + arms)
    for name in file.arms:
        if not 1 <= len(name) <= MAX_ARM_NAME or name != name.strip() or not name.isprintable():
            message = f"must be a name of 1 to {MAX_ARM_NAME} printable characters, with no space at its ends"
            complain(("arms", name), message)
        wrong = _wrong_parent(file, name)
        if wrong:
            complain(("arms", name, "from"), wrong)
    for name in file.published:
        if name not in file.arms:
            complain(("published", name), f"there is no arm {shown(name)}{suggest(name, file.arms)}")
    for name in file.tuned.arms if file.tuned is not None else ():
        if name not in file.arms:
            complain(("tuned", "arms", name), f"there is no arm {shown(name)}{suggest(name, file.arms)}")
    return found


def lineage(file: StudyFile, name: str) -> list[str]:
    """The arms that ``name`` is built from, itself last; [] where one of them is missing or goes round in a circle."""
    chain: list[str] = []
    parent: object = name
    while parent is not None:
        if not isinstance(parent, str) or parent not in file.arms or parent in chain:
            return []
        chain.append(parent)
        parent = _parent(file, parent)
    return chain[::-1]


def _parent(file: StudyFile, name: str) -> object:
    default = None if name == file.baseline else file.baseline
    return (file.arms[name] or {}).get("from", default)


def _wrong_parent(file: StudyFile, name: str) -> str:
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
        return f"there is no arm {shown(parent)}{suggest(parent, [arm for arm in file.arms if arm != name])}"
    circle = _circle(file, name)
    if circle and circle[0] == min(circle, key=list(file.arms).index):  # said once, at its first arm
        return f"goes round in a circle: {' -> '.join([*circle, name])}; let one of them differ from the baseline"
    return ""


def _circle(file: StudyFile, name: str) -> list[str]:
    """The arms from ``name`` back to itself, [] where it does not come back."""
    chain, parent = [name], _parent(file, name)
    while isinstance(parent, str) and parent in file.arms and parent not in chain:
        chain.append(parent)
        parent = _parent(file, parent)
    return chain if parent == name else []
