"""The number of runs at a time, measured in a second or two with the most expensive run of the study.

It does not change what is trained: each run has its own threads on a CPU, and its own stream on a GPU.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from cifar_ablate.data import DataSet
from cifar_ablate.device import Device, Slot, find_slots, give_back_freed_memory, is_out_of_memory, num_cores
from cifar_ablate.errors import UsageError
from cifar_ablate.plan import DataKey, PlannedRun
from cifar_ablate.runner.estimate import Probe, images_of, rate_in_turn
from cifar_ablate.training.batches import to_device
from cifar_ablate.training.engine import Engine, EngineOptions, choose_mode, draws_at_random

AUTO = "auto"
SECONDS = 0.8
"""Measuring time for each number of runs at a time, in seconds."""
WORTH_IT = 1.05
"""Minimum speedup for which more runs at a time are chosen: each costs memory and delays the first result."""
SHORT_SECONDS = 30.0
"""Minimum time of a study, in seconds, for worker processes to pay: one takes about 5 s to start."""
WORKER_BYTES = 600e6
"""Memory of a worker process that has imported torch, before it trains, in bytes."""
NUM_STREAMS = (1, 2, 4, 8, 16)
"""Numbers of runs at a time that are tried on a GPU."""


def parse_jobs(text: str) -> int | None:
    """The number of runs at a time, or None for ``auto``; raises UsageError for anything else."""
    if text == AUTO:
        return None
    if not text.isdecimal() or int(text) < 1:
        raise UsageError(f"--jobs {text}: give a number of runs at a time, from 1, or auto")
    return int(text)


def choose_slots(
    runs: Sequence[PlannedRun],
    data: Mapping[DataKey, DataSet],
    device: Device,
    jobs: int | None,
    threads: int | None,
    options: EngineOptions | None = None,
) -> tuple[list[Slot], str]:
    """Slots for ``jobs`` runs at a time, and a reason for their number; None: measure, "": ``jobs`` was given."""
    if jobs is not None:
        return find_slots(device, jobs, threads), ""
    if not runs:
        return find_slots(device, 1, threads), ""
    heaviest = max(runs, key=lambda run: images_of(run, data[run.data_key]))
    slot = find_slots(device, 1, threads)[0]
    slot.enter()
    if device.kind == "cuda":
        engine = Engine(replace(choose_mode(options or EngineOptions(), device), compile=False))  # which takes a minute
        measure = partial(_measure_gpu, len(runs), heaviest, data[heaviest.data_key], slot, engine)
    else:
        measure = partial(_measure_cpu, runs, heaviest, data, slot)
    try:
        chosen, why = measure()
    except Exception as error:  # an error of this run is reported when it is trained
        each = torch.cuda.device_count() if device.kind == "cuda" else 1
        number = "1 run at a time" if each == 1 else f"{each} at a time, one on each GPU"
        return find_slots(device, each, threads), f"--jobs auto: {number}; more could not be measured ({error})"
    finally:  # for the worker processes
        give_back_freed_memory()
        if device.kind == "cuda":
            engine.keep_streams(0)
            torch.cuda.empty_cache()
    return find_slots(device, chosen, threads), f"--jobs auto: {why}"


def fastest(rates: Mapping[int, float]) -> int:
    """The fastest number of runs at a time; a larger one must be faster by the factor WORTH_IT."""
    chosen = min(rates)
    for number in sorted(rates):
        if rates[number] > WORTH_IT * rates[chosen]:
            chosen = number
    return chosen


def _measure_cpu(
    runs: Sequence[PlannedRun], heaviest: PlannedRun, data: Mapping[DataKey, DataSet], slot: Slot
) -> tuple[int, str]:
    """Measure with a thread in place of each worker process: torch releases Python's lock while it computes."""
    images = to_device(data[heaviest.data_key], slot.device.torch)
    before = _resident_bytes()
    probes = [Probe(heaviest, images)]
    alone = _rate_in_threads(probes, slot.threads)
    seconds = sum(images_of(run, data[run.data_key]) for run in runs) / alone
    if seconds < SHORT_SECONDS:
        return 1, f"1 run at a time: all take about {seconds:.0f} s, and a worker process about 5 s to start"
    limits = {
        "runs": len(runs),
        "cores": num_cores() // slot.threads,
        "memory": num_in_memory(probes[0].scale * (_resident_bytes() - before)),
    }
    most = max(1, min(limits.values()))
    rates = {1: alone}
    for number in _steps_up_to(most):
        probes += [Probe(heaviest, images) for _ in range(number - len(probes))]
        rates[number] = _rate_in_threads(probes, slot.threads)
    chosen = fastest(rates)
    limited = f" (limited by {min(limits, key=lambda name: limits[name])})" if chosen == most > 1 else ""
    return chosen, _reason_for(chosen, rates, limited)


