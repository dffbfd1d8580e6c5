"""What ``plan`` prints: every run and its state, a time estimate, and what the study can decide."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from statistics import fmean

from rich.console import Console
from rich.table import Table

from cifar_ablate.console import duration
from cifar_ablate.data import DataSet
from cifar_ablate.device import Device, Slot
from cifar_ablate.errors import AblateError
from cifar_ablate.plan import DataKey, Plan, PlannedRun
from cifar_ablate.record.folder import RUNS_ROOT
from cifar_ablate.record.mlflow_store import Tracking, is_empty
from cifar_ablate.record.types import RecordedRun
from cifar_ablate.runner.decisions import decision_lines, spread_of
from cifar_ablate.runner.estimate import Kind, Throughput, images_of, kind_of_work, measure_rates
from cifar_ablate.runner.jobs import choose_slots
from cifar_ablate.runner.looks import LookState, look_state
from cifar_ablate.runner.status import RunStatus

KINDS = ("done", "running", "failed", "interrupted", "to do")
NUM_WHOLE_CIFAR10 = 50_000
"""Training images of the whole CIFAR-10."""


@dataclass(frozen=True)
class State:
    """A planned run's state as ``plan`` prints it."""

    kind: str
    """done, running, failed, interrupted, to do; with looks also "if open" and spared."""
    text: str
    epochs_done: int = 0
    """Epochs that will not be trained again."""

    @property
    def is_to_train(self) -> bool:
        return self.kind in ("to do", "interrupted")


@dataclass(frozen=True)
class _Shown:
    """A plan with the states of its runs."""

    looks: LookState
    states: Sequence[tuple[PlannedRun, State]]

    @property
    def plan(self) -> Plan:
        return self.looks.plan


@dataclass(frozen=True)
class _Times:
    """Training times of runs on this machine."""

    rates: Mapping[Kind, Throughput]
    data: Mapping[DataKey, DataSet]
    num_slots: int

    def alone(self, run: PlannedRun, state: State) -> float:
        """Seconds from the run's start to its end while others train, too."""
        share = 1 - state.epochs_done / run.recipe.epochs
        return share * images_of(run, self.data[run.data_key]) / self.rates[kind_of_work(run)].of_each

    def total(self, runs: Sequence[tuple[PlannedRun, State]]) -> float:
        """Seconds for all runs, in all slots at once."""
        seconds = (self.alone(run, state) / self.rates[kind_of_work(run)].num_in_turn for run, state in runs)
        return sum(seconds) / self.num_slots

    def of_one_seed(self, shown: _Shown) -> float | None:
        """Seconds for one more seed of every arm: measured, else as recorded; None if an arm has neither."""
        seconds = []
        recorded: dict[str, list[float]] = {}
        for one in shown.looks.results:
            if (taken := one.metrics.get("train_seconds")) is not None:
                recorded.setdefault(one.arm, []).append(taken)
        for run in {run.arm: run for run in shown.plan.runs}.values():
            known = recorded.get(run.arm)
            if kind_of_work(run) in self.rates:
                seconds.append(self.total([(run, State("to do", ""))]))
            elif known:
                seconds.append(fmean(known) / self.num_slots)
            else:
                return None
        return sum(seconds)


def show_plan(
    plans: Sequence[Plan],
    data: Mapping[DataKey, DataSet],
    device: Device,
    jobs: int | None,
    threads: int | None,
    console: Console,
) -> None:
    """Print the plans with the states of their runs. Nothing is trained; the only change is an entry in the ledger.

    Args:
        plans: The plans.
        data: Data sets of the plans.
        device: Device to train on.
        jobs: Number of runs at a time; None: measured, if anything is left to train.
        threads: CPU threads of each run; None: the default.
        console: Where to print.
    """
    tracking = None if is_empty() else Tracking()
    labels = set(tracking.labels()) if tracking is not None else set()
    shown = [_beside_record(tracking if plan.study.label in labels else None, plan) for plan in plans]
    wide = Console(width=max(console.width, 120), highlight=False)  # rather broken lines than missing columns
    states = [each for one in shown for each in one.states]
    slots, _ = choose_slots([run for run, state in states if state.is_to_train], data, device, jobs, threads)
    timed = [run for run, state in states if state.is_to_train or state.kind == "if open"]
    slots[0].enter()
    times = _Times(measure_rates(timed, data, slots[0]), data, len(slots))
    for one in shown:
        console.print(f"{one.plan.study.label}: {one.plan.study.question}", style="bold", highlight=False, markup=False)
        for text in dict.fromkeys(data[run.data_key].describe() for run in one.plan.runs):
            console.print(f"  {text}", highlight=False, markup=False)
        wide.print(_table(one, times))
        for text in _decisions(one, times, tracking):
            console.print(f"  {text}", highlight=False, markup=False, soft_wrap=True)
    console.print(_last_line(shown, times, slots), highlight=False, markup=False, soft_wrap=True)


