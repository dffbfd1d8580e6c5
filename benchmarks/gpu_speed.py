"""How fast steps and epochs are on a GPU, and how far equal seeds come apart; a part of `gpu.py`."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import partial

import torch

from benchmarks.contenders import ROOT
from benchmarks.gpu_bench import Bench
from benchmarks.peak import gflop_per_image, peak_gflops
from benchmarks.task import MODELS, load
from cifar_ablate.device import find_device, on_stream
from cifar_ablate.training.batches import DeviceData, to_device
from cifar_ablate.training.engine import Engine, Mode
from cifar_ablate.training.evaluate import accuracy, predict_logits
from cifar_ablate.training.state import TrainState, set_up

BATCHES = (512, 128, 16, 1024)
NUM_STREAMS = (1, 2, 4, 8, 16)
MODES = {
    "eager": Mode(),
    "captured": Mode(capture=True, capture_is_forced=True),
    "compiled": Mode(compile=True, capture=True, capture_is_forced=True),
}
BATCH_COMPILED = 512
"""Compiling takes a minute each."""
SECONDS = 20
"""That one row may take, if not said otherwise."""
LOOP_STEPS = 500


def speed(bench: Bench) -> None:
    """Everything about steps and epochs."""
    found = find_device()
    precision = found.resolve("auto")
    images = load(bench.task)
    data = to_device(images, found.torch)
    peak = peak_gflops(found.torch, torch.bfloat16 if precision == "bf16" else torch.float32)
    bench.say("peak", f"matrix product, {precision}", peak / 1000, "TFLOP/s")
    for model in MODELS:
        bound = gflop_per_image(model, bench.task.model_options()) * len(images.train_labels) / peak
        bench.say("peak", f"{model}, epoch at that rate", bound, "s", "a bound")
    same_seed_spread(bench, data, precision)
    for batch in BATCHES:
        for model in MODELS:
            in_modes(bench, model, batch, data, precision)
    several_at_once(bench, data, precision)
    del data
    the_loops(bench, len(images.train_labels))


def same_seed_spread(bench: Bench, data: DeviceData, precision: str) -> None:
    """Standard deviation of the accuracy of runs that are equal in everything, and whether their weights are."""
    recipe = bench.recipe(MODELS[0], batch_size=min(512, len(data.train_labels)), epochs=2)

    def measure() -> tuple[float, str]:
        engine = Engine(best_mode())
        found, weights = [], []
        for _ in range(5):
            state = set_up(recipe, 0, data, precision, engine)
            for number in range(recipe.epochs):
                begin_epoch(state, number)
                for step in range(min(bench.steps, state.num_steps)):
                    state.train_step(step)
            logits = predict_logits(state.model, data.test_images, state.pipeline, precision)
            found.append(accuracy(logits, data.test_labels.cpu()))
            weights.append(torch.cat([tensor.flatten().float().cpu() for tensor in state.model.state_dict().values()]))
        equal = all(torch.equal(weights[0], other) for other in weights)
        note = f"5 runs of {recipe.epochs} epochs of seed 0; weights are {'equal' if equal else 'not equal'}"
        return statistics.stdev(found), note

    bench.attempt("same seed", "standard deviation of the test accuracy", "points", SECONDS, measure)


def in_modes(bench: Bench, model: str, batch: int, data: DeviceData, precision: str) -> None:
    """The warm epoch of one network at one batch size, in every mode that this device has."""
    recipe = bench.recipe(model, batch_size=min(batch, len(data.train_labels)))
    for name, mode in MODES.items():
        if (name != "eager" and not torch.cuda.is_available()) or (name == "compiled" and batch != BATCH_COMPILED):
            continue

        def measure(mode: Mode) -> tuple[float, str]:
            begun = time.perf_counter()
            state = set_up(recipe, 0, data, precision, Engine(mode))
            wait()
            ready = f"set up in {time.perf_counter() - begun:.1f} s"
            seconds, whole = warm_epoch([state], bench.steps)
            return seconds, "; ".join(filter(None, [ready, bench.extrapolated(whole)]))

        needed = 90 if name == "compiled" else SECONDS
        bench.attempt("epoch", f"{model}, batch {batch}, {name}", "s", needed, partial(measure, mode))


def several_at_once(bench: Bench, data: DeviceData, precision: str) -> None:
    """Runs of the compact network at the seed's own batch of 16, in turn on one device."""
    recipe = bench.recipe(MODELS[0], batch_size=min(16, len(data.train_labels)))
    engine = Engine(best_mode())
    states: list[TrainState] = []

    def measure(number: int) -> tuple[float, str]:
        states.extend(set_up(recipe, stream, data, precision, engine, stream) for stream in range(len(states), number))
        seconds, whole = warm_epoch(states, bench.steps)
        return seconds / number, bench.extrapolated(whole)

    for number in NUM_STREAMS:
        what = f"{MODELS[0]}, batch 16, {number} runs, per run and epoch"
        bench.attempt("at once", what, "s", SECONDS, partial(measure, number))


def the_loops(bench: Bench, num_images: int) -> None:
    """The plain and the fair loop, from their first steps."""
    for model in MODELS:
        for loop in ("plain", "fair"):
            command = [sys.executable, "-m", "benchmarks.peers", "--loop", loop, "--model", model, "--epochs", "1"]
            command += ["--data", bench.task.data, "--batch-size", str(min(512, num_images)), "--eval-every", "0"]
            command += ["--max-steps", str(min(LOOP_STEPS, bench.steps)), "--test-images", "100"]
            command += ["--width", str(bench.task.width)] if bench.task.width else []

            def measure(command: Sequence[str]) -> tuple[float, str]:
                done = subprocess.run(
                    command, cwd=ROOT, capture_output=True, text=True, timeout=bench.time_left(), check=False
                )
                lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
                epochs = [line for line in lines if line.get("event") == "epoch"]
                if done.returncode or not epochs:
                    raise RuntimeError(" ".join(done.stderr.strip().splitlines()[-1:]) or "it printed no epoch")
                seconds = epochs[0]["train_seconds"] * num_images / epochs[0]["images"]
                return seconds, f"extrapolated from {epochs[0]['images']} images, the first step among them"

            bench.attempt("loop", f"{loop}, {model}, batch 512", "s", 60, partial(measure, command))


def best_mode() -> Mode:
    return MODES["captured"] if torch.cuda.is_available() else MODES["eager"]


def begin_epoch(state: TrainState, number: int) -> None:
    state.train_step.load_epoch(state.seed, number, state.base_lr * state.lr_factors[: state.num_steps], 0)
    state.model.train()


def warm_epoch(states: Sequence[TrainState], steps: int) -> tuple[float, bool]:
    """Median seconds of an epoch of all of ``fits`` at once, over three; and whether all of its steps were taken."""
    seconds = []
    for number in range(4):  # the first one warms up
        wait()
        begun, done = time.perf_counter(), 0
        for state in states:
            with on_stream(state.train_step.cuda_stream):
                begin_epoch(state, number)
        for step in range(min(steps, states[0].num_steps)):
            for state in states:
                with on_stream(state.train_step.cuda_stream):
                    done += state.train_step(step)
        wait()
        images = len(states) * len(states[0].data.train_labels)
        seconds.append((time.perf_counter() - begun) * images / done)
    return statistics.median(seconds[1:]), steps >= states[0].num_steps


def wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
