"""Commands. No logic lives here; this is the only place that turns an error into an exit code.

Everything heavier than typer is imported inside the command that needs it, so that ``--help`` answers at once.
"""

from __future__ import annotations

import io
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from cifar_ablate import __version__
from cifar_ablate.cli.options import (
    Address,
    CheckpointSeconds,
    DeviceName,
    ExecutorName,
    Files,
    GpusPerRun,
    Jobs,
    OnOff,
    Profile,
    Settings,
    Threads,
)
from cifar_ablate.cli.predictor import package, predict, promote, serve
from cifar_ablate.cli.tune import tune
from cifar_ablate.console import fail, leaving_at_once, make_console, without_collecting, write
from cifar_ablate.registry import FORMATS

if TYPE_CHECKING:
    from cifar_ablate.training.engine import Choice


app = typer.Typer(
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    epilog="Start with: cifar-ablate run experiments/*.yaml --profile smoke && cifar-ablate report",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        sys.stdout.write(f"cifar-ablate {__version__}\n")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Does this change to the training help, by how much, and how sure are we?"""


@app.command()
def run(
    files: Files,
    profile: Profile = None,
    settings: Settings = None,
    arm: Annotated[list[str] | None, typer.Option(help="Train only this arm (may be repeated).")] = None,
    seed: Annotated[list[int] | None, typer.Option(help="Train only this seed (may be repeated).")] = None,
    retry: Annotated[str | None, typer.Option(metavar="failed", help="Try failed runs again.")] = None,
    fail_fast: Annotated[bool, typer.Option("--fail-fast", help="Stop everything when a run fails.")] = False,
    take_over: Annotated[
        bool, typer.Option("--take-over", help="Also train runs that MLflow shows as RUNNING on hosts that are gone.")
    ] = False,
    offline: Annotated[bool, typer.Option("--offline", help="Leave MLflow alone; deliver later with sync.")] = False,
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
    """Train what the record lacks: every arm over every seed; the same command again does what is left."""
    from cifar_ablate.errors import UsageError

    if retry not in (None, "failed"):
        raise UsageError(f"--retry {retry}: only failed runs can be tried again; write --retry failed")
    from cifar_ablate.runner.executor import ExecutorConfig
    from cifar_ablate.runner.jobs import parse_jobs
    from cifar_ablate.runner.run import RunOptions, choose_executor, run_studies
    from cifar_ablate.runner.summary import exit_code, lines_of
    from cifar_ablate.training.engine import EngineOptions

    console = make_console()
    engine = EngineOptions(cast("Choice", compile), cast("Choice", capture))
    options = RunOptions(retry == "failed", fail_fast, take_over, checkpoint_seconds, engine)
    with choose_executor(executor, ExecutorConfig(device, parse_jobs(jobs), threads, address, gpus_per_run)) as where:
        summary = run_studies(
            files,
            profile,
            settings,
            arm,
            seed,
            offline=offline,
            executor=where,
            options=options,
            console=console,
        )
    for line in lines_of(summary):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    raise typer.Exit(exit_code(summary))


@app.command()
@without_collecting()
def plan(
    files: Files,
    profile: Profile = None,
    settings: Settings = None,
    device: DeviceName = "auto",
    jobs: Jobs = "auto",
    threads: Threads = None,
) -> None:
    """List every run, what is done already, and a time estimate measured on this device. Trains nothing."""
    from cifar_ablate.device import find_device
    from cifar_ablate.runner.jobs import parse_jobs
    from cifar_ablate.runner.preflight import prepare
    from cifar_ablate.runner.show_plan import show_plan

    console, num_jobs = make_console(), parse_jobs(jobs)
    ready = prepare(files, profile, settings, device=partial(find_device, device), console=console)
    show_plan(ready.plans, ready.data, ready.device, num_jobs, threads, console)


app.command()(tune)


@app.command()
def preview(
    study: Annotated[Path, typer.Argument(metavar="STUDY.yaml", help="Study file.")],
    profile: Profile = None,
    settings: Settings = None,
    arm: Annotated[list[str] | None, typer.Option(help="Show only this arm (may be repeated).")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Default: the first of the study.")] = None,
    epoch: Annotated[int, typer.Option(min=1, help="The first is 1.")] = 1,
    images: Annotated[int, typer.Option(min=1, help="How many of the first batch.")] = 12,
    output: Annotated[Path | None, typer.Option(metavar="PNG", help="Default: reports/preview-STUDY.png")] = None,
) -> None:
    """Draw what each arm's network sees: the first images of an epoch, augmented, with their targets."""
    from cifar_ablate.runner.preview import PreviewOptions, draw_preview

    console, options = make_console(), PreviewOptions(arm, seed, epoch, images)
    path = draw_preview(study, profile, settings, options, output, console)
    console.print(str(path), highlight=False, markup=False, soft_wrap=True)


@app.command()
def sync() -> None:
    """Deliver to MLflow what run folders hold and it has missed, after it did not answer. Trains nothing."""
    from cifar_ablate.record.folder import RUNS_ROOT
    from cifar_ablate.record.mlflow_store import Tracking
    from cifar_ablate.runner.summary import lines_of_sync
    from cifar_ablate.runner.sync import sync as sync_folders

    console = make_console()
    synced = sync_folders(Tracking(), RUNS_ROOT, lambda text: console.print(text, highlight=False, markup=False))
    for line in lines_of_sync(synced):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    raise typer.Exit(1 if synced.undelivered else 0)


@app.command()
@without_collecting()
def report(
    studies: Annotated[list[str] | None, typer.Argument(metavar="[STUDY...]", help="Labels; default: all.")] = None,
    format: Annotated[
        str | None, typer.Option(help=f"Report format: {', '.join(FORMATS.names())}; default: by PATH, else markdown.")
    ] = None,
    output: Annotated[Path | None, typer.Option(metavar="PATH", help="Write it there, its figures beside it.")] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Compare PATH (reports/summary.md) with the record; 1 where it is stale.")
    ] = False,
    record: Annotated[Path | None, typer.Option(metavar="DIR", help="Read an exported record, not MLflow.")] = None,
) -> None:
    """Say which differences are real: verdicts, table, figures, and what to do next.

    Without --output it is printed, and its figures go into reports/figures.
    """
    from cifar_ablate.errors import OutputError, UsageError
    from cifar_ablate.record.mlflow_store import existing
    from cifar_ablate.report.build import build_report
    from cifar_ablate.report.load import from_folder, from_tracking
    from cifar_ablate.report.write import REPORTS, check_report, format_of, render, write_files, write_report

    format = format_of(format, output)
    if check and output is None and format != "markdown":
        raise UsageError(f"--check --format {format}: name the report to check with --output PATH")
    records, shared_recipes = (
        from_folder(record, studies or ()) if record is not None else from_tracking(existing(), studies or ())
    )
    found = build_report(records, shared_recipes=shared_recipes)
    rendered = render(found, format)
    if check:
        path = output or REPORTS / "summary.md"
        if stale := check_report(found, rendered, path):
            fail("\n".join([f"{path} does not match the record:", *stale]), 1)
        make_console().print(f"{path} matches the record", highlight=False, markup=False)
    elif output is not None:
        write_report(rendered, output)
    else:
        try:
            write_files(rendered, REPORTS)
        except OutputError as error:  # what was asked for is the text
            sys.stderr.write(f"{error}; the report has no figures\n")
        write(rendered.text)


