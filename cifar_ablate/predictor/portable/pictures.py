"""From a picture of any common format and size to the pixels that a network takes."""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "AVIF", "ICO", "TGA")
"""What Pillow may open: it would also run Ghostscript on an EPS file that calls itself a PNG."""
SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".avif", ".ico", ".tga"),
)
MAX_PIXELS = 64_000_000
"""Of a picture, before it is made small: the largest cameras take 60; more is refused before anything is decoded."""
MIN_SIDE_PX = 8
"""Below it there is nothing to be seen."""
MAX_BYTES = 100_000_000
"""Of a file."""
DEEP = {"I;16": 257, "I;16B": 257, "I;16L": 257, "I;16N": 257, "I": 257, "F": None}
"""Modes with more than 8 bits, and by how much a value is divided."""


class PictureError(ValueError):
    """A file that is no picture, or none that can be used; the message names it, and says what to do."""


@dataclass(frozen=True, eq=False)
class Picture:
    """A picture as a network takes it."""

    pixels: NDArray[np.uint8]
    """uint8 [3, size, size], RGB, 0 to 255."""
    how: str
    """How it was brought to this size, in words."""


def open_picture(source: str | Path | bytes | Image.Image | NDArray[Any], size_px: int, *, name: str = "") -> Picture:
    """Bring a picture to ``size_px`` x ``size_px``, as the images of a data set are: short side resized, centre kept.

    Args:
        source: A path, the content of a file, a PIL image, or an array (uint8 [H, W] grey, [H, W, 3] RGB or
            [H, W, 4] with transparency).
        size_px: Height and width of the result.
        name: What messages call it; a path has its own name.

    Raises:
        PictureError: It is missing, empty, no picture, damaged, too small or too large.
    """
    notes: list[str] = []
    name = name or (str(source) if isinstance(source, str | Path) else "the picture")
    if isinstance(source, np.ndarray):
        image = _of_array(source, name)
    elif isinstance(source, Image.Image):
        image = source
    else:
        image, notes = _opened(_content(source, name), name)
    _check_size(image.size, name)
    try:
        image = ImageOps.exif_transpose(image)
        image, more = _as_rgb(image)
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged bytes
        raise PictureError(f"{name} is damaged ({_first_line(error)}); save it again, or leave it out") from None
    image, resized = _to_size(image, size_px)
    pixels = np.ascontiguousarray(np.asarray(image, dtype=np.uint8).transpose(2, 0, 1))
    return Picture(pixels, ", ".join([*notes, *more, resized]))


def _content(source: str | Path | bytes, name: str) -> bytes:
    if isinstance(source, bytes):
        content = source
    else:
        path = Path(source)
        try:
            if path.is_dir():
                raise PictureError(f"{name} is a folder without pictures; name a picture")
            if path.stat().st_size > MAX_BYTES:
                raise PictureError(f"{name} has more than {MAX_BYTES // 1_000_000} MB; save it smaller")
            content = path.read_bytes()
        except OSError as error:
            raise PictureError(f"cannot read {name}: {error.strerror}; correct its name, or leave it out") from None
    if not content:
        raise PictureError(f"{name} is empty (0 bytes); save it again, or leave it out")
    return content


def _opened(content: bytes, name: str) -> tuple[Image.Image, list[str]]:
    """The picture, decoded, and what is to be said of it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # ours is the stricter limit
        try:
            image = Image.open(io.BytesIO(content), formats=FORMATS)
        except UnidentifiedImageError:
            known = ", ".join(FORMATS)
            raise PictureError(
                f"{name} is no picture of a known format ({known}); convert it, or leave it out"
            ) from None
        except Image.DecompressionBombError:
            raise PictureError(
                f"{name} is too large; at most {MAX_PIXELS // 1_000_000} megapixels are decoded: make it smaller"
            ) from None
        except Exception as error:
            raise PictureError(f"{name} is damaged ({_first_line(error)}); save it again, or leave it out") from None
        _check_size(image.size, name)  # of the header: nothing is decoded yet
        try:
            frames = getattr(image, "n_frames", 1)
            image.load()
        except Exception as error:
            raise PictureError(f"{name} is damaged ({_first_line(error)}); save it again, or leave it out") from None
    return image, [f"the first of {frames} frames"] if frames > 1 else []


def _of_array(values: NDArray[Any], name: str) -> Image.Image:
    if values.dtype != np.uint8 or values.ndim not in (2, 3) or (values.ndim == 3 and values.shape[2] not in (3, 4)):
        raise PictureError(
            f"{name} is an array {values.dtype} {list(values.shape)}; give uint8 [H, W], [H, W, 3] or [H, W, 4]"
        )
    if 0 in values.shape:
        raise PictureError(f"{name} is an empty array {list(values.shape)}; give one with pixels")
    return Image.fromarray(values)


def _check_size(size: tuple[int, int], name: str) -> None:
    width, height = size
    if width * height > MAX_PIXELS:
        raise PictureError(
            f"{name} has {width:,} x {height:,} pixels; at most {MAX_PIXELS // 1_000_000} megapixels are decoded: "
            "make it smaller"
        )
    if min(size) < MIN_SIDE_PX:
        raise PictureError(
            f"{name} has {width} x {height} pixels: nothing is to be seen in it; give at least "
            f"{MIN_SIDE_PX} x {MIN_SIDE_PX}"
        )


def _as_rgb(image: Image.Image) -> tuple[Image.Image, list[str]]:
    if image.mode in DEEP:
        divisor = DEEP[image.mode]
        values = np.asarray(image, dtype=np.float64)
        if divisor is None or values.max(initial=0) > 65535 or values.min(initial=0) < 0:
            low, span = values.min(), max(float(np.ptp(values)), 1e-12)
            values, how = (values - low) * (255 / span), "its range stretched to 8 bits"
        else:
            values, how = values / divisor, "16 bits made 8"
        return Image.fromarray(np.clip(np.rint(values), 0, 255).astype(np.uint8)).convert("RGB"), [how]
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        is_seen_through = rgba.getchannel("A").getextrema() != (255, 255)
        return Image.alpha_composite(white, rgba).convert("RGB"), ["laid on white"] if is_seen_through else []
    names = {"CMYK": "CMYK", "YCbCr": "YCbCr", "LAB": "Lab"}
    notes = [f"{names[image.mode]} made RGB"] if image.mode in names else []
    return image.convert("RGB"), notes


def _to_size(image: Image.Image, size_px: int) -> tuple[Image.Image, str]:
    """Bilinear with antialiasing on the shorter side, then the centre: as the images of a folder are."""
    width, height = image.size
    if image.size == (size_px, size_px):
        return image, f"{size_px}x{size_px} as it is"
    scale = size_px / min(image.size)
    new = (max(size_px, round(width * scale)), max(size_px, round(height * scale)))
    left, top = (new[0] - size_px) // 2, (new[1] - size_px) // 2
    # cut first: of a banner, 32 pixels high and a million wide, only the centre is resized
    side = min(image.size)
    if max(image.size) > 4 * side:
        image = image.crop(((width - side) // 2, (height - side) // 2, (width + side) // 2, (height + side) // 2))
        image = image.resize((size_px, size_px), Image.Resampling.BILINEAR)
    else:
        image = image.resize(new, Image.Resampling.BILINEAR)
        image = image.crop((left, top, left + size_px, top + size_px))
    how = f"{width}x{height} resized to {size_px}x{size_px}"
    return image, how if width == height else f"{how}, its centre"


def _first_line(error: Exception) -> str:
    return (str(error).strip().split("\n", 1)[0] or type(error).__name__)[:200]
