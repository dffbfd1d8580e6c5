"""From a command line to trials: everything that can be wrong is found here, before the first one."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rich.console import Console

from cifar_ablate.errors import OutputError, TrackingError, not_written
from cifar_ablate.plan import PlannedRun
from cifar_ablate.runner.executor import Executor
from cifar_ablate.runner.preflight import prepare
from cifar_ablate.runner.run import fitting_device
from cifar_ablate.runner.stop import StopSignal, signals_stop
from cifar_ablate.spec.load import load_study
from cifar_ablate.spec.overlay import Overlay, load_overlay
from cifar_ablate.spec.schema import Study
from cifar_ablate.tracking import Tracking
from cifar_ablate.tuning.display import TuningDisplay
from cifar_ablate.tuning.plan import ArmPlan, plan_tuning
from cifar_ablate.tuning.pruners import can_prune
from cifar_ablate.tuning.run import TuneOptions, TuneSummary, tune_arms
from cifar_ablate.tuning.storage import storage_url
from cifar_ablate.tuning.target import check_target


@dataclass(frozen=True)
class TuneSelection:
    """What a command line asks to be tuned."""

    profile: str | None
    settings: Sequence[str] | None
    arms: Sequence[str] | None
    all_arms: bool
    trials: int | None
    write_to: Path | None = None
    """The study file that is written in the end."""
    history: Path | None = None
    """The folder that every trial is written to in the end."""

    @property
    def overlay(self) -> Overlay:
        return load_overlay(self.profile, self.settings or [])

    def arms_of(self, study: Study) -> list[str]:
        if self.all_arms:
            return [arm.name for arm in study.arms]
        return list(self.arms or [study.baseline])


def tune_study(
    file: Path,
    selection: TuneSelection,
    *,
    storage: str | None,
    offline: bool,
    executor: Executor,
    options: TuneOptions,
    console: Console,
) -> TuneSummary:
    """Tune the arms that are wanted of a study; raises AblateError for whatever stands in the way."""
    device = partial(fitting_device, executor, options.engine)
    ready = prepare([file], selection.profile, selection.settings, device=device, console=console)
    study = ready.plans[0].study
    tune = study.tune
    if tune is not None and selection.trials is not None:
        tune = tune.model_copy(update={"trials": selection.trials})
    plans = plan_tuning(study, selection.arms_of(study), ready.data, ready.device, tune=tune)
    _check_outputs(file, selection, plans)
    trainings = [run for plan in plans for run in _trainings(plan)]
    parts = {run.data_key: plan.data for plan in plans for run in plan.runs(plan.recipe, 0)}
    slots, said = executor.slots(trainings, parts, options.engine)
    console.print(said, highlight=False, markup=False)
    for line in (*_described(plans), *_of_pruning(plans)):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    stop = StopSignal()
    tracking = None if offline else _open_tracking()
    with TuningDisplay(console) as display, signals_stop(stop):
        return tune_arms(
            plans,
            url=storage_url(storage),
            tracking=tracking,
            executor=executor,
            slots=slots,
            display=display,
            stop=stop,
            options=options,
        )


def _check_outputs(file: Path, selection: TuneSelection, plans: Sequence[ArmPlan]) -> None:
    """A tuning may take hours: what could not be written after it is said before it."""
    if selection.write_to is not None:
        check_target(selection.write_to, load_study(file), plans, selection.overlay)
    if selection.history is not None:
        try:
            selection.history.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise not_written(selection.history, error) from None
        if not os.access(selection.history, os.W_OK):
            raise OutputError(selection.history, "Permission denied", "run where you may write")


def _open_tracking() -> Tracking:
    try:
        return Tracking()
    except TrackingError as error:
        raise TrackingError(f"{error}; or tune with --offline: the same command delivers later") from None


def _trainings(plan: ArmPlan) -> list[PlannedRun]:
    """As many as there may be at a time, as far as slots can be chosen before they are known."""
    return plan.runs(plan.recipe, 0) * plan.num_wanted


def _described(plans: Sequence[ArmPlan]) -> list[str]:
    first = plans[0]
    space = "; ".join(f"{name}: {words}" for name, words in first.protocol["space"].items())
    each = f", {first.tune.seeds} seeds each" if first.tune.seeds > 1 else ""
    return [
        f"Tuning {', '.join(plan.arm for plan in plans)}: {first.num_wanted} trials each{each}",
        f"On {first.data.describe()}",
        f"Space: {space}",
        f"Sampler {first.protocol['sampler']}; pruner {first.protocol['pruner']}",
    ]


def _of_pruning(plans: Sequence[ArmPlan]) -> list[str]:
    """Arms whose trials are over before the pruner is asked for the first time."""
    pruner = plans[0].tune.pruner
    num_epochs = {plan.arm: plan.recipe.epochs * plan.tune.seeds for plan in plans}
    never = [arm for arm, num in num_epochs.items() if not can_prune(pruner.name, pruner.kwargs(), num)]
    most = max((num_epochs[arm] for arm in never), default=0)
    return [f"Not pruned, with at most {most} epochs a trial: {', '.join(never)}"] if never else []
