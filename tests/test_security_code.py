"""What the code never does, found by walking its syntax: foreign bytes are never run, and no shell reads a name."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted([*(ROOT / "cifar_ablate").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")])

RUNS_WHAT_IT_READS = frozenset(
    {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib", "jsonpickle", "pickletools"}
)
"""Modules whose readers run code that is in what they read."""
FOREIGN_XML = frozenset({"xml", "lxml", "plistlib"})
"""Parsers that may expand entities without end or fetch them."""
NEVER = frozenset(
    {
        *("builtins.eval", "builtins.exec", "builtins.compile", "builtins.__import__"),
        *("os.system", "os.popen", "tempfile.mktemp", "subprocess.getoutput", "subprocess.getstatusoutput"),
        *("pandas.read_pickle", "pandas.read_hdf", "pandas.eval", "pandas.read_xml"),
        *("yaml.load", "yaml.load_all", "yaml.full_load", "yaml.unsafe_load", "yaml.UnsafeLoader", "yaml.FullLoader"),
        *("yaml.Loader", "yaml.CLoader"),
        *("torch.package", "torch.jit.load", "torch.hub.load", "torch.hub.load_state_dict_from_url"),
        *("numpy.fromregex", "shutil.unpack_archive", "onnxscript.eval"),
        *("mlflow.pytorch.load_model", "mlflow.pyfunc.load_model", "mlflow.sklearn.load_model"),
    }
)
"""Names that stand nowhere, called or not."""
ONLY_WITH = {"torch.load": ("weights_only", True), "numpy.load": ("allow_pickle", False)}
"""Calls that are safe with one argument, which must be written out."""
NEVER_WITH = {"shell": True, "allow_pickle": True, "weights_only": False, "pretrained": True, "trust_remote_code": True}
NEVER_CALLED = frozenset({"extractall", "extract", "read_pickle", "memmap"})
"""Methods: archives are read from the stream, and nothing is extracted."""

EXCEPTIONS = {
    ("cifar_ablate/data/cifar.py", "pickle"): (
        "the official CIFAR archives hold pickles: read after their MD5 was found right, by a reader that can build "
        "arrays, containers, strings and numbers, and refuses every other name before it is imported"
    ),
    ("cifar_ablate/report/figures.py", "xml"): (
        "the SVG that matplotlib has just drawn is read to make it smaller; texts of others are escaped in it"
    ),
}
"""All that is allowed beside the rules, with the reason. That multiprocessing and Ray pickle what they pass between
processes of one command is no line of ours, and so no exception here: docs/security.md says what follows from it."""


def aliases(tree: ast.AST) -> dict[str, str]:
    """The full name behind each name that a file imports: ``np`` is ``numpy``."""
    found: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                found[alias.asname or alias.name.partition(".")[0]] = (
                    alias.name if alias.asname else alias.name.partition(".")[0]
                )
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    return found


def own_names(tree: ast.AST) -> set[str]:
    """Arguments and variables, which may be called as a builtin is."""
    arguments = {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
    fields = {
        node.target.id
        for node in ast.walk(tree)
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }
    return (arguments | fields) - RUNS_WHAT_IT_READS


def full_name(node: ast.AST, known: dict[str, str]) -> str:
    """``numpy.load`` for ``np.load``, ``builtins.eval`` for ``eval``; empty for what is no dotted name."""
    if isinstance(node, ast.Name):
        return known.get(node.id, f"builtins.{node.id}")
    if isinstance(node, ast.Attribute):
        before = full_name(node.value, known)
        return f"{before}.{node.attr}" if before else ""
    return ""


def unsafe(text: str) -> Iterator[tuple[int, str]]:
    """Line and name of whatever breaks the rules in a source text."""
    tree = ast.parse(text)
    known = aliases(tree) | dict.fromkeys(own_names(tree), "")
    for node in ast.walk(tree):
        line = getattr(node, "lineno", 0)
        if isinstance(node, ast.Import | ast.ImportFrom):
            modules = [alias.name for alias in node.names]
            if isinstance(node, ast.ImportFrom):
                modules = [f"{node.module or ''}.{name}" for name in modules]
            for module in modules:
                first = module.partition(".")[0]
                if first in RUNS_WHAT_IT_READS | FOREIGN_XML or module.startswith("multiprocessing.reduction"):
                    yield line, first
                if module in NEVER:
                    yield line, module
        elif isinstance(node, ast.Attribute | ast.Name):
            name = full_name(node, known)
            if name in NEVER:
                yield line, name
        elif isinstance(node, ast.Call):
            name = full_name(node.func, known)
            given = {word.arg: word.value.value for word in node.keywords if isinstance(word.value, ast.Constant)}
            wanted = ONLY_WITH.get(name)
            if wanted is not None and given.get(wanted[0]) is not wanted[1]:
                yield line, f"{name} without {wanted[0]}={wanted[1]}"
            yield from ((line, f"{word}={value}") for word, value in NEVER_WITH.items() if given.get(word) is value)
            if isinstance(node.func, ast.Attribute) and node.func.attr in NEVER_CALLED:
                yield line, f".{node.func.attr}()"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_nothing_that_is_read_is_run(path: Path) -> None:
    place = path.relative_to(ROOT).as_posix()
    found = [(line, what) for line, what in unsafe(path.read_text(encoding="utf-8")) if (place, what) not in EXCEPTIONS]
    assert not found, f"{place}: {found}; mend it, or enter it in EXCEPTIONS with its reason"


@pytest.mark.parametrize(("place", "what"), EXCEPTIONS)
def test_an_exception_that_nobody_needs_any_more_is_taken_out(place: str, what: str) -> None:
    assert what in [found for _, found in unsafe((ROOT / place).read_text(encoding="utf-8"))]


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("import pickle", "pickle"),
        ("from pickle import loads as read", "pickle"),
        ("def f():\n    import joblib", "joblib"),
        ("import numpy as np\nnp.load(path)", "numpy.load without allow_pickle=False"),
        ("from numpy import load\nload(path, allow_pickle=pickled)", "numpy.load without allow_pickle=False"),
        ("import torch\ntorch.load(path, map_location='cpu')", "torch.load without weights_only=True"),
        ("import torch as t\nread = t.jit.load", "torch.jit.load"),
        ("import yaml\nyaml.load(text, Loader=yaml.SafeLoader)", "yaml.load"),
        ("from yaml import unsafe_load", "yaml.unsafe_load"),
        ("import subprocess\nsubprocess.run(text, shell=True)", "shell=True"),
        ("from os import system\nsystem(text)", "os.system"),
        ("x = eval(text)", "builtins.eval"),
        ("run = exec", "builtins.exec"),
        ("import tempfile\ntempfile.mktemp()", "tempfile.mktemp"),
        ("import pandas as pd\npd.read_pickle(path)", "pandas.read_pickle"),
        ("import xml.etree.ElementTree as ET", "xml"),
        ("create_model(name, pretrained=True)", "pretrained=True"),
        ("with tarfile.open(path) as archive:\n    archive.extractall(place)", ".extractall()"),
    ],
)
def test_the_search_finds_what_it_looks_for(text: str, what: str) -> None:
    assert what in [found for _, found in unsafe(text)]


@pytest.mark.parametrize(
    "text",
    [
        "import numpy as np\nnp.load(path, allow_pickle=False)",
        "import torch\ntorch.load(path, weights_only=True)",
        "import yaml\nyaml.safe_load(text)",
        "import re\nre.compile(pattern)",
        "import torch\ntorch.compile(model)",
        "model.eval()",
        "subprocess.run(['git', 'status'])",
    ],
)
def test_the_search_lets_pass_what_is_safe(text: str) -> None:
    assert not list(unsafe(text))
