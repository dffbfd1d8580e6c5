"""What one GPU does, in two commands of less than nine minutes each.

    python -m benchmarks.gpu speed --data DIR [--out speed.json]
    python -m benchmarks.gpu study --data DIR [--out study.json]

``speed``: the matrix-product peak; the warm epoch of both networks by batch size, each with its steps issued one by
one, captured, and captured and compiled; several runs of the compact network at once; the plain and the fair loop
beside it; how far equal seeds come apart. ``study``: the wall time of experiments/readme-augmentation.yaml with all of
its arms and seeds; the seconds that resnet18 takes to 94%, with and without flip averaging.

Parts are done in order while time is left (--minutes), the table of all that was measured is printed last, and the JSON
is written after each part. An epoch is timed over --steps steps and scaled to the data set: "extrapolated" where fewer
than its steps were taken. Nothing here needs a GPU: on a CPU the same parts run, eagerly, for a test of this script.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml

from benchmarks.contenders import ROOT, recipe_of
from benchmarks.peak import gflop_per_image, peak_gflops
from benchmarks.task import MODELS, Task, add_task_options, load, task_of
from cifar_ablate.device import find_device, is_out_of_memory
from cifar_ablate.folder import write_atomically
from cifar_ablate.spec.schema import Recipe
from cifar_ablate.training.batches import DeviceData, to_device
from cifar_ablate.training.engine import Engine, Mode
from cifar_ablate.training.evaluate import accuracy, predict_logits
from cifar_ablate.training.fit import Fit, set_up

BATCHES = (16, 128, 512, 1024)
LANES = (1, 2, 4, 8, 16)
MODES = {"eager": Mode(), "captured": Mode(capture=True), "compiled": Mode(compile=True, capture=True)}
LOOP_STEPS = 500
TO_94 = {
    "batch_size": 500,
    "optimizer": {"name": "sgd", "lr": 0.2, "momentum": 0.9, "nesterov": True, "weight_decay": 5e-4},
    "schedule": {"name": "linear", "warmup": 0.2},
    "augment": {"crop": {"padding": 4, "fill": "reflect"}, "hflip": {}, "cutout": {"size_px": 12}},
    "eval_every": 0,
}
"""The base recipe of KellerJordan/cifar10-zoo for this network: 94.0% with flip averaging in 26 epochs (n=200)."""


@dataclass
class Bench:
    """What is being measured, and what was."""

    task: Task
    steps: int
    deadline: float
    out: Path | None
    rows: list[dict[str, Any]] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    def time_left(self) -> float:
        return self.deadline - time.monotonic()

    def say(self, part: str, what: str, value: float | None, unit: str, note: str = "") -> None:
        """Add a line to the table, and to the file."""
        self.rows.append({"part": part, "what": what, "value": value, "unit": unit, "note": note})
        print(f"{part}: {what}: {'-' if value is None else f'{value:.4g}'} {unit} {note}".rstrip(), flush=True)
        if self.out is not None:
            found = find_device()
            content = {"device": found.name, "torch": torch.__version__, "rows": self.rows, "left_out": self.left_out}
            write_atomically(self.out, json.dumps(content, indent=1) + "\n")


def wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def epoch_of(fit: Fit, number: int, steps: int) -> int:
    """Issue the first ``steps`` steps of an epoch; gives the number of images."""
    fit.stepper.load_epoch(fit.seed, number, fit.base_lr * fit.lr_factors[: fit.num_steps], 0)
    fit.model.train()
    return sum(fit.stepper(step) for step in range(min(steps, fit.num_steps)))


def warm_epoch(fits: Sequence[Fit], steps: int) -> tuple[float, bool]:
    """Median seconds of an epoch of all of ``fits`` at once, over three; and whether all of its steps were taken."""
    streams = [fit.stepper.stream or torch.cuda.current_stream() for fit in fits] if torch.cuda.is_available() else []
    seconds = []
    for number in range(4):  # the first one warms up
        wait()
        begun, done = time.perf_counter(), 0
        for fit in fits:
            fit.stepper.load_epoch(fit.seed, number, fit.base_lr * fit.lr_factors[: fit.num_steps], 0)
            fit.model.train()
        wait()
        for step in range(min(steps, fits[0].num_steps)):
            for index, fit in enumerate(fits):
                if streams:
                    with torch.cuda.stream(streams[index]):
                        done += fit.stepper(step)
                else:
                    done += fit.stepper(step)
        wait()
        images = len(fits) * len(fits[0].data.train_labels)
        seconds.append((time.perf_counter() - begun) * images / done)
    return statistics.median(seconds[1:]), steps >= fits[0].num_steps


def recipe_for(task: Task, **fields: Any) -> Recipe:
    return Recipe.model_validate(recipe_of(task) | fields)


def in_modes(bench: Bench, model: str, batch: int, data: DeviceData, precision: str) -> None:
    """The warm epoch of one network at one batch size, in every mode that this device has."""
    for name, mode in MODES.items():
        if name != "eager" and not torch.cuda.is_available():
            continue
        if bench.time_left() < (90 if name == "compiled" else 20):
            bench.left_out.append(f"{model}, batch {batch}, {name}")
            continue
        if name == "compiled" and batch != 512:  # a minute each
            continue
        recipe = recipe_for(task_of_model(bench, model), batch_size=min(batch, len(data.train_labels)))
        begun = time.perf_counter()
        try:
            fit = set_up(recipe, 0, data, precision, Engine(mode))
            wait()
            ready = time.perf_counter() - begun
            seconds, whole = warm_epoch([fit], bench.steps)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            bench.say("epoch", f"{model}, batch {batch}, {name}", None, "s", "out of memory")
            continue
        note = f"set up in {ready:.1f} s" + ("" if whole else f"; extrapolated from {bench.steps} steps")
        bench.say("epoch", f"{model}, batch {batch}, {name}", seconds, "s", note)
        del fit


def task_of_model(bench: Bench, model: str) -> Task:
    return Task(**{**{name: getattr(bench.task, name) for name in Task.__dataclass_fields__}, "model": model})


def several_at_once(bench: Bench, data: DeviceData, precision: str) -> None:
    """Runs of the compact network at the seed's own batch of 16, in turn on one device."""
    batch = min(16, len(data.train_labels))
    engine = Engine(MODES["captured"] if torch.cuda.is_available() else Mode())
    fits: list[Fit] = []
    for number in LANES:
        if bench.time_left() < 20:
            bench.left_out.append(f"{number} runs at once")
            continue
        recipe = recipe_for(task_of_model(bench, MODELS[0]), batch_size=batch)
        fits += [set_up(recipe, lane, data, precision, engine, lane) for lane in range(len(fits), number)]
        seconds, whole = warm_epoch(fits, bench.steps)
        note = "" if whole else f"extrapolated from {bench.steps} steps"
        bench.say("at once", f"{MODELS[0]}, batch 16, {number} runs, per run and epoch", seconds / number, "s", note)


