"""The plan of a tuning: an arm of a study, with all that decides which trials it gets and how they are judged."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from cifar_ablate.data import DataSet
from cifar_ablate.data.canonical import validation_part
from cifar_ablate.device import Device
from cifar_ablate.errors import Problem, StudyError, UsageError, suggest
from cifar_ablate.plan import DataKey, PlannedRun, check_batch_size, data_key, fingerprint
from cifar_ablate.record.mlflow_tunings import PARENT, TRIAL
from cifar_ablate.record.mlflow_upload import TUNING
from cifar_ablate.spec.component import shown
from cifar_ablate.spec.delta import differences
from cifar_ablate.spec.schema import Choices, Parameter, Recipe, Study, Tune
from cifar_ablate.spec.space import MISSING, Values, applies, compose, present, put, written_at

SUFFIX = "/tuning"
"""Added to a study's label for the MLflow experiment with its trials: reports read studies and no tunings."""


@dataclass(frozen=True)
class ArmPlan:
    """An arm that is to be tuned."""

    study: Study
    arm: str
    tune: Tune
    """With the number of trials and the time limit of this command."""
    data: DataSet
    """The study's training images, divided into a part to train on and a part to validate on; no test images."""
    device: Device

    @property
    def recipe(self) -> Recipe:
        """The arm's recipe as it stands; the first trial has it."""
        return self.study.arm(self.arm).recipe

    @property
    def space(self) -> tuple[Parameter, ...]:
        return self.study.space

    @cached_property
    def values(self) -> Values:
        """The recipe as plain values."""
        return self.recipe.as_dict()

    @property
    def label(self) -> str:
        return f"{self.study.label}{SUFFIX}"

    @cached_property
    def untuned_values(self) -> Values:
        """The tuned fields as they are in the recipe, by name."""
        return compose(self.space, self.values, self.untuned_value)[1]

    def untuned_value(self, parameter: Parameter) -> Any:
        """The value of a field in the recipe; MISSING if the space does not contain it."""
        return present(parameter, self.values)

    @property
    def seeds(self) -> tuple[int, ...]:
        """Seeds of each trial: the same for all, so that differences between trials are paired."""
        return tuple(range(self.tune.seeds))

    @cached_property
    def identity(self) -> str:
        """20 hex digits of a hash of everything that trials must share to be comparable; a tuning resumes by it."""
        precision = self.device.resolve(self.recipe.precision)
        content = {
            "recipe": fingerprint(self.recipe, None, precision, self.data.digest),
            "space": {one.name: [one.kind, one.entry.model_dump(mode="json")] for one in self.space},
            **{name: self.protocol[name] for name in ("sampler", "pruner", "seeds", "seed")},
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:20]

    @property
    def name(self) -> str:
        """Name of the Optuna study."""
        return f"{self.study.label} / {self.arm} / {self.identity[:8]}"

    @cached_property
    def protocol(self) -> dict[str, Any]:
        """What all trials share, as plain values for Optuna and MLflow."""
        return {
            "study": self.study.label,
            "arm": self.arm,
            "file": self.study.file,
            "data": self.data.describe(),
            "val_fraction": self.tune.val_fraction,
            "space": {one.name: str(one) for one in self.space},
            "sampler": _describe(self.tune.sampler.as_dict()),
            "pruner": _describe(self.tune.pruner.as_dict()),
            "seeds": self.tune.seeds,
            "seed": self.tune.seed,
        }

    @cached_property
    def num_wanted(self) -> int:
        """Number of trials in all; a grid has at most its number of points."""
        if self.tune.sampler.name != "grid":
            return self.tune.trials
        return grid_size(self.space, self.values, self.tune.trials)

    def trial_name(self, number: int) -> str:
        """Name of a trial; its runs have it instead of an arm's name."""
        return f"{self.arm} trial {number}"

    def tags(self, number: int, parent_run_id: str) -> tuple[tuple[str, str], ...]:
        """Tags of a trial's MLflow runs; ``parent_run_id`` is the tuning's run, empty offline."""
        parent = ((PARENT, parent_run_id),) if parent_run_id else ()
        return ((TRIAL, str(number)), (TUNING, self.identity), *parent)

    def runs(self, recipe: Recipe, number: int, parent_run_id: str = "") -> list[PlannedRun]:
        """The trainings of a trial, one per seed, evaluated after every epoch if trials can be pruned."""
        precision = self.device.resolve(recipe.precision)
        every = recipe.eval_every if self.tune.pruner.name == "none" else 1  # not part of a fingerprint
        evaluated = recipe.model_copy(update={"eval_every": every, "checkpoint_every": None})
        return [
            PlannedRun(
                study=self.label,
                arm=self.trial_name(number),
                seed=seed,
                recipe=evaluated,
                precision=precision,
                recipe_id=fingerprint(recipe, None, precision, self.data.digest),
                fingerprint=fingerprint(recipe, seed, precision, self.data.digest),
                tags=self.tags(number, parent_run_id),
            )
            for seed in self.seeds
        ]


