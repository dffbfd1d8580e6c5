"""Load a data set by its name in a study; decoded images are stored, so that later starts are fast."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from cifar_ablate.data.canonical import canonical, digest_of, subset
from cifar_ablate.data.types import DataSet, ProgressCallback, Storage, silent, storage_of
from cifar_ablate.errors import DataError
from cifar_ablate.locks import lock
from cifar_ablate.registry import DATA

LAYOUT_VERSION = 1
"""Version of decoding and canonical order. Raise it when one of them changes, so that stored images are not used."""

ARRAYS = ("train_images", "train_labels", "test_images", "test_labels")


def data_root() -> Path:
    """Folder of downloads and decoded images: ``$CIFAR_ABLATE_DATA``, else ``cifar-ablate`` in the user's cache."""
    chosen = os.environ.get("CIFAR_ABLATE_DATA")
    if chosen:
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cifar-ablate"


def load_data(
    name: str,
    options: Mapping[str, Any],
    *,
    train_size: int | None = None,
    root: Path | None = None,
    report: ProgressCallback = silent,
) -> DataSet:
    """Load a data set in canonical order.

    Args:
        name: A registered source.
        options: The source's keyword-only arguments from the study.
        train_size: Size of a stratified subset of the training images, which is the same for all arms and seeds and
            contains all smaller subsets. None: all images.
        root: Folder of downloads and decoded images, which may be read-only; None: ``data_root()``.
        report: Called with what is done, how much is done, and the total.

    Returns:
        uint8 images [N, 3, H, W], int64 labels, class names, and the digest of the full data.

    Raises:
        UnknownNameError: No source has this name.
        DataError: The images are missing, damaged, hostile or of an unusable shape, or ``train_size`` is out of range.
    """
    source = DATA.get(name)
    chosen = DATA.options(name)(**options).model_dump()
    place = data_root() if root is None else root
    storage = storage_of(source)

    def decode() -> DataSet:
        data = canonical(name, source(place, report, **chosen))
        if storage and storage.digest not in (None, data.digest):
            raise DataError(
                f"the images in {place} are not those of {name} (digest {data.digest}, not {storage.digest}); replace "
                "them, or use them under their own name with `data: {name: image_folder, path: DIR}`"
            )
        return data

    if storage is None:
        data = decode()
    else:
        file = place / "decoded" / f"{name}-{_key(name, chosen, place, storage)}.safetensors"
        data = _stored(file, name, storage, decode, report)
    return data if train_size is None else subset(data, train_size)


def _stored(
    file: Path, name: str, storage: Storage, decode: Callable[[], DataSet], report: ProgressCallback
) -> DataSet:
    """Stored images of an earlier start; otherwise one process decodes and stores them while others wait for it."""
    data = _read(file, name, storage)
    if data is None:
        waiting = partial(report, "waiting for another process that decodes the same images", 0, None)
        with lock(file.with_suffix(".lock"), on_wait=waiting):
            data = _read(file, name, storage)
            if data is None:
                data = decode()
                _write(file, data, report)
    return data


def _key(name: str, options: Mapping[str, Any], root: Path, storage: Storage) -> str:
    """16 hex digits of the source, its options, and the path, size and modification time of every file it reads."""
    files = []
    for path in storage.inputs(root, **options):
        try:
            stat = path.stat()
        except OSError as error:
            raise DataError(f"cannot read {path}: {error.strerror}; replace or remove it") from error
        files.append([str(path.absolute()), stat.st_size, stat.st_mtime_ns])
    text = json.dumps([LAYOUT_VERSION, name, options, files], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _read(file: Path, name: str, storage: Storage) -> DataSet | None:
    """Stored images, if the file exists and their digest is right; None otherwise."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="numpy") as stored:
            classes = tuple(json.loads(stored.metadata()["classes"]))
            expected = stored.metadata()["digest"]
            arrays = [stored.get_tensor(key) for key in ARRAYS]
    except (OSError, SafetensorError, KeyError, TypeError, ValueError):
        return None
    digest = digest_of(classes, arrays)  # 0.1 s for CIFAR-10; the fingerprints of runs depend on it
    if digest != expected or storage.digest not in (None, digest):
        return None
    train_images, train_labels, test_images, test_labels = arrays
    return DataSet(
        name=name,
        classes=classes,
        train_images=train_images,
        train_labels=train_labels,
        test_images=test_images,
        test_labels=test_labels,
        digest=digest,
        num_train_full=len(train_labels),
        num_test_full=len(test_labels),
    )


def _write(file: Path, data: DataSet, report: ProgressCallback) -> None:
    """Store decoded images atomically; a folder that cannot be written only makes the next start slower."""
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    part = file.with_suffix(f".{os.getpid()}.part")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        metadata = {"digest": data.digest, "classes": json.dumps(data.classes)}
        save_file({key: getattr(data, key) for key in ARRAYS}, part, metadata=metadata)
        part.replace(file)
    except (OSError, SafetensorError) as error:
        report(f"decoded images are not stored ({error})", 0, None)
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)