def _measure_gpu(num_runs: int, heaviest: PlannedRun, data: DataSet, slot: Slot, engine: Engine) -> tuple[int, str]:
    """Measure runs that take turns on one GPU, each on its own stream; the other GPUs get the same number."""
    num_gpus = torch.cuda.device_count()
    if draws_at_random(heaviest.recipe, data.num_classes, data.image_size_px):
        return num_gpus, f"{num_gpus} at a time, one on each GPU: networks with dropout cannot share one"
    images = to_device(data, slot.device.torch)
    rates: dict[int, float] = {}
    probes: list[Probe] = []
    for number in NUM_STREAMS:
        if number > max(1, num_runs // num_gpus):
            break
        try:
            probes += [Probe(heaviest, images, engine, stream) for stream in range(len(probes), number)]
            rates[number] = rate_in_turn(probes, SECONDS)
        except Exception as error:
            if not is_out_of_memory(error) or not rates:
                raise
            break
    chosen = fastest(rates)
    each = f" on each of {num_gpus} GPUs" if num_gpus > 1 else ""
    return chosen * num_gpus, _reason_for(chosen, rates, each)


def _reason_for(chosen: int, rates: Mapping[int, float], note: str) -> str:
    others = ", ".join(f"{rate:,.0f} with {number}" for number, rate in sorted(rates.items()))
    return f"{chosen} at a time{note}: {others} (images per second in total)"


def _steps_up_to(most: int) -> Iterable[int]:
    """2, 4, 8, ... and ``most`` itself."""
    number = 2
    while number < most:
        yield number
        number *= 2
    if most > 1:
        yield most


def _rate_in_threads(probes: Sequence[Probe], threads: int) -> float:
    """Total images per second of all probes at once, each in a thread."""

    def count(probe: Probe) -> float:
        torch.set_num_threads(threads)  # applies to this thread
        probe.step()
        return _images_per_second(probe.step)

    with ThreadPoolExecutor(len(probes)) as pool:
        return sum(pool.map(count, probes))


def _images_per_second(step: Callable[[], int]) -> float:
    begun, num = time.perf_counter(), 0
    while time.perf_counter() - begun < SECONDS:
        num += step()
    return num / (time.perf_counter() - begun)


def num_in_memory(bytes_per_run: float) -> int:
    """Number of worker processes that fit into the free memory."""
    free = available_bytes()
    return 1_000_000 if free is None else max(1, int(free / (WORKER_BYTES + max(0.0, bytes_per_run))))


def _resident_bytes() -> float:
    return 1024.0 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def available_bytes() -> float | None:
    """Free memory of the machine or of this process's control group, the smaller one; None if neither is known."""
    found = []
    meminfo, limit = Path("/proc/meminfo"), Path("/sys/fs/cgroup/memory.max")
    if meminfo.exists():
        lines = dict(line.split(":", 1) for line in meminfo.read_text(encoding="utf-8").splitlines())
        found.append(1024.0 * int(lines["MemAvailable"].split()[0]))
    if limit.exists() and (text := limit.read_text(encoding="utf-8").strip()).isdecimal():
        used = int(Path("/sys/fs/cgroup/memory.current").read_text(encoding="utf-8"))
        found.append(float(int(text) - used))
    return min(found, default=None)
