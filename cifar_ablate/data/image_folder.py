"""Your own images as ``train/<class>/*`` and ``test/<class>/*``, in a folder or in tar archives of one."""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

import numpy as np

from cifar_ablate.data.archives import MAX_MEMBER_BYTES, archive_entries
from cifar_ablate.data.types import Labels, ProgressCallback, RawImages, stored
from cifar_ablate.errors import DataError, short
from cifar_ablate.fields import ImageSize
from cifar_ablate.registry import DATA
from cifar_ablate.text_safety import sanitize_line

SPLITS = ("train", "test")
ARCHIVE_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.xz", ".txz", ".tar.bz2", ".tbz2")
LAYOUT = "expected train/<class>/<image> and test/<class>/<image>"
MAX_PIXELS = 89_478_485
"""Largest width x height of a training image: Pillow's ``Image.MAX_IMAGE_PIXELS``."""
MAX_CLASS_NAME = 200
"""Maximum characters of a class name, which reports, figures and model cards show."""
REPORT_EVERY = 500
"""Images between two reports of progress."""


def _inputs(root: Path, *, path: str | list[str], image_size: int) -> list[Path]:
    places = find_places(path)
    return [file for place in places for file in ([place] if place.is_file() else _images_in(place))]


@contextmanager
def _readable(place: str | Path) -> Iterator[None]:
    """Turn errors of the file system, such as missing permissions, into a DataError that names ``place``."""
    try:
        yield
    except OSError as error:
        said = f"cannot read {short(str(place))}: {error.strerror}"
        raise DataError(f"{said}; correct `path` of image_folder, or its rights") from error
    except RuntimeError as error:  # the home folder of an unknown user, ~nobody
        raise DataError(f"{short(str(place))} leads nowhere: {error}; correct `path` of image_folder") from error


@DATA.register("image_folder")
@stored(_inputs)
def image_folder(
    root: Path, report: ProgressCallback, *, path: str | list[str], image_size: ImageSize = 32
) -> RawImages:
    """Images of your own: train/<class>/* and test/<class>/* in a folder, a tar archive, or several of them.

    Args:
        root: Not used: ``path`` says where the images are.
        report: Called with the number of decoded images.
        path: A folder with train/ and test/, a tar archive of one (plain, gz, xz or bz2), a folder of such archives, or
            a list of these; relative to the current directory. Hidden files and anything beside train/ and test/ are
            ignored. A link in a folder may not lead out of it.
        image_size: Height and width in pixels. The shorter side of other images is resized (bilinear, antialiased) and
            the centre is cropped; one side may be at most 100 times the other. Images are converted to RGB, without
            their transparency.

    Raises:
        DataError: A missing place, a damaged or hostile archive, a file that is not an image, or different class
            folders in train and test.
    """
    return read_folders("image_folder", find_places(path), image_size, report)


def find_places(path: str | list[str]) -> list[Path]:
    """The folders (with train/ or test/ in them) and archives that ``path`` names; raises DataError if it has none."""
    places: list[Path] = []
    for text in [path] if isinstance(path, str) else path:
        with _readable(text):
            places += _places_in(Path(text).expanduser())
    if not places:
        raise DataError("`path` of image_folder is an empty list; name a folder or an archive")
    return places


def _places_in(place: Path) -> list[Path]:
    if place.is_file() or has_splits(place):
        return [place]
    if not place.is_dir():
        raise DataError(
            f"there is no file or folder {short(str(place))} (looked from {Path.cwd()}); correct `path` of image_folder"
        )
    archives = archives_in(place, "*")
    if not archives:
        raise DataError(f"{place} has neither train/ and test/ nor a tar archive in it; {LAYOUT}")
    return archives


def has_splits(place: Path) -> bool:
    """Whether a folder contains train/ or test/."""
    return any((place / split).is_dir() for split in SPLITS)


def archives_in(folder: Path, pattern: str) -> list[Path]:
    """Tar archives in ``folder``, not below it, whose name matches the glob ``pattern``, sorted by name."""
    return sorted(
        file
        for file in folder.glob(pattern)
        if file.name.endswith(ARCHIVE_SUFFIXES) and not file.name.startswith(".") and file.is_file()
    )


def read_folders(name: str, places: Sequence[Path], image_size: int, report: ProgressCallback) -> RawImages:
    """Decode the images of several folders and archives as one data set; raises DataError.

    60,000 CIFAR images in WebP take about 15 s on one core.
    """
    from cifar_ablate.portable.pictures import SUFFIXES

    pixels = {split: bytearray() for split in SPLITS}
    owners: dict[str, list[str]] = {split: [] for split in SPLITS}
    classes: set[str] = set()
    seen: set[str] = set()
    for place in places:
        for entry, content in _entries(place):
            shown = sanitize_line(entry)
            split, class_name = _place_in_layout(entry, place, SUFFIXES, is_folder=content is None)
            classes.add(class_name)
            if content is None:
                continue
            if entry in seen:
                raise DataError(f"{shown} in {place} comes a second time; name each folder and archive once in `path`")
            seen.add(entry)
            pixels[split] += _decode(content, f"{shown} in {place}", image_size)
            owners[split].append(class_name)
            if len(seen) % REPORT_EVERY == 0:
                report(f"decoding {name}", len(seen), None)
    report(f"decoding {name}", len(seen), len(seen))
    names = _agreed_classes(classes, owners, ", ".join(str(place) for place in places))
    images = {split: np.frombuffer(pixels[split], np.uint8).reshape(-1, image_size, image_size, 3) for split in SPLITS}
    labels = {split: _labels(owners[split], names) for split in SPLITS}
    return RawImages(images["train"], labels["train"], images["test"], labels["test"], names)


