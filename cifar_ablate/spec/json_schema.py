"""The JSON schema of study files, which gives editors completion for every registered name and option."""

from __future__ import annotations

import inspect
import re
from typing import Any

from pydantic import BaseModel, TypeAdapter
from pydantic.fields import FieldInfo

from cifar_ablate.registry import AUGMENTATIONS, PRUNERS, SAMPLERS, Registry
from cifar_ablate.spec.component import COMPONENT_REGISTRIES
from cifar_ablate.spec.schema import Published, Recipe, StudyFile, Tune, Tuned

_ARGUMENT = re.compile(r"^    (\w+): (.+(?:\n {6,}\S.*)*)", re.MULTILINE)
"""One argument in the ``Args:`` section of a docstring: its name and its text."""


def study_json_schema() -> dict[str, Any]:
    """The JSON schema (draft 2020-12) of a study file."""
    published = Published.model_json_schema()
    tuned = Tuned.model_json_schema()
    study = {name: _field(StudyFile, name) for name in StudyFile.model_fields if name not in ("tune", "tuned")}
    recipe = recipe_schema()
    arm = _partial(recipe)
    arm["properties"]["from"] = {"type": "string", "description": "The arm that this one differs from."}
    study |= {
        "recipe": _partial(recipe) | _described(StudyFile.model_fields["recipe"]),
        "arms": {
            "type": "object",
            "minProperties": 1,
            "additionalProperties": {"anyOf": [arm, {"type": "null"}]},
            **_described(StudyFile.model_fields["arms"]),
        },
        "published": {
            "type": "object",
            "additionalProperties": {"anyOf": [{"type": "number", "minimum": 0, "maximum": 100}, published]},
            **_described(StudyFile.model_fields["published"]),
        },
        "tune": _tune(),
        "tuned": _inlined(tuned, tuned.pop("$defs")) | _described(StudyFile.model_fields["tuned"]),
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "cifar-ablate study",
        "type": "object",
        "additionalProperties": False,
        "required": [name for name, info in StudyFile.model_fields.items() if info.is_required()],
        "properties": study,
    }


def _tune() -> dict[str, Any]:
    components = {"sampler": SAMPLERS, "pruner": PRUNERS}
    properties = {
        name: (_component(components[name]) if name in components else _field(Tune, name)) | _described(info)
        for name, info in Tune.model_fields.items()
    }
    return {
        "type": "object",
        "additionalProperties": False,
        "required": ["space"],
        "properties": properties,
        **_described(StudyFile.model_fields["tune"]),
    }


def _field(model: type[BaseModel], name: str) -> dict[str, Any]:
    """The schema of one field, with its docstring as description."""
    info = model.model_fields[name]
    schema: dict[str, Any] = TypeAdapter(info.rebuild_annotation()).json_schema()
    return dict(_inlined(schema, schema.pop("$defs", {}))) | _described(info)


def _inlined(schema: Any, definitions: dict[str, Any]) -> Any:
    """The schema with each reference replaced by its definition: references are relative to the whole file."""
    if isinstance(schema, list):
        return [_inlined(item, definitions) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        return _inlined(definitions[schema["$ref"].rpartition("/")[2]], definitions)
    return {key: _inlined(value, definitions) for key, value in schema.items()}


def _described(info: FieldInfo) -> dict[str, str]:
    return {"description": info.description} if info.description else {}


def recipe_schema() -> dict[str, Any]:
    properties: dict[str, Any] = {}
    for name, info in Recipe.model_fields.items():
        if name in COMPONENT_REGISTRIES:
            properties[name] = _component(COMPONENT_REGISTRIES[name]) | _described(info)
        elif name == "augment":
            properties[name] = {
                "type": "object",
                "additionalProperties": False,
                "properties": {each: _options(AUGMENTATIONS, each) for each in AUGMENTATIONS.names()},
                **_described(info),
            }
        else:
            properties[name] = _field(Recipe, name)
    return {"type": "object", "additionalProperties": False, "properties": properties}


def _component(registry: Registry) -> dict[str, Any]:
    objects = []
    for name in registry.names():
        one = _options(registry, name)
        one["properties"] = {"name": {"const": name}, **one.get("properties", {})}
        objects.append(one)
    names: dict[str, Any] = {"enum": registry.names()}
    if registry.kind == "model":  # timm's names are accepted, too
        names = {"type": "string", "examples": registry.names()}
        objects.append({"type": "object", "required": ["name"], "properties": {"name": {"type": "string"}}})
    return {"anyOf": [names, *objects]}


def _options(registry: Registry, name: str) -> dict[str, Any]:
    schema = registry.options(name).model_json_schema()
    schema.pop("title", None)
    for option, text in _ARGUMENT.findall(inspect.getdoc(registry.get(name)) or ""):
        if option in schema.get("properties", {}):
            schema["properties"][option]["description"] = " ".join(text.split())
    return schema | {"description": registry.summary(name)}


def _partial(schema: Any) -> Any:
    """The schema of a delta: nothing is required, and null removes a key."""
    if isinstance(schema, list):
        return [_partial(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    partial = {key: _partial(value) for key, value in schema.items() if key != "required"}
    if isinstance(schema.get("properties"), dict):
        partial["properties"] = {
            key: value if "const" in value else {"anyOf": [_partial(value), {"type": "null"}]}
            for key, value in schema["properties"].items()
        }
    return partial
