"""Addresses and messages as they may be shown: passwords and tokens are three stars."""

from __future__ import annotations

import functools
import os
import re
from urllib.parse import quote, quote_plus, unquote, unquote_plus

HIDDEN = "***"
_SECRET_NAMES = ("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN", "PGPASSWORD", "MYSQL_PWD", "RAY_AUTH_TOKEN")
_ADDRESS_NAMES = ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI", "MLFLOW_ARTIFACT_URI", "OPTUNA_STORAGE")
_NAMES = (*_SECRET_NAMES, *_ADDRESS_NAMES)
"""Environment variables that hold a secret, those that hold an address with one, and all of them."""
_MIN_LENGTH = 3
"""Of a secret that is looked for by itself, without its address: a shorter one would take letters out of words."""

# a password may hold anything but spaces, so up to the last @; digits and a slash after a colon are a port
_WITH_PASSWORD = re.compile(r"(?<=://)([^\s/:@]*):(?!\d{1,5}(?:[/?#]|$))\S*@")
_WITH_TOKEN = re.compile(r"(?<=://)[^\s/:@]+@")
_NO_SCHEME = re.compile(r"([^\s/:@'\"]+):[^\s/]\S*@\S+")
_PARAMETER_NAME = r"[\w.-]*(?:password|passwd|pwd|passphrase|token|secret|api_?key|access_?key|odbc_connect)"
_PARAMETER = re.compile(  # a quote ends it where the text goes on as after a quoted address
    rf"(?i)((?:^|[?&;\s]){_PARAMETER_NAME}=)(?:[^&;\s'\"]|['\"](?=[^&;\s'\"),.:\]}}>]))+"
)
_PARAMETER_OF_ADDRESS = re.compile(rf"(?i)((?:^|[?&;]){_PARAMETER_NAME}=)[^&;\s]+")
_ADDRESS = re.compile(r"[^\s'\"]+://\S*")
_IN_ODBC = re.compile(r"(?i)(?:^|;)\s*(?:pwd|password)\s*=\s*(\{(?:[^}]|\}\})*\}|[^;]*)")
"""The password in what SQLAlchemy hands to ODBC as one percent-encoded parameter; braces hold one with semicolons."""
_given: set[str] = set()


def without_password(uri: str) -> str:
    """A store's address as it may be shown: ``postgresql://user:***@host/db``; other text stays as it is.

    What stands before an @ without a colon is a token, or a user's name, and hidden like one.
    """
    if "://" not in uri and _NO_SCHEME.fullmatch(uri):  # an address whose beginning was forgotten
        return f"{uri.partition(':')[0]}:{HIDDEN}@{uri.rpartition('@')[2]}"
    shown = _WITH_PASSWORD.sub(rf"\1:{HIDDEN}@", uri)
    shown = _WITH_TOKEN.sub(f"{HIDDEN}@", shown)
    parameter = _PARAMETER_OF_ADDRESS if _ADDRESS.fullmatch(uri) else _PARAMETER
    return parameter.sub(rf"\1{HIDDEN}", shown)


def keep_hidden(uri: str) -> None:
    """Let ``hidden`` know an address that comes from no environment variable, such as that of ``--storage``."""
    _given.update(_secrets_of(uri))


def hidden(text: str) -> str:
    """A message without the passwords of the addresses in it, and without any that this command was given.

    Libraries quote an address whole, in pieces, or with its password encoded or decoded: all of these are found.
    """
    for secret in _patterns(tuple(os.environ.get(name, "") for name in _NAMES), frozenset(_given)):
        text = secret.sub(HIDDEN, text)
    return without_password(text)


@functools.lru_cache(maxsize=1)  # each line of a training is looked through
def _patterns(values: tuple[str, ...], given: frozenset[str]) -> list[re.Pattern[str]]:
    """What finds the secrets in these values of ``_NAMES``, and the given ones; the longest first."""
    found = set(given)
    for name, value in zip(_NAMES, values, strict=True):
        found |= _secrets_of(value) if name in _ADDRESS_NAMES else _spellings(value)
    longest_first = sorted(found, key=lambda secret: (-len(secret), secret))
    return [re.compile(rf"(?<![A-Za-z0-9]){re.escape(secret)}(?![A-Za-z0-9])") for secret in longest_first]


def _secrets_of(uri: str) -> set[str]:
    """What an address keeps before its @ and in its parameters, in every spelling."""
    _, separator, rest = uri.partition("://") if "://" in uri else ("", _NO_SCHEME.fullmatch(uri), uri)
    before, at, _ = rest.rpartition("@")
    parts = [one.partition("=")[2] for one in re.split(r"[?&;]", uri) if _PARAMETER_OF_ADDRESS.fullmatch(f"?{one}")]
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