def _table(shown: _Shown, times: _Times) -> Table:
    table = Table("arm", "seed", "epochs", "batch", "precision", "state", "estimate", box=None, pad_edge=False)
    for run, state in shown.states:
        estimate = duration(times.alone(run, state)) if state.is_to_train or state.kind == "if open" else ""
        recipe = run.recipe
        cells = [run.arm, str(run.seed), str(recipe.epochs), str(recipe.batch_size), run.precision]
        table.add_row(*(cell.replace("[", "\\[") for cell in (*cells, state.text)), estimate)
    return table


def _decisions(shown: _Shown, times: _Times, tracking: Tracking | None) -> list[str]:
    """What the plan can decide; the ledger notes it if that was computed from test accuracies."""
    study, results = shown.plan.study, shown.looks.results
    is_whole = all(
        run.recipe.data.name == "cifar10" and len(times.data[run.data_key].train_labels) == NUM_WHOLE_CIFAR10
        for run in shown.plan.runs
    )
    spread = spread_of(study, results, is_whole_cifar10=is_whole)
    if spread.is_recorded and tracking is not None:
        with suppress(AblateError):  # a plan can be shown from a read-only store, too
            tracking.note(study.label, "plan", "seed spread", results)
    return decision_lines(study, spread, times.of_one_seed(shown))


def _last_line(shown: Sequence[_Shown], times: _Times, slots: Sequence[Slot]) -> str:
    states = [each for one in shown for each in one.states]
    counts = Counter(state.kind for _, state in states)
    said = ", ".join(f"{counts[kind]} {kind}" for kind in KINDS if counts[kind] or kind in ("done", "failed", "to do"))
    at_a_time = sum(slot.num_slices for slot in slots)
    jobs = f", {at_a_time} at a time" if at_a_time > 1 else ""
    threads = "1 CPU thread" if slots[0].threads == 1 else f"{slots[0].threads} CPU threads"
    where = f"{slots[0].device.name} ({threads} per run{jobs})"
    seconds = times.total([(run, state) for run, state in states if state.is_to_train])
    total = sum(counts[kind] for kind in KINDS)
    line = f"{total} runs: {said}, about {duration(seconds)} on {where}"
    if counts["if open"]:
        more = times.total([(run, state) for run, state in states if state.kind == "if open"])
        line += f"; at most {counts['if open']} more, about {duration(more)}, where looks leave it open"
    return line + (f"; {counts['spared']} not needed" if counts["spared"] else "")


def _beside_record(tracking: Tracking | None, plan: Plan) -> _Shown:
    recorded: Sequence[RecordedRun] = ()
    if tracking is not None:
        recorded = tracking.load(plan.study.label).runs
    looks = look_state(plan, recorded, RUNS_ROOT)
    return _Shown(looks, [(run, _state(looks, run)) for run in plan.runs])


def _state(looks: LookState, run: PlannedRun) -> State:
    status = looks.statuses[run.key]
    if not status.is_to_train or looks.asks_for(run):
        return _in_words(status, run)
    if looks.may_ask_for(run):
        return State("if open", f"if open after the look at {looks.look_before(run)} seeds")
    return State("spared", "not needed: decided with fewer seeds")


def _in_words(status: RunStatus, run: PlannedRun) -> State:  # noqa: PLR0911  one for each kind
    at = f"epoch {status.epochs_done}/{run.recipe.epochs}"
    if status.kind == "recorded":
        diverged = status.record is not None and status.record.outcome == "diverged"
        return State("done", "done (diverged)" if diverged else "done")
    if status.kind == "trained":
        return State("done", "trained, to record")
    if status.kind == "running":
        text = f"running: {status.owner or 'another run command'}"
        return State("running", f"{text}, {at}" if status.epochs_done else text)
    if status.kind == "elsewhere":
        return State("running", f"running: {status.owner}")
    if status.kind in ("failed", "damaged"):
        return State("failed", f"{status.kind}: {status.reason}")
    if status.kind == "interrupted":
        resumed = f" (from epoch {status.epochs_done + 1})" if status.epochs_done else ""  # in the words of ``run``
        text = f"interrupted, {status.reason}" if status.reason else f"interrupted at {at}{resumed}"
        return State("interrupted", text, status.epochs_done)
    return State("to do", "to do")
