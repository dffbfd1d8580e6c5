"""From a command line to runs: everything that can be wrong is found here, before the first one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rich.console import Console

from cifar_ablate.device import Device
from cifar_ablate.errors import UsageError
from cifar_ablate.registry import EXECUTORS
from cifar_ablate.runner.chosen import chosen_runs
from cifar_ablate.runner.command import Summary
from cifar_ablate.runner.estimate import images_of
from cifar_ablate.runner.execute import RunOptions, run_plans, runs_left
from cifar_ablate.runner.executor import Executor, Wish
from cifar_ablate.runner.preflight import open_tracking, prepare
from cifar_ablate.runner.stopping import Stops, signals_stop
from cifar_ablate.terminal import Terminal
from cifar_ablate.training.engine import EngineOptions, check_options, choose_mode


@dataclass(frozen=True)
class Wanted:
    """What a command line asks to be trained."""

    profile: str | None = None
    settings: Sequence[str] | None = None
    arms: Sequence[str] | None = None
    seeds: Sequence[int] | None = None
    offline: bool = False


def choose_executor(name: str, wish: Wish) -> Executor:
    """The executor called ``name``; raises UnknownNameError, and UsageError where it cannot do what is wished."""
    executor = EXECUTORS.get(name)(wish)
    if not isinstance(executor, Executor):
        raise UsageError(f"--executor {name}: what is registered under it is no subclass of Executor")
    return executor


def keeps_in_mlflow(checkpoints: str, *, offline: bool) -> bool:
    """What --checkpoints says; raises UsageError for anything else than folder and mlflow, or mlflow with --offline."""
    if checkpoints == "mlflow" and offline:
        raise UsageError("--checkpoints mlflow and --offline: give one of the two")
    if checkpoints not in ("folder", "mlflow"):
        raise UsageError(f"--checkpoints {checkpoints}: write folder, or mlflow to let any machine go on with a run")
    return checkpoints == "mlflow"


def fitting_device(executor: Executor, engine: EngineOptions) -> Device:
    """The executor's device; raises DeviceError where steps cannot be taken on it as the options force it."""
    device = executor.device()
    check_options(engine, device.kind)
    if executor.trains_here:  # others find out where they train: this machine may have no such device
        choose_mode(engine, device)
    return device


def run_studies(
    files: Sequence[Path], wanted: Wanted, executor: Executor, options: RunOptions, console: Console
) -> Summary:
    """Train what the record lacks of these studies; raises AblateError for whatever stands in the way."""
    device = partial(fitting_device, executor, options.engine)
    ready = prepare(files, wanted.profile, wanted.settings, device=device, console=console)
    chosen = chosen_runs(ready.plans, wanted.arms, wanted.seeds)
    places, said = executor.places(runs_left(ready.plans, chosen), ready.data, options.engine)
    console.print(said, highlight=False, markup=False)
    stops = Stops()
    tracking = None if wanted.offline else open_tracking()
    with Terminal(console, lambda run: images_of(run, ready.data[run.data_key])) as terminal, signals_stop(stops):
        return run_plans(
            ready.plans,
            tracking=tracking,
            data=ready.data,
            executor=executor,
            places=places,
            options=options,
            wanted=chosen,
            events=terminal,
            stops=stops,
        )
