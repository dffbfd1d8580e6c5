"""The JSON schema for editors: it knows what the program knows, accepts the shipped studies and refuses mistakes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cifar_ablate.registry import AUGMENTATIONS
from cifar_ablate.spec.component import COMPONENT_REGISTRIES
from cifar_ablate.spec.json_schema import study_json_schema
from cifar_ablate.spec.schema import Recipe, StudyFile
from cifar_ablate.spec.text import parse_yaml, read_yaml

ROOT = Path(__file__).parent.parent
EXPERIMENTS = sorted((ROOT / "experiments").glob("*.yaml"))
SCHEMA = study_json_schema()
TYPES: dict[str, Any] = {
    "object": dict,
    "array": list,
    "string": str,
    "integer": int,
    "number": (int, float),
    "boolean": bool,
    "null": type(None),
}
TOLD = {"$schema", "title", "description", "default", "examples", "required", "additionalProperties", "items", "format"}


def has_type(value: Any, kind: str) -> bool:
    return isinstance(value, TYPES[kind]) and (kind == "boolean" or not isinstance(value, bool))


CHECKS: dict[str, Any] = {
    "type": has_type,
    "enum": lambda value, allowed: value in allowed,
    "const": lambda value, only: value == only,
    "anyOf": lambda value, options: any(valid(value, option) for option in options),
    "minimum": lambda value, limit: not has_type(value, "number") or value >= limit,
    "maximum": lambda value, limit: not has_type(value, "number") or value <= limit,
    "exclusiveMinimum": lambda value, limit: not has_type(value, "number") or value > limit,
    "exclusiveMaximum": lambda value, limit: not has_type(value, "number") or value < limit,
    "pattern": lambda value, pattern: not isinstance(value, str) or re.search(pattern, value),
    "minLength": lambda value, limit: not isinstance(value, str) or len(value) >= limit,
    "maxLength": lambda value, limit: not isinstance(value, str) or len(value) <= limit,
    "minItems": lambda value, limit: not isinstance(value, list) or len(value) >= limit,
    "maxItems": lambda value, limit: not isinstance(value, list) or len(value) <= limit,
    "minProperties": lambda value, limit: not isinstance(value, dict) or len(value) >= limit,
    "maxProperties": lambda value, limit: not isinstance(value, dict) or len(value) <= limit,
    "prefixItems": lambda value, parts: (
        not isinstance(value, list) or all(map(valid, value, parts))  # shorter and longer lists: minItems, maxItems
    ),
    "properties": lambda value, parts: (
        not isinstance(value, dict) or all(valid(item, parts[key]) for key, item in value.items() if key in parts)
    ),
}


def valid(value: Any, schema: Any) -> bool:
    """The part of JSON Schema that study_json_schema uses; a keyword beyond it fails the test."""
    if isinstance(schema, bool):
        return schema
    assert schema.keys() <= CHECKS.keys() | TOLD, schema.keys()
    if isinstance(value, dict):
        rest = value.keys() - schema.get("properties", {}).keys()
        if any(not valid(value[key], schema.get("additionalProperties", True)) for key in rest):
            return False
        if not set(schema.get("required", ())) <= value.keys():
            return False
    items = schema.get("items", True) if isinstance(value, list) and "prefixItems" not in schema else True
    if items is not True and not all(valid(item, items) for item in value):
        return False
    return all(CHECKS[key](value, argument) for key, argument in schema.items() if key in CHECKS)


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_every_shipped_study_is_valid(path: Path) -> None:
    assert valid(read_yaml(path).value, SCHEMA)


@pytest.mark.parametrize(
    "mistake",
    [
        "sed: 3",
        "seeds: 0",
        "seeds: [0, a]",
        "seeds: {looks: [5]}",
        "seeds: {looks: [2, 5]}",
        "seeds: {look: [5, 8]}",
        "seeds: {looks: 5}",
        "expected_sd: 0",
        "recipe: {ema: {decay: 1}}",
        "margin: -1",
        "recipe: {epoch: 3}",
        "recipe: {epochs: 0}",
        "recipe: {optimizer: adam}",
        "recipe: {optimizer: {name: adamw, momentum: 0.9}}",
        "recipe: {augment: {flip: {}}}",
        "recipe: {augment: {hflip: {p: 5}}}",
        "recipe: {loss: {smoothing: 0.1}}",
        "arms: {}",
        "arms: {a: 5}",
        "arms: {a: {from: 5}}",
        "published: {a: 101}",
        "published: {a: {note: x}}",
    ],
)
def test_a_mistake_is_not_valid(mistake: str) -> None:
    sound = {"study": "tiny", "question": "why", "arms": {"baseline": None}}
    assert valid(sound, SCHEMA)
    assert not valid(sound | parse_yaml(mistake, "x").value, SCHEMA)


def test_looks_an_expected_spread_and_a_moving_average_are_valid() -> None:
    text = "{seeds: {looks: [5, 8, 12]}, expected_sd: 0.3, recipe: {ema: {decay: 0.99}}}"
    assert valid({"study": "tiny", "question": "why", "arms": {"a": None}} | parse_yaml(text, "x").value, SCHEMA)


def test_nothing_in_the_schema_refers_to_a_definition_that_is_elsewhere() -> None:
    assert "$ref" not in json.dumps(SCHEMA)


def test_a_study_needs_its_name_its_question_and_its_arms() -> None:
    assert SCHEMA["required"] == ["study", "question", "arms"]
    assert not valid({"study": "tiny", "question": "why"}, SCHEMA)


def test_an_arm_may_be_empty_remove_a_key_and_differ_from_another_arm() -> None:
    arms = parse_yaml(
        "{a: , b: {augment: {hflip: null}, train_size: null}, c: {from: b, optimizer: {lr: 1}}}", "x"
    ).value
    assert valid({"study": "tiny", "question": "why", "arms": arms}, SCHEMA)


def options_of(schema: Any) -> list[dict[str, Any]]:
    """Every object schema in a field that may be null or have other forms."""
    found = [schema] if "properties" in schema else []
    return found + [inner for option in schema.get("anyOf", ()) for inner in options_of(option)]


@pytest.mark.parametrize("place", ["recipe", "arms"])
def test_every_field_name_and_option_is_offered_with_its_description(place: str) -> None:
    recipe = SCHEMA["properties"][place]
    recipe = recipe["additionalProperties"]["anyOf"][0] if place == "arms" else recipe
    fields = {name: field for name, field in recipe["properties"].items() if name != "from"}
    assert fields.keys() == Recipe.model_fields.keys()
    for part, registry in COMPONENT_REGISTRIES.items():
        offered = {
            option["properties"]["name"]["const"]: option
            for option in options_of(fields[part])
            if "const" in option["properties"].get("name", {})
        }
        assert list(offered) == registry.names()
        for name, option in offered.items():
            assert option["properties"].keys() == {"name", *registry.options(name).model_fields}
            assert option["description"] == registry.summary(name) != ""
    [augment] = options_of(fields["augment"])
    assert list(augment["properties"]) == AUGMENTATIONS.names()
    for name in AUGMENTATIONS.names():
        [option] = options_of(augment["properties"][name])
        assert option["properties"].keys() == AUGMENTATIONS.options(name).model_fields.keys()


def test_every_top_level_key_is_described() -> None:
    assert SCHEMA["properties"].keys() == StudyFile.model_fields.keys()
    assert all(field["description"] for field in SCHEMA["properties"].values())


def test_the_command_prints_the_schema_as_json() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "cifar_ablate.cli", "schema"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert json.loads(done.stdout) == json.loads(json.dumps(SCHEMA))
    assert done.stderr == ""
