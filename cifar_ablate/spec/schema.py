"""The recipe, the search space and the study as frozen, closed models.

Components are validated by the signatures in the registries. Validation is strict: no string becomes a number, no 1.0
becomes an int. ``messages.py`` words the errors; ``space.py`` checks a search space against the recipes of a study.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema, model_validator

from cifar_ablate.fields import Fraction, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from cifar_ablate.registry import AUGMENTATIONS, DATA, MODELS, OPTIMIZERS, PRUNERS, SAMPLERS, SCHEDULES
from cifar_ablate.spec.component import (
    Component,
    ComponentOf,
    ComponentsOf,
    Label,
    Percent,
    Seed,
    Spec,
    custom_error,
    failure,
    shown,
)
from cifar_ablate.spec.text import Path_, Written

Number = int | Annotated[float, Field(allow_inf_nan=False)]
Scalar = int | float | str | bool | None
MAX_FIELDS = 50
"""Maximum number of fields in a search space: each is compared with every other. A recipe has fewer."""


class Range(Spec):
    """Numbers from ``low`` to ``high``, both included; whole numbers if the recipe's field requires them."""

    low: Number
    """Smallest value."""
    high: Number
    """Largest value."""
    log: bool = False
    """Sample on a logarithmic scale, as for learning rates and weight decay."""
    step: Number | None = None
    """Only low, low + step, low + 2 step and so on; left out: any number in the range."""
    when: dict[str, Any] = Field(default={})
    """Tuned only if other recipe fields have these values: {schedule: cosine} or {schedule: [cosine, linear]}."""

    @model_validator(mode="after")
    def _is_a_range(self) -> Range:
        if self.low == self.high:
            raise failure(f"low and high are both {shown(self.low)}; a range needs two values", self.high, "high")
        if self.low > self.high:
            message = f"low {shown(self.low)} is more than high {shown(self.high)}; swap them"
            raise failure(message, self.low, "low")
        if not math.isfinite(self.high - self.low):
            raise failure("is too far from low for floating-point numbers; write one closer to it", self.high, "high")
        if self.log and self.low <= 0:
            raise failure(f"a log range starts above 0 (got {shown(self.low)}), such as 1e-5", self.low, "low")
        if self.step is not None and self.log:
            raise failure("a log range has no step; remove one of the two", self.step, "step")
        if self.step is not None and not 0 < self.step <= self.high - self.low:
            raise failure(f"must be above 0 and at most high - low (got {shown(self.step)})", self.step, "step")
        if self.step is not None:
            num_steps = (self.high - self.low) / self.step
            if not math.isfinite(num_steps):
                message = f"is too small for so wide a range (got {shown(self.step)}); write a larger one, or none"
                raise failure(message, self.step, "step")
            if abs(num_steps - round(num_steps)) > 1e-9 * num_steps:
                last = self.low + math.floor(num_steps) * self.step
                message = f"steps of {shown(self.step)} from {shown(self.low)} do not end at it; write {last:.10g}"
                raise failure(message, self.high, "high")
        return self


class Choices(Spec):
    """One of several values: numbers, text, components by name or with options, null for none."""

    choices: Annotated[list[Any], Field(min_length=1)]
    """The values."""
    when: dict[str, Any] = Field(default={})
    """Tuned only if other fields of the recipe have these values."""

    @model_validator(mode="after")
    def _are_different(self) -> Choices:
        labels = [label_of(value) for value in self.choices]
        if len(labels) < 2:
            raise failure("needs at least two values to choose from; write a single one into the recipe", self.choices)
        if twice := sorted(label for label, num in Counter(labels).items() if num > 1):
            raise failure(f"lists {twice[0]} twice; keep one", self.choices)
        for value in self.choices:
            if isinstance(value, list):
                message = f"a choice must be a number, text, true, false, null or a mapping (got {shown(value)})"
                raise failure(message, self.choices)
        return self


def label_of(value: Any) -> str:
    """A choice as text, for messages and for Optuna, which stores only plain values."""
    return value if isinstance(value, str) else shown(value)


def _entry(value: Any) -> Any:
    if isinstance(value, list):
        return Choices.model_validate({"choices": value})
    if isinstance(value, Mapping) and "choices" in value:
        return Choices.model_validate(dict(value))
    if isinstance(value, Mapping) and value.keys() & {"low", "high"}:
        return Range.model_validate(dict(value))
    if isinstance(value, Range | Choices):
        return value
    inner = isinstance(value, Mapping) and any(isinstance(part, Mapping | list) for part in value.values())
    cure = "; write fields within it with dots, such as optimizer.lr: {low: ..., high: ...}" if inner else ""
    raise custom_error(f"must be {{low: ..., high: ...}} or a list of values to choose from (got {shown(value)}){cure}")


