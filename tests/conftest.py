"""Fixtures that several test files share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def real_archives() -> list[Path]:
    """The two archives of the real CIFAR-10 in image-folder layout, from ``$CIFAR_ABLATE_TEST_DATA``; skips without."""
    folder = os.environ.get("CIFAR_ABLATE_TEST_DATA")
    if not folder:
        pytest.skip("set CIFAR_ABLATE_TEST_DATA to a folder with cifar10-1.tar.xz and cifar10-2.tar.xz")
    archives = [Path(folder) / f"cifar10-{part}.tar.xz" for part in (1, 2)]
    missing = [str(archive) for archive in archives if not archive.is_file()]
    if missing:
        pytest.fail(f"CIFAR_ABLATE_TEST_DATA is set, but there is no {', '.join(missing)}")
    return archives


@pytest.fixture(scope="session")
def cifar_root(real_archives: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root where ``cifar10`` is the real one; its images are decoded once in a session (some 15 s)."""
    root = tmp_path_factory.mktemp("cifar_root")
    for archive in real_archives:
        (root / archive.name).symlink_to(archive.absolute())
    return root
