"""The parts that a study's schema is made of: a closed base model, and registered names with their options."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler, ValidationError
from pydantic_core import CoreSchema, InitErrorDetails, PydanticCustomError, SchemaValidator, core_schema

from cifar_ablate.errors import UnknownNameError
from cifar_ablate.registry import DATA, MODELS, OPTIMIZERS, SCHEDULES, Options, Registry


class Spec(BaseModel):
    """Base class of all parts of a study: closed, strict and frozen; a field's docstring is its description."""

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, arbitrary_types_allowed=True, use_attribute_docstrings=True
    )


Seed = Annotated[int, Field(ge=0, le=2**32 - 1)]
Label = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
Percent = Annotated[float, Field(ge=0, le=100)]


COMPONENT_REGISTRIES = {"data": DATA, "model": MODELS, "optimizer": OPTIMIZERS, "schedule": SCHEDULES}
"""Recipe fields that hold one component, written as ``name`` or ``{name: ..., option: ...}``."""
MAX_SHOWN = 60
"""Maximum length of a value in a message."""


@dataclass(frozen=True)
class Component:
    """A registered name with its validated options."""

    name: str
    options: Options

    def kwargs(self) -> dict[str, Any]:
        """Options as keyword arguments for ``Registry.bind``."""
        return self.options.model_dump()

    def as_dict(self, *, defaults: bool = True) -> dict[str, Any]:
        """``{name: ..., option: ...}`` in plain types; without ``defaults``, only options that differ from them."""
        return {"name": self.name, **self.options.model_dump(mode="json", exclude_defaults=not defaults)}


def custom_error(message: str) -> PydanticCustomError:
    """A pydantic error whose message is shown to the user as it is."""
    return PydanticCustomError("ablate", "{message}", {"message": message})


def failure(message: str, value: Any, *loc: str) -> ValidationError:
    """A ValidationError with one message, at ``loc`` in the validated value."""
    error = custom_error(message)
    return ValidationError.from_exception_data("component", [InitErrorDetails(type=error, loc=loc, input=value)])


def _component(registry: Registry, name: str, values: Mapping[str, Any], *loc: str) -> Component:
    try:
        model = registry.options(name)
    except UnknownNameError as error:
        others = ", and every timm model" if registry is MODELS and "known: " in str(error) else ""
        raise failure(f"{error}{others}", name, *loc) from None
    component = Component(name, model.model_validate(dict(values)))
    try:
        registry.check(name, component.kwargs())
    except ValueError as error:
        raise failure(str(error), values) from None
    return component


@dataclass(frozen=True)
class ComponentOf:
    """Annotation for a component of ``registry``, written as ``name`` or ``{name: ..., option: ...}``."""

    registry: Registry

    def __get_pydantic_core_schema__(self, _: Any, __: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(self.validate)

    def validate(self, value: Any) -> Component:
        if isinstance(value, Component):
            return value
        if isinstance(value, str):
            value = {"name": value}
        kind, known = self.registry.kind, ", ".join(self.registry.names())
        if not isinstance(value, Mapping):
            raise failure(f"must be one of {known}, or {{name: ..., option: ...}} (got {shown(value)})", value)
        if "name" not in value:
            raise failure(f"the `name` of the {kind} is missing; known: {known}", value)
        if not isinstance(value["name"], str):
            raise failure(f"must be the name of a {kind} (got {shown(value['name'])}); known: {known}", value, "name")
        rest = {key: option for key, option in value.items() if key != "name"}
        return _component(self.registry, value["name"], rest, "name")


@dataclass(frozen=True)
class ComponentsOf:
    """Annotation for a mapping from names of ``registry`` to their options, sorted by name."""

    registry: Registry

    def __get_pydantic_core_schema__(self, _: Any, __: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(self.validate)

    def validate(self, value: Any) -> dict[str, Component]:
        if not isinstance(value, Mapping):
            raise failure(f"must be a mapping such as {{hflip: {{p: 0.5}}}} (got {shown(value)})", value)
        fields = {  # one validator per name, so that pydantic collects the errors of all with their locations
            name: core_schema.typed_dict_field(
                core_schema.no_info_plain_validator_function(functools.partial(self._one, name))
            )
            for name in sorted(value)
        }
        components: dict[str, Component] = SchemaValidator(core_schema.typed_dict_schema(fields)).validate_python(
            dict(value)
        )
        return components

    def _one(self, name: str, options: Any) -> Component:
        if isinstance(options, Component):
            return options
        if not isinstance(options, Mapping):
            raise failure(f"must be a mapping of options, {{}} for the defaults (got {shown(options)})", options)
        return _component(self.registry, name, options)


def shown(value: Any) -> str:
    """A value as YAML text, on one line of at most ``MAX_SHOWN`` characters."""
    text = _flow(value)
    return text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 3] + "..."


def _flow(value: Any) -> str:
    """A value in flow style; of a long one at least the beginning that is shown."""
    if value is None or isinstance(value, bool):
        return str(value).lower().replace("none", "null")
    if isinstance(value, Mapping):
        return "{" + _listed(f"{_flow_key(key)}: {_flow(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + _listed(map(_flow, value)) + "]"
    return repr(value[: MAX_SHOWN + 1] if isinstance(value, str) else value)


def _flow_key(key: Any) -> str:
    text = str(key)[: MAX_SHOWN + 1]
    return text if text.isprintable() else repr(text)


def _listed(parts: Iterable[str]) -> str:
    """Parts joined by commas, up to the length that is shown: messages about many arms may repeat a long list."""
    taken, length = [], 0
    for part in parts:
        taken.append(part)
        length += len(part)
        if length > MAX_SHOWN:
            break
    return ", ".join(taken)
