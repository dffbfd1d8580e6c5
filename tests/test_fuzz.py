"""Ten thousand studies from a grammar: each is a study, or is refused at a place that exists, without delay."""

from __future__ import annotations

import functools
import json
import pickle
import re
import resource
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from cifar_ablate.data import DataSet
from cifar_ablate.device import find_device
from cifar_ablate.errors import AblateError, Problem, StudyError
from cifar_ablate.plan import data_key, fingerprint, load_all_data, make_plan
from cifar_ablate.spec.schema import Recipe, Study
from tests.fuzzing import Case, import_everything
from tests.fuzzing_wild import cases
from tests.timing import assert_read_quickly

MAX_MEGABYTES = 300
"""By which the process may grow over all cases."""
MAX_PLANNED = 40
LINE_ENDS = re.compile("\r\n|[\r\n\x85\u2028\u2029]")


@dataclass
class Tally:
    """What became of the cases."""

    outcomes: Counter[str] = field(default_factory=Counter)
    slowest: list[tuple[float, str]] = field(default_factory=list)
    planned: int = 0

    def __str__(self) -> str:
        num = sum(self.outcomes.values())
        told = ", ".join(f"{name} {count:,}" for name, count in sorted(self.outcomes.items()))
        slow = ", ".join(f"{seconds:.2f} s {what}" for seconds, what in sorted(self.slowest, reverse=True)[:5])
        return f"{num:,} cases: {told}; {self.planned:,} planned; slowest: {slow}"


def steady(num: int) -> settings:
    return settings(
        max_examples=num,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.explicit, Phase.generate],
    )


@pytest.fixture(scope="module")
def images() -> dict[str, DataSet]:
    """Digits, by data key; loaded once."""
    import_everything()
    return {}


@pytest.fixture
def tally() -> Iterator[Tally]:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = Tally()
    begun = time.perf_counter()
    yield found
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(f"\n{found}; {time.perf_counter() - begun:.0f} s; memory grew by {grown:.0f} MB")  # noqa: T201
    assert grown < MAX_MEGABYTES


@functools.lru_cache(maxsize=2)
def lines_of(content: bytes) -> list[str]:
    return LINE_ENDS.split(content.decode("utf-8-sig", "replace"))


def assert_located(problem: Problem, sources: dict[str, bytes | None]) -> None:
    """The problem is one line of print, and its place exists."""
    assert str(problem).isprintable(), problem
    assert 10 < len(str(problem)) < 1000, problem
    assert ";" in problem.message or "must" in problem.message or "is required" in problem.message, problem
    if problem.location.source.startswith("--set "):
        return
    assert problem.location.source in sources, problem
    if problem.location.line is not None:
        lines = lines_of(sources[problem.location.source] or b"")
        assert problem.location.line <= len(lines), problem
        assert problem.location.column is not None
        assert problem.location.column <= len(lines[problem.location.line - 1]) + 1, problem


def read(case: Case, folder: Path, tally: Tally) -> Study | AblateError:
    """The study of a case, or why it is none; anything else that is raised fails the test."""
    path, other = folder / "study.yaml", folder / "profile.yaml"
    path.write_bytes(case.study)
    other.write_bytes(case.profile or b"")
    profile = other if case.profile is not None else None
    answer, seconds = assert_read_quickly(path, profile, tuple(case.settings))
    assert isinstance(answer, Study | AblateError)
    tally.outcomes[f"{case.kind}: {'a study' if isinstance(answer, Study) else 'refused'}"] += 1
    tally.slowest = sorted([*tally.slowest, (seconds, repr(case.study[:40]))], reverse=True)[:5]
    if isinstance(answer, AblateError):
        assert answer.exit_code in (1, 2)
        assert len(str(answer)) > 10
        assert all(line.isprintable() for line in str(answer).splitlines()), answer
    if isinstance(answer, StudyError):
        assert answer.problems
        for problem in answer.problems:
            assert_located(problem, {str(path): case.study, str(other): case.profile})
    return answer


def bare(study: Study) -> Study:
    """Without where its space was written."""
    return replace(study, space=())


def assert_same(one: Study, other: Study | AblateError) -> None:
    assert isinstance(other, Study), other
    assert bare(one) == bare(replace(other, arms=tuple(other.arm(arm.name) for arm in one.arms)))
    spaces = [sorted(((each.name, each.kind, each.entry) for each in study.space), key=str) for study in (one, other)]
    assert [each[:2] for each in spaces[0]] == [each[:2] for each in spaces[1]]
    assert all(any(each == like for like in spaces[1]) for each in spaces[0])
    for arm in one.arms:
        recipe = other.arm(arm.name).recipe
        assert fingerprint(arm.recipe, 0, "fp32", "digits") == fingerprint(recipe, 0, "fp32", "digits")


