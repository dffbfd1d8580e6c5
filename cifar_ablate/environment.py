"""The environment of a run: versions, device, commit. It is recorded, but not part of the fingerprint."""

from __future__ import annotations

import platform
import subprocess
import sys
from functools import cache
from importlib.metadata import version
from typing import Any

from cifar_ablate import __version__
from cifar_ablate.device import Device

PACKAGES = ("torch", "torchvision", "timm", "numpy", "mlflow", "optuna", "pydantic")


def describe_environment(device: Device, threads: int, git: tuple[str, bool]) -> dict[str, Any]:
    """Versions, device and threads of this process, and the ``git_state`` of the command's folder, as JSON values."""
    return {
        "cifar_ablate": __version__,
        "python": platform.python_version(),
        "platform": sys.platform,
        **{name: version(name) for name in PACKAGES},
        "device": device.name,
        "device_kind": device.kind,
        "threads": threads,
        "git_commit": git[0],
        "git_dirty": git[1],
    }


@cache
def git_state() -> tuple[str, bool]:
    """Commit of the current folder, and whether files were changed or added; ("", False) outside a repository."""
    try:
        commit = _git("rev-parse", "HEAD")
        return commit, bool(_git("status", "--porcelain"))
    except (OSError, subprocess.SubprocessError):
        return "", False


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], capture_output=True, text=True, timeout=10, check=True)  # noqa: S603, S607
    return done.stdout.strip()
