"""Studies with looks, as a user runs them: seeds are bought where it is open, whatever happens in between."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.comparing import bits
from tests.conftest import Workshop
from tests.disturbing import Command, said
from tests.looking import ALL, RUN, STUDY, folder_of, recorded, trained, write

FIRST = {key for key in ALL if key[1] < 3}


@pytest.fixture(scope="session")
def undisturbed_looks(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A folder in which the study was run once, without MLflow, and what the command said."""
    folder = tmp_path_factory.mktemp("looks")
    (folder / "looking.yaml").write_text(textwrap.dedent(STUDY), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "cifar_ablate.cli", *RUN, "--offline"],
        cwd=folder,
        env=dict(os.environ),
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    return folder, done.stdout


def continued(workshop: Workshop, undisturbed: tuple[Path, str], *, until: int, without: str = "") -> None:
    """Put into a folder what the study had trained when it had ``until`` seeds, but for runs of one arm."""
    write(workshop)
    shutil.copytree(undisturbed[0] / "mlruns", workshop.folder / "mlruns")
    for arm, seed in ALL:
        if seed >= until or arm == without:
            shutil.rmtree(folder_of(workshop.folder, arm, seed))


@pytest.mark.slow
def test_a_decided_arm_gets_no_more_seeds_and_an_open_one_does(undisturbed_looks: tuple[Path, str]) -> None:
    folder, said = undisturbed_looks
    assert trained(folder) == ALL
    lines = said.splitlines()
    looks = [line for line in lines if line.startswith("looking, look at ")]
    assert len(looks) == 3
    smooth, slow, last = looks
    assert smooth.startswith("looking, look at 3 seeds: smooth against baseline is too close to call (")
    assert smooth.endswith(" Goes on to 5 seeds.")
    assert slow.startswith("looking, look at 3 seeds: slow is worse than baseline by ")
    assert slow.endswith(" Decided.")
    assert last.startswith("looking, look at 5 seeds: smooth ")
    assert last.endswith(" Not decided at the last look.")


@pytest.mark.slow
def test_the_closing_lines_count_every_run_once(undisturbed_looks: tuple[Path, str]) -> None:
    lines = undisturbed_looks[1].splitlines()
    assert "Runs: 9 to train, 0 done before" in lines
    assert "Runs: 4 more to train, 0 done before" in lines
    assert "Runs: 13 finished" in lines
    assert any(line.startswith("[13/13] ") for line in lines)


@pytest.mark.slow
def test_the_same_command_again_says_the_same_and_trains_nothing(
    workshop: Workshop, undisturbed_looks: tuple[Path, str]
) -> None:
    continued(workshop, undisturbed_looks, until=5)
    answer = workshop(*RUN, "--offline")
    assert answer.code == 0
    said = [line for line in undisturbed_looks[1].splitlines() if ", look at " in line]
    assert [line for line in answer.out.splitlines() if ", look at " in line] == said
    assert trained(workshop.folder) == ALL


@pytest.mark.slow
def test_results_in_folders_are_recorded_and_decide(workshop: Workshop, undisturbed_looks: tuple[Path, str]) -> None:
    continued(workshop, undisturbed_looks, until=3)
    answer = workshop(*RUN)
    assert answer.code == 0
    assert "9 trained before, now recorded" in answer.out
    assert recorded() == trained(workshop.folder) == ALL


@pytest.mark.slow
def test_the_record_decides_where_the_folders_are_gone(workshop: Workshop, undisturbed_looks: tuple[Path, str]) -> None:
    continued(workshop, undisturbed_looks, until=3)
    assert workshop(*RUN, "--seed", "0", "--seed", "1", "--seed", "2").code == 0
    shutil.rmtree(workshop.folder / "mlruns" / "runs")
    answer = workshop(*RUN, "--jobs", "2")
    assert answer.code == 0
    assert "9 skipped as done" in answer.out
    assert trained(workshop.folder) == ALL - FIRST
    assert recorded() == ALL


