"""The trials of one arm, kept in its Optuna study: proposed, claimed, reported, ended, and resumed after a loss.

Optuna cannot reopen a trial. A trial whose process is gone ends as FAIL with the attribute ``lost``; a failed trial
that is retried is listed in the study's attribute ``retried``. The values of both are enqueued as a new trial, and the
old ones do not count any more: not as tried, not in a result, and not for the seed of the next proposal.
"""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, Trial, TrialState
from pydantic import ValidationError

from cifar_ablate.errors import TakenError
from cifar_ablate.locks import lock
from cifar_ablate.plan import PlannedRun
from cifar_ablate.process import process_from_text, this_process
from cifar_ablate.record.mlflow_tunings import RecordedTuning
from cifar_ablate.registry import PRUNERS, SAMPLERS
from cifar_ablate.rng import derive_seed
from cifar_ablate.spec.schema import Choices, Parameter, Range, Recipe, label_of
from cifar_ablate.spec.space import Values, compose
from cifar_ablate.tuning.plan import ArmPlan
from cifar_ablate.tuning.storage import storage_errors

LOST, OWNER, BEAT, REASON, UNTUNED = "lost", "owner", "beat", "reason", "is_present_recipe"
RESUMES, OUTCOME, WORKER_DIED = "taken_up_from", "outcome", "worker_died_before"
VALUES, SECONDS, EPOCHS, FINGERPRINTS, RECIPE_ID = "values", "seconds", "epochs", "fingerprints", "recipe_id"
"""Names of a trial's user attributes in Optuna. Storages that exist hold them, so they must not change."""
RETRIED = "retried"
"""User attribute of a study: numbers of failed trials that were retried under another number."""
STALE_SECONDS = 300.0
"""Time without a heartbeat after which a trial of another machine is lost: ten heartbeats.

Heartbeats are wall-clock times, so the clocks of machines that share a storage must agree within minutes.
"""
UNCLAIMED_SECONDS = 60.0
"""Time after which a running trial without an owner is lost: its process ended between the proposal and the claim."""
DIGITS = 4
"""Significant digits of a tuned number: precise enough for any learning rate, and readable."""
SURPLUS = "another process had asked for the last trial"
SECOND_UNTUNED = "another process had asked for the recipe as it stands"


class KeyedSampler(BaseSampler):
    """Makes a new sampler for each trial, seeded by the trial's position, so that proposals can be repeated.

    Optuna's samplers draw from one random stream per process: a tuning that is resumed would start that stream again,
    and propose the same values twice. With a seed per trial, a proposal depends on the trials before it and on nothing
    else.

    Args:
        seed: The tuning's seed.
        make: Makes the sampler of one trial from its seed.
    """

    def __init__(self, seed: int, make: Callable[[int], BaseSampler]) -> None:
        self.seed, self.make = seed, make
        self.current: tuple[int, BaseSampler] | None = None

    def _sampler(self, study: optuna.Study, trial: FrozenTrial) -> BaseSampler:
        if self.current is None or self.current[0] != trial.number:
            self.current = trial.number, self.make(derive_seed(self.seed, "trial", position_of(study, trial)) % 2**32)
        return self.current[1]

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self._sampler(study, trial).infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return self._sampler(study, trial).sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return self._sampler(study, trial).sample_independent(study, trial, param_name, param_distribution)


@dataclass
class RunningTrial:
    """A trial that this process trains."""

    arm: ArmTrials
    trial: Trial
    recipe: Recipe
    values: dict[str, Any]
    """The tuned fields, as trained."""
    runs: list[PlannedRun]
    """One training per seed."""
    finals: dict[int, float] = field(default_factory=dict)
    """Validation accuracy in percent, by seed, of the trainings that are finished."""
    seconds: float = 0.0
    """Time of training and evaluation."""
    epochs: int = 0
    """Number of epochs trained."""
    is_pruned: bool = False
    has_lost_worker: bool = False
    """Whether its worker process died in this attempt."""
    is_over: bool = False
    """Whether Optuna has its end; its other trainings must not start."""

    @property
    def plan(self) -> ArmPlan:
        return self.arm.plan

    @property
    def number(self) -> int:
        return int(self.trial.number)

    @property
    def num_epochs(self) -> int:
        """Number of epochs of all its seeds."""
        return self.recipe.epochs * len(self.plan.seeds)

    @property
    def is_untuned(self) -> bool:
        """Whether it is the arm's recipe as it stands."""
        return UNTUNED in self.trial.user_attrs

    @property
    def had_lost_worker(self) -> bool:
        """Whether its worker process died in an earlier attempt."""
        return WORKER_DIED in self.trial.user_attrs

    @property
    def is_resumed(self) -> bool:
        """Whether it continues a trial that was lost."""
        return RESUMES in self.trial.user_attrs


