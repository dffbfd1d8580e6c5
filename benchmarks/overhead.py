"""What recording, checkpoints and watching cost beside training: the whole runner against the bare training loop.

    python -m benchmarks.overhead [--rounds 6] [--seconds 60] [--out overhead.json]

Both train the same recipe to the same last accuracy. ``bare`` takes the steps and evaluates, and writes nothing.
``run`` is what ``cifar-ablate run`` does from the plan to the last artifact in MLflow: run folder, history,
checkpoints, claim, heartbeat, delivery, confusion matrix. The number of epochs is chosen so that a run takes about
--seconds. What a command does once, whatever the number of its runs, is not in it: starting Python, imports, making a
fresh database.

A machine that others share is 10% faster in one minute than in the next, which is more than what is measured. So the
two run at the same moment, each process bound to one core, and change cores after each round. The thread that delivers
has to share the core of its training; with a core to spare a run costs less than what is printed.
"""

from __future__ import annotations

import argparse
import importlib
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import chdir
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.task import two_cores
from cifar_ablate.data import DataSet
from cifar_ablate.device import Slot, find_device, find_slots
from cifar_ablate.plan import Plan, load_all_data, make_plan
from cifar_ablate.record.folder import RUNS_ROOT, RunFolder
from cifar_ablate.record.mlflow_store import Tracking
from cifar_ablate.runner.run import run_plans
from cifar_ablate.spec.load import load_study
from cifar_ablate.training.batches import to_device
from cifar_ablate.training.evaluate import accuracy, predict_logits
from cifar_ablate.training.events import finish
from cifar_ablate.training.state import TrainState, set_up, write_checkpoint
from cifar_ablate.training.train import train_epoch

STUDY = """
study: overhead
question: What does the runner cost beside training?
seeds: 1
recipe:
  data: digits
  model: {model}
  epochs: {epochs}
  batch_size: 64
  optimizer: {{name: sgd, lr: 0.01, momentum: 0.9, nesterov: true}}
  augment: {{crop: {{padding: 2}}, cutout: {{}}}}
arms: {{baseline: null}}
"""
CASES = {
    "short epochs": "{name: resnet18-compact, width: 8}",
    "large checkpoint": "resnet18",
}


Way = Callable[[Plan, dict[str, DataSet], list[Slot]], tuple[float, float]]


@dataclass(frozen=True)
class Row:
    """One case of the table."""

    case: str
    epochs: int
    checkpoint_ms: float
    bare_seconds: float
    run_seconds: float
    overhead_percent: float
    """Median over the rounds of (run - bare) / bare."""
    rounds_percent: tuple[float, ...]


def planned(model: str, epochs: int) -> tuple[Plan, dict[str, DataSet], list[Slot]]:
    """A study of one run."""
    path = Path("overhead.yaml")
    path.write_text(STUDY.format(model=model, epochs=epochs), encoding="utf-8")
    study, device = load_study(path), find_device("auto")
    data = load_all_data([study], lambda *_: None)
    return make_plan(study, data, device), data, find_slots(device, 1, None)


def bare(plan: Plan, data: dict[str, DataSet], slots: list[Slot]) -> tuple[float, float]:
    """Seconds, and the last test accuracy, of the training alone."""
    slots[0].enter()
    begun = time.perf_counter()
    state = ready(plan, data, slots)
    labels = state.data.test_labels.cpu()
    last = 0.0
    while state.epochs_done < state.recipe.epochs:
        finish(train_epoch(state))
        state.epochs_done, state.steps_done, state.epoch_seconds = state.epochs_done + 1, 0, 0.0
        last = accuracy(predict_logits(state.model, state.data.test_images, state.pipeline, state.precision), labels)
    predict_logits(state.model, state.data.train_images, state.pipeline, state.precision)
    return time.perf_counter() - begun, last


def ready(plan: Plan, data: dict[str, DataSet], slots: list[Slot]) -> TrainState:
    run = plan.runs[0]
    return set_up(run.recipe, run.seed, to_device(data[run.data_key], slots[0].device.torch), run.precision)


def whole(plan: Plan, data: dict[str, DataSet], slots: list[Slot]) -> tuple[float, float]:
    """The same through the runner, in an empty folder with a fresh database."""
    with tempfile.TemporaryDirectory() as folder, chdir(folder):
        tracking = Tracking()
        begun = time.perf_counter()
        run_plans([plan], tracking=tracking, data=data, slots=slots)
        seconds = time.perf_counter() - begun
        result = RunFolder(RUNS_ROOT / plan.runs[0].fingerprint).result()
    if result is None or result.status != "finished":
        raise SystemExit(f"the run did not finish: {result}")
    return seconds, result.metrics["test_accuracy"]