def the_loops(bench: Bench, sizes: int) -> None:
    """The plain and the fair loop, from their first steps."""
    for model in MODELS:
        for loop in ("plain", "fair"):
            if bench.time_left() < 60:
                bench.left_out.append(f"{loop} loop, {model}")
                continue
            command = [sys.executable, "-m", "benchmarks.peers", "--loop", loop, "--model", model, "--epochs", "1"]
            command += ["--data", bench.task.data, "--batch-size", str(min(512, sizes)), "--eval-every", "0"]
            command += ["--max-steps", str(min(LOOP_STEPS, bench.steps)), "--test-images", "100"]
            command += ["--width", str(bench.task.width)] if bench.task.width else []
            done = subprocess.run(
                command, cwd=ROOT, capture_output=True, text=True, timeout=bench.time_left(), check=False
            )
            lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
            epochs = [line for line in lines if "train_seconds" in line and "num_images" not in line]
            if done.returncode or not epochs:
                bench.left_out.append(f"{loop} loop, {model}: {done.stderr.strip().splitlines()[-1:]}")
                continue
            seconds = epochs[0]["train_seconds"] * sizes / epochs[0]["images"]
            note = f"extrapolated from {epochs[0]['images']} images, the first step among them"
            bench.say("loop", f"{loop}, {model}, batch 512", seconds, "s", note)


def same_seed_spread(bench: Bench, data: DeviceData, precision: str) -> None:
    """Standard deviation of the accuracy of runs that are equal in everything, and whether their weights are."""
    recipe = recipe_for(task_of_model(bench, MODELS[0]), batch_size=min(512, len(data.train_labels)), epochs=2)
    engine = Engine(MODES["captured"] if torch.cuda.is_available() else Mode())
    found, weights = [], []
    for _ in range(5):
        fit = set_up(recipe, 0, data, precision, engine)
        for number in range(recipe.epochs):
            epoch_of(fit, number, bench.steps)
        logits = predict_logits(fit.model, data.test_images, fit.pipeline, precision)
        found.append(accuracy(logits, data.test_labels.cpu()))
        weights.append(torch.cat([tensor.flatten().float().cpu() for tensor in fit.model.state_dict().values()]))
    equal = all(torch.equal(weights[0], other) for other in weights)
    note = f"5 runs of {recipe.epochs} epochs of seed 0; weights are {'equal' if equal else 'not equal'}"
    bench.say("same seed", "standard deviation of the test accuracy", statistics.stdev(found), "points", note)


def speed(bench: Bench) -> None:
    """Everything about steps and epochs."""
    found = find_device()
    precision = found.resolve("auto")
    images = load(bench.task)
    data = to_device(images, found.torch)
    peak = peak_gflops(found.torch, torch.bfloat16 if precision == "bf16" else torch.float32)
    bench.say("peak", f"matrix product, {precision}", peak / 1000, "TFLOP/s")
    for model in MODELS:
        bench.say(
            "peak",
            f"{model}, epoch at that rate",
            gflop_per_image(model, bench.task.model_options()) * len(images.train_labels) / peak,
            "s",
            "a bound",
        )
    same_seed_spread(bench, data, precision)
    for batch in (512, 128, 16, 1024):
        for model in MODELS:
            in_modes(bench, model, batch, data, precision)
    several_at_once(bench, data, precision)
    del data
    the_loops(bench, len(images.train_labels))