_ENTRY_SCHEMA = {"anyOf": [Range.model_json_schema(), Choices.model_json_schema(), {"type": "array", "minItems": 2}]}
Space = Annotated[
    dict[str, Annotated[Range | Choices, BeforeValidator(_entry), WithJsonSchema(_ENTRY_SCHEMA)]],
    Field(min_length=1, max_length=MAX_FIELDS),
]


class Tune(Spec):
    """How every arm of a study is tuned, by accuracy on a part of the training images."""

    space: Space
    """What is searched: recipe fields with dots, each {low: ..., high: ..., log: true} or a list of values."""
    sampler: Annotated[Component, ComponentOf(SAMPLERS)] = Field(default={"name": "tpe"}, validate_default=True)
    """Which values to try next."""
    pruner: Annotated[Component, ComponentOf(PRUNERS)] = Field(default={"name": "median"}, validate_default=True)
    """Which trials to stop early, between epochs."""
    trials: Annotated[int, Field(ge=1, le=100_000)] = 20
    """Number of trials per arm; the first is the arm's recipe as it is written."""
    time_limit_seconds: PositiveFloat | None = None
    """Training time of all trials of an arm together, after which no trial starts; left out: no limit."""
    seeds: Annotated[int, Field(ge=1, le=100)] = 1
    """Number of seeds per trial; a trial is judged by their mean."""
    val_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Fraction of the training images that is held out to judge trials; the same images for all trials."""
    seed: Seed = 0
    """Seed of the sampler."""


class TunedArm(Spec):
    """Where an arm's tuned values come from, and what the search cost."""

    trial: NonNegativeInt
    """Number of the best trial."""
    is_present: bool = False
    """Whether the best trial is the recipe as it was written."""
    val_accuracy: Percent
    """Validation accuracy of that trial in percent, the mean over its seeds."""
    present_val_accuracy: Percent | None = None
    """Validation accuracy of the recipe as it was written, in percent; null if it did not finish."""
    trials: PositiveInt
    """Number of trials, whatever their outcome."""
    pruned: NonNegativeInt = 0
    """Number of trials that were stopped early."""
    failed: NonNegativeInt = 0
    """Number of trials that failed."""
    epochs: NonNegativeInt
    """Number of epochs that all trials trained together."""
    values: dict[str, Any] = Field(default={})
    """The best values, by field."""
    optuna_study: str = ""
    """Name of the Optuna study in the storage, which holds every trial."""


class Tuned(Spec):
    """Where the values of a study's arms come from; written by ``cifar-ablate tune --write``."""

    study: Label
    """The study whose arms were tuned; this study has the same arms, each with its own best values."""
    variant: str = ""
    """The overlay that the arms were tuned under; empty for none."""
    date: Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\d$")]
    """Day of the last trial (UTC)."""
    data: str
    """The images that trials were trained and judged on."""
    space: dict[str, str]
    """What was searched, as text, by field."""
    sampler: str
    """The sampler with its options, as text."""
    sampler_seed: Seed = 0
    """Seed of the sampler: with one trial at a time, it proposes the same trials again."""
    pruner: str
    """The pruner with its options, as text."""
    seeds: PositiveInt
    """Number of seeds per trial."""
    val_fraction: Annotated[float, Field(gt=0, lt=1)]
    """Fraction of the training images that trials were judged on."""
    objective: Literal["val_accuracy"] = "val_accuracy"
    """What the best trial maximises."""
    arms: dict[str, TunedArm]
    """Tuned arms by name; other arms are as they were written."""


@dataclass(frozen=True)
class Parameter:
    """One field of a search space, bound to the recipes of a study."""

    name: str
    """Dotted name, as written in the study and as Optuna's parameter: ``optimizer.lr``."""
    kind: Literal["float", "int", "choice"]
    entry: Range | Choices
    written: Written

    @property
    def path(self) -> Path_:
        return tuple(self.name.split("."))

    @property
    def conditions(self) -> dict[str, tuple[Any, ...]]:
        """Allowed values of the other fields that decide whether this one is tuned, by field."""
        return {name: tuple(value) if isinstance(value, list) else (value,) for name, value in self.entry.when.items()}

    def __str__(self) -> str:
        """As text, such as ``0.01 to 1 (log)``."""
        when = "".join(
            f", where {name} is {' or '.join(map(shown, allowed))}" for name, allowed in self.conditions.items()
        )
        if isinstance(self.entry, Choices):
            return ", ".join(label_of(value) for value in self.entry.choices) + when
        words = (" (log)" if self.entry.log else "") + (f" in steps of {self.entry.step:g}" if self.entry.step else "")
        return f"{self.entry.low:g} to {self.entry.high:g}{words}{when}"


RECORDING_FIELDS = frozenset({"eval_every", "checkpoint_every"})
"""Recipe fields that change what is recorded, not what is trained; they are not part of the fingerprint."""


