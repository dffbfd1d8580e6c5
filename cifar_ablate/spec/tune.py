"""The ``tune`` section of a study: what is searched, how, and how long; and ``tuned``, where tuned values came from.

What a space's fields mean for the recipes of a study is checked in ``space.py``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema, model_validator

from cifar_ablate.fields import NonNegativeInt, PositiveFloat, PositiveInt
from cifar_ablate.registry import PRUNERS, SAMPLERS
from cifar_ablate.spec.base import Label, Percent, Seed, Spec
from cifar_ablate.spec.component import Component, ComponentOf, failure, said, shown
from cifar_ablate.spec.text import Path_, Written

Number = int | Annotated[float, Field(allow_inf_nan=False)]
Scalar = int | float | str | bool | None
MAX_CHOICES, MAX_FIELDS, MAX_CONDITIONS = 100, 50, 10
When = Annotated[dict[str, Any], Field(max_length=MAX_CONDITIONS)]


class Range(Spec):
    """Numbers from ``low`` to ``high``, both included; whole numbers where the recipe's field takes no others."""

    low: Number
    """The least value."""
    high: Number
    """The greatest value."""
    log: bool = False
    """Equal factors are equally likely, and not equal differences: for learning rates and weight decay."""
    step: Number | None = None
    """Only low, low + step, low + 2 step and so on; left out: any number (any whole number)."""
    when: When = Field(default={})
    """Only where other fields of the recipe have these values: {schedule: cosine} or {schedule: [cosine, linear]}."""

    @model_validator(mode="after")
    def _is_a_range(self) -> Range:
        if self.low == self.high:
            raise failure(f"low and high are both {shown(self.low)}; a range needs two values", self.high, "high")
        if self.low > self.high:
            message = f"low {shown(self.low)} is more than high {shown(self.high)}; exchange them"
            raise failure(message, self.low, "low")
        if not math.isfinite(self.high - self.low):
            raise failure("is further from low than numbers go; write one nearer to it", self.high, "high")
        if self.log and self.low <= 0:
            raise failure(f"a log range starts above 0 (got {shown(self.low)}), such as 1e-5", self.low, "low")
        if self.step is not None and self.log:
            raise failure("a log range has no step; remove one of the two", self.step, "step")
        if self.step is not None and not 0 < self.step <= self.high - self.low:
            raise failure(f"must be above 0 and at most high - low (got {shown(self.step)})", self.step, "step")
        if self.step is not None:
            num_steps = (self.high - self.low) / self.step
            if not math.isfinite(num_steps):
                message = f"is too small for so wide a range (got {shown(self.step)}); write a greater one, or none"
                raise failure(message, self.step, "step")
            if abs(num_steps - round(num_steps)) > 1e-9 * num_steps:
                last = self.low + math.floor(num_steps) * self.step
                message = f"steps of {shown(self.step)} from {shown(self.low)} do not come to it; write {last:.10g}"
                raise failure(message, self.high, "high")
        return self


class Choice(Spec):
    """One of several values: numbers, text, components by name or with options, null for none."""

    choices: Annotated[list[Any], Field(min_length=1, max_length=MAX_CHOICES)]
    """The values."""
    when: When = Field(default={})
    """Only where other fields of the recipe have these values."""

    @model_validator(mode="after")
    def _are_different(self) -> Choice:
        labels = [label_of(value) for value in self.choices]
        if len(labels) < 2:
            raise failure("needs at least two values to choose from; write a single one into the recipe", self.choices)
        if twice := sorted({label for label in labels if labels.count(label) > 1}):
            raise failure(f"lists {twice[0]} twice; keep one", self.choices)
        for value in self.choices:
            if isinstance(value, list):
                message = f"a choice must be a number, text, true, false, null or a mapping (got {shown(value)})"
                raise failure(message, self.choices)
        return self


def label_of(value: Any) -> str:
    """A choice as it is shown, and as Optuna keeps one that is no plain value."""
    return value if isinstance(value, str) else shown(value)


def _entry(value: Any) -> Any:
    if isinstance(value, list):
        return Choice.model_validate({"choices": value})
    if isinstance(value, Mapping) and "choices" in value:
        return Choice.model_validate(dict(value))
    if isinstance(value, Mapping) and value.keys() & {"low", "high"}:
        return Range.model_validate(dict(value))
    if isinstance(value, Range | Choice):
        return value
    inner = isinstance(value, Mapping) and any(isinstance(part, Mapping | list) for part in value.values())
    cure = "; write fields within it with dots, such as optimizer.lr: {low: ..., high: ...}" if inner else ""
    raise said(f"must be {{low: ..., high: ...}} or a list of values to choose from (got {shown(value)}){cure}")


