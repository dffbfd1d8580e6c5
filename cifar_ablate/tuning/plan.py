"""What is tuned: one arm of a study, with everything that decides which trials it gets and how they are judged."""

from __future__ import annotations

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
from cifar_ablate.spec.component import shown
from cifar_ablate.spec.delta import differences
from cifar_ablate.spec.schema import Choices, Parameter, Recipe, Study, Tune
from cifar_ablate.spec.space import MISSING, Values, compose, present, written_at
from cifar_ablate.tracking.tunings import PARENT, TRIAL
from cifar_ablate.tracking.upload import TUNING

SUFFIX = "/tuning"
"""Behind a study's label: the name of the MLflow experiment with its trials, which is no study's."""


@dataclass(frozen=True)
class ArmPlan:
    """One arm that is to be tuned."""

    study: Study
    arm: str
    tune: Tune
    """With the number of trials and the limit of time that are wanted now."""
    data: DataSet
    """Divided: trained and judged on training images alone."""
    device: Device

    @property
    def recipe(self) -> Recipe:
        """As it stands: the first trial."""
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
    def present(self) -> Values:
        """The tuned fields of the recipe as it stands."""
        return compose(self.space, self.values, self.at_present)[1]

    def at_present(self, parameter: Parameter) -> Any:
        """The value of a field in the recipe as it stands; MISSING where the space does not have it."""
        return present(parameter, self.values)

    @property
    def seeds(self) -> tuple[int, ...]:
        """Each trial is trained with these: the same for all, so that differences between trials are paired."""
        return tuple(range(self.tune.seeds))

    @cached_property
    def identity(self) -> str:
        """20 hex digits: trials of one identity can be compared, and one tuning goes on where its identity is found."""
        precision = self.device.resolve(self.recipe.precision)
        content = {
            "recipe": fingerprint(self.recipe, None, precision, self.data.digest),
            "space": {one.name: [one.kind, one.entry.model_dump(mode="json")] for one in self.space},
            **{name: self.protocol[name] for name in ("sampler", "pruner", "seeds", "seed")},
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:20]

    @property
    def name(self) -> str:
        """Of the Optuna study."""
        return f"{self.study.label} / {self.arm} / {self.identity[:8]}"

    @cached_property
    def protocol(self) -> dict[str, Any]:
        """What is the same for all trials, as plain values."""
        return {
            "study": self.study.label,
            "arm": self.arm,
            "file": self.study.file,
            "data": self.data.describe(),
            "val_fraction": self.tune.val_fraction,
            "space": {one.name: str(one) for one in self.space},
            "sampler": _in_words(self.tune.sampler.as_dict()),
            "pruner": _in_words(self.tune.pruner.as_dict()),
            "seeds": self.tune.seeds,
            "seed": self.tune.seed,
        }

    @cached_property
    def num_wanted(self) -> int:
        """Trials in all; a grid ends when all its points are tried."""
        if self.tune.sampler.name != "grid":
            return self.tune.trials
        return grid_size(self.space, self.values, self.tune.trials)

    def trial_name(self, number: int) -> str:
        """Of a trial's runs, in the place where runs of a study have their arm."""
        return f"{self.arm} trial {number}"

    def tags(self, number: int, parent_run_id: str) -> tuple[tuple[str, str], ...]:
        """Of a trial's MLflow runs: whose they are."""
        parent = ((PARENT, parent_run_id),) if parent_run_id else ()
        return ((TRIAL, str(number)), (TUNING, self.identity), *parent)

    def runs(self, recipe: Recipe, number: int, parent_run_id: str = "") -> list[PlannedRun]:
        """The trainings of a trial, one for each seed."""
        precision = self.device.resolve(recipe.precision)
        return [
            PlannedRun(
                study=self.label,
                arm=self.trial_name(number),
                seed=seed,
                recipe=recipe,
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
    """What is to be tuned; raises StudyError or DataError, with every problem found, before the first trial."""
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
    found = [problem for plan in plans for problem in (*_not_present(plan), *_undone(plan))]
    if found:
        raise StudyError(list(dict.fromkeys(found)))
    for plan in plans:
        if Recipe.model_validate(compose(plan.space, plan.values, plan.at_present)[0]) != plan.recipe:
            raise RuntimeError(f"the first trial of {plan.arm} would not be its recipe as it stands")
    for plan in plans:
        for recipe in _largest_batches(plan):
            check_batch_size(f"{study.label}, arm {plan.arm!r}, without its validation images", recipe, plan.data)
    return plans


def grid_size(space: Sequence[Parameter], values: Values, most: int) -> int:
    """Different combinations of a space of finite parameters, counted up to ``most``."""
    left: list[list[Any]] = [[]]
    num = 0
    while left and num < most:
        chosen = iter(left.pop())
        open_at: list[Parameter] = []

        def choose(one: Parameter, chosen: Any = chosen, open_at: list[Parameter] = open_at) -> Any:
            value = next(chosen, MISSING)
            if value is MISSING:
                open_at.append(one)
                return points(one)[0]
            return value

        prefix = list(compose(space, values, choose)[1].values())
        if not open_at:
            num += 1
            continue
        first = prefix[: len(prefix) - len(open_at)]
        left += [[*first, point] for point in points(open_at[0])]
    return num


def points(parameter: Parameter) -> list[Any]:
    """All values of a finite parameter."""
    entry = parameter.entry
    if isinstance(entry, Choices):
        return list(entry.choices)
    step = entry.step or 1
    return [entry.low + index * step for index in range(int((entry.high - entry.low) / step + 1e-9) + 1)]


def _not_present(plan: ArmPlan) -> list[Problem]:
    """The first trial is the recipe as it stands, so that tuning can only report an honest gain."""
    found = []
    for one in plan.space:
        if plan.present.get(one.name) is MISSING:
            value = written_at(plan.values, one.path)
            if value is MISSING:
                cure = "add null to the choices" if isinstance(one.entry, Choices) else "add `when`"
                message = f"arm {shown(plan.arm)} has no {one.name}; write it into the recipe, or {cure}"
                found.append(Problem(one.written.location, one.written.path, message))
                continue
            now = shown(value)
            cure = f"add {now} to the choices" if isinstance(one.entry, Choices) else f"widen the range to hold {now}"
            message = (
                f"is {now} in arm {shown(plan.arm)}, which the space does not have; {cure}, for the first trial is the "
                "recipe as it stands"
            )
            found.append(Problem(one.written.location, one.written.path, message))
    return found


def _undone(plan: ArmPlan) -> list[Problem]:
    """A field in which an arm differs on purpose cannot be tuned away."""
    found: dict[str, Problem] = {}
    for lower, upper in _steps_below(plan.study, plan.arm):
        recipes = plan.study.arm(lower).recipe, plan.study.arm(upper).recipe
        changed = [tuple(one.path.split(".")) for one in differences(*recipes)]
        for one in plan.space:
            if one.name in plan.present and any(path[: len(one.path)] == one.path for path in changed):
                what = "changes" if upper == plan.arm else f"has from {shown(upper)}, which changes it"
                message = (
                    f"is what arm {shown(plan.arm)} {what} in {shown(lower)}: tuned, they would not differ in it any "
                    "more; take it out of the space, or do not tune this arm"
                )
                found.setdefault(one.name, Problem(one.written.location, one.written.path, message))
    return list(found.values())


def _steps_below(study: Study, arm: str) -> list[tuple[str, str]]:
    """From an arm down to the baseline: (the arm below, the arm that is written on top of it)."""
    steps = []
    while arm != study.baseline:
        below = study.arm(arm).parent or study.baseline
        steps.append((below, arm))
        arm = below
    return steps


def _largest_batches(plan: ArmPlan) -> list[Recipe]:
    """The recipe as it stands, and with the largest batch that may be proposed."""
    sizes = [plan.recipe.batch_size]
    for one in plan.space:
        if one.name == "batch_size":
            sizes += one.entry.choices if isinstance(one.entry, Choices) else [int(one.entry.high)]
    return [plan.recipe.model_copy(update={"batch_size": max(sizes)})]


def _in_words(component: Mapping[str, Any]) -> str:
    options = ", ".join(f"{key} {value}" for key, value in component.items() if key != "name")
    return f"{component['name']} ({options})" if options else str(component["name"])
