"""The shape of the program: its size, long functions, names that stand twice, imports between rooms, circles of files.

python -m benchmarks.house [FOLDER]        # of this checkout, or of another one
"""

from __future__ import annotations

import argparse
import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

LONG = 60
"""Lines from which a function counts as long."""


def functions(tree: ast.Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def imports(tree: ast.Module, modules: set[str]) -> set[str]:
    """Modules of ours that a file imports anywhere, also inside functions and for types alone."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found & modules


def circles(graph: dict[str, set[str]]) -> list[set[str]]:
    """Sets of modules that import each other, directly or by others, by reachability."""

    def reached(start: str) -> set[str]:
        seen, waiting = set(), [start]
        while waiting:
            for each in graph[waiting.pop()] - seen:
                seen.add(each)
                waiting.append(each)
        return seen

    all_reached = {module: reached(module) for module in graph}
    found: list[set[str]] = []
    for module, others in all_reached.items():
        circle = {other for other in others if module in all_reached[other]}
        if module in circle and len(circle) > 1 and circle not in found:
            found.append(circle)
    return found


def modules_in(root: Path) -> dict[str, ast.Module]:
    """Every module of the package, parsed."""
    return {
        ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): ast.parse(path.read_text())
        for path in sorted((root / "cifar_ablate").rglob("*.py"))
    }


def import_graph(trees: dict[str, ast.Module]) -> dict[str, set[str]]:
    """Modules of the package that each module imports."""
    return {name: imports(tree, set(trees)) - {name, "cifar_ablate"} for name, tree in trees.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=Path(__file__).parent.parent)
    root = parser.parse_args().folder
    for part in ("cifar_ablate", "tests", "benchmarks"):
        files = list((root / part).rglob("*.py"))
        print(f"{part}: {len(files)} files, {sum(len(path.read_text().splitlines()) for path in files):,} lines")

    trees = modules_in(root)
    short = sum(len(ast.unparse(tree).splitlines()) < LONG for tree in trees.values())
    print(f"\nfiles under {LONG} lines of code, without comments: {short}")
    lengths = {
        f"{name}.{f.name}": (f.end_lineno or 0) - f.lineno + 1 for name, t in trees.items() for f in functions(t)
    }
    long = {name: length for name, length in lengths.items() if length > LONG}
    print(f"functions over {LONG} lines: {len(long)} of {len(lengths):,}", *long)

    classes = defaultdict(list)
    for name, tree in trees.items():
        for node in tree.body:
            if isinstance(node, ast.ClassDef):
                classes[node.name].append(name.removeprefix("cifar_ablate."))
    twice = {name: places for name, places in sorted(classes.items()) if len(places) > 1}
    print(f"classes that share a name: {sum(map(len, twice.values()))} of {sum(map(len, classes.values()))}")
    for name, places in twice.items():
        print(f"  {name}: {', '.join(places)}")

    graph = import_graph(trees)
    rooms = {name: [*name.split("."), ""][1] for name in trees}
    between = {(rooms[name], rooms[other]) for name, others in graph.items() for other in others} - {
        (room, room) for room in rooms.values()
    }
    print(f"\nimports between rooms: {len(between)} pairs of {len(set(rooms.values()))} rooms")
    mutual = sorted({tuple(sorted(pair)) for pair in between if pair[::-1] in between})
    print("rooms that import each other:", ", ".join(" and ".join(pair) for pair in mutual) or "none")
    print("circles of files:")
    for circle in circles(graph):
        print(f"  {', '.join(sorted(name.removeprefix('cifar_ablate.') for name in circle))}")


if __name__ == "__main__":
    main()