def checkpoint_ms(plan: Plan, data: dict[str, DataSet], slots: list[Slot]) -> float:
    """Median time of writing a checkpoint after a step."""
    state = ready(plan, data, slots)
    state.epochs_done = state.recipe.epochs - 1
    finish(train_epoch(state))
    folder = RunFolder(Path("checkpoints"))
    folder.create({}, {})
    return 1000 * statistics.median(seconds_of(lambda: write_checkpoint(state, folder)) for _ in range(5))


def seconds_of(action: Callable[[], object]) -> float:
    begun = time.perf_counter()
    action()
    return time.perf_counter() - begun


def at_once(model: str, epochs: int, on: list[int]) -> dict[str, tuple[float, float]]:
    """Seconds and last accuracy of both ways, in two processes that start together, each on a core of its own."""
    context = multiprocessing.get_context("spawn")
    start, results = context.Barrier(2), context.SimpleQueue()
    ways = (bare, whole)
    processes = [
        context.Process(target=alone_on, args=(core, way, model, epochs, start, results))
        for core, way in zip(on, ways, strict=True)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        if process.exitcode:
            raise SystemExit("one of the two failed; see above")
    return dict(results.get() for _ in ways)


def alone_on(core: int, way: Way, model: str, epochs: int, start: Any, results: Any) -> None:
    """Train in this process, on this core, as soon as the other one is ready, too."""
    os.sched_setaffinity(0, {core})
    with tempfile.TemporaryDirectory() as folder, chdir(folder):
        bare(*planned(model, 1))  # warms up
        importlib.import_module("matplotlib.backends.backend_agg")
        prepared = planned(model, epochs)
        start.wait()
        results.put((way.__name__, way(*prepared)))


def measure(case: str, *, rounds: int, seconds: float) -> Row:
    model = CASES[case]
    took, _ = bare(*planned(model, 2))  # the first time also warms up
    took, _ = bare(*planned(model, 2))
    epochs = max(2, round(2 * seconds / took))
    plan, data, slots = planned(model, epochs)
    pairs = []
    for index in range(rounds):
        timed = at_once(model, epochs, two_cores() if index % 2 == 0 else two_cores()[::-1])
        if timed["bare"][1] != timed["whole"][1]:
            raise SystemExit(f"{case}: the two trained to different accuracies: {timed}")
        pairs.append((timed["bare"][0], timed["whole"][0]))
        print(f"{case}, round {index + 1}: bare {pairs[-1][0]:.2f} s, run {pairs[-1][1]:.2f} s", flush=True)
    percent = tuple(100 * (run - alone) / alone for alone, run in pairs)
    bare_seconds, run_seconds = (statistics.median(column) for column in zip(*pairs, strict=True))
    return Row(
        case,
        epochs,
        checkpoint_ms(plan, data, slots),
        bare_seconds,
        run_seconds,
        overhead_percent=statistics.median(percent),
        rounds_percent=percent,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--seconds", type=float, default=60.0, help="about how long a run takes")
    parser.add_argument("--case", choices=list(CASES), action="append")
    parser.add_argument("--out", type=Path, help="write the table as JSON, too")
    chosen = parser.parse_args()
    out = chosen.out and chosen.out.absolute()
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    with tempfile.TemporaryDirectory() as folder, chdir(folder):
        rows = [measure(case, rounds=chosen.rounds, seconds=chosen.seconds) for case in chosen.case or CASES]
    print("\n| case | epochs | checkpoint ms | bare s | run s | overhead % | rounds |")
    print("|---|---:|---:|---:|---:|---:|---|")
    for row in rows:
        each = ", ".join(f"{value:+.1f}" for value in row.rounds_percent)
        times = f"{row.checkpoint_ms:.0f} | {row.bare_seconds:.1f} | {row.run_seconds:.1f}"
        print(f"| {row.case} | {row.epochs} | {times} | {row.overhead_percent:+.2f} | {each} |")
    if out:
        slot = find_slots(find_device("auto"), 1, None)[0]
        content = {"device": slot.device.name, "threads": slot.threads, "rows": [asdict(row) for row in rows]}
        out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
