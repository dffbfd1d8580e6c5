"""Several commands and several workers at one study: each run is trained once, and no bit depends on who trains it."""

from __future__ import annotations

import os
import re
import shutil
import signal
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from cifar_ablate.device import Device, Slot
from cifar_ablate.errors import DeviceError
from cifar_ablate.runner.events import Ended, Noted, RunEvent, RunEvents
from cifar_ablate.runner.workers import train_in_workers
from tests.comparing import bits, runs_of, snapshot
from tests.conftest import Tried, Workshop
from tests.disturbing import (
    NUM_RUNS,
    ONE_RUN,
    RUN,
    STUDY,
    Begin,
    Command,
    Undisturbed,
    assert_undisturbed,
    epochs_kept,
    gone_within,
    starts,
    statuses,
    wait_until,
)

pytestmark = pytest.mark.faults


# ------------------------------------------------------------------------------------------- several commands


@pytest.mark.parametrize("num", [2, 8])
def test_commands_that_start_together_on_a_fresh_folder_divide_the_work_and_train_nothing_twice(
    workshop: Workshop, begin: Begin, undisturbed: Undisturbed, tried: Tried, num: int
) -> None:
    (workshop.folder / "mlflow.db").unlink()  # they make it together, too
    commands = [begin(*RUN) for _ in range(num)]
    for _ in commands:
        tried(f"{num} commands at one fresh study in one folder")
    for command in commands:
        assert command.end() == 0, command.said
    trained = Counter(name for command in commands for name in starts(command.said))
    assert len(trained) == NUM_RUNS
    assert set(trained.values()) == {1}
    assert not any("Traceback" in command.said for command in commands)
    assert_undisturbed(workshop.folder, undisturbed)
    assert len(runs_of("tiny")) == NUM_RUNS


@pytest.mark.parametrize("jobs", [1, 2])
def test_what_a_killed_command_was_at_is_taken_up_by_another_one_that_is_still_there(
    workshop: Workshop, begin: Begin, undisturbed: Undisturbed, tried: Tried, jobs: int
) -> None:
    tried("command killed beside another that goes on")
    one = begin(*RUN, "--jobs", str(jobs))
    one.wait_for(r"\[1/[^z]*epoch 1/")
    before = {run.info.run_id for run in runs_of("tiny")}
    other = begin(*RUN)
    other.wait_for(r"is being trained by process \d+")
    one.send(signal.SIGKILL, to_group=False)
    kept = epochs_kept(workshop.folder)
    assert other.end() == 0, other.said
    assert f"is being trained by process {one.pid}" in other.said  # the command, not its worker
    assert all(kept.get(name, 0) - epochs <= 1 for name, epochs in starts(other.said).items())
    assert_undisturbed(workshop.folder, undisturbed)
    assert before <= {run.info.run_id for run in runs_of("tiny")}  # taken over in the MLflow run it had


def test_plan_says_who_trains_what_and_where_the_rest_stands(workshop: Workshop, begin: Begin) -> None:
    long = ("tiny.yaml", "--set", "epochs=60")
    command = begin("run", *long, "--checkpoint-seconds", "0", "--arm", "baseline", "--seed", "0")
    command.wait_for("epoch 5/")
    answer = workshop("plan", *long)
    command.send(signal.SIGKILL, to_group=True)
    command.end()
    assert answer.code == 0, answer.err
    assert re.fullmatch(rf"running: process {command.pid}, epoch \d+/60", states(answer.out)["baseline 0"])
    assert {states(answer.out)[run] for run in ("baseline 1", "flip 0", "flip 1")} == {"to do"}
    assert "4 runs: 0 done, 1 running, 0 failed, 3 to do" in answer.out
    after = workshop("plan", *long)
    assert re.fullmatch(r"interrupted at epoch \d+/60 \(from epoch \d+\)", states(after.out)["baseline 0"])
    assert "4 runs: 0 done, 0 failed, 1 interrupted, 3 to do" in after.out
    assert workshop("run", *long, "--arm", "baseline", "--seed", "0").code == 0
    assert states(workshop("plan", *long).out)["baseline 0"] == "done"


