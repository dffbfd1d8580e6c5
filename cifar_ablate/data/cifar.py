"""CIFAR-10 and CIFAR-100: the official archive, downloaded once and verified, or a folder copy of CIFAR-10.

URL, MD5 and file names come from torchvision. The archive contains pickles: they are read after the archive's MD5 is
verified, and only by an unpickler that can build arrays, lists, dicts, strings and numbers.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import pickle
import tarfile
import tempfile
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from cifar_ablate.data.archives import DAMAGES
from cifar_ablate.data.image_folder import archives_in, has_splits, read_folders
from cifar_ablate.data.types import Images, Labels, ProgressCallback, RawImages, stored
from cifar_ablate.errors import DataError, OutputError
from cifar_ablate.registry import DATA

CIFAR10_DIGEST = "bb10764dbfb8fb2dd1cab168e709f5d0"
"""Digest of CIFAR-10 in canonical order; it is the same for the official archive and for a folder copy."""
TIMEOUT_SECONDS = 30
CHUNK_BYTES = 1 << 20


def _dtype(kind: str, align: int, copy: int) -> np.dtype[Any]:
    return np.dtype(kind, align=bool(align), copy=bool(copy))  # NumPy 2.4 warns of the 0 and 1 that Python 2 wrote


PICKLE_GLOBALS = {
    ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): _dtype,
}
"""Names that a pickle of the archive may use, and what they stand for."""


def _no_inputs(root: Path) -> Sequence[Path]:
    return ()  # the digest identifies the images: once they are stored, the archive may be deleted


@DATA.register("cifar10")
@stored(_no_inputs, digest=CIFAR10_DIGEST)
def cifar10(root: Path, report: ProgressCallback) -> RawImages:
    """CIFAR-10: 50,000 training and 10,000 test photographs, 32x32, 10 classes; downloaded once (170 MB).

    A folder copy in ``root`` is used instead of the download: ``cifar10/train/<class>/*`` and
    ``cifar10/test/<class>/*``, or tar archives ``cifar10*.tar*`` with train/ and test/ in them, read together.

    Raises:
        DataError: The archive is missing and cannot be downloaded, or has another MD5, or a folder copy is incomplete.

    Source: Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009.
    """
    copies = [*([root / "cifar10"] if has_splits(root / "cifar10") else []), *archives_in(root, "cifar10*")]
    if copies:
        return _read_copies(copies, report)
    from torchvision.datasets import CIFAR10

    instead = " or a folder copy of it (cifar10/train/<class>/*, cifar10/test/<class>/*)"
    return _official(root, Official.of(CIFAR10, label_key="labels"), report, instead=instead)


@DATA.register("cifar100")
@stored(_no_inputs)
def cifar100(root: Path, report: ProgressCallback) -> RawImages:
    """CIFAR-100: 50,000 training and 10,000 test photographs, 32x32, 100 classes; downloaded once (169 MB).

    Raises:
        DataError: The archive is missing and cannot be downloaded, or has another MD5.

    Source: Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009.
    """
    from torchvision.datasets import CIFAR100

    return _official(root, Official.of(CIFAR100, label_key="fine_labels"), report)


@dataclass(frozen=True)
class Official:
    """Where to download an official archive, and what is in it."""

    url: str
    filename: str
    md5: str
    folder: str
    train_files: tuple[str, ...]
    test_files: tuple[str, ...]
    meta_file: str
    classes_key: str
    label_key: str

    @classmethod
    def of(cls, source: Any, *, label_key: str) -> Official:
        """The archive that a data set class of torchvision describes."""
        return cls(
            url=source.url,
            filename=source.filename,
            md5=source.tgz_md5,
            folder=source.base_folder,
            train_files=tuple(name for name, _ in source.train_list),
            test_files=tuple(name for name, _ in source.test_list),
            meta_file=source.meta["filename"],
            classes_key=source.meta["key"],
            label_key=label_key,
        )


def read_official(archive: Path, official: Official, report: ProgressCallback) -> RawImages:
    """Read an official archive without extracting it, its MD5 first.

    Raises:
        DataError: Another MD5, a missing file, or a pickle that uses a name outside of ``PICKLE_GLOBALS``.
    """
    wanted = {
        f"{official.folder}/{name}": name for name in (*official.train_files, *official.test_files, official.meta_file)
    }
    found: dict[str, dict[str, Any]] = {}
    try:
        with archive.open("rb") as file:
            md5 = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
            if md5 != official.md5:
                raise DataError(
                    f"{archive} is damaged or another file (MD5 {md5}, not {official.md5}); delete it and run again, "
                    "or put the right one in its place"
                )
            file.seek(0)  # the same open file, so that it cannot be replaced after the check
            with tarfile.open(fileobj=file, mode="r|gz") as members:
                for member in members:
                    content = members.extractfile(member) if member.isreg() else None
                    if content is not None and member.name in wanted:
                        found[wanted[member.name]] = _unpickle(content, f"{member.name} in {archive}")
                        report(f"reading {official.filename}", len(found), len(wanted))
    except DataError:
        raise
    except DAMAGES as error:
        raise DataError(f"cannot read {archive}: {error}; delete it and run again") from error
    missing = [name for name in wanted.values() if name not in found]
    if missing:
        raise DataError(f"{archive} has no {', '.join(missing)} in {official.folder}/; delete it and run again")
    train_images, train_labels = _stack([found[name] for name in official.train_files], official.label_key)
    test_images, test_labels = _stack([found[name] for name in official.test_files], official.label_key)
    classes = tuple(found[official.meta_file][official.classes_key])
    return RawImages(train_images, train_labels, test_images, test_labels, classes)


class _ArraysOnly(pickle.Unpickler):
    """Unpickles containers and NumPy arrays; refuses every other name before it is imported."""

    def find_class(self, module: str, name: str) -> Any:
        try:
            return PICKLE_GLOBALS[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it names {module}.{name}") from None


def _unpickle(content: IO[bytes], where: str) -> dict[str, Any]:
    try:
        batch = _ArraysOnly(content, encoding="latin1").load()  # written by Python 2
    except (pickle.UnpicklingError, ValueError, TypeError, AttributeError, IndexError, KeyError) as error:
        raise DataError(f"refused {where}: {error}; use the official archive") from error
    if not isinstance(batch, dict):
        raise DataError(f"refused {where}: it holds a {type(batch).__name__}, not a dict; use the official archive")
    return batch


def _stack(batches: Sequence[dict[str, Any]], label_key: str) -> tuple[Images, Labels]:
    planes = np.concatenate([batch["data"] for batch in batches]).reshape(-1, 3, 32, 32)
    labels = np.concatenate([np.asarray(batch[label_key], dtype=np.int64) for batch in batches])
    return planes.transpose(0, 2, 3, 1), labels


def _official(root: Path, official: Official, report: ProgressCallback, *, instead: str = "") -> RawImages:
    archive = root / official.filename
    if not archive.exists():
        otherwise = (
            f"without a network, put {official.filename} (MD5 {official.md5}){instead} into {root}, "
            "or train on images of your own with `data: {name: image_folder, path: DIR}`"
        )
        download(official.url, archive, official.md5, report, otherwise=otherwise)
    return read_official(archive, official, report)


def _read_copies(copies: Sequence[Path], report: ProgressCallback) -> RawImages:
    raw = read_folders("cifar10", copies, 32, report)
    counts = (len(raw.train_labels), len(raw.test_labels), len(raw.classes))
    if counts != (50_000, 10_000, 10):
        raise DataError(
            f"{', '.join(str(copy) for copy in copies)}: {counts[0]:,} training and {counts[1]:,} test images in "
            f"{counts[2]} classes are not CIFAR-10 (50,000 and 10,000 in 10); complete the copy, or use it under its "
            "own name with `data: {name: image_folder, path: DIR}`"
        )
    return raw


def download(url: str, target: Path, md5: str, report: ProgressCallback, *, otherwise: str) -> None:
    """Download ``url`` to ``target``; the file appears under its name only after its MD5 is verified.

    Args:
        url: http or https address.
        target: File to write; a partial download is a hidden file in the same folder, removed on any failure.
        md5: Expected MD5, 32 hex digits.
        report: Called with the bytes received and the total.
        otherwise: What the user can do without a network, as the end of the error message.

    Raises:
        DataError: No answer, a broken connection, or a wrong MD5. Downloads are not retried.
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
        part.chmod(0o644)  # mkstemp gives 0600, but a data root is often shared
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)


def _stream(url: str, file: IO[bytes], report: ProgressCallback, what: str, otherwise: str) -> str:
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