def assert_round_trip(study: Study, case: Case, folder: Path) -> None:
    """Written down again, in another style, or as the record keeps it, it is the same study."""
    assert case.document is not None
    tally = Tally()
    dumped = json.dumps(case.document, ensure_ascii=False).encode()
    for again in (dumped, case.restyled or dumped):
        assert_same(study, read(replace(case, study=again), folder, tally))
    for arm in study.arms:
        kept = json.loads(json.dumps(arm.recipe.as_dict()))
        frozen = Recipe.model_validate(kept)
        assert frozen == arm.recipe == pickle.loads(pickle.dumps(arm.recipe))
        assert fingerprint(frozen, 7, "bf16", "digits") == fingerprint(arm.recipe, 7, "bf16", "digits")


def is_small(recipe: Recipe) -> bool:
    """Does it take milliseconds to load its images and to build its network?"""
    return recipe.data.name == "digits" and int(recipe.model.kwargs().get("width", 99)) <= 8


def plan_or_say_why(study: Study, images: dict[str, DataSet], tally: Tally) -> None:
    """A valid study on digits has a plan, or a sentence says why it has none."""
    if any(not is_small(arm.recipe) for arm in study.arms):
        return
    wanted = {data_key(arm.recipe) for arm in study.arms}
    try:
        if not wanted <= images.keys():
            images |= load_all_data([study], lambda *_: None)
        plan = make_plan(study, images, find_device("cpu"))
    except AblateError as error:
        why = str(error)
    else:
        why = ""
    if why:
        assert why.isprintable()
        return
    tally.planned += 1
    assert len(plan.runs) == len(study.arms) * len(study.seeds)
    assert len({run.fingerprint for run in plan.runs}) == len(plan.runs)
    assert json.loads(json.dumps(plan.document)) == plan.document


def hold(num: int, folder: Path, images: dict[str, DataSet], tally: Tally) -> None:
    @steady(num)
    @given(cases())
    def every_case(case: Case) -> None:
        answer = read(case, folder, tally)
        if case.kind == "valid":
            assert isinstance(answer, Study), f"{answer}\n{case.study.decode()}"
            assert_round_trip(answer, case, folder)
        if isinstance(answer, Study) and len(answer.arms) <= MAX_PLANNED:
            plan_or_say_why(answer, images, tally)

    every_case()


def test_a_study_is_valid_or_refused_at_its_place_without_delay(
    tmp_path: Path, images: dict[str, DataSet], tally: Tally
) -> None:
    hold(300, tmp_path, images, tally)


@pytest.mark.fuzz
def test_ten_thousand_studies_are_valid_or_refused_at_their_place_without_delay(
    tmp_path: Path, images: dict[str, DataSet], tally: Tally
) -> None:
    hold(10_000, tmp_path, images, tally)


def command_answers(case: Case, folder: Path, tally: Tally) -> None:
    """``cifar-ablate plan FILE`` as a process of its own: a code, a sentence, never a traceback."""
    path = folder / "study.yaml"
    path.write_bytes(case.study)
    command = [sys.executable, "-m", "cifar_ablate.cli", "plan", "study.yaml", "--jobs", "1"]
    if case.profile is not None:
        (folder / "profile.yaml").write_bytes(case.profile)
        command += ["--profile", "profile.yaml"]
    for option in case.settings:
        if "\0" in option or any("\ud800" <= one <= "\udfff" for one in option) or len(option) > 100_000:
            return  # no shell could say it
        command += ["--set", option]
    done = subprocess.run(command, cwd=folder, capture_output=True, timeout=300, check=False)
    said = done.stderr.decode("utf-8", "replace")
    assert done.returncode in (0, 1, 2), said
    assert "Traceback" not in said, said
    assert done.returncode == 0 or said.strip()
    tally.outcomes[f"plan: exit {done.returncode}"] += 1


@pytest.mark.fuzz
def test_the_command_answers_each_study_with_a_code_and_a_sentence(tmp_path: Path, tally: Tally) -> None:
    @steady(36)
    @given(cases().filter(lambda case: len(case.study) < 100_000))
    def every_case(case: Case) -> None:
        command_answers(case, tmp_path, tally)

    every_case()


@given(st.data())
@steady(1)
def test_the_grammar_makes_the_same_cases_again(data: st.DataObject) -> None:
    assert isinstance(data.draw(cases()), Case)