def plan_tuning(
    study: Study, arms: Sequence[str], data: Mapping[DataKey, DataSet], device: Device, *, tune: Tune | None = None
) -> list[ArmPlan]:
    """Plan the tuning of ``arms``, by the study's ``tune`` section or by ``tune``.

    Raises UsageError, StudyError with every problem found, or DataError.
    """
    tune = tune or study.tune
    if tune is None:
        raise UsageError(
            f"{study.file or study.name} has no `tune` section; add one, such as "
            "`tune: {space: {optimizer.lr: {low: 0.01, high: 1.0, log: true}}}`"
        )
    known = [arm.name for arm in study.arms]
    for arm in arms:
        if arm not in known:
            raise UsageError(f"--arm {arm}: {study.name} has no such arm{suggest(arm, known)}")
    parts = {key: validation_part(whole, tune.val_fraction) for key, whole in data.items()}
    plans = [ArmPlan(study, arm, tune, parts[data_key(study.arm(arm).recipe)], device) for arm in dict.fromkeys(arms)]
    found = [problem for plan in plans for problem in (*_outside_space(plan), *_differs_on_purpose(plan))]
    if found:
        raise StudyError(list(dict.fromkeys(found)))
    for plan in plans:
        if Recipe.model_validate(compose(plan.space, plan.values, plan.untuned_value)[0]) != plan.recipe:
            raise RuntimeError(f"the first trial of {plan.arm} would not be its recipe as it stands")
        label = f"{study.label}, arm {plan.arm!r}, without its validation images"
        check_batch_size(label, plan.recipe.model_copy(update={"batch_size": _largest_batch(plan)}), plan.data)
    return plans


def grid_size(space: Sequence[Parameter], values: Values, most: int) -> int:
    """The number of combinations in a space of finite parameters, counted up to ``most``."""
    if not space:
        return 1
    first, rest = space[0], space[1:]
    if not applies(first, values):
        return grid_size(rest, values, most)
    num = 0
    for point in points(first):
        chosen = copy.deepcopy(values)
        put(chosen, first.path, point)
        num += grid_size(rest, chosen, most - num)
        if num >= most:
            break
    return num


def points(parameter: Parameter) -> list[Any]:
    """All values of a finite parameter: choices, or a range with steps."""
    entry = parameter.entry
    if isinstance(entry, Choices):
        return list(entry.choices)
    step = entry.step or 1
    return [entry.low + index * step for index in range(int((entry.high - entry.low) / step + 1e-9) + 1)]


def _outside_space(plan: ArmPlan) -> list[Problem]:
    """Fields whose value in the recipe the space does not contain: then the recipe could not be the first trial.

    A gain is honest only over the recipe as it stands, trained and validated like the other trials.
    """
    found = []
    for one in plan.space:
        if plan.untuned_values.get(one.name) is not MISSING:
            continue
        value, is_choice = written_at(plan.values, one.path), isinstance(one.entry, Choices)
        if value is MISSING:
            cure = "add null to the choices" if is_choice else "add `when`"
            message = f"arm {shown(plan.arm)} has no {one.name}; write it into the recipe, or {cure}"
        else:
            now = shown(value)
            cure = f"add {now} to the choices" if is_choice else f"widen the range to hold {now}"
            message = (
                f"is {now} in arm {shown(plan.arm)}, which the space does not have; {cure}, for the first trial is the "
                "recipe as it stands"
            )
        found.append(Problem(one.written.location, one.written.path, message))
    return found


def _differs_on_purpose(plan: ArmPlan) -> list[Problem]:
    """Fields that the arm changes: tuned, the arms would not differ in them any more."""
    found: dict[str, Problem] = {}
    for lower, upper in _chain_to_baseline(plan.study, plan.arm):
        recipes = plan.study.arm(lower).recipe, plan.study.arm(upper).recipe
        changed = [tuple(one.path.split(".")) for one in differences(*recipes)]
        for one in plan.space:
            if one.name in plan.untuned_values and any(path[: len(one.path)] == one.path for path in changed):
                what = "changes" if upper == plan.arm else f"has from {shown(upper)}, which changes it"
                message = (
                    f"is what arm {shown(plan.arm)} {what} in {shown(lower)}: tuned, they would not differ in it any "
                    "more; take it out of the space, or do not tune this arm"
                )
                found.setdefault(one.name, Problem(one.written.location, one.written.path, message))
    return list(found.values())


def _chain_to_baseline(study: Study, arm: str) -> list[tuple[str, str]]:
    """From an arm down to the baseline: (parent, arm) of each step."""
    steps = []
    while arm != study.baseline:
        below = study.arm(arm).parent or study.baseline
        steps.append((below, arm))
        arm = below
    return steps


def _largest_batch(plan: ArmPlan) -> int:
    sizes = [plan.recipe.batch_size]
    for one in plan.space:
        if one.name == "batch_size":
            sizes += one.entry.choices if isinstance(one.entry, Choices) else [int(one.entry.high)]
    return max(sizes)


def _describe(component: Mapping[str, Any]) -> str:
    """A component with its options: ``median (warmup 0.1)``."""
    options = ", ".join(f"{key} {value}" for key, value in component.items() if key != "name")
    return f"{component['name']} ({options})" if options else str(component["name"])