@app.command()
def export(
    study: Annotated[str, typer.Argument(metavar="STUDY", help="Label, such as onecycle or onecycle@pilot.")],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of the record; files in it are replaced.")],
) -> None:
    """Write a study's compact record (recipes, curves, per-image predictions), to be committed beside a report."""
    from cifar_ablate.record.compact import export_study
    from cifar_ablate.record.mlflow_store import existing

    record = export_study(existing(), study, folder)
    size = sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
    make_console().print(f"{folder}: {len(record.runs)} runs, {size / 1e6:.2f} MB", highlight=False, markup=False)


for command in (promote, predict, serve, package):
    app.command()(command)


@app.command()
def models(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="A model of ours or of timm.")] = None,
    settings: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="width=16")] = None,
) -> None:
    """List the models, or print one's layer table at 32x32."""
    from cifar_ablate.registry import MODELS

    if name is None:
        sys.stdout.write("".join(f"{known:20}{MODELS.summary(known)}\n" for known in MODELS.names()))
        sys.stdout.write("and any timm model by name (timm/NAME where the name is taken)\n")
        return
    from cifar_ablate.models.build import layer_table
    from cifar_ablate.spec.overlay import model_options

    sys.stdout.write(layer_table(name, model_options(name, settings or [])) + "\n")


@app.command()
def schema() -> None:
    """Print the JSON schema of study files, for completion in editors."""
    import json

    from cifar_ablate.spec.json_schema import study_json_schema

    sys.stdout.write(json.dumps(study_json_schema(), indent=1) + "\n")


def main() -> None:
    """Entry point of the ``cifar-ablate`` command."""
    from cifar_ablate.errors import AblateError

    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a name that the terminal's encoding lacks is no reason to stop
            stream.reconfigure(errors="backslashreplace")
    try:
        with leaving_at_once():
            app(standalone_mode=True)
    except AblateError as error:
        fail(str(error), error.exit_code)
    except BrokenPipeError:
        sys.stderr.close()
        raise SystemExit(0) from None
