"""Environment variables that Ray reads at import; set them before."""

from __future__ import annotations

import os
import secrets

LOCAL = "local"


def address_of(given: str | None) -> str:
    """The cluster's address: what is ``given``, else $RAY_ADDRESS, else ``local``: one that is started here."""
    return given or os.environ.get("RAY_ADDRESS") or LOCAL


def prepare_environment(address: str) -> None:
    """Turn off Ray's usage statistics; a cluster that is started here gets a random token.

    Ray listens on all addresses of the machine, and who it accepts can run code.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if address == LOCAL and "RAY_AUTH_MODE" not in os.environ:
        os.environ.update({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)})
