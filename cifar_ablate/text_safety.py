"""Text from outside, made safe to show: ``sanitize`` for terminals, ``redact`` for secrets, ``escape_csv_formula``."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, quote_plus, unquote, unquote_plus

_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters except tab and line feed, Unicode line ends, bidirectional overrides and lone surrogates.

Direction marks (U+200E, U+200F) are kept: Arabic and Hebrew need them, and they do not reorder text.
"""


def sanitize(text: str) -> str:
    """Replace characters that control a terminal or reorder text by escapes such as ``\\u001b``; lines stay lines."""
    return _CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def sanitize_line(text: str) -> str:
    """Like ``sanitize``, and escapes tabs and line feeds too, so that the text stays on one line."""
    return sanitize(text).replace("\n", "\\n").replace("\t", "\\t")


def sanitize_values(value: Any) -> Any:
    """A JSON value with every string in it sanitized, keys included."""
    if isinstance(value, str):
        return sanitize(value)
    if isinstance(value, Mapping):
        return {sanitize_values(key): sanitize_values(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [sanitize_values(one) for one in value]
    return value


# ---- CSV

_FORMULA, _ESCAPED = re.compile(r"'*[=+\-@\t\r\n]"), re.compile(r"'+[=+\-@\t\r\n]")


def escape_csv_formula(value: Any) -> Any:
    """Prefix an apostrophe to a string that a spreadsheet would run as a formula; return other values as they are.

    A string that already starts with apostrophes and then a formula gets one more, so that
    ``unescape_csv_formula`` restores every string.
    """
    return f"'{value}" if isinstance(value, str) and _FORMULA.match(value) else value


def unescape_csv_formula(value: str) -> str:
    """The string that ``escape_csv_formula`` was given."""
    return value[1:] if _ESCAPED.match(value) else value


# ---- secrets

REDACTED = "***"
_SECRET_NAMES = ("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN", "PGPASSWORD", "MYSQL_PWD", "RAY_AUTH_TOKEN")
_URL_NAMES = ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI", "MLFLOW_ARTIFACT_URI", "OPTUNA_STORAGE")
_NAMES = (*_SECRET_NAMES, *_URL_NAMES)
"""Environment variables that hold a secret, or a URL that may contain one."""
_MIN_LENGTH = 3
"""Minimum length of a secret that is searched for outside its URL; a shorter one would match parts of words."""

# a password may hold anything but spaces, so up to the last @; digits and a slash after a colon are a port
_WITH_PASSWORD = re.compile(r"(?<=://)([^\s/:@]*):(?!\d{1,5}(?:[/?#]|$))\S*@")
_WITH_TOKEN = re.compile(r"(?<=://)[^\s/:@]+@")
_NO_SCHEME = re.compile(r"([^\s/:@'\"]+):[^\s/]\S*@\S+")
_PARAMETER_NAME = r"[\w.-]*(?:password|passwd|pwd|passphrase|token|secret|api_?key|access_?key|odbc_connect)"
_PARAMETER = re.compile(  # a quote ends it where the text goes on as after a quoted URL
    rf"(?i)((?:^|[?&;\s]){_PARAMETER_NAME}=)(?:[^&;\s'\"]|['\"](?=[^&;\s'\"),.:\]}}>]))+"
)
_PARAMETER_OF_URL = re.compile(rf"(?i)((?:^|[?&;]){_PARAMETER_NAME}=)[^&;\s]+")
_URL = re.compile(r"[^\s'\"]+://\S*")
_IN_ODBC = re.compile(r"(?i)(?:^|;)\s*(?:pwd|password)\s*=\s*(\{(?:[^}]|\}\})*\}|[^;]*)")
"""The password in the percent-encoded ``odbc_connect`` parameter of SQLAlchemy; braces hold one with semicolons."""
_remembered: set[str] = set()


def redact_url(url: str) -> str:
    """A URL with its password or token replaced: ``postgresql://user:***@host/db``; other text is returned as it is.

    A user part without a colon is treated as a token. SQLAlchemy's ``render_as_string(hide_password=True)`` is not
    used: it leaves secrets in query parameters (``?password=``, ``odbc_connect``), rejects URLs without a scheme, and
    shows the end of a password that contains an unescaped ``/``.
    """
    if "://" not in url and _NO_SCHEME.fullmatch(url):
        return f"{url.partition(':')[0]}:{REDACTED}@{url.rpartition('@')[2]}"
    shown = _WITH_PASSWORD.sub(rf"\1:{REDACTED}@", url)
    shown = _WITH_TOKEN.sub(f"{REDACTED}@", shown)
    parameter = _PARAMETER_OF_URL if _URL.fullmatch(url) else _PARAMETER
    return parameter.sub(rf"\1{REDACTED}", shown)


def remember_secret(url: str) -> None:
    """Make ``redact`` hide the secrets of a URL that no environment variable holds, such as that of ``--storage``."""
    _remembered.update(_secrets_of(url))


def redact(text: str) -> str:
    """Text without the passwords of URLs in it, and without any secret that this command was given.

    Libraries quote a URL whole, in parts, or with its password encoded or decoded; all of these are replaced.
    """
    for secret in _patterns(tuple(os.environ.get(name, "") for name in _NAMES), frozenset(_remembered)):
        text = secret.sub(REDACTED, text)
    return redact_url(text)


@functools.lru_cache(maxsize=1)  # every line of a training's output is searched
def _patterns(values: tuple[str, ...], remembered: frozenset[str]) -> list[re.Pattern[str]]:
    """Patterns of the secrets in the values of ``_NAMES`` and of the remembered ones, the longest first."""
    found = set(remembered)
    for name, value in zip(_NAMES, values, strict=True):
        found |= _secrets_of(value) if name in _URL_NAMES else _spellings(value)
    longest_first = sorted(found, key=lambda secret: (-len(secret), secret))
    return [re.compile(rf"(?<![A-Za-z0-9]){re.escape(secret)}(?![A-Za-z0-9])") for secret in longest_first]


def _secrets_of(url: str) -> set[str]:
    """The secrets before the @ and in the parameters of a URL, in every spelling."""
    _, separator, rest = url.partition("://") if "://" in url else ("", _NO_SCHEME.fullmatch(url), url)
    before, at, _ = rest.rpartition("@")
    parts = [one.partition("=")[2] for one in re.split(r"[?&;]", url) if _PARAMETER_OF_URL.fullmatch(f"?{one}")]
    inside = [one for part in parts for one in _IN_ODBC.findall(unquote_plus(part))]
    parts += inside + [one[1:-1].replace("}}", "}") for one in inside if one.startswith("{")]
    if separator and at:
        user, colon, password = before.partition(":")
        parts.append(password if colon else user)
    return {spelling for part in parts for spelling in _spellings(part)}


def _spellings(secret: str) -> set[str]:
    plain = {secret, unquote(secret), unquote_plus(secret)}
    spelled = plain | {encode(one, safe="") for one in plain for encode in (quote, quote_plus)}
    spelled |= {repr(one)[1:-1] for one in plain}
    return {one for one in spelled if len(one) >= _MIN_LENGTH}