def states(said: str) -> dict[str, str]:
    """State of each run, by arm and seed, from the table of ``plan``."""
    rows = re.findall(r"^(\w+) +(\d+) +\d+ +\d+ +\w+ +(.+?)(?: {2,}\S.*)?$", said, re.MULTILINE)
    return {f"{arm} {seed}": state.strip() for arm, seed, state in rows}


def test_a_command_whose_work_is_done_by_others_says_so_and_ends_well(workshop: Workshop, begin: Begin) -> None:
    one = begin(*RUN, *ONE_RUN, "--set", "epochs=40")
    one.wait_for("epoch 1/")
    other = begin(*RUN, *ONE_RUN, "--set", "epochs=40")
    assert (one.end(), other.end()) == (0, 0), other.said
    assert f"tiny@epochs=40 flip seed 0: is being trained by process {one.pid}" in other.said
    assert "Runs: 1 left to another run command" in other.said or "1 trained before" in other.said


# --------------------------------------------------------------------------------------------- several workers


def test_results_are_equal_to_the_bit_with_three_jobs(
    workshop: Workshop, begin: Begin, undisturbed: Undisturbed
) -> None:
    """One job and two are compared where the undisturbed study is trained."""
    command = begin(*RUN, "--jobs", "3")
    assert command.end() == 0, command.said
    assert_undisturbed(workshop.folder, undisturbed)


def test_results_with_two_threads_are_equal_to_the_bit_whatever_the_number_of_jobs(
    workshop: Workshop, begin: Begin
) -> None:
    found = []
    for jobs in (1, 2):
        command = begin(*RUN, "--jobs", str(jobs), "--threads", "2", "--offline")
        assert command.end() == 0, command.said
        found.append(bits(workshop.folder))
        shutil.rmtree(workshop.folder / "mlruns")
    assert found[0] == found[1]


def test_a_run_on_a_cpu_has_one_thread_unless_told_otherwise(workshop: Workshop, begin: Begin) -> None:
    workshop.monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert begin(*RUN, *ONE_RUN, fresh=[]).end() == 0
    environment = next(workshop.folder.glob("mlruns/runs/*/environment.json")).read_text()
    assert '"threads": 1,' in environment


def test_a_worker_that_is_killed_fails_its_run_and_no_other(
    workshop: Workshop, begin: Begin, undisturbed: Undisturbed, tried: Tried
) -> None:
    tried("worker process killed")
    command = begin(*RUN, "--jobs", "2")
    command.wait_for(r"\[2/[^z]*epoch \d/")
    worker = next(process for process in command.workers() if "spawn_main" in " ".join(process.cmdline()))
    worker.kill()
    assert command.end() == 1
    (failed,) = re.findall(r"^failed: tiny (\w+) seed (\d): (.*)$", command.said, re.MULTILINE)
    assert failed[2].startswith("its worker process was killed by SIGKILL, most often because memory ran out")
    name = f"{failed[0]} {failed[1]}"
    assert re.search(r"^Runs: (3 finished, 1 failed|1 failed, 3 finished)$", command.said, re.MULTILINE)
    assert statuses()[name] == ("FAILED", failed[2])
    assert states(workshop("plan", "tiny.yaml").out)[name].startswith("failed: its worker process was killed")
    ids, kept = {run.info.run_id for run in runs_of("tiny")}, epochs_kept(workshop.folder)

    before = snapshot("tiny")
    skipped = workshop(*RUN)
    assert skipped.code == 1
    assert "1 skipped as failed" in skipped.out
    assert snapshot("tiny") == before
    again = workshop(*RUN, "--retry", "failed")
    assert again.code == 0, again.err
    run_name = f"tiny {failed[0]} seed {failed[1]}"
    assert kept[run_name] - starts(again.out)[run_name] <= 1  # its checkpoint was kept
    assert_undisturbed(workshop.folder, undisturbed)
    assert {run.info.run_id for run in runs_of("tiny")} == ids


