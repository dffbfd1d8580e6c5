"""A grammar of sound studies, from the schema that editors get, and the ways of writing them down."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from cifar_ablate.errors import UnknownNameError
from cifar_ablate.registry import AUGMENTATIONS, PRUNERS, SAMPLERS
from cifar_ablate.spec.component import COMPONENT_REGISTRIES
from cifar_ablate.spec.json_schema import recipe_schema, study_json_schema

SCHEMA = study_json_schema()
TOP = SCHEMA["properties"]
RECIPE = recipe_schema()["properties"]  # the study's own schema says of each field that an arm may remove it
Node = Any


@dataclass(frozen=True, repr=False)
class Case:
    """What a user might give: a study's file, a profile's file or None, ``--set`` options, and the sound document."""

    kind: str
    study: bytes
    profile: bytes | None = None
    settings: tuple[str, ...] = ()
    document: dict[str, Any] | None = None
    restyled: bytes | None = None
    """The same document with other keys first, other quotes, in block or flow style."""

    def __repr__(self) -> str:
        settings = [one[:200] for one in self.settings]
        return f"{self.kind} {self.study[:2000]!r} profile={self.profile!r} settings={settings}"


def import_everything() -> None:
    """What is imported at the first study and at the first unknown model; 5 s, which are no part of reading one."""
    for registry in (*COMPONENT_REGISTRIES.values(), AUGMENTATIONS, SAMPLERS, PRUNERS):
        with suppress(UnknownNameError):
            registry.options("resnt50")


# ---- valid values, by the schema


def value_of(schema: Node, rng: random.Random) -> Any:
    """A value that the schema allows, small where it can be."""
    if "anyOf" in schema:  # null for a default is refused: it is a value that was forgotten
        return value_of(rng.choice([one for one in schema["anyOf"] if one != {"type": "null"}]), rng)
    if "const" in schema:
        return schema["const"]
    if "enum" in schema:
        return rng.choice(schema["enum"])
    if "examples" in schema:
        return rng.choice(schema["examples"])
    return VALUES[schema.get("type", "any")](schema, rng)


def _text(schema: Node, rng: random.Random) -> str:
    pattern = schema.get("pattern", "")
    if "\\d" in pattern:
        return f"2026-0{rng.randint(1, 9)}-1{rng.randint(0, 9)}"
    if pattern:
        return rng.choice(["tiny", "a", "0", "my.study-2_b"])
    return rng.choice(
        ["Does it help?", "yes", "no", "5", "1e3", "null", "ünïcödé ✓", "a: b", "#", "'", '"', "- x", "{", "x" * 70]
    )


def _integer(schema: Node, rng: random.Random) -> int:
    low, high = int(schema.get("minimum", 0)), int(schema.get("maximum", 2**40))
    return rng.choice([low, min(high, low + 1), min(high, low + rng.randint(0, 20))])


def _number(schema: Node, rng: random.Random) -> float | int:
    low = schema.get("minimum", schema.get("exclusiveMinimum", 0))
    high = schema.get("maximum", schema.get("exclusiveMaximum", low + 10))
    share = rng.choice([0.001, 0.1, 0.25, 0.5, 0.75])
    return rng.choice([low + share * (high - low), *([low] if "minimum" in schema else [])])


def _array(schema: Node, rng: random.Random) -> list[Any]:
    if "prefixItems" in schema:
        return sorted(value_of(one, rng) for one in schema["prefixItems"])
    num = max(schema.get("minItems", 0), rng.randint(1, 3))
    return [value_of(schema.get("items", {}), rng) for _ in range(num)]


def _object(schema: Node, rng: random.Random) -> dict[str, Any]:
    required = schema.get("required", [])
    found = {}
    for key, inner in schema.get("properties", {}).items():
        if key in required or key == "name" or rng.random() < 0.3:
            found[key] = value_of(inner, rng)
    return found


VALUES: dict[str, Callable[[Node, random.Random], Any]] = {
    "string": _text,
    "integer": _integer,
    "number": _number,
    "array": _array,
    "object": _object,
    "boolean": lambda _, rng: rng.random() < 0.5,
    "null": lambda *_: None,
    "any": lambda _, rng: rng.choice([0, 1.5, "a", True]),
}


def recipe(rng: random.Random) -> dict[str, Any]:
    """The shared recipe of a study on digits, with networks small enough to be built a thousand times."""
    found: dict[str, Any] = {key: value_of(RECIPE[key], rng) for key in RECIPE if rng.random() < 0.4}
    found |= {"data": rng.choice(["digits", {"name": "digits"}]), "epochs": rng.randint(1, 90)}
    found["model"] = {"name": rng.choice(["resnet18", "resnet18-compact"]), "width": rng.randint(1, 3)}
    kind = rng.choice([one for one in RECIPE["optimizer"]["anyOf"] if "properties" in one])
    found["optimizer"] = value_of(kind, rng) | {"lr": rng.choice([0.1, 5e-4, 1, 1e-05])}
    found["batch_size"] = rng.choice([8, 64, 128])
    found["train_size"] = rng.choice([200, 500, 1000])
    if found["optimizer"].get("nesterov"):
        found["optimizer"]["momentum"] = 0.9
    if found.get("schedule") in ("step", {"name": "step"}):
        found["schedule"] = {"name": "step", "every_epochs": 2}
    augment = found.get("augment", {})
    if "hflip" in augment:
        augment.pop("alternating-flip", None)
    return found


def arms(rng: random.Random, shared: dict[str, Any], num: int) -> dict[str, Any]:
    """A baseline and arms that each state one thing, some built on others."""
    baseline = rng.choice(["baseline", "plain", "no", "1", "ünïcödé"])
    found: dict[str, Any] = {baseline: rng.choice([None, {}])}
    for number in range(num):
        delta: dict[str, Any] = {"epochs": shared["epochs"] + number + 1}
        if rng.random() < 0.5:
            delta |= rng.choice([{"batch_size": 32}, {"loss": {"label_smoothing": 0.2}}, {"precision": "fp32"}])
        if rng.random() < 0.4 and number:
            delta["from"] = rng.choice(list(found))
        if rng.random() < 0.2 and shared.get("augment"):
            parent = delta.get("from", baseline)
            gone = rng.choice(list(shared["augment"]))
            if parent == baseline:
                delta["augment"] = {gone: None}
        found[f"arm {number}"] = delta
    return found


SPACES: dict[str, list[Any]] = {
    "optimizer.lr": [{"low": 0.001, "high": 0.3, "log": True}, [0.1, 0.2, 1], {"low": 0.1, "high": 0.5, "step": 0.1}],
    "batch_size": [[16, 32], {"low": 8, "high": 64}, {"low": 8, "high": 16, "step": 4}],
    "loss.label_smoothing": [{"low": 0.0, "high": 0.2}, {"choices": [0.0, 0.1]}],
    "schedule": [["constant", "cosine", "one-cycle"], ["linear", {"name": "step", "every_epochs": 3}]],
    "augment.cutmix": [[None, {}], [None, {"alpha": 0.5}, {"p": 0.5}]],
    "flip_averaging": [[True, False]],
}


def document(rng: random.Random) -> dict[str, Any]:
    """A valid study as plain values."""
    shared = recipe(rng)
    num = rng.choice([0, 1, 2, 3, 3, 5, 12])
    by_name = arms(rng, shared, num)
    found: dict[str, Any] = {"study": _text(TOP["study"], rng), "question": _text({}, rng), "recipe": shared}
    found["arms"] = by_name
    baseline = next(iter(by_name))
    if baseline != "baseline":
        found["baseline"] = baseline
    for key in ("margin", "expected_sd"):
        if rng.random() < 0.3:
            found[key] = rng.choice([0.25, 1, 50, 1e-3])
    found["seeds"] = rng.choice([1, 3, [0, 7, 4294967295], {"looks": [3, 5, 8]}, list(range(20))])
    if rng.random() < 0.3:
        found["published"] = {arm: rng.choice([90, 82.5, {"accuracy": 80.0, "note": "best epoch"}]) for arm in by_name}
    if rng.random() < 0.3:
        fields = rng.sample(sorted(SPACES), rng.randint(1, 4))
        found["tune"] = {"space": {field: copy.deepcopy(rng.choice(SPACES[field])) for field in fields}}
        found["tune"] |= {key: one for key, one in {"trials": 5, "seeds": 2, "sampler": "random"}.items() if num % 2}
    if rng.random() < 0.15:
        found["tuned"] = value_of(TOP["tuned"], rng) | {"space": {"epochs": "1 to 9"}, "arms": {}}
    if rng.random() < 0.3:
        del found["seeds"]
    return found


# ---- writing it down


class Writer:
    """Plain values as YAML in a style drawn at random; keys in ``twice`` are written a second time."""

    def __init__(self, rng: random.Random, *, shuffled: bool = False, twice: float = 0.0) -> None:
        self.rng, self.shuffled, self.twice = rng, shuffled, twice

    def file(self, value: Any) -> bytes:
        style = self.rng.random()
        text = self.block(value, 0) if style < 0.8 else self.flow(value) + "\n"
        if self.rng.random() < 0.2:
            text = f"# a comment\n{text}# and one more\n"
        text = text.replace("\n", "\r\n") if self.rng.random() < 0.1 else text
        return text.encode("utf-8-sig" if self.rng.random() < 0.1 else "utf-8", "surrogatepass")

    def items(self, value: dict[str, Any]) -> list[tuple[str, Any]]:
        items = [pair for pair in value.items() for _ in range(1 + (self.rng.random() < self.twice))]
        if self.shuffled:
            self.rng.shuffle(items)
        return items

    def block(self, value: Any, depth: int) -> str:
        if not isinstance(value, dict) or not value:
            return self.flow(value) + "\n"
        lines = []
        for key, inner in self.items(value):
            nested = isinstance(inner, dict) and inner and self.rng.random() < 0.7
            begin = "  " * depth + self.scalar(key) + ":"
            lines.append(f"{begin}\n{self.block(inner, depth + 1)}" if nested else f"{begin} {self.flow(inner)}\n")
        return "".join(lines)

    def flow(self, value: Any) -> str:
        if isinstance(value, dict):
            return "{" + ", ".join(f"{self.scalar(key)}: {self.flow(item)}" for key, item in self.items(value)) + "}"
        if isinstance(value, list | tuple):
            return "[" + ", ".join(map(self.flow, value)) + "]"
        return self.scalar(value)

    def scalar(self, value: Any) -> str:  # noqa: PLR0911 - one line to a type
        if isinstance(value, Raw):
            return str(value)
        if value is None:
            return self.rng.choice(["null", "~"])
        if isinstance(value, bool):
            return str(value).lower()
        if isinstance(value, int | float):
            return {"inf": ".inf", "-inf": "-.inf", "nan": ".nan"}.get(repr(value), repr(value))
        plain = value.replace(" ", "").replace("-", "").isalnum() and value[0].isalpha() and value[-1] != " "
        if plain and value.lower() not in ("null", "true", "false") and self.rng.random() < 0.6:
            return str(value)
        if "\n" in value or not value.isprintable() or self.rng.random() < 0.5:
            return json.dumps(value, ensure_ascii=self.rng.random() < 0.5)
        return "'" + value.replace("'", "''") + "'"


class Raw(str):
    """YAML that is written as it is."""

    __slots__ = ()
