"""How many runs at a time: what is chosen, why, and that no result depends on it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from rich.console import Console

from cifar_ablate.device import Device, Slot, find_device
from cifar_ablate.errors import UsageError
from cifar_ablate.record.folder import RUNS_ROOT, RunFolder
from cifar_ablate.runner import estimate, jobs, train_group
from cifar_ablate.runner.estimate import measure_rates
from cifar_ablate.runner.jobs import choose_slots, fastest, parse_jobs
from cifar_ablate.runner.preflight import prepare
from cifar_ablate.runner.run import run_plans
from cifar_ablate.training import step
from cifar_ablate.training.engine import Mode
from tests.comparing import runs_of
from tests.test_whole_way import STUDY

if TYPE_CHECKING:
    from tests.conftest import Workshop


@pytest.mark.parametrize(
    ("rates", "chosen"),
    [
        ({1: 100.0}, 1),
        ({1: 100.0, 2: 190.0}, 2),
        ({1: 100.0, 2: 104.0}, 1),  # not worth the memory
        ({1: 100.0, 2: 90.0, 4: 300.0, 8: 310.0}, 4),
        ({1: 100.0, 2: 80.0, 4: 60.0}, 1),
    ],
)
def test_more_runs_at_a_time_must_be_worth_it(rates: dict[int, float], chosen: int) -> None:
    assert fastest(rates) == chosen


@pytest.mark.parametrize("text", ["0", "-1", "two", "1.5", "", "AUTO"])
def test_a_number_of_jobs_that_is_none_is_refused_with_the_cure(text: str) -> None:
    with pytest.raises(UsageError, match=r"give a number of runs at a time, from 1, or auto"):
        parse_jobs(text)


def test_jobs_are_a_number_or_auto() -> None:
    assert parse_jobs("3") == 3
    assert parse_jobs("auto") is None


def test_where_nothing_is_left_nothing_is_measured() -> None:
    cpu = Device("cpu", "a CPU", fast_bf16=False)
    assert choose_slots([], {}, cpu, None, None) == ([Slot(cpu, 1)], "")


@pytest.mark.slow
def test_a_short_study_starts_no_workers_and_says_so(workshop: Workshop) -> None:
    workshop.write("tiny.yaml", STUDY)
    answer = workshop("run", "tiny.yaml", "--jobs", "auto")
    assert answer.code == 0
    assert "--jobs auto: 1 run at a time: all take about" in answer.out
    assert "6 finished" in answer.out
    assert "--jobs auto" not in workshop("run", "tiny.yaml", "--jobs", "auto").out  # all is done: nothing is measured


@pytest.mark.slow
def test_a_longer_one_is_measured_and_the_figures_are_told(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "SHORT_SECONDS", 0.0)
    monkeypatch.setattr(jobs, "SECONDS", 0.1)
    monkeypatch.setattr(jobs, "WORTH_IT", 0.0)  # whatever this machine gives: the more, the better
    monkeypatch.setattr(jobs, "num_cores", lambda: 2)
    workshop.write("tiny.yaml", STUDY)
    answer = workshop("run", "tiny.yaml", "--jobs", "auto")
    assert answer.code == 0
    assert "--jobs auto: 2 at a time (limited by cores):" in answer.out
    assert "(images per second in total)" in answer.out
    shutil.rmtree(workshop.folder / "mlruns" / "runs")
    workshop.write("again.yaml", STUDY.replace("study: tiny", "study: again"))
    assert "6 finished" in workshop("run", "again.yaml", "--jobs", "1").out
    assert losses_of("again") == losses_of("tiny")


def run_in_turn(study: Path, num_slices: int) -> dict[str, float]:
    """Train a study offline in one process, so many runs in turn, as on a GPU; gives the loss of each run."""
    ready = prepare([study], None, None, device=partial(find_device, "cpu"), console=Console(quiet=True))
    shutil.rmtree("mlruns", ignore_errors=True)
    slots = [Slot(ready.device, 1, num_slices)]
    summary = run_plans(ready.plans, tracking=None, data=ready.data, slots=slots)
    assert summary.kinds["finished"] == len(ready.plans[0].runs)
    results = {run.fingerprint: RunFolder(RUNS_ROOT / run.fingerprint).result() for run in ready.plans[0].runs}
    return {name: result.metrics["test_nll"] for name, result in results.items() if result is not None}


@pytest.mark.slow
@pytest.mark.parametrize("model", ["{name: resnet18-compact, width: 4}", "{name: resnet18, width: 2, dropout: 0.1}"])
def test_runs_that_take_turns_in_one_process_end_as_those_alone(model: str, workshop: Workshop) -> None:
    study = workshop.write("tiny.yaml", STUDY.replace("{name: resnet18-compact, width: 4}", model))
    assert run_in_turn(study, 4) == run_in_turn(study, 1)


def test_the_estimate_is_of_runs_in_turn_where_they_will_be(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(estimate, "rate_in_turn", lambda trials, _: 100.0 if len(trials) == 1 else 240.0)
    study = workshop.write("tiny.yaml", STUDY)
    ready = prepare([study], None, None, device=partial(find_device, "cpu"), console=Console(quiet=True))
    runs = ready.plans[0].runs[:1]
    (alone,) = measure_rates(runs, ready.data, Slot(ready.device, 1)).values()
    (beside,) = measure_rates(runs, ready.data, Slot(ready.device, 1, num_slices=4)).values()
    assert (alone.of_each, alone.num_in_turn) == (100.0, 1)
    assert (beside.of_each, beside.num_in_turn) == (60.0, 4)


def test_what_cannot_be_tried_has_no_estimate_and_what_finds_no_room_is_tried_with_fewer(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    def room_for_two(trials: list[Any], _: float) -> float:
        if len(trials) > 2:
            raise MemoryError
        return 200.0

    study = workshop.write("tiny.yaml", STUDY)
    ready = prepare([study], None, None, device=partial(find_device, "cpu"), console=Console(quiet=True))
    slot, runs = Slot(ready.device, 1, num_slices=4), ready.plans[0].runs[:1]
    monkeypatch.setattr(estimate, "rate_in_turn", room_for_two)
    (rate,) = measure_rates(runs, ready.data, slot).values()
    assert (rate.of_each, rate.num_in_turn) == (100.0, 2)

    def broken(*_: Any) -> float:
        raise RuntimeError("a network that fails in its first step")

    monkeypatch.setattr(estimate, "rate_in_turn", broken)
    answer = workshop("plan", "tiny.yaml")
    assert answer.code == 0
    assert "6 to do, about ?" in answer.out


@pytest.mark.slow
def test_a_run_without_room_beside_the_others_is_trained_alone_in_the_end(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = workshop.write("tiny.yaml", STUDY)
    expected = run_in_turn(study, 1)
    train, refused = train_group.train_run, []

    def crowded(*arguments: Any, stream: int, **options: Any) -> Any:
        if stream == 1 and not refused:
            refused.append(arguments)
            yield
            raise MemoryError
        return (yield from train(*arguments, stream=stream, **options))

    monkeypatch.setattr(train_group, "train_run", crowded)
    assert run_in_turn(study, 2) == expected
    assert len(refused) == 1


def losses_of(study: str) -> dict[str, float]:
    return {run.data.tags["ablate.fingerprint"]: run.data.metrics["test_nll"] for run in runs_of(study)}


def test_memory_limits_the_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "available_bytes", lambda: 2.5 * jobs.WORKER_BYTES)
    assert jobs.num_in_memory(0) == 2
    assert jobs.num_in_memory(10 * jobs.WORKER_BYTES) == 1


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system binds no process to a core")
def test_only_cores_that_this_process_may_use_are_counted() -> None:
    one = min(os.sched_getaffinity(0))
    ask = (
        f"import os; os.sched_setaffinity(0, {{{one}}}); from cifar_ablate.device import num_cores; print(num_cores())"
    )
    done = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "1"


def test_what_is_forced_on_the_command_line_is_checked_first(workshop: Workshop) -> None:
    workshop.write("tiny.yaml", STUDY)
    for options, said in {
        ("--capture", "on", "--device", "cpu"): "--capture on: a cpu has no CUDA graphs; leave it at auto",
        ("--compile", "maybe"): "--compile maybe: choose auto, on or off",
        ("--jobs", "many"): "--jobs many: give a number of runs at a time, from 1, or auto",
    }.items():
        answer = workshop("run", "tiny.yaml", *options)
        assert answer.code != 0
        assert said in answer.err
        assert not (workshop.folder / "mlruns").exists()


def test_how_steps_were_taken_is_recorded(workshop: Workshop) -> None:
    workshop.write("tiny.yaml", STUDY)
    assert workshop("run", "tiny.yaml", "--arm", "baseline", "--seed", "0").code == 0
    (run,) = runs_of("tiny")
    said = {name: run.data.tags[f"ablate.{name}"] for name in ("precision", "compile", "capture", "side_by_side")}
    assert said == {"precision": said["precision"], "compile": "false", "capture": "false", "side_by_side": "1"}
    assert said["precision"] in ("bf16", "fp32")


def test_a_step_that_could_not_be_captured_is_recorded_as_what_it_was(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(step, "_captured", refuse)
    monkeypatch.setattr(train_group, "choose_mode", lambda *_: Mode(capture=True, why="a GPU"))
    workshop.write("tiny.yaml", STUDY)
    assert workshop("run", "tiny.yaml", "--arm", "baseline", "--seed", "0").code == 0
    (run,) = runs_of("tiny")
    assert run.data.tags["ablate.capture"] == "false"
    assert "cannot be captured (RuntimeError: operation not permitted" in run.data.tags["ablate.why"]


def test_flip_averaging_is_named_in_the_table_that_uses_it(workshop: Workshop) -> None:
    study = STUDY.replace("flip + smoothing: {from: flip, loss: {label_smoothing: 0.1}}", "tta: {flip_averaging: true}")
    workshop.write("tiny.yaml", study.replace("seeds: 2", "seeds: 1"))
    assert workshop("run", "tiny.yaml").code == 0
    report = workshop("report").out
    lines = report.partition("| Arm | Differs by |")[2].partition("\n\n")[0].splitlines()
    rows = {line.split("**")[1]: line for line in lines if line.startswith("| **")}
    assert rows["tta"].count("flip-averaged") == 2
    assert "flip-averaged" not in rows["baseline"]
    assert "- **Flip-averaged**: tta: test-time augmentation" in report