def test_a_worker_that_is_killed_before_it_trains_costs_nothing(
    workshop: Workshop, begin: Begin, undisturbed: Undisturbed, tried: Tried
) -> None:
    tried("worker process killed")
    command = begin(*RUN, "--jobs", "2")
    command.wait_for("Runs: 4 to train")

    def first_worker() -> psutil.Process | None:
        return next((p for p in command.workers() if "spawn_main" in " ".join(p.cmdline())), None)

    wait_until(lambda: first_worker() is not None)
    worker = first_worker()
    assert worker is not None
    worker.kill()
    assert command.end() == 0, command.said
    assert_undisturbed(workshop.folder, undisturbed)


def test_workers_end_with_a_command_that_is_killed(workshop: Workshop, begin: Begin) -> None:
    command = begin(*RUN, "--jobs", "3")
    command.wait_for(r"\[2/[^z]*epoch \d/")
    workers = command.workers()
    assert len(workers) >= 3
    command.send(signal.SIGKILL, to_group=False)
    assert gone_within(workers, 5)


def test_a_place_where_no_worker_can_live_is_given_up_and_the_others_do_its_work(workshop: Workshop) -> None:
    told = train_with_dying_workers(workshop.folder, num_dying=5, num_slots=2)
    assert [key for key, event in told if isinstance(event, Ended)] == RUNS
    (note,) = [event.text for _, event in told if isinstance(event, Noted)]
    assert note.startswith("one worker less: 3 in its place ended before they trained; the last ended with exit code 7")


def test_workers_that_all_die_before_they_train_end_the_command_with_the_cure(workshop: Workshop) -> None:
    with pytest.raises(DeviceError, match=r"one ended with exit code 7; try --jobs 1"):
        train_with_dying_workers(workshop.folder, num_dying=99, num_slots=2)


def test_what_cannot_be_sent_to_a_worker_ends_the_command_instead_of_waiting_for_ever() -> None:
    with pytest.raises(DeviceError, match="try --jobs 1"):
        list(train_in_workers([RUNS], lambda *_: None, [SLOT, SLOT], lambda key: False))  # type: ignore[list-item]


RUNS = [("tiny", "flip", str(number)) for number in range(4)]
SLOT = Slot(Device("cpu", "a CPU", fast_bf16=False), 1)


@dataclass(frozen=True)
class NamedRun:
    key: tuple[str, str, str]


def dying(tally: Path, num_dying: int) -> Any:
    """What a worker unpickles: the first ``num_dying`` of them die of it; the next one goes on after the note."""
    with tally.open("ab", buffering=0) as file:
        file.write(b".")
        if file.tell() <= num_dying:  # where its own mark ends: two workers never read one number
            os._exit(7)
    wait_until(tally.with_name("noted").exists)
    return tell_that_all_is_done


class Dying:
    """Trains nothing, and takes the first workers with it."""

    def __init__(self, tally: Path, num_dying: int) -> None:
        self.arguments = (tally, num_dying)

    def __reduce__(self) -> Any:
        return dying, self.arguments

    def __call__(self, *_: Any) -> None: ...


def tell_that_all_is_done(group: Any, slot: Slot, should_stop: Any) -> RunEvents:
    for run in group:
        yield run.key, Ended("finished")


def train_with_dying_workers(folder: Path, *, num_dying: int, num_slots: int) -> list[RunEvent]:
    """Four groups of one run each; gives what was told, and leaves a mark for the workers at a note."""
    told = []
    groups: Any = [[NamedRun(key)] for key in RUNS]
    slots = [SLOT] * num_slots
    for key, event in train_in_workers(groups, Dying(folder / "tally", num_dying), slots, lambda key: False):
        told.append((key, event))
        if isinstance(event, Noted):
            (folder / "noted").touch()
    return told


