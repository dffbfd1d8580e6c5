"""Addresses and messages as they may be shown: passwords and tokens are three stars."""

from __future__ import annotations

import os
import re
from urllib.parse import quote, quote_plus, unquote, unquote_plus

HIDDEN = "***"
_SECRET_NAMES = ("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN", "PGPASSWORD", "MYSQL_PWD", "RAY_AUTH_TOKEN")
_ADDRESS_NAMES = ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI", "MLFLOW_ARTIFACT_URI", "OPTUNA_STORAGE")
"""Environment variables that hold a secret, and those that hold an address with one."""
_MIN_LENGTH = 3
"""Of a secret that is looked for by itself, without its address: a shorter one would take letters out of words."""

# a password may hold anything but spaces, so up to the last @; digits and a slash after a colon are a port
_WITH_PASSWORD = re.compile(r"(?<=://)([^\s/:@]*):(?!\d{1,5}(?:[/?#]|$))\S*@")
_WITH_TOKEN = re.compile(r"(?<=://)[^\s/:@]+@")
_NO_SCHEME = re.compile(r"([^\s/:@'\"]+):[^\s/]\S*@\S+")
_PARAMETER = re.compile(
    r"(?i)((?:^|[?&;\s])[\w.-]*(?:password|passwd|pwd|passphrase|token|secret|api_?key|access_?key)=)[^&;\s'\"]+"
)
_given: set[str] = set()


def without_password(uri: str) -> str:
    """A store's address as it may be shown: ``postgresql://user:***@host/db``; other text stays as it is.

    What stands before an @ without a colon is a token, or a user's name, and hidden like one.
    """
    if "://" not in uri and _NO_SCHEME.fullmatch(uri):  # an address whose beginning was forgotten
        return f"{uri.partition(':')[0]}:{HIDDEN}@{uri.rpartition('@')[2]}"
    shown = _WITH_PASSWORD.sub(rf"\1:{HIDDEN}@", uri)
    shown = _WITH_TOKEN.sub(f"{HIDDEN}@", shown)
    return _PARAMETER.sub(rf"\1{HIDDEN}", shown)


def keep_hidden(uri: str) -> None:
    """Let ``hidden`` know an address that comes from no environment variable, such as that of ``--storage``."""
    _given.update(_secrets_of(uri))


def hidden(text: str) -> str:
    """A message without the passwords of the addresses in it, and without any that this command was given.

    Libraries quote an address whole, in pieces, or with its password encoded or decoded: all of these are found.
    """
    text = without_password(text)
    for secret in sorted(_known(), key=len, reverse=True):
        text = re.sub(rf"(?<![A-Za-z0-9]){re.escape(secret)}(?![A-Za-z0-9])", HIDDEN, text)
    return text


def _known() -> set[str]:
    found = set(_given)
    for name in _ADDRESS_NAMES:
        found |= _secrets_of(os.environ.get(name, ""))
    for name in _SECRET_NAMES:
        found |= _spellings(os.environ.get(name, ""))
    return found


def _secrets_of(uri: str) -> set[str]:
    """What an address keeps before its @ and in its parameters, in every spelling."""
    _, separator, rest = uri.partition("://") if "://" in uri else ("", _NO_SCHEME.fullmatch(uri), uri)
    before, at, _ = rest.rpartition("@")
    parts = [one.partition("=")[2] for one in re.split(r"[?&;]", uri) if _PARAMETER.fullmatch(f"?{one}")]
    if separator and at:
        user, colon, password = before.partition(":")
        parts.append(password if colon else user)
    return {spelling for part in parts for spelling in _spellings(part)}


def _spellings(secret: str) -> set[str]:
    plain = {secret, unquote(secret), unquote_plus(secret)}
    spelled = plain | {encode(one, safe="") for one in plain for encode in (quote, quote_plus)}
    spelled |= {repr(one)[1:-1] for one in plain}
    return {one for one in spelled if len(one) >= _MIN_LENGTH}