class ArmTrials:
    """The trials of one arm. Every method is safe while other processes work on the same arm."""

    def __init__(self, plan: ArmPlan, storage: BaseStorage, url: str) -> None:
        self.plan, self.storage, self.url = plan, storage, url
        self.recorded: RecordedTuning | None = None
        """The tuning in MLflow; None while it is not opened, and offline."""
        num_epochs = plan.recipe.epochs * plan.tune.seeds
        make_sampler = SAMPLERS.bind(plan.tune.sampler.name, plan.tune.sampler.kwargs())
        with storage_errors(url), self._locked():
            self.study = optuna.create_study(
                storage=storage,
                study_name=plan.name,
                direction="maximize",
                sampler=KeyedSampler(plan.tune.seed, make_sampler),
                pruner=PRUNERS.bind(plan.tune.pruner.name, plan.tune.pruner.kwargs())(num_epochs),
                load_if_exists=True,
            )
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                self.study.set_metric_names(["val_accuracy"])  # labels the axes of the dashboard
            for name, value in plan.protocol.items():
                if self.study.user_attrs.get(name) != value:
                    self.study.set_user_attr(name, value)

    @property
    def parent_run_id(self) -> str:
        """MLflow run of the tuning, under which trials are nested; empty offline."""
        return self.recorded.run_id if self.recorded is not None else ""

    def all(self) -> list[FrozenTrial]:
        """Every trial that counts, by number."""
        with storage_errors(self.url):
            return counted(self.study, self.study.get_trials(deepcopy=False))

    def lost(self) -> dict[int, str]:
        """The reasons of lost trials, by number."""
        with storage_errors(self.url):
            every = self.study.get_trials(deepcopy=False)
        return {one.number: str(one.user_attrs[LOST]) for one in every if LOST in one.user_attrs}

    def retry_failed(self) -> int:
        """Enqueue trials that could not be trained once more; returns their number.

        Diverged trials would diverge again and are not retried; neither are more trials than are wanted.
        """
        with storage_errors(self.url), self._locked():
            begun = [one for one in self.all() if one.state != TrialState.WAITING]
            failed = [one for one in begun if can_be_retried(one)]
            kept = [one for one in begun if one not in failed]
            room = 0 if self._is_out_of_time(kept) else max(0, self.plan.num_wanted - len(kept))
            again = failed[:room]
            if again:
                numbers = [*self.study.user_attrs.get(RETRIED, ()), *(one.number for one in again)]
                self.study.set_user_attr(RETRIED, numbers)
            for one in again:
                self._enqueue(one)
        return len(again)

    def begin(self, on_invalid: Callable[[int, Values, str], None]) -> RunningTrial | None:
        """The next trial, claimed by this process; None if no more are wanted, or if the time limit is reached.

        ``on_invalid(number, values, reason)`` is called for each trial whose values are no valid recipe together.
        """
        while True:
            try:
                with storage_errors(self.url), self._locked():
                    trial = self._ask()
                    if trial is None:
                        return None
                    choose = partial(suggest, trial, exactly=UNTUNED in trial.user_attrs)
                    values, chosen = compose(self.plan.space, self.plan.values, choose)
                    try:
                        return self._planned(trial, Recipe.model_validate(values), chosen)
                    except ValidationError as error:  # each value is valid alone, but not all together
                        reason = f"the values do not fit together: {error.errors(include_url=False)[0]['msg']}"
                        trial.set_user_attr(VALUES, chosen)
                        self._tell_failed(trial, reason, "unfit")
                        on_invalid(trial.number, chosen, reason)
            except TakenError:  # this machine slept, and another one took the trial over
                continue

    def report(self, running: RunningTrial, seed: int, epoch: int, accuracy: float) -> bool:
        """Report the validation accuracy (percent) after an epoch of a seed; returns whether to prune the trial.

        Optuna gets the mean over the seeds so far, and epochs that are numbered through all seeds.
        """
        index = self.plan.seeds.index(seed)
        step = index * running.recipe.epochs + epoch
        before = [running.finals[one] for one in self.plan.seeds[:index] if one in running.finals]
        mean = (sum(before) + accuracy) / (len(before) + 1)
        with storage_errors(self.url):
            running.trial.report(mean, step)
            return bool(running.trial.should_prune())

    def complete(self, running: RunningTrial) -> float:
        """All seeds are finished; returns the trial's value, their mean accuracy in percent."""
        value = sum(running.finals.values()) / len(running.finals)
        with self._noting_cost(running):
            self.study.tell(running.trial, value)
        return value

    def prune(self, running: RunningTrial) -> None:
        """The trial ended early because others were better."""
        with self._noting_cost(running):
            self.study.tell(running.trial, state=TrialState.PRUNED)

    def fail(self, running: RunningTrial, reason: str, outcome: str) -> None:
        """The trial ``diverged``, or could not be trained (``failed``). Samplers ignore it."""
        with self._noting_cost(running):
            self._tell_failed(running.trial, reason, outcome)

    def give_back(self, running: RunningTrial, reason: str) -> None:
        """The trial was interrupted: its values are proposed next, and its trainings resume from their checkpoints."""
        with storage_errors(self.url), self._locked():
            frozen = self.study.get_trials(deepcopy=False)[running.number]
            self._requeue(frozen, reason, **({WORKER_DIED: True} if running.has_lost_worker else {}))

    def beat(self, running: RunningTrial) -> None:
        """Show other machines that this process is alive."""
        with storage_errors(self.url):
            running.trial.set_user_attr(BEAT, time.time())

    @contextmanager
    def _noting_cost(self, running: RunningTrial) -> Iterator[None]:
        """Store what the trial cost, then tell its end in the block; raises TakenError if another process took it."""
        with storage_errors(self.url):
            running.trial.set_user_attr(SECONDS, round(running.seconds, 3))
            running.trial.set_user_attr(EPOCHS, running.epochs)
            yield

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Exclude the other processes of this folder; those elsewhere are detected by the numbers of their trials."""
        with lock(Path("mlruns") / "tuning" / f"{self.plan.identity}.lock", on_wait=lambda: None):
            yield

    def _ask(self) -> Trial | None:
        """A trial that counts, claimed by this process; None if no more are wanted."""
        while True:
            self._requeue_lost()
            every = self.all()
            self._ensure_untuned(every)
            begun = [one for one in every if one.state != TrialState.WAITING]
            if len(begun) >= self.plan.num_wanted or self._is_out_of_time(begun):
                return None
            trial = self.study.ask()
            trial.set_user_attr(OWNER, this_process().to_text())
            trial.set_user_attr(BEAT, time.time())
            before = [one for one in self.all() if one.number < trial.number]  # of other folders, at the same moment
            if sum(one.state != TrialState.WAITING for one in before) >= self.plan.num_wanted:
                self._drop(trial._trial_id, SURPLUS)
                return None
            if UNTUNED not in trial.user_attrs or not any(UNTUNED in one.user_attrs for one in before):
                return trial
            self._drop(trial._trial_id, SECOND_UNTUNED)

    def _requeue_lost(self) -> None:
        for one in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if not is_alive(one):
                self._requeue(one, "its process ended without a word")

    def _requeue(self, one: FrozenTrial, reason: str, **attributes: Any) -> None:
        if self._drop(one._trial_id, reason):
            self._enqueue(one, **attributes)

    def _enqueue(self, one: FrozenTrial, **attributes: Any) -> None:
        values = {**one.system_attrs.get("fixed_params", {}), **one.params}
        attributes |= {RESUMES: one.number, **({UNTUNED: True} if UNTUNED in one.user_attrs else {})}
        self.study.enqueue_trial(values, user_attrs=attributes)

    def _ensure_untuned(self, every: list[FrozenTrial]) -> None:
        """Enqueue the recipe as it stands, unless a trial has it."""
        if not any(UNTUNED in one.user_attrs for one in every):
            untuned = self.plan.untuned_values
            values = {one.name: as_choice(one, untuned[one.name]) for one in self.plan.space if one.name in untuned}
            self.study.enqueue_trial(values, user_attrs={UNTUNED: True})

    def _is_out_of_time(self, begun: list[FrozenTrial]) -> bool:
        limit = self.plan.tune.time_limit_seconds
        used = sum(one.user_attrs.get(SECONDS, 0.0) for one in begun)
        return limit is not None and bool(begun) and used >= limit

    def _planned(self, trial: Trial, recipe: Recipe, values: Values) -> RunningTrial:
        runs = self.plan.runs(recipe, trial.number, self.parent_run_id)
        trial.set_user_attr(VALUES, values)
        trial.set_user_attr(FINGERPRINTS, [run.fingerprint for run in runs])
        trial.set_user_attr(RECIPE_ID, runs[0].recipe_id)
        return RunningTrial(self, trial, recipe, values, runs)

    def _tell_failed(self, trial: Trial, reason: str, outcome: str) -> None:
        trial.set_user_attr(REASON, reason)
        trial.set_user_attr(OUTCOME, outcome)
        self.study.tell(trial, state=TrialState.FAIL)

    def _drop(self, trial_id: int, reason: str) -> bool:
        """Mark a trial as lost; returns False if another process already ended it."""
        try:
            self.storage.set_trial_user_attr(trial_id, LOST, reason)
            return bool(self.storage.set_trial_state_values(trial_id, TrialState.FAIL))
        except optuna.exceptions.UpdateFinishedTrialError:
            return False


def counted(study: optuna.Study, trials: Iterable[FrozenTrial]) -> list[FrozenTrial]:
    """The trials without those that are lost, or were retried under another number."""
    attributes = study._storage.get_study_user_attrs(study._study_id)  # a bracket of Hyperband's has no user_attrs
    retried = set(attributes.get(RETRIED, ()))
    return [one for one in trials if LOST not in one.user_attrs and one.number not in retried]


def position_of(study: optuna.Study, trial: FrozenTrial) -> int:
    """The number of trials before this one that count."""
    every = study._storage.get_all_trials(study._study_id, deepcopy=False)
    return len(counted(study, [one for one in every if one.number < trial.number]))


def can_be_retried(one: FrozenTrial) -> bool:
    """Whether it could not be trained, for a reason that may be gone."""
    return one.state == TrialState.FAIL and one.user_attrs.get(OUTCOME) == "failed"


def is_alive(one: FrozenTrial) -> bool:
    """Whether the process of a running trial is alive.

    A process of this machine is looked up. A process of another machine is alive if its last heartbeat is less than
    ``STALE_SECONDS`` from this machine's time, so the clocks of both must agree within minutes.
    """
    owner = process_from_text(one.user_attrs.get(OWNER, ""))
    begun = one.datetime_start.timestamp() if one.datetime_start else 0.0
    if owner is None:
        return time.time() - begun < UNCLAIMED_SECONDS
    if owner.is_here():
        return owner.is_alive()
    return abs(time.time() - float(one.user_attrs.get(BEAT, begun))) < STALE_SECONDS


def values_of(one: FrozenTrial) -> dict[str, Any]:
    """The tuned fields of a trial, as trained."""
    values = one.user_attrs.get(VALUES, {})
    return dict(json.loads(values)) if isinstance(values, str) else dict(values)


def suggest(trial: Trial, parameter: Parameter, *, exactly: bool = False) -> Any:
    """A value for a field: a number with four significant digits (all if ``exactly``), or a choice as it is written."""
    entry = parameter.entry
    if isinstance(entry, Choices):
        options = [as_choice(parameter, value) for value in entry.choices]
        return entry.choices[options.index(trial.suggest_categorical(parameter.name, options))]
    if parameter.kind == "int":
        low, high, step = int(entry.low), int(entry.high), int(entry.step or 1)
        return trial.suggest_int(parameter.name, low, high, log=entry.log, step=step)
    value = trial.suggest_float(parameter.name, entry.low, entry.high, log=entry.log, step=entry.step)
    return value if exactly else readable(value, entry)


def readable(value: float, entry: Range) -> float:
    """The number with four significant digits, within its range."""
    rounded = float(f"{value:.{DIGITS}g}") if entry.step is None else float(f"{value:.12g}")
    return min(max(rounded, float(entry.low)), float(entry.high))


def as_choice(parameter: Parameter, value: Any) -> Any:
    """A choice as Optuna stores it: a mapping as text, other values unchanged."""
    return label_of(value) if isinstance(parameter.entry, Choices) and isinstance(value, dict) else value