# ---------------------------------------------------------------------------------- runs that fail by themselves

LARGE = STUDY.replace("seeds: 2", "seeds: 4").replace("train_size: 400", "train_size: 1400")
LARGE += "  large: {model: {width: 24}, batch_size: 1400}\n".replace("  ", "      ", 1)
"""With the memory that these tests leave, two arms have enough, and the third runs out of it in its first step."""


def run_short_of_memory(workshop: Workshop, begin: Begin, *options: str, megabytes: int = 700) -> Command:
    """Run that study to its end, which is not a good one."""
    workshop.write("tiny.yaml", LARGE)
    command = begin(*RUN, *options, megabytes=megabytes)
    assert command.end() == 1
    return command


def test_a_run_that_runs_out_of_memory_fails_in_one_sentence_and_the_others_go_on(
    workshop: Workshop, begin: Begin, tried: Tried
) -> None:
    tried("memory too small for a run")
    command = run_short_of_memory(workshop, begin, "--seed", "0")
    (reason,) = re.findall(r"^failed: tiny large seed 0: (.*)$", command.said, re.MULTILINE)
    assert reason.startswith("out of memory at batch_size 1400 ")
    assert "make batch_size or the network smaller" in reason  # the cure
    assert "Traceback" not in command.said
    recorded = statuses()
    assert recorded == {"baseline 0": ("FINISHED", ""), "flip 0": ("FINISHED", ""), "large 0": ("FAILED", reason)}
    assert states(workshop("plan", "tiny.yaml").out)["large 0"].startswith("failed: ")
    (failure,) = workshop.folder.glob("mlruns/runs/*/failure.txt")
    assert "Traceback" in failure.read_text()  # for whoever wants to know more


def test_three_runs_that_fail_alike_at_their_start_stop_the_study_with_one_explanation(
    workshop: Workshop, begin: Begin, tried: Tried
) -> None:
    tried("memory too small for a run")
    command = run_short_of_memory(workshop, begin, "--arm", "large")
    assert len(re.findall("^Stopped: 3 runs in a row failed at their start for one reason: ", command.said, re.M)) == 1
    assert "Runs: 3 failed, 1 not tried" in command.said
    assert [status for status, _ in statuses().values()] == ["FAILED"] * 3


def test_failures_between_runs_that_learn_do_not_stop_a_study(workshop: Workshop, begin: Begin) -> None:
    command = run_short_of_memory(workshop, begin, "--arm", "baseline", "--arm", "large")
    assert "Stopped" not in command.said
    assert Counter(status for status, _ in statuses().values()) == {"FAILED": 4, "FINISHED": 4}


def test_fail_fast_tries_no_run_after_the_one_that_failed(workshop: Workshop, begin: Begin) -> None:
    command = run_short_of_memory(workshop, begin, "--arm", "large", "--fail-fast")
    assert "Runs: 1 failed, 3 not tried" in command.said
    assert "Stopped: tiny large seed 0 failed, and --fail-fast was given" in command.said
    assert "The same command again does what is left." in command.said


def test_fail_fast_stops_what_other_workers_train_with_a_checkpoint(workshop: Workshop, begin: Begin) -> None:
    only = ("--seed", "0", "--arm", "large", "--arm", "flip", "--set", "epochs=40")
    # a worker starts without what the command has imported: it has more room
    command = run_short_of_memory(workshop, begin, *only, "--fail-fast", "--jobs", "2", megabytes=300)
    assert "Stopped: tiny@epochs=40 large seed 0 failed, and --fail-fast was given" in command.said
    recorded = {run.data.tags["ablate.arm"]: run.info.status for run in runs_of("tiny@epochs=40")}
    assert recorded.pop("large") == "FAILED"
    if recorded:  # the other worker may not have begun
        assert recorded == {"flip": "KILLED"}
        assert len(list(workshop.folder.glob("mlruns/runs/*/checkpoint.safetensors"))) == 1