@pytest.mark.slow
def test_a_command_killed_between_two_looks_is_continued_to_the_same_bits(
    workshop: Workshop, undisturbed_looks: tuple[Path, str]
) -> None:
    continued(workshop, undisturbed_looks, until=3, without="slow")
    command = Command(workshop.folder, *RUN)
    try:
        command.wait_for("Goes on to 5 seeds")
        command.send(signal.SIGKILL, to_group=True)
        command.end()
    finally:
        command.clear_away()
    assert trained(workshop.folder) != ALL
    answer = workshop(*RUN)
    assert answer.code == 0
    assert recorded() == ALL
    assert bits(workshop.folder) == bits(undisturbed_looks[0])


@pytest.mark.slow
def test_a_command_that_is_interrupted_says_which_look_waits(
    workshop: Workshop, undisturbed_looks: tuple[Path, str]
) -> None:
    continued(workshop, undisturbed_looks, until=3, without="slow")
    command = Command(workshop.folder, *RUN, "--offline")
    try:
        command.wait_for(r"slow seed 0")
        command.send(signal.SIGTERM, to_group=False)
        assert command.end() == 130
    finally:
        command.clear_away()
    assert "looking: the look at 3 seeds waits for" in command.said
    assert "look at 3 seeds: smooth" not in command.said


@pytest.mark.slow
def test_two_commands_divide_a_study_with_looks(workshop: Workshop, undisturbed_looks: tuple[Path, str]) -> None:
    continued(workshop, undisturbed_looks, until=3, without="smooth")
    commands = [Command(workshop.folder, *RUN) for _ in range(2)]
    try:
        codes = [command.end() for command in commands]
    finally:
        for command in commands:
            command.clear_away()
    assert codes == [0, 0], said(commands)
    assert recorded() == trained(workshop.folder) == ALL
    assert bits(workshop.folder) == bits(undisturbed_looks[0])


@pytest.mark.slow
def test_a_failed_run_holds_the_look_until_it_is_tried_again(
    workshop: Workshop, undisturbed_looks: tuple[Path, str]
) -> None:
    continued(workshop, undisturbed_looks, until=3)
    folder = folder_of(workshop.folder, "smooth", 1)
    result = json.loads((folder / "result.json").read_text())
    failed = result | {"status": "failed", "metrics": {}, "reason": "the power was cut"}
    (folder / "result.json").write_text(json.dumps(failed))
    answer = workshop(*RUN, "--offline")
    assert answer.code == 1
    waits = "looking: the look at 3 seeds waits for 1 run: smooth seed 1 (failed); the same command goes on then."
    assert waits in answer.out.splitlines()
    assert trained(workshop.folder) == FIRST
    assert workshop(*RUN, "--offline", "--retry", "failed").code == 0
    assert bits(workshop.folder) == bits(undisturbed_looks[0])


def test_a_run_left_out_holds_the_look(workshop: Workshop, undisturbed_looks: tuple[Path, str]) -> None:
    continued(workshop, undisturbed_looks, until=2)
    answer = workshop(*RUN, "--offline", "--arm", "slow")
    assert answer.code == 0
    waits = (
        "waits for 2 runs: baseline seed 2 (left out by --arm or --seed), smooth seed 2 (left out by --arm or --seed)"
    )
    assert f"looking: the look at 3 seeds {waits}; without --arm and --seed it gets them." in answer.out
    assert trained(workshop.folder) == {key for key in ALL if key[1] < 2} | {("slow", 2)}


@pytest.mark.parametrize(
    ("until", "options", "says"),
    [
        (2, ("--seed", "4"), "--seed 4: no look has asked for such a run: looking waits for its look at 3 seeds, and"),
        (3, ("--arm", "slow", "--seed", "4"), "--arm slow: no look has asked for such a run: looking waits for its"),
        (5, ("--arm", "slow", "--seed", "3"), "all that looking compares is decided, or its last look was taken"),
    ],
)
def test_a_run_that_no_look_has_asked_for_cannot_be_chosen(
    workshop: Workshop, undisturbed_looks: tuple[Path, str], until: int, options: tuple[str, ...], says: str
) -> None:
    continued(workshop, undisturbed_looks, until=until)
    answer = workshop(*RUN, "--offline", *options)
    assert answer.code == 2
    assert says in answer.err
    assert "leave --" in answer.err
    assert trained(workshop.folder) == {key for key in ALL if key[1] < until}


