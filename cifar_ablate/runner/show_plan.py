"""What ``plan`` prints: every run, its state, and how long the rest will take here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table

from cifar_ablate.data import DataSet
from cifar_ablate.device import Place
from cifar_ablate.plan import DataKey, Plan, PlannedRun
from cifar_ablate.records import RecordedRun
from cifar_ablate.runner.estimate import images_of, kind_of_work, measure_rates
from cifar_ablate.runner.execute import RUNS_ROOT
from cifar_ablate.runner.states import State, state_of
from cifar_ablate.terminal import duration
from cifar_ablate.tracking import Tracking, is_empty

KINDS = ("done", "running", "failed", "interrupted", "to do")


def show_plan(
    plans: Sequence[Plan], data: Mapping[DataKey, DataSet], places: Sequence[Place], console: Console
) -> None:
    """Print the plans beside the record; nothing is trained and nothing recorded."""
    tracking = None if is_empty() else Tracking()
    states = [_states(tracking, plan) for plan in plans]
    wide = Console(width=max(console.width, 120), highlight=False)  # broken lines say more than columns left out
    todo = [run for of_plan in states for run, state in of_plan if state.is_to_train]
    places[0].enter()
    rates = measure_rates(todo, data, places[0])

    def seconds(run: PlannedRun, state: State) -> float:
        share = 1 - state.epochs_done / run.recipe.epochs
        return share * images_of(run, data[run.data_key]) / rates[kind_of_work(run)].of_each

    for plan, of_plan in zip(plans, states, strict=True):
        console.print(f"{plan.study.label}: {plan.study.question}", style="bold", highlight=False, markup=False)
        for text in dict.fromkeys(data[run.data_key].describe() for run in plan.runs):
            console.print(f"  {text}", highlight=False, markup=False)
        table = Table("arm", "seed", "epochs", "batch", "precision", "state", "estimate", box=None, pad_edge=False)
        for run, state in of_plan:
            estimate = duration(seconds(run, state)) if state.is_to_train else ""
            recipe = run.recipe
            cells = [run.arm, str(run.seed), str(recipe.epochs), str(recipe.batch_size), run.precision]
            table.add_row(*(cell.replace("[", "\\[") for cell in (*cells, state.text)), estimate)
        wide.print(table)
    todo_seconds = sum(
        seconds(run, state) / rates[kind_of_work(run)].num_in_turn
        for of_plan in states
        for run, state in of_plan
        if state.is_to_train
    )
    total = todo_seconds / len(places)
    console.print(_last_line(states, total, places), highlight=False, markup=False)


def _last_line(states: Sequence[Sequence[tuple[PlannedRun, State]]], seconds: float, places: Sequence[Place]) -> str:
    counts = Counter(state.kind for of_plan in states for _, state in of_plan)
    said = ", ".join(f"{counts[kind]} {kind}" for kind in KINDS if counts[kind] or kind in ("done", "failed", "to do"))
    at_a_time = sum(place.side_by_side for place in places)
    jobs = f", {at_a_time} at a time" if at_a_time > 1 else ""
    threads = "1 CPU thread" if places[0].threads == 1 else f"{places[0].threads} CPU threads"
    where = f"{places[0].device.name} ({threads} per run{jobs})"
    return f"{counts.total()} runs: {said}, about {duration(seconds)} on {where}"


def _states(tracking: Tracking | None, plan: Plan) -> list[tuple[PlannedRun, State]]:
    recorded: Sequence[RecordedRun] = ()
    if tracking is not None and plan.study.label in tracking.labels():
        recorded = tracking.load(plan.study.label).runs
    return [(run, state_of(run, recorded, RUNS_ROOT)) for run in plan.runs]
