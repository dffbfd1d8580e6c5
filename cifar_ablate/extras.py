"""Libraries that only some commands need, as extras of the package."""

from __future__ import annotations

from importlib.util import find_spec

from cifar_ablate.errors import UsageError


def need(extra: str, *modules: str) -> None:
    """Raise UsageError where a library of an extra is not installed."""
    if missing := [name for name in modules if find_spec(name) is None]:
        raise UsageError(
            f"this needs {', '.join(missing)}, which is not installed; install it with: "
            f"pip install 'cifar-ablate[{extra}]'"
        )
