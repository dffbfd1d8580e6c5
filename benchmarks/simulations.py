"""What the verdicts are worth where the truth is known: ``python -m benchmarks.simulations``; docs/statistics.md.

Every figure of the engine goes through ``compare``, ``take_looks`` or ``new_image_interval``, as a study's does.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context

import numpy as np

from benchmarks.simulated import (
    Outcome,
    Setting,
    bootstrap_covers,
    one_family,
    one_margin,
    one_of_images,
    one_peeking,
    one_peeking_always,
    one_power,
    one_with_looks,
    plain_tests,
    single_runs,
)

One = Callable[[Setting, np.random.Generator], Outcome]

CHEAP = 20
"""So many times more studies where numpy simulates all of them at once."""


@dataclass(frozen=True)
class Measured:
    """A mean over simulated studies, with its Monte-Carlo standard error."""

    part: str
    setting: str
    measured: str
    value: float
    error: float
    studies: int

    def __str__(self) -> str:
        digits = 1 if self.value >= 10 else 2 if self.measured.endswith("points") else 3
        return (
            f"| {self.part} | {self.setting} | {self.measured} | {self.value:.{digits}f} | {self.error:.{digits + 1}f} "
            f"| {self.studies:,} |"
        )


HEADER = "| part | setting | measured | value | standard error | studies |\n|---|---|---|---:|---:|---:|"

EQUAL = Setting("equal", 5)
TRUE_DIFFERENCES = (0.0, 0.2, 0.4, 0.8)


def _family_settings() -> Iterator[Setting]:
    for n in (3, 5, 8):
        seeds = f"{n} seeds"
        yield Setting(f"{seeds}, equal spreads", n)
        yield Setting(f"{seeds}, one arm's sd doubled", n, sds=(0.22, 0.22, 0.22, 0.22, 0.44))
        yield Setting(f"{seeds}, the baseline's sd doubled", n, sds=(0.44, 0.22, 0.22, 0.22, 0.22))
        yield Setting(f"{seeds}, arms correlated by 0.5", n, correlation=0.5)
    yield Setting("5 seeds, one arm lacks a seed", 5, num_missing=1)


def _power_settings() -> Iterator[Setting]:
    for n in (3, 5, 8, 12):
        yield Setting(f"{n} seeds, arms differ by 0 to 0.8", n, means=TRUE_DIFFERENCES)


def _margin_settings() -> Iterator[Setting]:
    for n in (5, 8):
        yield Setting(f"{n} seeds, all arms 0.2 better, sd 0.1", n, (0.2,) * 4, (0.1,) * 5, margin=0.2)
        yield Setting(f"{n} seeds, all arms 0.2 worse, sd 0.1", n, (-0.2,) * 4, (0.1,) * 5, margin=0.2)


EQUAL_LOOKS = Setting("equal arms", 12, margin=0.2)
LOOKS_SETTINGS = (
    EQUAL_LOOKS,
    replace(EQUAL_LOOKS, name="equal arms, sd 0.1", sds=(0.1,) * 5),
    replace(EQUAL_LOOKS, name="equal arms, sd 0.06", sds=(0.06,) * 5),
    replace(EQUAL_LOOKS, name="arms differ by 0 to 0.8", means=TRUE_DIFFERENCES),
)
PARTS: dict[str, tuple[One, tuple[Setting, ...]]] = {
    "family": (one_family, tuple(_family_settings())),
    "power": (one_power, tuple(_power_settings())),
    "margin": (one_margin, tuple(_margin_settings())),
    "looks at 5, 8, 12": (one_with_looks, LOOKS_SETTINGS),
    "peeking at 5, 8, 12": (one_peeking, (replace(EQUAL_LOOKS, margin=0.0),)),
    "peeking from 3 to 12": (one_peeking_always, (replace(EQUAL_LOOKS, margin=0.0),)),
    "new images": (one_of_images, tuple(Setting(f"{n} seeds, 2,000 images", n) for n in (3, 5, 8))),
}
ALTERNATIVES = "instead"


def measure(part: str, studies: int, seed: int, processes: int = 1) -> Iterator[Measured]:
    """All rows of a part; the same seed and number of studies give the same rows, whatever ``processes`` is."""
    if part == ALTERNATIVES:
        yield from _alternatives(CHEAP * studies, seed)
        return
    one, settings = PARTS[part]
    for setting in settings:
        for name, values in _outcomes(one, setting, studies, seed, processes).items():
            yield _row(part, setting.name, name, np.array(values))


def _row(part: str, setting: str, name: str, values: np.ndarray) -> Measured:
    error = float(values.std(ddof=1)) / math.sqrt(len(values))
    return Measured(part, setting, name, float(values.mean()), error, len(values))


def _outcomes(one: One, setting: Setting, studies: int, seed: int, processes: int) -> dict[str, list[float]]:
    step = partial(_study, one, setting, seed)
    if processes == 1:
        _freeze()
        outcomes = [step(index) for index in range(studies)]
        gc.unfreeze()
    else:
        with get_context("spawn").Pool(processes, initializer=_freeze) as pool:
            outcomes = pool.map(step, range(studies), chunksize=50)
    return {name: [outcome[name] for outcome in outcomes] for name in outcomes[0]}


def _freeze() -> None:
    """Let the garbage collector find little among the imported libraries."""
    gc.collect()
    gc.freeze()


def _study(one: One, setting: Setting, seed: int, index: int) -> Outcome:
    return one(setting, np.random.default_rng([seed, index]))


def _alternatives(studies: int, seed: int) -> list[Measured]:
    rng = np.random.default_rng([seed, 0])
    rows = [
        _row(ALTERNATIVES, "one run each, sd 0.25", name, values.astype(float))
        for name, values in single_runs(studies, rng).items()
    ]
    for setting in itertools.islice(_family_settings(), 4, 7):
        rows += [
            _row(ALTERNATIVES, setting.name, name, values.astype(float))
            for name, values in plain_tests(setting, studies, rng).items()
        ]
    for n in (3, 5, 8):
        values = bootstrap_covers(n, studies // 4, rng).astype(float)
        rows.append(_row(ALTERNATIVES, f"{n} seeds, one arm", "percentile bootstrap: 95% interval covers", values))
    return rows


def main() -> None:
    every = (*PARTS, ALTERNATIVES)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--studies", type=int, default=2000, help="simulated for each setting")
    parser.add_argument("--part", choices=every, action="append", help="all of them by default; may be repeated")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=1)
    options = parser.parse_args()
    began = time.monotonic()
    print(f"Four arms and a baseline, {options.studies:,} studies for each setting, seed {options.seed}.\n")
    print(HEADER, flush=True)
    for part in options.part or every:
        for row in measure(part, options.studies, options.seed, options.processes):
            print(row, flush=True)
    print(f"\n{(time.monotonic() - began) / 60:.0f} minutes in {options.processes} processes.")


if __name__ == "__main__":
    main()