@pytest.mark.slow
def test_a_diverged_arm_is_decided(workshop: Workshop, undisturbed_looks: tuple[Path, str]) -> None:
    continued(workshop, undisturbed_looks, until=3, without="smooth")
    workshop.write("looking.yaml", STUDY.replace("{label_smoothing: 0.05}}", "{}, optimizer: {lr: 1.0e30}}"))
    answer = workshop(*RUN, "--offline")
    assert answer.code == 0
    (said,) = [line for line in answer.out.splitlines() if "runs of smooth diverged, " in line]
    assert said.startswith("looking, look at 3 seeds: 3 of 3 (")
    assert said.endswith(" Closed: a run diverged, and more seeds give no verdict.")
    assert {seed for arm, seed in trained(workshop.folder) if arm == "smooth"} == {0, 1, 2}


def test_an_arm_with_a_parent_of_its_own_is_compared_with_that_too(
    workshop: Workshop, undisturbed_looks: tuple[Path, str]
) -> None:
    continued(workshop, undisturbed_looks, until=3)
    workshop.write("looking.yaml", STUDY.replace("slow: {", "slow: {from: smooth, loss: {label_smoothing: 0.0}, "))
    said = workshop(*RUN, "--offline", "--seed", "0").out.splitlines()  # the same recipes, so all is there
    assert any("look at 3 seeds: slow is worse than baseline by" in line for line in said)
    (other,) = [line for line in said if "look at 3 seeds: slow against smooth: " in line]
    assert other.endswith(", provisional: too few seeds for a verdict. Goes on to 5 seeds.")


def test_a_study_with_one_arm_has_nothing_to_decide(workshop: Workshop) -> None:
    alone = STUDY[: STUDY.index("      smooth:")]
    write(workshop, alone.replace("epochs: 3", "epochs: 1"))
    assert workshop(*RUN, "--offline").code == 0
    assert trained(workshop.folder) == {("baseline", seed) for seed in range(3)}


@pytest.mark.slow
def test_looks_can_be_set_and_leave_fingerprints_as_they_are(
    workshop: Workshop, undisturbed_looks: tuple[Path, str]
) -> None:
    continued(workshop, undisturbed_looks, until=5)
    workshop.write("looking.yaml", STUDY.replace("{looks: [3, 5]}", "2"))
    answer = workshop(*RUN, "--offline", "--set", "seeds={looks: [3, 4]}")
    assert answer.code == 0
    assert "looking@seeds={looks: [3, 4]}, look at 4 seeds: smooth" in answer.out
    assert "Runs: 11 trained before" in answer.out


def test_plan_shows_what_is_asked_for_apart_from_what_may_be(
    workshop: Workshop, undisturbed_looks: tuple[Path, str]
) -> None:
    continued(workshop, undisturbed_looks, until=2)
    said = workshop("plan", "looking.yaml").out
    assert said.count("if open after the look at 3 seeds") == 6
    assert re.search(r"9 runs: 6 done, 0 failed, 3 to do, about \d+:\d\d on .*; at most 6 more, about \d+:\d\d,", said)


def test_plan_shows_what_a_decision_has_spared(workshop: Workshop, undisturbed_looks: tuple[Path, str]) -> None:
    continued(workshop, undisturbed_looks, until=5)
    said = workshop("plan", "looking.yaml").out
    assert said.count("not needed: decided with fewer seeds") == 2
    assert "13 runs: 13 done, 0 failed, 0 to do" in said
    assert said.rstrip().endswith("; 2 not needed")
