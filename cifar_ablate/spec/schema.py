"""The recipe and the study as frozen, closed models; components are validated by the registry's signatures.

Validation is strict: no string becomes a number, no 1.0 becomes an int. Messages are put into words by ``messages.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema, model_validator

from cifar_ablate.fields import Fraction, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from cifar_ablate.registry import AUGMENTATIONS, DATA, MODELS, OPTIMIZERS, SCHEDULES
from cifar_ablate.spec.base import Label, Percent, Seed, Spec
from cifar_ablate.spec.component import Component, ComponentOf, ComponentsOf, failure, said, shown
from cifar_ablate.spec.tune import Parameter, Tune, Tuned

RECORDING_FIELDS = frozenset({"eval_every", "checkpoint_every"})
"""Recipe fields that decide what is written down, not what is trained: they never enter the fingerprint."""


def _no_seed_twice(seeds: list[int]) -> list[int]:
    if twice := sorted({seed for seed in seeds if seeds.count(seed) > 1}):
        raise said(f"lists seed {twice[0]} twice, which would be the same run; keep one")
    return seeds


def _only_looks(value: Any) -> Any:
    if isinstance(value, Mapping) and value.keys() != {"looks"}:
        raise said(f"must be a number, a list, or {{looks: [5, 8, 12]}} (got {shown(value)})")
    return value


def _increasing(looks: list[int]) -> list[int]:
    if len(looks) < 2:
        alone = f"seeds: {looks[0]}" if looks else "seeds: 5"
        raise said(f"needs at least two looks, such as [5, 8, 12]; for a fixed number of seeds write {alone}")
    for before, after in pairwise(looks):
        if after <= before:
            raise said(
                f"each look takes more seeds than the one before, but {after} follows {before}; put them in order"
            )
    return looks


MAX_ARMS = 1000
MIN_LOOK, MAX_SEEDS = 3, 1000
"""A look at fewer seeds gives no verdict."""
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
                    "description": "Numbers of seeds, increasing; after each, only open comparisons get more.",
                }
            },
        }
    ),
]
Seeds = Annotated[int, Field(ge=1, le=MAX_SEEDS)] | SeedList | Looks
"""A number of seeds (5 means 0 to 4), a list of them, or looks."""


class Loss(Spec):
    """Cross-entropy on (possibly soft) targets."""

    label_smoothing: Fraction = 0.0
    """Weight e moved from the true class to all classes: off = e/C, on = 1 - e + e/C, before any mixing (timm)."""


class MovingAverage(Spec):
    """An exponential moving average of the weights, which is evaluated and kept in their place."""

    decay: Annotated[float, Field(gt=0, lt=1)]
    """Of the average, per step: 0.999 averages over about 1,000 steps."""


class Recipe(Spec):
    """Everything that decides a training, but the seed."""

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
    """Learning rate over time, as a factor on the optimizer's lr."""
    augment: Annotated[dict[str, Component], ComponentsOf(AUGMENTATIONS)] = Field(default={}, validate_default=True)
    """Augmentations by name; the order in YAML does not matter, each has its place in the pipeline."""
    loss: Loss = Loss()
    """The training loss."""
    ema: MovingAverage | None = None
    """Evaluate an exponential moving average of the weights: {decay: 0.999}; left out: the weights themselves."""
    flip_averaging: bool = False
    """Test-time augmentation: predictions are the mean of the logits of an image and of its mirror image."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto: bf16 where the device computes in it, else fp32; the resolved one enters the fingerprint."""
    eval_every: NonNegativeInt = 1
    """Measure the test curve every so many epochs (0: only at the end). Never changes what is trained."""
    checkpoint_every: PositiveInt | None = None
    """Keep the weights every so many epochs as artifacts; the last epoch's are always kept."""

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
        """Pickled as its values: the option models are made from signatures, and no importable class."""
        return Recipe.model_validate, (self.as_dict(),)

    def as_dict(self, *, defaults: bool = True) -> dict[str, Any]:
        """Plain nested values, as YAML would hold them; without ``defaults`` only what differs from them."""
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
    """A figure that somebody published for an arm."""

    accuracy: Percent
    """Test accuracy in percent."""
    note: str = ""
    """What the reader must know about it (rounded, best epoch, another set of images)."""


class StudyFile(Spec):
    """Top level of a study's YAML; recipe and arms are checked once they are merged."""

    study: Label
    """Name: lower-case letters, digits, dots, dashes; also the name of the MLflow experiment."""
    question: Annotated[str, Field(min_length=1, max_length=500)]
    """The question this study answers, in one sentence."""
    seeds: Seeds = 5
    """Number of seeds (5 means 0 to 4), a list of them, or {looks: [5, 8, 12]}: more seeds only where it is open."""
    margin: Annotated[NonNegativeFloat, Field(le=100)] = 0.2
    """Smallest difference in test accuracy that would matter to you, in points."""
    expected_sd: Annotated[PositiveFloat, Field(le=100)] | None = None
    """Standard deviation of test accuracy between seeds that you expect, in points; `plan` uses it without runs."""
    recipe: dict[str, Any] = Field(default={})
    """Shared by all arms."""
    baseline: str = "baseline"
    """The arm that every other arm is compared with."""
    arms: Annotated[dict[str, dict[str, Any] | None], Field(min_length=1, max_length=MAX_ARMS)]
    """Each arm states only what differs from the arm named by `from` (default: the baseline); null removes a key."""
    published: dict[str, Percent | Published] = Field(default={})
    """Published test accuracy in percent by arm: a number, or {accuracy: ..., note: ...}."""
    tune: Tune | None = None
    """What `cifar-ablate tune` searches, and how."""
    tuned: Tuned | None = None
    """Written by `cifar-ablate tune --write`: where the arms' values come from."""


def seeds_of(written: int | list[int] | dict[str, list[int]]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """All seeds in their order, and the looks (empty without), from what a study or an overlay says."""
    if isinstance(written, dict):
        return tuple(range(written["looks"][-1])), tuple(written["looks"])
    return (tuple(range(written)) if isinstance(written, int) else tuple(written)), ()


@dataclass(frozen=True)
class Arm:
    """A named, resolved recipe; ``parent`` is the arm it was written against (None: the baseline)."""

    name: str
    parent: str | None
    recipe: Recipe


@dataclass(frozen=True)
class Study:
    """A resolved study: one question, its arms, its seeds; ``variant`` names the overlay ("" for none)."""

    name: str
    question: str
    seeds: tuple[int, ...]
    margin: float
    baseline: str
    arms: tuple[Arm, ...]
    published: Mapping[str, Published] = field(default_factory=dict)
    variant: str = ""
    looks: tuple[int, ...] = ()
    """Numbers of seeds, increasing, after which it is decided who gets more; empty: every arm gets all seeds."""
    expected_sd: float | None = None
    """Standard deviation between seeds as the user expects it, in points."""
    file: str = ""
    """Where it was read, from the folder of the command; its name alone where it lies outside; "" for none."""
    space: tuple[Parameter, ...] = ()
    """What is tuned, in the order in which it is set."""
    tune: Tune | None = None
    tuned: Tuned | None = None

    @property
    def label(self) -> str:
        """``study`` or ``study@variant``: the name of its MLflow experiment."""
        return f"{self.name}@{self.variant}" if self.variant else self.name

    def arm(self, name: str) -> Arm:
        """The arm called ``name`` (which must exist)."""
        return next(arm for arm in self.arms if arm.name == name)