def _entries(place: Path) -> Iterator[tuple[str, bytes | None]]:
    """Names and contents of the visible files below train/ and test/; the content of a folder is None."""
    entries = archive_entries(place) if place.is_file() else _folder_entries(place)
    for entry, content in entries:
        parts = PurePosixPath(entry).parts
        if len(parts) > 1 and parts[0] in SPLITS and not any(part.startswith(".") for part in parts):
            yield "/".join(parts), content


def _folder_entries(folder: Path) -> Iterator[tuple[str, bytes | None]]:
    with _readable(folder):
        yield from _checked_entries(folder)


def _checked_entries(folder: Path) -> Iterator[tuple[str, bytes | None]]:
    inside = folder.resolve()
    for split in SPLITS:
        _refuse_link_out(folder / split, inside)
        for class_folder in _visible(folder / split):
            _refuse_link_out(class_folder, inside)
            if not class_folder.is_dir():
                yield f"{split}/{class_folder.name}", b""
                continue
            yield f"{split}/{class_folder.name}", None
            for file in _visible(class_folder):
                _refuse_link_out(file, inside)
                yield f"{split}/{class_folder.name}/{file.name}", None if file.is_dir() else _bytes_of(file)


def _images_in(folder: Path) -> Iterator[Path]:
    for split in SPLITS:
        for class_folder in _visible(folder / split):
            with _readable(class_folder):
                is_folder = class_folder.is_dir()
            if is_folder:
                yield from _visible(class_folder)


def _visible(folder: Path) -> list[Path]:
    try:
        return sorted(file for file in folder.iterdir() if not file.name.startswith("."))
    except OSError as error:
        raise DataError(f"cannot read {folder}: {error.strerror}; {LAYOUT}") from error


def _refuse_link_out(path: Path, inside: Path) -> None:
    """Refuse a link that leads out: a folder from somebody else could present files of this machine as images."""
    if path.is_symlink() and not Path(os.path.realpath(path)).is_relative_to(inside):
        raise DataError(
            f"refused {path}: it is a link that leads out of {inside}; copy the images there, or name the folder that "
            "they are in as `path` of image_folder"
        )


def _bytes_of(file: Path) -> bytes:
    try:
        found = file.stat()
        if not stat.S_ISREG(found.st_mode):  # reading a pipe would wait, reading a device would never end
            raise DataError(f"{file} is not a file; replace or remove it")
        if found.st_size > MAX_MEMBER_BYTES:
            raise DataError(f"{file} is larger than {MAX_MEMBER_BYTES >> 20} MiB; replace or remove it")
        return file.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {file}: {error.strerror}; replace or remove it") from error


def _place_in_layout(entry: str, place: Path, suffixes: tuple[str, ...], *, is_folder: bool) -> tuple[str, str]:
    """Split and class of an entry; raises DataError if it does not fit the layout."""
    parts, shown = entry.split("/"), sanitize_line(entry)
    if len(parts) != (2 if is_folder else 3):
        raise DataError(f"{shown} in {place} is out of place: {LAYOUT}; move or remove it")
    if not is_folder and not entry.lower().endswith(suffixes):
        raise DataError(f"{shown} in {place} is not an image ({', '.join(suffixes)}); convert or remove it")
    if not parts[1].isprintable() or len(parts[1]) > MAX_CLASS_NAME:
        raise DataError(
            f"{sanitize_line(parts[1])[:MAX_CLASS_NAME]!r} in {place} is not a valid class name, which has at most "
            f"{MAX_CLASS_NAME} printable characters; rename it"
        )
    return parts[0], parts[1]


def _decode(content: bytes, where: str, image_size: int) -> bytes:
    """Pixels of one image file: uint8 [image_size, image_size, 3] in RGB, as bytes."""
    from cifar_ablate.portable.pictures import PictureError, open_picture

    try:
        picture = open_picture(content, image_size, name=where, max_pixels=MAX_PIXELS, as_stored=True)
    except PictureError as error:
        raise DataError(str(error)) from error
    return picture.pixels.transpose(1, 2, 0).tobytes()


def _agreed_classes(classes: set[str], owners: dict[str, list[str]], where: str) -> tuple[str, ...]:
    if not classes:
        raise DataError(
            f"there are no images in {where}; {LAYOUT} (an archive is made with `tar -C DIR -cf FILE train test`)"
        )
    counts = {split: Counter(owners[split]) for split in SPLITS}
    for split in SPLITS:
        empty = sorted(name for name in classes if not counts[split][name])
        if empty:
            raise DataError(
                f"{split}/ has no image of {', '.join(empty)} in {where}; train/ and test/ need the same class "
                "folders, each with at least one image"
            )
    return tuple(sorted(classes))


def _labels(owners: list[str], classes: tuple[str, ...]) -> Labels:
    index = {name: label for label, name in enumerate(classes)}
    return np.array([index[owner] for owner in owners], dtype=np.int64)
