"""The trials of one arm's tuning, as its Optuna study keeps them: asked for, reported, told, and taken up again."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
from optuna.trial import FrozenTrial, Trial, TrialState
from pydantic import ValidationError

from cifar_ablate.errors import TakenError
from cifar_ablate.locks import lock
from cifar_ablate.process import this_process
from cifar_ablate.registry import PRUNERS, SAMPLERS
from cifar_ablate.spec.schema import Recipe
from cifar_ablate.spec.space import Values, compose
from cifar_ablate.tuning.attributes import (
    BEAT,
    CRASHED,
    EPOCHS,
    FINGERPRINTS,
    LOST,
    OUTCOME,
    OWNER,
    PRESENT,
    REASON,
    RECIPE_ID,
    RETRIED,
    SECONDS,
    TAKEN_UP,
    VALUES,
    can_be_retried,
    counted,
    is_alive,
    place_of,
)
from cifar_ablate.tuning.keyed import KeyedSampler
from cifar_ablate.tuning.plan import ArmPlan
from cifar_ablate.tuning.storage import storing
from cifar_ablate.tuning.suggest import as_choice, suggest

if TYPE_CHECKING:
    from optuna.storages import BaseStorage

SURPLUS = "another process had asked for the last trial"
SECOND_PRESENT = "another process had asked for the recipe as it stands"


@dataclass
class Asked:
    """A trial that is being trained by this process."""

    trial: Trial
    recipe: Recipe
    values: dict[str, Any]
    """The tuned fields as they were set."""
    finals: dict[int, float] = field(default_factory=dict)
    """Validation accuracy of each seed that has ended."""
    seconds: float = 0.0
    epochs: int = 0

    @property
    def number(self) -> int:
        return int(self.trial.number)

    @property
    def is_present(self) -> bool:
        """Is it the recipe as it stands?"""
        return PRESENT in self.trial.user_attrs

    @property
    def worker_died(self) -> bool:
        """Has its training killed a worker before?"""
        return CRASHED in self.trial.user_attrs

    @property
    def is_taken_up(self) -> bool:
        """Was it begun before, and lost?"""
        return TAKEN_UP in self.trial.user_attrs


class ArmTrials:
    """The trials of one arm; every method is safe to call beside other processes at work on the same arm."""

    def __init__(self, plan: ArmPlan, storage: BaseStorage, url: str) -> None:
        self.plan, self.storage, self.url = plan, storage, url
        num_epochs = plan.recipe.epochs * plan.tune.seeds
        make_sampler = SAMPLERS.bind(plan.tune.sampler.name, plan.tune.sampler.kwargs())
        sampler = KeyedSampler(plan.tune.seed, make_sampler, place_of)
        with storing(url), self._alone():
            self.study = optuna.create_study(
                storage=storage,
                study_name=plan.name,
                direction="maximize",
                sampler=sampler,
                pruner=PRUNERS.bind(plan.tune.pruner.name, plan.tune.pruner.kwargs())(num_epochs),
                load_if_exists=True,
            )
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                self.study.set_metric_names(["val_accuracy"])  # what the dashboard calls its axes
            for name, value in plan.protocol.items():
                if self.study.user_attrs.get(name) != value:
                    self.study.set_user_attr(name, value)

    def all(self) -> list[FrozenTrial]:
        """Every trial that counts, by number: lost ones were taken up again under another number."""
        with storing(self.url):
            return counted(self.study, self.study.get_trials(deepcopy=False))

    def lost(self) -> dict[int, str]:
        """Trials that were lost, by number, with the reason."""
        with storing(self.url):
            every = self.study.get_trials(deepcopy=False)
        return {one.number: str(one.user_attrs[LOST]) for one in every if LOST in one.user_attrs}

    def retry_failed(self) -> int:
        """Ask once more for the values of trials that could not be trained; gives how many of them.

        Those that diverged would again, and are left; so are those that have no place among the trials that are wanted.
        """
        with storing(self.url), self._alone():
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

    def begin(self, on_unfit: Callable[[int, Values, str], None]) -> Asked | None:
        """The next trial; None where there are as many as wanted, or where their time is used up.

        ``on_unfit``: told the number of a trial whose values do not fit together, those values, and why.
        """
        while True:
            try:
                with storing(self.url), self._alone():
                    trial = self._ask()
                    if trial is None:
                        return None
                    choose = partial(suggest, trial, exactly=PRESENT in trial.user_attrs)
                    values, chosen = compose(self.plan.space, self.plan.values, choose)
                    try:
                        return self._prepared(Asked(trial, Recipe.model_validate(values), chosen))
                    except ValidationError as error:  # fine each for itself, but not together
                        reason = f"the values do not fit together: {error.errors(include_url=False)[0]['msg']}"
                        trial.set_user_attr(VALUES, chosen)
                        self._tell_failed(trial, reason, "unfit")
                        on_unfit(trial.number, chosen, reason)
            except TakenError:  # this machine has slept, and another one took the trial for lost
                continue

    def _ask(self) -> Trial | None:
        """A trial that counts, and is claimed; None where there is none to be had."""
        while True:
            self._take_up_lost()
            every = self.all()
            self._ensure_present(every)
            begun = [one for one in every if one.state != TrialState.WAITING]
            if len(begun) >= self.plan.num_wanted or self._is_out_of_time(begun):
                return None
            trial = self.study.ask()
            trial.set_user_attr(OWNER, this_process().to_text())
            trial.set_user_attr(BEAT, time.time())
            if self._is_surplus(trial):
                self._drop(trial._trial_id, SURPLUS)
                return None
            if not (PRESENT in trial.user_attrs and self._is_second_present(trial)):
                return trial
            self._drop(trial._trial_id, SECOND_PRESENT)

    def report(self, asked: Asked, seed: int, epoch: int, accuracy: float) -> bool:
        """Note the accuracy after an epoch of a seed (epochs are counted on over seeds); True: prune the trial."""
        index = self.plan.seeds.index(seed)
        step = index * asked.recipe.epochs + epoch
        before = [asked.finals[one] for one in self.plan.seeds[:index] if one in asked.finals]
        mean = (sum(before) + accuracy) / (len(before) + 1)
        with storing(self.url):
            asked.trial.report(mean, step)
            return bool(asked.trial.should_prune())

    def finish(self, asked: Asked) -> float:
        """All seeds have ended; gives the trial's value, their mean accuracy in percent."""
        value = sum(asked.finals.values()) / len(asked.finals)
        with self._telling(asked):
            self.study.tell(asked.trial, value)
        return value

    def prune(self, asked: Asked) -> None:
        """It was ended early, for it did worse than others."""
        with self._telling(asked):
            self.study.tell(asked.trial, state=TrialState.PRUNED)

    def fail(self, asked: Asked, reason: str, outcome: str) -> None:
        """It ``diverged``, or could not be trained (``failed``); samplers leave it out."""
        with self._telling(asked):
            self._tell_failed(asked.trial, reason, outcome)

    def give_back(self, asked: Asked, reason: str, *, worker_died: bool = False) -> None:
        """It was interrupted: the same values are the first to be tried next, from where they were left."""
        with storing(self.url), self._alone():
            self._requeue(self.study.get_trials(deepcopy=False)[asked.number], reason, worker_died=worker_died)

    @contextmanager
    def _telling(self, asked: Asked) -> Iterator[None]:
        """Note what it cost, then tell in the block how it ended; raises TakenError where it is not ours any more."""
        with storing(self.url):
            asked.trial.set_user_attr(SECONDS, round(asked.seconds, 3))
            asked.trial.set_user_attr(EPOCHS, asked.epochs)
            yield

    def beat(self, asked: Asked) -> None:
        """Say that this process is alive, for other machines."""
        with storing(self.url):
            asked.trial.set_user_attr(BEAT, time.time())

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Among the processes of this folder; those elsewhere are found out by the numbers of their trials."""
        with lock(Path("mlruns") / "tuning" / f"{self.plan.identity}.lock", on_wait=lambda: None):
            yield

    def _take_up_lost(self) -> None:
        for one in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if not is_alive(one):
                self._requeue(one, "its process ended without a word")

    def _requeue(self, one: FrozenTrial, reason: str, *, worker_died: bool = False) -> None:
        if self._drop(one._trial_id, reason):
            self._enqueue(one, **({CRASHED: True} if worker_died else {}))

    def _enqueue(self, one: FrozenTrial, **attributes: Any) -> None:
        values = {**one.system_attrs.get("fixed_params", {}), **one.params}
        attributes |= {TAKEN_UP: one.number, **({PRESENT: True} if PRESENT in one.user_attrs else {})}
        self.study.enqueue_trial(values, user_attrs=attributes)

    def _ensure_present(self, every: list[FrozenTrial]) -> None:
        if not any(PRESENT in one.user_attrs for one in every):
            values = {
                one.name: as_choice(one, self.plan.present[one.name])
                for one in self.plan.space
                if one.name in self.plan.present
            }
            self.study.enqueue_trial(values, user_attrs={PRESENT: True})

    def _is_out_of_time(self, begun: list[FrozenTrial]) -> bool:
        limit = self.plan.tune.time_limit_seconds
        used = sum(one.user_attrs.get(SECONDS, 0.0) for one in begun)
        return limit is not None and bool(begun) and used >= limit

    def _is_surplus(self, trial: Trial) -> bool:
        """Did processes of other folders ask for all that is wanted at the same moment?"""
        before = [one for one in self.all() if one.number < trial.number and one.state != TrialState.WAITING]
        return len(before) >= self.plan.num_wanted

    def _is_second_present(self, trial: Trial) -> bool:
        """Have processes of other folders asked for the recipe as it stands at the same moment?"""
        return any(PRESENT in one.user_attrs for one in self.all() if one.number < trial.number)

    def _prepared(self, asked: Asked) -> Asked:
        runs = self.plan.runs(asked.recipe, asked.number)
        asked.trial.set_user_attr(VALUES, asked.values)
        asked.trial.set_user_attr(FINGERPRINTS, [run.fingerprint for run in runs])
        asked.trial.set_user_attr(RECIPE_ID, runs[0].recipe_id)
        return asked

    def _tell_failed(self, trial: Trial, reason: str, outcome: str) -> None:
        trial.set_user_attr(REASON, reason)
        trial.set_user_attr(OUTCOME, outcome)
        self.study.tell(trial, state=TrialState.FAIL)

    def _drop(self, trial_id: int, reason: str) -> bool:
        """Take a trial out of the count; False where another process has done so."""
        from optuna.exceptions import UpdateFinishedTrialError

        try:
            self.storage.set_trial_user_attr(trial_id, LOST, reason)
            return bool(self.storage.set_trial_state_values(trial_id, TrialState.FAIL))
        except UpdateFinishedTrialError:
            return False