def _no_seed_twice(seeds: list[int]) -> list[int]:
    if twice := sorted(seed for seed, num in Counter(seeds).items() if num > 1):
        raise custom_error(f"lists seed {twice[0]} twice, which would be the same run; keep one")
    return seeds


def _only_looks(value: Any) -> Any:
    if isinstance(value, Mapping) and value.keys() != {"looks"}:
        raise custom_error(f"must be a number, a list, or {{looks: [5, 8, 12]}} (got {shown(value)})")
    return value


def _increasing(looks: list[int]) -> list[int]:
    if len(looks) < 2:
        alone = f"seeds: {looks[0]}" if looks else "seeds: 5"
        raise custom_error(f"needs at least two looks, such as [5, 8, 12]; for a fixed number of seeds write {alone}")
    for before, after in pairwise(looks):
        if after <= before:
            raise custom_error(
                f"each look takes more seeds than the one before, but {after} follows {before}; put them in order"
            )
    return looks


MIN_LOOK = 3
"""Minimum number of seeds at a look: fewer give no verdict."""
MAX_SEEDS = 1000
"""Maximum number of seeds of an arm."""
SeedList = Annotated[list[Seed], Field(min_length=1, max_length=MAX_SEEDS), AfterValidator(_no_seed_twice)]
Looks = Annotated[
    dict[str, Annotated[list[Annotated[int, Field(ge=MIN_LOOK, le=MAX_SEEDS)]], AfterValidator(_increasing)]],
    BeforeValidator(_only_looks),
    WithJsonSchema(
        {
            "type": "object",
            "additionalProperties": False,
            "required": ["looks"],
            "properties": {
                "looks": {
                    "type": "array",
                    "minItems": 2,
                    "items": {"type": "integer", "minimum": MIN_LOOK, "maximum": MAX_SEEDS},
                    "description": "Increasing numbers of seeds; after each, only undecided comparisons get more.",
                }
            },
        }
    ),
]
Seeds = Annotated[int, Field(ge=1, le=MAX_SEEDS)] | SeedList | Looks
"""A number of seeds (5 means 0 to 4), a list of seeds, or looks."""


class Loss(Spec):
    """Cross-entropy on (possibly soft) targets."""

    label_smoothing: Fraction = 0.0
    """Weight e moved from the true class to all classes: off = e/C, on = 1 - e + e/C, before any mixing (timm)."""


class MovingAverage(Spec):
    """An exponential moving average of the weights, which is evaluated and saved in their place."""

    decay: Annotated[float, Field(gt=0, lt=1)]
    """Decay of the average per step: 0.999 averages over about 1,000 steps."""


