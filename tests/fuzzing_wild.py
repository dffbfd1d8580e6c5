"""What is nearly a study and what is none: edits of sound ones, and files that a study is not."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

from tests.fuzzing import RECIPE, Case, Raw, Writer, document

# ---- nearly valid: edits of a valid document

WILD: list[Any] = [
    None,
    True,
    False,
    0,
    -1,
    1,
    3.0,
    0.5,
    1e300,
    -0.0,
    float("nan"),
    float("inf"),
    2**31,
    2**63 - 1,
    2**63,
    10**40,
    "",
    " ",
    "x",
    "sgd",
    "resnet18",
    "resnet81",
    "vit_tiny_patch16_22",
    "../../etc/passwd",
    "a/b",
    "\ud800",
    "\u202e",
    "a\tb",
    "\0",
    "\x1b[2J",
    "x" * 5000,
    [],
    [[]],
    {},
    {"name": 5},
    {"times": 2},
    {"a": {"b": {"c": 1}}},
    [1, 2, 3],
    ["a"] * 500,
    Raw(".5e400"),
    Raw("0o17"),
    Raw("0x1F"),
    Raw("0b1"),
    Raw("12:30:45"),
    Raw("1_000"),
    Raw("2026-01-01"),
    Raw("+.inf"),
    Raw("!!python/name:os.system"),
    Raw("!!int '5'"),
    Raw("!!binary aGk="),
    Raw("&a *a"),
    Raw("*nobody"),
    Raw("&x 5"),
    Raw("<<: {a: 1}"),
    Raw("{<<: *x}"),
    Raw("@x"),
    Raw("`x`"),
    Raw("%x"),
    Raw('"\\UFFFFFFFF"'),
    Raw('"\\q"'),
    Raw("? x"),
    Raw("'open"),
    Raw("[open"),
    Raw("- a"),
    Raw("|\n   text"),
    Raw(">-\n   text"),
    Raw("\tx"),
    Raw("yes"),
    Raw("1e5"),
    Raw("1."),
    Raw("9" * 5000),
    Raw("0." + "1" * 5000),
    Raw("{" * 60 + "}" * 60),
    Raw("[" * 10_000 + "]" * 10_000),
    Raw("--- x"),
    Raw("..."),
]
KEYS = [
    "from",
    "name",
    "lr",
    "epochs",
    "width",
    "augment",
    "seeds",
    "study",
    "recipe",
    "tune",
    "profile",
    "p",
    "",
    " ",
    "<<",
    "width?",
    "optimizer.lr",
    "epoch",
    "no",
    "x" * 2000,
    "model." + "." * 500,
    "\u202e",
    "\x07",
    "ünï",
    "times",
    "looks",
    "when",
]


def paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a document."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(found for key, below in inner for found in paths(below, (*path, key)))]


def misspelt(word: str, rng: random.Random) -> str:
    at = rng.randrange(len(word)) if word else 0
    return rng.choice([word[:at] + word[at + 1 :], word[:at] + "x" + word[at:], word.upper(), word + " "])


def edited(found: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    """The document with one thing changed: a value, a key, a place."""
    places = [path for path in paths(found) if path]
    if not places:
        return found
    *above, last = rng.choice(places)
    inner: Any = found
    for key in above:
        inner = inner[key]
    what = rng.choice(["value", "value", "value", "key", "gone", "more", "moved", "swapped"])
    if what == "value" or not isinstance(inner, dict):
        inner[last] = copy.deepcopy(rng.choice(WILD))
    elif what == "key":
        value = inner.pop(last)
        inner[misspelt(last, rng) if rng.random() < 0.6 else rng.choice(KEYS)] = value
    elif what == "gone":
        del inner[last]
    elif what == "more":
        inner[rng.choice(KEYS)] = copy.deepcopy(rng.choice(WILD))
    elif what == "moved":
        found[str(last)] = inner.pop(last)
    else:
        inner[last] = copy.deepcopy(inner[rng.choice(list(inner))])
    return found


# ---- far from valid

HEAD = "study: tiny\nquestion: Does it help?\n"
BODY = (
    "recipe: {data: digits, model: resnet18-compact, epochs: 4, optimizer: {name: sgd, lr: 0.1}}\narms:\n  baseline:\n"
)
TOKENS = [
    *"{}[]:,-?#&*!|>'\"%@` \n\t\\~",
    ": ",
    "- ",
    "? ",
    "\n  ",
    "\n\n",
    "---\n",
    "...\n",
    "&a ",
    "*a",
    "<<",
    "!!",
    "!<x>",
    "\r",
    "\u2028",
    "\x85",
    "\ufeff",
    "\u202e",
    "study",
    "arms",
    "5",
    ".inf",
    "é",
    "%YAML 1.1\n",
    "%TAG ! x\n",
    "\\U",
    "\\x4",
]


def _many(rng: random.Random) -> str:
    num, kind = rng.choice([50, 900, 3000]), rng.randrange(9)
    wrong = rng.choice(["b", "a1", "x" * 60])
    line = [
        lambda i: f"{{epochs: {i + 5}}}",
        lambda i: f"{{epochs: {i + 5}, from: a{i + 1 if i < num - 1 else 0}}}",
        lambda i: f"{{epochs: {i + 5}" + (f", from: a{i + 1}}}" if i < num - 1 else "}"),
        lambda i: f"{{epochs: {i + 5}" + (f", from: a{i - 1}}}" if i else "}"),
        lambda i: f"{{epochs: {i + 5}, from: {wrong}{i}}}",
        lambda i: f"{{model: resnt{i}}}",
        lambda i: f"{{augment: {{cutm{i}: {{}}}}}}",
        lambda i: f"{{epoch{i}: 5}}",
        lambda i: "{epochs: 4}",
    ][kind]
    text = HEAD + BODY + "".join(f"  a{i}: {line(i)}\n" for i in range(num))
    if rng.random() < 0.3:
        text += "published:\n" + "".join(f"  {wrong}{i}: 50\n" for i in range(num))
    return text


def _wide(rng: random.Random) -> str:
    num = rng.choice([50, 500, 5000])
    value = rng.choice(["1", "[a]", "x" * 50, "{}"])
    more = ", ".join(f"key{i}: {value}" for i in range(num))
    arm = "".join(f"  a{i}: {{epochs: {i + 5}}}\n" for i in range(rng.choice([3, 200])))
    return HEAD + BODY.replace("epochs: 4", f"epochs: 4, {more}") + arm


def _space(rng: random.Random) -> str:
    num = rng.choice([3, 20, 100])
    listed = ", ".join(f"{i + 1}.0" for i in range(num))
    epochs = ", ".join(str(i + 1) for i in range(num))
    when = rng.choice(["", f", when: {{optimizer.lr: [{listed}], epochs: [{epochs}]}}", ", when: {schedule: cosine}"])
    fields = [f"    optimizer.lr: [{listed}]", f"    epochs: [{epochs}]", f"    batch_size: {{low: 8, high: 64{when}}}"]
    fields += [f"    loss.label_smoothing: {{low: 0.0, high: 0.5{when}}}"]
    fields += [f"    augment.field{i}: [1, 2]" for i in range(rng.choice([0, 0, 100]))]
    rng.shuffle(fields)
    arm = "".join(f"  a{i}: {{batch_size: {i + 5}}}\n" for i in range(rng.choice([1, 5, 100])))
    return HEAD + BODY + arm + "tune:\n  space:\n" + "\n".join(fields) + "\n"


def _laughs(rng: random.Random) -> str:
    each, depth = rng.choice([2, 9, 50]), rng.choice([3, 9, 30])
    kind = rng.choice(["[{}]", "{{{}}}"])
    parts = [
        ", ".join((f"k{j}: " if "{{" in kind else "") + f"*a{n - 1}" for j in range(each)) for n in range(1, depth)
    ]
    return "a0: &a0 [x]\n" + "".join(f"a{n + 1}: &a{n + 1} {kind.format(part)}\n" for n, part in enumerate(parts))


def _soup(rng: random.Random) -> str:
    return "".join(rng.choice(TOKENS) for _ in range(rng.choice([1, 5, 30, 300])))


def _long(rng: random.Random) -> str:
    size = rng.choice([2_000, 100_000, 480_000])
    unit = rng.choice(
        [
            "#\n",
            "\n",
            " ",
            "x",
            "x ",
            "\\n",
            "[",
            "{",
            "- ",
            "? ",
            "a: ",
            "- - \n",
            "'",
            "\t",
            "[],",
            "é",
            "\u2028",
            "&a ",
            "!a ",
            "%A b\n",
            "--- \n",
            "a:\n ",
            "|\n x\n",
            "x\n  ",
            "? x\n",
        ]
    )
    before = rng.choice(["", HEAD, "study: ", "study: '", 'study: "', "study: [", "study: |\n  ", "? "])
    return before + unit * (size // len(unit))


def _keys(rng: random.Random) -> str:
    size = rng.choice([100, 5_000, 60_000])
    name, other = "x" * size, "x" * (size - 1) + "z"
    return f"{HEAD}{BODY}  ? {name}\n  : {{epochs: 5, from: {other}, {'y' * min(size, 900)}: 5}}\npublished:\n  ? {other}\n  : 5\n"  # noqa: E501


def _bytes(rng: random.Random) -> bytes:
    text = HEAD + BODY + "  longer: {epochs: 5}\n"
    kind = rng.randrange(7)
    if kind == 0:
        return text.encode(rng.choice(["utf-16", "utf-32", "utf-16-be", "utf-8-sig"]))
    if kind == 1:
        return text.replace("help", "hälp").encode("latin-1")
    if kind == 2:
        return rng.randbytes(rng.choice([1, 20, 3000]))
    if kind == 3:
        return rng.choice(
            [
                b"",
                b"\n",
                b"\xef\xbb\xbf",
                b"\0",
                b"# only\n",
                b"---\n",
                b"...\n",
                b"null",
                b"[]",
                b"5",
                b"---\na: 1\n---\nb: 2\n",
            ]
        )
    content = bytearray(text.encode())
    for _ in range(rng.choice([1, 2, 8])):
        at = rng.randrange(len(content))
        if kind == 4:
            content[at] = rng.randrange(256)
        elif kind == 5:
            del content[at : at + rng.randint(1, 9)]
        else:
            content[at:at] = content[rng.randrange(len(content)) :][: rng.randint(1, 30)]
    return bytes(content)


FAR: list[Callable[[random.Random], str | bytes]] = [
    _many,
    _wide,
    _space,
    _laughs,
    _soup,
    _soup,
    _long,
    _keys,
    *[_bytes] * 4,
]
SETTINGS = [
    "epochs=5",
    "optimizer.lr=0.1",
    "epochs={times: 0.5}",
    "seeds=3",
    "seeds={looks: [3, 5]}",
    "model.width?=4",
    "augment.hflip=null",
    "batch_size=32",
    "precision=fp32",
    "epochs={times: 1e400}",
    "augment={cutmix: {}}",
    "loss.label_smoothing={times: 2}",
]


def setting(rng: random.Random) -> str:
    """A ``--set`` option, sound or not."""
    kind = rng.randrange(5)
    if kind < 2:
        return rng.choice(SETTINGS)
    key = ".".join(rng.choice([*RECIPE, *KEYS[:20]]) for _ in range(rng.choice([1, 2, 3, 1500])))
    value = rng.choice(WILD)
    return f"{key}={Writer(rng).flow(value)}" if kind < 4 else _soup(rng)


def profile(rng: random.Random) -> dict[str, Any]:
    """A profile, sound or not."""
    found: dict[str, Any] = {"profile": "quick", "recipe": {"epochs": {"times": rng.choice([0.5, 2, 3])}}}
    if rng.random() < 0.5:
        found["seeds"] = rng.choice([2, [0, 1], {"looks": [3, 4]}])
    for _ in range(rng.choice([0, 0, 1, 2])):
        found = edited(found, rng)
    return found


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Four kinds of study in equal parts; the rest hangs on one number, so that ten thousand are made in minutes."""
    kind = draw(st.sampled_from(["valid", "overlaid", "edited", "edited", "far"]))
    rng = random.Random(draw(st.integers(0, 2**63)))
    if kind == "far":
        content = rng.choice(FAR)(rng)
        content = content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass")
        return Case(kind, content)
    found = document(rng)
    if kind == "edited":
        for _ in range(draw(st.integers(1, 3))):
            found = edited(found, rng)
        return Case(kind, Writer(rng, shuffled=rng.random() < 0.3, twice=rng.choice([0, 0, 0.05])).file(found))
    sound = Case(kind, Writer(rng).file(found), document=found, restyled=Writer(rng, shuffled=True).file(found))
    if kind == "valid":
        return sound
    options = tuple(setting(rng) for _ in range(rng.randint(0, 3)))
    overlay = Writer(rng).file(profile(rng)) if rng.random() < 0.6 else None
    return Case(kind, sound.study, overlay, options, found)
