"""From a name in a study to arrays in memory; decoded images are kept, so that only the first start has to wait."""

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
from cifar_ablate.data.types import DataSet, Report, Storage, silent, storage_of
from cifar_ablate.errors import DataError
from cifar_ablate.locks import lock
from cifar_ablate.registry import DATA

LAYOUT_VERSION = 1
"""Raise it when decoding or canonical order changes: what was kept before is then not found any more."""

ARRAYS = ("train_images", "train_labels", "test_images", "test_labels")


def data_root() -> Path:
    """Where downloads and decoded images live: ``$CIFAR_ABLATE_DATA``, else ``cifar-ablate`` in the user's cache."""
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
    report: Report = silent,
) -> DataSet:
    """Load a data set in canonical order.

    Args:
        name: A registered source.
        options: The source's keyword-only arguments, as the study has them.
        train_size: Size of a stratified subset of the training images, the same for all arms and seeds; a smaller one
            lies inside a larger one. None: all.
        root: Where downloads and decoded images live; ``data_root()`` if not given. It may be read-only.
        report: Called with what is done, how much of it, and how much there is.

    Returns:
        uint8 images [N, 3, H, W], int64 labels, class names, and the digest of the full data.

    Raises:
        UnknownNameError: no source of that name.
        DataError: images that are missing, damaged, hostile or of an unusable shape; a ``train_size`` out of range.
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
        data = _kept(file, name, storage, decode, report)
    return data if train_size is None else subset(data, train_size)


def _kept(file: Path, name: str, storage: Storage, decode: Callable[[], DataSet], report: Report) -> DataSet:
    """Decoded images kept from an earlier start; else one process decodes and keeps them while others wait for it."""
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
    """16 hex digits that change with the source, its options, and the name, size or time of any file it reads."""
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
    """Kept images whose digest is right; None if there are none, or if the file is cut off, damaged or foreign."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="numpy") as kept:
            classes = tuple(json.loads(kept.metadata()["classes"]))
            expected = kept.metadata()["digest"]
            arrays = [kept.get_tensor(key) for key in ARRAYS]
    except (OSError, SafetensorError, KeyError, TypeError, ValueError):
        return None
    digest = digest_of(classes, arrays)  # 0.1 s for CIFAR-10: a run's fingerprint stands on it
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


def _write(file: Path, data: DataSet, report: Report) -> None:
    """Keep decoded images, whole or not at all; a folder that cannot be written only costs time at the next start."""
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    part = file.with_suffix(f".{os.getpid()}.part")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        metadata = {"digest": data.digest, "classes": json.dumps(data.classes)}
        save_file({key: getattr(data, key) for key in ARRAYS}, part, metadata=metadata)
        part.replace(file)
    except (OSError, SafetensorError) as error:
        report(f"decoded images are not kept ({error})", 0, None)
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)