_ENTRY_SCHEMA = {"anyOf": [Range.model_json_schema(), Choice.model_json_schema(), {"type": "array", "minItems": 2}]}
Space = Annotated[
    dict[str, Annotated[Range | Choice, BeforeValidator(_entry), WithJsonSchema(_ENTRY_SCHEMA)]],
    Field(min_length=1, max_length=MAX_FIELDS),
]


class Tune(Spec):
    """How the recipes of a study are tuned, each arm alike: by accuracy on a part of the training images."""

    space: Space
    """What is searched: recipe fields with dots, each {low: ..., high: ..., log: true} or a list of values."""
    sampler: Annotated[Component, ComponentOf(SAMPLERS)] = Field(default={"name": "tpe"}, validate_default=True)
    """Which values are tried next."""
    pruner: Annotated[Component, ComponentOf(PRUNERS)] = Field(default={"name": "median"}, validate_default=True)
    """Which trials are ended early, between epochs."""
    trials: Annotated[int, Field(ge=1, le=100_000)] = 20
    """For each arm; the first is the arm's recipe as it stands."""
    time_limit_seconds: PositiveFloat | None = None
    """Of training, all trials of an arm together; after it no trial begins. Left out: none."""
    seeds: Annotated[int, Field(ge=1, le=100)] = 1
    """Each trial is trained with so many seeds, and judged by their mean."""
    val_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Share of the training images that trials are judged on, and not trained on; the same for all trials."""
    seed: Seed = 0
    """Of the sampler."""


class TunedArm(Spec):
    """Where an arm's tuned values come from, and what they cost."""

    trial: NonNegativeInt
    """Number of the trial."""
    is_present: bool = False
    """Is it the recipe as it stood? Nothing was better then."""
    val_accuracy: Percent
    """Of that trial, in percent, the mean over its seeds."""
    present_val_accuracy: Percent | None = None
    """Of the recipe as it stood; null where it was not finite."""
    trials: PositiveInt
    """How many were tried, however they ended."""
    pruned: NonNegativeInt = 0
    failed: NonNegativeInt = 0
    epochs: NonNegativeInt
    """Trained by all trials together."""
    values: dict[str, Any] = Field(default={})
    """The tuned fields as they were set."""
    optuna_study: str = ""
    """Its name in the storage, where every trial is."""


class Tuned(Spec):
    """Where the values of a study's arms come from: written by ``cifar-ablate tune --write``."""

    study: Label
    """The study whose arms were tuned; this one has its arms, each at its own best values."""
    variant: str = ""
    """The overlay under which they were tuned; empty: none."""
    date: Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\d$")]
    """Day of the last trial, UTC."""
    data: str
    """What the trials were trained and judged on."""
    space: dict[str, str]
    """What was searched, in words, by field."""
    sampler: str
    sampler_seed: Seed = 0
    """With it and one trial at a time, the same trials are proposed again."""
    pruner: str
    seeds: PositiveInt
    """For each trial."""
    val_fraction: Annotated[float, Field(gt=0, lt=1)]
    objective: Literal["val_accuracy"] = "val_accuracy"
    arms: dict[str, TunedArm]
    """By arm; an arm that is not here stands as it was written."""


@dataclass(frozen=True)
class Parameter:
    """One field of a space, bound to the recipes of a study."""

    name: str
    """With dots, as it is written and as Optuna knows it: ``optimizer.lr``."""
    kind: Literal["float", "int", "choice"]
    entry: Range | Choice
    written: Written

    @property
    def path(self) -> Path_:
        return tuple(self.name.split("."))

    @property
    def conditions(self) -> dict[str, tuple[Any, ...]]:
        """Values that other fields must have for this one to be tuned, by field."""
        return {name: tuple(value) if isinstance(value, list) else (value,) for name, value in self.entry.when.items()}

    def __str__(self) -> str:
        """In words: ``0.01 to 1 (log)``."""
        when = "".join(
            f", where {name} is {' or '.join(map(shown, allowed))}" for name, allowed in self.conditions.items()
        )
        if isinstance(self.entry, Choice):
            return ", ".join(label_of(value) for value in self.entry.choices) + when
        words = (" (log)" if self.entry.log else "") + (f" in steps of {self.entry.step:g}" if self.entry.step else "")
        return f"{self.entry.low:g} to {self.entry.high:g}{words}{when}"
