"""The one-file test: each kind of addition is one new file, and every part of the program knows it at once.

The package is copied to a folder of the test, five files are added to the copy, and nothing in it is edited. Three of
them are the examples of CONTRIBUTING.md.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import cifar_ablate
from tests.conftest import Answer

CONTRIBUTING = (Path(__file__).parent.parent / "CONTRIBUTING.md").read_text(encoding="utf-8")
ADDITIONS = {
    **dict(re.findall(r"```python\n# cifar_ablate/(\S+)\n(.*?)```", CONTRIBUTING, re.DOTALL)),
    "report/formats/outline.py": """
        from cifar_ablate.registry import FORMATS


        @FORMATS.register("outline")
        def outline(report):
            '''One line per arm.'''
            return "".join(
                f"{study.label}/{row.name}: {row.num_finished}\\n" for study in report.studies for row in study.rows
            )
        """,
}

STUDY = """
    study: additions
    question: Do five new files work together?
    seeds: 2
    recipe:
      data: {name: stripes, num: 80}
      model: {name: pixels, hidden: 8}
      epochs: 1
      batch_size: 40
      optimizer: {name: sgd, lr: 0.1}
    arms:
      baseline:
      inverted: {augment: {invert: {p: 0.25}}}
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds a copy of the package with the five files."""
    folder = tmp_path_factory.mktemp("site")
    assert len(ADDITIONS) == 5
    source = Path(cifar_ablate.__file__).parent
    shutil.copytree(source, folder / "cifar_ablate", ignore=shutil.ignore_patterns("__pycache__"))
    for name, text in ADDITIONS.items():
        path = folder / "cifar_ablate" / name
        assert not path.exists()
        path.write_text(textwrap.dedent(text), encoding="utf-8")
    (folder / "study.yaml").write_text(textwrap.dedent(STUDY), encoding="utf-8")
    return folder


def call(site: Path, *command: str) -> Answer:
    environment = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
    done = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=site,
        # the copy of the package comes first; behind it, what the contract tests share
        env=environment
        | {"PYTHONPATH": f"{site}{os.pathsep}{Path(__file__).parent.parent}", "CIFAR_ABLATE_DATA": str(site / "data")},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    return Answer(done.returncode, done.stdout, done.stderr)


@pytest.mark.slow
def test_a_study_uses_all_five(site: Path) -> None:
    ran = call(site, "cifar_ablate.cli", "run", "study.yaml", "--executor", "backwards")
    assert ran.code == 0, ran.err
    ends = [line for line in ran.out.splitlines() if ": test " in line]
    assert [line.split(" seed ")[1][0] for line in ends] == ["1", "1", "0", "0"]
    report = call(site, "cifar_ablate.cli", "report", "--format", "outline")
    assert report.out == "additions/baseline: 2\nadditions/inverted: 2\n", report.err


def test_the_schema_the_help_and_the_list_of_models_know_them(site: Path) -> None:
    schema = json.dumps(json.loads(call(site, "cifar_ablate.cli", "schema").out))
    for name in ("invert", "Invert the colours", "pixels", "hidden", "stripes"):
        assert name in schema
    assert "backwards" in call(site, "cifar_ablate.cli", "run", "--help").out
    assert "outline" in call(site, "cifar_ablate.cli", "report", "--help").out
    assert "Two linear layers on the pixels." in call(site, "cifar_ablate.cli", "models").out


@pytest.mark.slow
def test_their_options_are_checked_like_any_other(site: Path) -> None:
    bad = STUDY.replace("p: 0.25", "p: 2").replace("hidden: 8", "hiden: 8")
    (site / "bad.yaml").write_text(textwrap.dedent(bad), encoding="utf-8")
    answer = call(site, "cifar_ablate.cli", "plan", "bad.yaml")
    assert answer.code == 2
    assert "must be at most 1 (got 2)" in answer.err
    assert "unknown key 'hiden'; did you mean 'hidden'?" in answer.err


@pytest.mark.slow
@pytest.mark.parametrize(("contracts", "name"), [("test_augment.py", "invert"), ("test_models.py", "pixels")])
def test_the_contract_tests_know_them(site: Path, contracts: str, name: str) -> None:
    here = Path(__file__).parent
    answer = call(site, "pytest", str(here / contracts), "-k", name, "-p", "no:cacheprovider", "-c", os.devnull)
    assert answer.code == 0, answer.out
    assert " passed" in answer.out
