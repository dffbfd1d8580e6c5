"""What ``plan`` prints: every run, what is done already, and how long the rest will take here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table

from cifar_ablate.data import DataSet
from cifar_ablate.device import Device
from cifar_ablate.errors import RecordError
from cifar_ablate.folder import RunFolder
from cifar_ablate.plan import DataKey, Plan, PlannedRun
from cifar_ablate.records import RecordedRun
from cifar_ablate.runner.estimate import images_of, kind_of_work, measure_rates
from cifar_ablate.runner.execute import RUNS_ROOT
from cifar_ablate.runner.reconcile import reconcile
from cifar_ablate.terminal import duration
from cifar_ablate.tracking import Tracking, is_empty


def show_plan(plans: Sequence[Plan], data: Mapping[DataKey, DataSet], device: Device, console: Console) -> None:
    """Print the plans beside the record; nothing is trained and nothing recorded."""
    tracking = None if is_empty() else Tracking()
    states = [_states(tracking, plan) for plan in plans]
    wide = Console(width=max(console.width, 120), highlight=False)  # broken lines say more than columns left out
    todo = [run for state in states for run, what in state if what == "to do"]
    rates = measure_rates(todo, data, device)

    def seconds(run: PlannedRun) -> float:
        return images_of(run, data[run.data_key]) / rates[kind_of_work(run)]

    for plan, state in zip(plans, states, strict=True):
        console.print(f"{plan.study.label}: {plan.study.question}", style="bold", highlight=False, markup=False)
        for text in dict.fromkeys(data[run.data_key].describe() for run in plan.runs):
            console.print(f"  {text}", highlight=False, markup=False)
        table = Table("arm", "seed", "epochs", "batch", "precision", "state", "estimate", box=None, pad_edge=False)
        for run, what in state:
            estimate = duration(seconds(run)) if what == "to do" else ""
            recipe = run.recipe
            cells = [run.arm, str(run.seed), str(recipe.epochs), str(recipe.batch_size), run.precision]
            table.add_row(*(cell.replace("[", "\\[") for cell in (*cells, what)), estimate)
        wide.print(table)
    total = duration(sum(seconds(run) for run in todo))
    num_runs = sum(len(plan.runs) for plan in plans)
    done = sum(what == "done" for state in states for _, what in state)
    failed = sum(what.startswith("failed") for state in states for _, what in state)
    said = f"{num_runs} runs: {done} done, {failed} failed, {len(todo)} to do, about {total} on {device.name}"
    console.print(said, highlight=False, markup=False)


def _states(tracking: Tracking | None, plan: Plan) -> list[tuple[PlannedRun, str]]:
    """Each planned run with what the record says of it: to do, done, or failed with its reason."""
    recorded: Sequence[RecordedRun] = ()
    if tracking is not None and plan.study.label in tracking.labels():
        recorded = tracking.load(plan.study.label).runs
    status = reconcile(plan.runs, recorded)
    known = {(run.arm, run.seed): "done" for run in status.done}
    known |= {(run.arm, run.seed): f"failed: {reason}" for run, reason in status.failed}
    return [(run, known.get((run.arm, run.seed)) or _in_folder(run)) for run in plan.runs]


def _in_folder(run: PlannedRun) -> str:
    """What the run's folder says of a run that is not recorded yet."""
    folder = RunFolder(RUNS_ROOT / run.fingerprint)
    try:
        result = folder.result()
    except RecordError as error:
        return f"damaged: {error}"
    if result is not None and result.status != "failed":
        return "trained, to record"
    return "to do"