def run_study(
    folder: Path, name: str, study: dict[str, Any], seconds: float
) -> tuple[float, list[dict[str, Any]], str]:
    """Wall time of ``cifar-ablate run`` in an empty folder, its results, and its last line."""
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(study, sort_keys=False), encoding="utf-8")
    begun = time.perf_counter()
    command = ["timeout", "-s", "INT", str(max(1, int(seconds))), sys.executable, "-m", "cifar_ablate.cli"]
    done = subprocess.run(
        [*command, "run", path.name, "--jobs", "auto"], cwd=folder, capture_output=True, text=True, check=False
    )
    took = time.perf_counter() - begun
    results = [json.loads(path.read_text()) for path in sorted(folder.glob("mlruns/runs/*/result.json"))]
    said = [line for line in done.stdout.splitlines() if line.startswith("--jobs auto")]
    last = (done.stdout + done.stderr).strip().splitlines()[-1:]
    return took, results, "; ".join([*said, *last])


def study(bench: Bench) -> None:
    """The shipped study, and the seconds to 94%."""
    source = bench.task.source()
    shipped = yaml.safe_load((ROOT / "experiments" / "readme-augmentation.yaml").read_text(encoding="utf-8"))
    shipped["recipe"] |= {"data": source}
    if bench.task.width:  # for a test of this script
        shipped["recipe"] |= {"model": {"name": MODELS[0], "width": bench.task.width}, "batch_size": 64}
        shipped["seeds"] = 1
        for arm in shipped["arms"].values():
            arm.pop("epochs", None)
        shipped["recipe"]["epochs"] = bench.task.epochs
    with tempfile.TemporaryDirectory() as folder:
        took, results, said = run_study(Path(folder), "readme", shipped, bench.time_left() - 15)
        finished = [result for result in results if result["status"] == "finished"]
        num = len(shipped["arms"]) * (shipped["seeds"] if isinstance(shipped["seeds"], int) else len(shipped["seeds"]))
        bench.say("study", f"readme-augmentation, {len(finished)} of {num} runs", took, "s", said)
    arms: dict[str, Any] = {"plain": None, "flip": {"flip_averaging": True, "epochs": 22}}
    recipe = {"data": source, "model": MODELS[1], "epochs": 28, **TO_94}
    if bench.task.width:
        recipe |= {"model": {"name": MODELS[1], "width": bench.task.width}, "epochs": 1, "batch_size": 100}
        arms["flip"] = {"flip_averaging": True}
    for name, change in arms.items():
        if bench.time_left() < 30:
            bench.left_out.append(f"resnet18 to 94%, {name}")
            continue
        one = {
            "study": f"to-94-{name}",
            "question": "How long to 94%?",
            "seeds": shipped["seeds"],
            "recipe": recipe | (change or {}),
            "arms": {"baseline": None},
        }
        with tempfile.TemporaryDirectory() as folder:
            took, results, said = run_study(Path(folder), "to94", one, bench.time_left() - 10)
        seconds = [result["train_seconds"] for result in results if result["status"] == "finished"]
        right = [result["metrics"]["test_accuracy"] for result in results if result["status"] == "finished"]
        if seconds:
            what = f"resnet18, {one['recipe']['epochs']} epochs{', flip-averaged' if change else ''}"
            note = f"mean test {statistics.fmean(right):.2f}% of {len(right)} seeds; {took:.0f} s in all; {said}"
            bench.say("to 94%", f"{what}, training per run", statistics.fmean(seconds), "s", note)


PARTS: dict[str, Callable[[Bench], None]] = {"speed": speed, "study": study}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--minutes", type=float, default=8.5, help="no part is begun that would end later")
    parser.add_argument("--steps", type=int, default=400, help="of an epoch; the rest is extrapolated")
    parser.add_argument("--out", type=Path, help="write what was measured as JSON, after each part")
    add_task_options(parser, Task())
    chosen = parser.parse_args()
    bench = Bench(task_of(chosen), chosen.steps, time.monotonic() + 60 * chosen.minutes, chosen.out)
    PARTS[chosen.part](bench)
    found = find_device()
    print(f"\n{found.name}, torch {torch.__version__}, {load(bench.task).describe()}\n")
    print("| part | what | value | note |\n|---|---|---:|---|")
    for row in bench.rows:
        value = "-" if row["value"] is None else f"{row['value']:.4g} {row['unit']}"
        print(f"| {row['part']} | {row['what']} | {value} | {row['note']} |")
    for what in bench.left_out:
        print(f"left out, for lack of time: {what}")


if __name__ == "__main__":
    main()