class Recipe(Spec):
    """Everything that decides a training, except the seed."""

    data: Annotated[Component, ComponentOf(DATA)]
    """Data set: a name, or {name: ..., option: ...}."""
    train_size: PositiveInt | None = None
    """Number of training images, a fixed stratified subset; left out: all of them."""
    model: Annotated[Component, ComponentOf(MODELS)]
    """Network: resnet18-compact, resnet18, or any timm model by name."""
    epochs: Annotated[int, Field(ge=1, le=1_000_000)]
    """Passes over the training images."""
    batch_size: PositiveInt = 128
    """Images per step; the last step of an epoch may have fewer."""
    optimizer: Annotated[Component, ComponentOf(OPTIMIZERS)]
    """Optimizer with its learning rate: {name: sgd, lr: 0.1, momentum: 0.9, weight_decay: 5e-4}."""
    schedule: Annotated[Component, ComponentOf(SCHEDULES)] = Field(default={"name": "constant"}, validate_default=True)
    """Learning rate schedule, as a factor on the optimizer's lr."""
    augment: Annotated[dict[str, Component], ComponentsOf(AUGMENTATIONS)] = Field(default={}, validate_default=True)
    """Augmentations by name; their order in the pipeline is fixed, whatever their order in YAML."""
    loss: Loss = Loss()
    """The training loss."""
    ema: MovingAverage | None = None
    """Evaluate an exponential moving average of the weights: {decay: 0.999}; left out: the weights themselves."""
    flip_averaging: bool = False
    """Test-time augmentation: predictions are the mean of the logits of an image and of its mirror image."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto: bf16 if the device supports it, else fp32; the fingerprint contains the resolved precision."""
    eval_every: NonNegativeInt = 1
    """Epochs between evaluations on the test set (0: only at the end); does not change the training."""
    checkpoint_every: PositiveInt | None = None
    """Epochs between weights that are kept as artifacts; those of the last epoch are always kept."""

    @model_validator(mode="after")
    def _batch_fits_subset(self) -> Recipe:
        if self.train_size is not None and self.batch_size > self.train_size:
            message = f"batch_size {self.batch_size} is more than train_size {self.train_size}; make one step smaller"
            raise failure(message, self.batch_size, "batch_size")
        return self

    @model_validator(mode="after")
    def _one_flip(self) -> Recipe:
        if {"hflip", "alternating-flip"} <= self.augment.keys():
            message = "and hflip together mirror at random, as hflip alone does; remove one of them"
            raise failure(message, {}, "augment", "alternating-flip")
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the plain values: the option models are created from signatures and cannot be imported."""
        return Recipe.model_validate, (self.as_dict(),)

    def as_dict(self, *, defaults: bool = True) -> dict[str, Any]:
        """Plain nested values, as in YAML; without ``defaults``, only values that differ from them."""
        plain: dict[str, Any] = {}
        for name, info in type(self).model_fields.items():
            value = getattr(self, name)
            if isinstance(value, Component):
                plain[name] = value.as_dict(defaults=defaults)
            elif isinstance(value, Spec):
                plain[name] = value.model_dump(mode="json", exclude_defaults=not defaults)
            elif isinstance(value, dict):
                plain[name] = {key: _without_name(part.as_dict(defaults=defaults)) for key, part in value.items()}
            elif defaults or value != info.default:
                plain[name] = value
        return plain if defaults else {key: value for key, value in plain.items() if value not in ({}, _CONSTANT)}


_CONSTANT = {"name": "constant"}


def _without_name(options: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in options.items() if key != "name"}


class Published(Spec):
    """A published test accuracy of an arm."""

    accuracy: Percent
    """Test accuracy in percent."""
    note: str = ""
    """What the reader must know about it, such as: rounded, best epoch, other images."""


class StudyFile(Spec):
    """Top level of a study's YAML; recipe and arms are validated after merging."""

    study: Label
    """Name: lower-case letters, digits, dots, dashes; also the name of the MLflow experiment."""
    question: Annotated[str, Field(min_length=1, max_length=500)]
    """The question this study answers, in one sentence."""
    seeds: Seeds = 5
    """Number of seeds (5 means 0 to 4), a list of seeds, or {looks: [5, 8, 12]}: more seeds only if it is close."""
    margin: Annotated[NonNegativeFloat, Field(le=100)] = 0.2
    """Smallest difference in test accuracy that would matter to you, in points."""
    expected_sd: Annotated[PositiveFloat, Field(le=100)] | None = None
    """Expected standard deviation of test accuracy between seeds, in points; `plan` uses it before any run."""
    recipe: dict[str, Any] = Field(default={})
    """Shared by all arms."""
    baseline: str = "baseline"
    """The arm that every other arm is compared with."""
    arms: Annotated[dict[str, dict[str, Any] | None], Field(min_length=1)]
    """Each arm states only what differs from the arm named by `from` (default: the baseline); null removes a key."""
    published: dict[str, Percent | Published] = Field(default={})
    """Published test accuracy in percent by arm: a number, or {accuracy: ..., note: ...}."""
    tune: Tune | None = None
    """What `cifar-ablate tune` searches, and how."""
    tuned: Tuned | None = None
    """Where the arms' values come from; written by `cifar-ablate tune --write`."""


def seeds_of(written: int | list[int] | dict[str, list[int]]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The seeds in order, and the looks (empty if there are none), from the `seeds` of a study or an overlay."""
    if isinstance(written, dict):
        return tuple(range(written["looks"][-1])), tuple(written["looks"])
    return (tuple(range(written)) if isinstance(written, int) else tuple(written)), ()


@dataclass(frozen=True)
class Arm:
    """A named, resolved recipe; ``parent`` is the arm in its `from` (None: the baseline)."""

    name: str
    parent: str | None
    recipe: Recipe


@dataclass(frozen=True)
class Study:
    """A resolved study: one question, its arms and its seeds; ``variant`` names the overlay ("" for none)."""

    name: str
    question: str
    seeds: tuple[int, ...]
    margin: float
    baseline: str
    arms: tuple[Arm, ...]
    published: Mapping[str, Published] = field(default_factory=dict)
    variant: str = ""
    looks: tuple[int, ...] = ()
    """Increasing numbers of seeds after which the undecided arms get more; empty: every arm gets all seeds."""
    expected_sd: float | None = None
    """Expected standard deviation between seeds, in points."""
    file: str = ""
    """Path of the file, relative to the current folder; only its name if it is outside of it; "" for no file."""
    space: tuple[Parameter, ...] = ()
    """The tuned fields, in the order in which they are set."""
    tune: Tune | None = None
    tuned: Tuned | None = None

    @property
    def label(self) -> str:
        """``study`` or ``study@variant``: the name of its MLflow experiment."""
        return f"{self.name}@{self.variant}" if self.variant else self.name

    def arm(self, name: str) -> Arm:
        """The arm called ``name``, which must exist."""
        return next(arm for arm in self.arms if arm.name == name)
