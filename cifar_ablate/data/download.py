"""One file from the network, whole and verified, or none at all."""

from __future__ import annotations

import hashlib
import http.client
import os
import tempfile
import urllib.request
from pathlib import Path
from typing import IO

from cifar_ablate.data.types import Report
from cifar_ablate.errors import DataError, OutputError

TIMEOUT_SECONDS = 30
CHUNK_BYTES = 1 << 20


def download(url: str, target: Path, md5: str, report: Report, *, otherwise: str) -> None:
    """Download ``url`` to ``target``; the file appears under its name only when its MD5 is right.

    Args:
        url: http or https address.
        target: File to write; what is half done stands beside it as a hidden file, removed on any failure.
        md5: Expected MD5, 32 hex digits.
        report: Called with bytes done and bytes in all.
        otherwise: What the user can do without a network; ends the error message.

    Raises:
        DataError: no answer, a connection that broke, or other bytes than expected. Nothing is tried again.
        OutputError: ``target`` cannot be written.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=".part")
    except OSError as error:
        reason = error.strerror or str(error)
        raise OutputError(target, reason, "set CIFAR_ABLATE_DATA to a folder that you can write") from error
    part = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            received = _stream(url, file, report, f"downloading {target.name}", otherwise)
        if received != md5:
            raise DataError(f"{url} sent another file than expected (MD5 {received}, not {md5}); {otherwise}")
        part.chmod(0o644)  # mkstemp gives 0600: a data root is often shared
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)


def _stream(url: str, file: IO[bytes], report: Report, what: str, otherwise: str) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    done = 0
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS) as answer:  # noqa: S310 (the caller's constant)
            length = answer.headers.get("Content-Length")
            total = int(length) if length else None
            while chunk := answer.read(CHUNK_BYTES):
                file.write(chunk)
                digest.update(chunk)
                done += len(chunk)
                report(what, done, total)
    except (OSError, http.client.HTTPException) as error:
        raise DataError(f"{what} from {url} failed after {done:,} bytes: {error}; {otherwise}") from error
    return digest.hexdigest()
