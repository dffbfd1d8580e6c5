"""The ``tune`` command."""

from __future__ import annotations

import shlex
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from cifar_ablate.cli.options import (
    Address,
    CheckpointSeconds,
    DeviceName,
    ExecutorName,
    GpusPerRun,
    Jobs,
    OnOff,
    Profile,
    Settings,
    Threads,
)
from cifar_ablate.console import make_console

if TYPE_CHECKING:
    from cifar_ablate.training.engine import Choice


def tune(
    study: Annotated[Path, typer.Argument(metavar="STUDY.yaml", help="Study file with a `tune` section.")],
    profile: Profile = None,
    settings: Settings = None,
    arm: Annotated[list[str] | None, typer.Option(help="Tune this arm (may be repeated; default: baseline).")] = None,
    all_arms: Annotated[bool, typer.Option("--all-arms", help="Tune every arm, with one budget and space.")] = False,
    trials: Annotated[int | None, typer.Option(min=1, help="Total number for each arm; default: the study's.")] = None,
    write: Annotated[bool, typer.Option("--write", help="Write the best values into a new study.")] = False,
    output: Annotated[Path | None, typer.Option(metavar="FILE", help="For --write; default: STUDY-tuned.yaml.")] = None,
    history: Annotated[Path | None, typer.Option(metavar="DIR", help="Write all trials and figures into it.")] = None,
    storage: Annotated[str | None, typer.Option(metavar="URL|FILE", help="Default: sqlite:///optuna.db")] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Without MLflow; a later tune delivers.")] = False,
    retry: Annotated[str | None, typer.Option(metavar="failed", help="Try failed trials again.")] = None,
    executor: ExecutorName = "local",
    address: Address = None,
    gpus_per_run: GpusPerRun = None,
    device: DeviceName = "auto",
    jobs: Jobs = "auto",
    threads: Threads = None,
    compile: OnOff = "auto",
    capture: OnOff = "auto",
    checkpoint_seconds: CheckpointSeconds = 60.0,
) -> None:
    """Search better values for what the study's `tune` section names, judged on a part of the training images."""
    _check(arm, output, retry, all_arms=all_arms, write=write)
    from cifar_ablate.runner.executor import ExecutorConfig
    from cifar_ablate.runner.jobs import parse_jobs
    from cifar_ablate.runner.run import choose_executor
    from cifar_ablate.runner.summary import exit_code
    from cifar_ablate.training.engine import EngineOptions
    from cifar_ablate.tuning.result import write_history
    from cifar_ablate.tuning.run import TuneOptions, TuneSelection, tune_study
    from cifar_ablate.tuning.summary import tune_lines
    from cifar_ablate.tuning.target import target_of
    from cifar_ablate.tuning.write import write_tuned

    console = make_console()
    engine = EngineOptions(cast("Choice", compile), cast("Choice", capture))
    target = target_of(study, output)
    selection = TuneSelection(profile, settings, arm, all_arms, trials, target if write else None, history)
    options = TuneOptions(retry == "failed", checkpoint_seconds, engine)
    with choose_executor(executor, ExecutorConfig(device, parse_jobs(jobs), threads, address, gpus_per_run)) as where:
        summary = tune_study(
            study, selection, storage=storage, offline=offline, executor=where, options=options, console=console
        )
    say = partial(console.print, highlight=False, markup=False, soft_wrap=True)
    is_written = write and not summary.stopped_because and not summary.is_under_way
    for line in tune_lines(summary, is_written=is_written):
        say(line)
    if is_written:
        write_tuned(study, summary.results, target, selection.overlay, shlex.join(["cifar-ablate", *sys.argv[1:]]))
        say(f"{target}: each arm at its best values")
    if history is not None:
        say(f"{write_history(summary.results, history)}: every trial, and figures")
    raise typer.Exit(exit_code(summary) or int(write and not is_written))


def _check(arm: list[str] | None, output: Path | None, retry: str | None, *, all_arms: bool, write: bool) -> None:
    """Raise UsageError for options that contradict each other."""
    from cifar_ablate.errors import UsageError

    if arm and all_arms:
        raise UsageError("--arm and --all-arms: give one of the two")
    if output is not None and not write:
        raise UsageError(f"--output {output}: it is for --write; add that")
    if retry not in (None, "failed"):
        raise UsageError(f"--retry {retry}: only failed trials can be tried again; write --retry failed")
