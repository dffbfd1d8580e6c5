"""Images of one's own, as ``train/<class>/*`` and ``test/<class>/*``: a folder, or tar archives of such a folder."""

from __future__ import annotations

import io
import os
import stat
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

import numpy as np

from cifar_ablate.data.archives import MAX_MEMBER_BYTES, archive_entries
from cifar_ablate.data.types import Labels, RawImages, Report, stored
from cifar_ablate.errors import DataError, short
from cifar_ablate.fields import ImageSize
from cifar_ablate.registry import DATA
from cifar_ablate.text_safety import sanitize_line

SPLITS = ("train", "test")
ARCHIVE_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.xz", ".txz", ".tar.bz2", ".tbz2")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
"""What Pillow may open: it would also run Ghostscript on an EPS file that calls itself a PNG."""
DEEP_MODES = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")
LAYOUT = "expected train/<class>/<image> and test/<class>/<image>"
MAX_ASPECT = 100
"""Of an image, its longer side by its shorter one: a line of a million pixels would be resized to gigabytes."""
MAX_CLASS_NAME = 200
"""Characters; it stands in reports, pictures and cards."""
REPORT_EVERY = 500


def _inputs(root: Path, *, path: str | list[str], image_size: int) -> list[Path]:
    places = find_places(path)
    return [file for place in places for file in ([place] if place.is_file() else _images_in(place))]


@contextmanager
def _readable(place: str | Path) -> Iterator[None]:
    """What stops one from looking into a place, as an error with its name: no rights, a name that is too long."""
    try:
        yield
    except OSError as error:
        said = f"cannot read {short(str(place))}: {error.strerror}"
        raise DataError(f"{said}; correct `path` of image_folder, or its rights") from error
    except RuntimeError as error:  # ~nobody
        raise DataError(f"{short(str(place))} leads nowhere: {error}; correct `path` of image_folder") from error


@DATA.register("image_folder")
@stored(_inputs)
def image_folder(root: Path, report: Report, *, path: str | list[str], image_size: ImageSize = 32) -> RawImages:
    """Images of your own: train/<class>/* and test/<class>/* in a folder, a tar archive, or several of them.

    Args:
        root: Not used: the images are where the study says.
        report: Progress, in images.
        path: A folder with train/ and test/, a tar archive of one (plain, gz, xz or bz2), a folder of such archives, or
            a list of these; from the current directory. What stands beside train/ and test/, and hidden files, is
            ignored. A link in a folder may not lead out of it.
        image_size: Height and width in pixels. Other images are resized on their shorter side (bilinear, antialiased)
            and cropped to the centre; one side may be up to 100 times the other. All become RGB; transparency is
            dropped.

    Raises:
        DataError: a place that is missing, an archive that is damaged or hostile, a file that is no image, class
            folders that differ between train and test.
    """
    return read_folders("image_folder", find_places(path), image_size, report)


def find_places(path: str | list[str]) -> list[Path]:
    """The folders (with train/ or test/ in them) and archives that ``path`` stands for; DataError if there are none."""
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
    """Whether a folder is laid out as images of a data set."""
    return any((place / split).is_dir() for split in SPLITS)


def archives_in(folder: Path, pattern: str) -> list[Path]:
    """Tar archives straight in ``folder`` whose name fits ``pattern``, by name."""
    return sorted(
        file
        for file in folder.glob(pattern)
        if file.name.endswith(ARCHIVE_SUFFIXES) and not file.name.startswith(".") and file.is_file()
    )


def read_folders(name: str, places: Sequence[Path], image_size: int, report: Report) -> RawImages:
    """Decode all images of some folders and archives together; 60,000 CIFAR images in WebP take 15 s on one core."""
    from PIL import Image

    pixels = {split: bytearray() for split in SPLITS}
    owners: dict[str, list[str]] = {split: [] for split in SPLITS}
    classes: set[str] = set()
    seen: set[str] = set()
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        for place in places:
            for entry, content in _entries(place):
                shown = sanitize_line(entry)
                split, class_name = _place_in_layout(entry, place, is_folder=content is None)
                classes.add(class_name)
                if content is None:
                    continue
                if entry in seen:
                    raise DataError(
                        f"{shown} in {place} comes a second time; name each folder and archive once in `path`"
                    )
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
    """Visible things below train/ and test/, by name; None for the content of a class folder."""
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
    """A folder that somebody sent could show files of this machine as its images."""
    if path.is_symlink() and not Path(os.path.realpath(path)).is_relative_to(inside):
        raise DataError(
            f"refused {path}: it is a link that leads out of {inside}; copy the images there, or name the folder that "
            "they are in as `path` of image_folder"
        )


def _bytes_of(file: Path) -> bytes:
    try:
        found = file.stat()
        if not stat.S_ISREG(found.st_mode):  # a pipe would be waited for, a device read for ever
            raise DataError(f"{file} is no file; replace or remove it")
        if found.st_size > MAX_MEMBER_BYTES:
            raise DataError(f"{file} is larger than {MAX_MEMBER_BYTES >> 20} MiB; replace or remove it")
        return file.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {file}: {error.strerror}; replace or remove it") from error


def _place_in_layout(entry: str, place: Path, *, is_folder: bool) -> tuple[str, str]:
    parts, shown = entry.split("/"), sanitize_line(entry)
    if len(parts) != (2 if is_folder else 3):
        raise DataError(f"{shown} in {place} is out of place: {LAYOUT}; move or remove it")
    if not is_folder and not entry.lower().endswith(IMAGE_SUFFIXES):
        raise DataError(f"{shown} in {place} is not an image ({', '.join(IMAGE_SUFFIXES)}); convert or remove it")
    if not parts[1].isprintable() or len(parts[1]) > MAX_CLASS_NAME:
        raise DataError(
            f"{sanitize_line(parts[1])[:MAX_CLASS_NAME]!r} in {place} is no name for a class, which has up to "
            f"{MAX_CLASS_NAME} printable characters; rename it"
        )
    return parts[0], parts[1]


def _decode(content: bytes, where: str, image_size: int) -> bytes:
    """RGB bytes [image_size, image_size, 3] of one image file."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(content), formats=IMAGE_FORMATS) as opened:
            _refuse_line(opened.size, where)
            deep = opened.mode in DEEP_MODES
            image = opened.convert("RGB")
    except DataError:
        raise
    except UnidentifiedImageError as error:
        raise DataError(f"cannot decode {where}: no known image format; replace or remove the file") from error
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged bytes
        raise DataError(f"cannot decode {where}: {error}; replace or remove the file") from error
    if deep:
        raise DataError(f"{where} has more than 8 bits per channel; convert it to 8 bits, so that you choose the range")
    if image.size != (image_size, image_size):
        scale = image_size / min(image.size)
        width, height = (max(image_size, round(side * scale)) for side in image.size)
        left, top = (width - image_size) // 2, (height - image_size) // 2
        image = image.resize((width, height), Image.Resampling.BILINEAR)
        image = image.crop((left, top, left + image_size, top + image_size))
    return image.tobytes()


def _refuse_line(size: tuple[int, int], where: str) -> None:
    """Before anything is decoded or resized; a banner is resized whole and then cut, for its bits decide."""
    width, height = size
    if max(size) > MAX_ASPECT * min(size):
        raise DataError(
            f"{where} has {width:,} x {height:,} pixels, and one side may be up to {MAX_ASPECT} times the other; cut "
            "it, or remove the file"
        )


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
