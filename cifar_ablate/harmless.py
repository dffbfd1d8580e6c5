"""Text that others wrote, as it may be shown: what would command a terminal, or turn the text round, is spelled out."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_COMMANDS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters but tab and line feed, other line ends, overrides of the writing direction, half characters.

Marks that only say a direction stay (U+200E, U+200F): Arabic and Hebrew need them, and they turn nothing round.
"""


def harmless(text: str) -> str:
    """The text with such characters as ``\\u001b``; lines stay lines."""
    return _COMMANDS.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def on_one_line(text: str) -> str:
    """The same, with its line feeds and tabs spelled out, too: a name that must not begin a line of its own."""
    return harmless(text).replace("\n", "\\n").replace("\t", "\\t")


def harmless_values(value: Any) -> Any:
    """A JSON value in which every text, keys too, is harmless."""
    if isinstance(value, str):
        return harmless(value)
    if isinstance(value, Mapping):
        return {harmless_values(key): harmless_values(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [harmless_values(one) for one in value]
    return value


FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")
"""What begins a cell that a spreadsheet runs."""


def no_formula(value: Any) -> Any:
    """A cell of a table for spreadsheets: a text that one would run has an apostrophe before it."""
    if not isinstance(value, str) or not value.startswith(FORMULA) or re.fullmatch(r"[+-]?[\d.]+(e[+-]?\d+)?", value):
        return value
    return f"'{value}"
