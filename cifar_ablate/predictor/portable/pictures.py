"""From a picture of any common format and size to the pixels that a network takes."""

from __future__ import annotations

import io
import stat
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
DEEP = ("I;16", "I;16B", "I;16L", "I;16N", "I", "F")
"""Modes with more than 8 bits."""


class PictureError(ValueError):
    """A file that is no picture, or none that can be used; the message names it, and says what to do."""


@dataclass(frozen=True, eq=False)
class Picture:
    """A picture as a network takes it."""

    pixels: NDArray[np.uint8]
    """uint8 [3, size, size], RGB, 0 to 255."""
    how: str
    """How it was brought to this size, in words."""


def open_picture(
    source: str | Path | bytes | Image.Image | NDArray[Any],
    size_px: int,
    *,
    name: str = "",
    max_pixels: int = MAX_PIXELS,
) -> Picture:
    """Bring a picture to ``size_px`` x ``size_px``, as the images of a data set are: short side resized, centre kept.

    Args:
        source: A path, the content of a file, a PIL image, or an array (uint8 [H, W] grey, [H, W, 3] RGB or
            [H, W, 4] with transparency).
        size_px: Height and width of the result.
        name: What messages call it; a path has its own name.
        max_pixels: Larger ones are refused.

    Raises:
        PictureError: It is missing, empty, no picture, damaged, too small or too large.
    """
    notes: list[str] = []
    name = name or (str(source) if isinstance(source, str | Path) else "the picture")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Pillow, about what our errors say or what does not matter
        if isinstance(source, np.ndarray):
            image = _of_array(source, name)
        elif isinstance(source, Image.Image):
            image = source
        elif isinstance(source, str | Path | bytes):
            image, notes = _opened(_content(source, name), name, max_pixels)
        else:
            raise PictureError(f"{name} is a {type(source).__name__}; give a path, bytes, a PIL image or a numpy array")
        _check_size(image.size, name, max_pixels)
        try:
            image, more = _as_rgb(ImageOps.exif_transpose(image))
        except PictureError as error:
            raise PictureError(f"{name} {error}") from None
        except Exception as error:  # Pillow's decoders raise nearly anything on damaged bytes
            raise _damaged(name, error) from None
    image, resized = _to_size(image, size_px)
    pixels = np.ascontiguousarray(np.asarray(image, dtype=np.uint8).transpose(2, 0, 1))
    return Picture(pixels, ", ".join([*notes, *more, resized]))


def _content(source: str | Path | bytes, name: str) -> bytes:
    if isinstance(source, bytes):
        content = source
    else:
        try:
            path = Path(source)
            kind = path.stat().st_mode
            if stat.S_ISDIR(kind):
                raise PictureError(f"{name} is a folder; name a picture")
            if not stat.S_ISREG(kind):  # a pipe would be waited for, a device read for ever
                raise PictureError(f"{name} is no file; name a picture")
            with path.open("rb") as file:
                content = file.read(MAX_BYTES + 1)
        except OSError as error:
            raise PictureError(f"cannot read {name}: {error.strerror}; correct its name, or leave it out") from None
        except PictureError:
            raise
        except ValueError as error:  # a name that no file can have
            raise PictureError(f"cannot read {name!r}: {error}; correct its name") from None
    if len(content) > MAX_BYTES:
        raise PictureError(f"{name} has more than {MAX_BYTES // 1_000_000} MB; save it smaller")
    if not content:
        raise PictureError(f"{name} is empty (0 bytes); save it again, or leave it out")
    return content


def _opened(content: bytes, name: str, max_pixels: int) -> tuple[Image.Image, list[str]]:
    """The picture, decoded, and what is to be said of it."""
    try:
        image = Image.open(io.BytesIO(content), formats=FORMATS)
    except UnidentifiedImageError:
        known = ", ".join(FORMATS)
        message = f"{name} is no picture of a known format ({known}); convert it, or leave it out"
        raise PictureError(message) from None
    except Image.DecompressionBombError:
        raise PictureError(
            f"{name} is too large; at most {max_pixels // 1_000_000} megapixels are decoded: make it smaller"
        ) from None
    except Exception as error:
        raise _damaged(name, error) from None
    _check_size(image.size, name, max_pixels)  # of the header: nothing is decoded yet
    try:
        frames = getattr(image, "n_frames", 1)
        image.load()
    except Exception as error:
        raise _damaged(name, error) from None
    return image, [f"the first of {frames} frames"] if frames > 1 else []


def _damaged(name: str, error: Exception) -> PictureError:
    reason = (str(error).strip().split("\n", 1)[0] or type(error).__name__)[:200]
    return PictureError(f"{name} is damaged ({reason}); save it again, or leave it out")


def _of_array(values: NDArray[Any], name: str) -> Image.Image:
    if values.ndim == 3 and values.shape[2] == 1:
        values = values[..., 0]
    if values.dtype != np.uint8 or values.ndim not in (2, 3) or (values.ndim == 3 and values.shape[2] not in (3, 4)):
        raise PictureError(
            f"{name} is an array {values.dtype} {list(values.shape)}; give uint8 [H, W], [H, W, 3] or [H, W, 4]"
        )
    if 0 in values.shape:
        raise PictureError(f"{name} is an empty array {list(values.shape)}; give one with pixels")
    return Image.fromarray(values)


def _check_size(size: tuple[int, int], name: str, max_pixels: int) -> None:
    width, height = size
    if width * height > max_pixels:
        raise PictureError(
            f"{name} has {width:,} x {height:,} pixels; at most {max_pixels // 1_000_000} megapixels are decoded: "
            "make it smaller"
        )
    if min(size) < MIN_SIDE_PX:
        raise PictureError(
            f"{name} has {width} x {height} pixels: nothing is to be seen in it; give at least "
            f"{MIN_SIDE_PX} x {MIN_SIDE_PX}"
        )


def _as_rgb(image: Image.Image) -> tuple[Image.Image, list[str]]:
    if image.mode in DEEP:
        return _from_deep(image)
    if image.mode == "La":
        image = image.convert("LA")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        is_seen_through = rgba.getchannel("A").getextrema() != (255, 255)
        return Image.alpha_composite(white, rgba).convert("RGB"), ["laid on white"] if is_seen_through else []
    names = {"CMYK": "CMYK", "YCbCr": "YCbCr", "LAB": "Lab"}
    notes = [f"{names[image.mode]} made RGB"] if image.mode in names else []
    return image.convert("RGB"), notes


def _from_deep(image: Image.Image) -> tuple[Image.Image, list[str]]:
    """More than 8 bits: 16 or 12 where the values look like it, else their range is stretched."""
    values = np.asarray(image, dtype=np.float32)
    if not np.isfinite(values).all():
        raise PictureError("has pixels that are no numbers; save it again, or leave it out")
    low, high = float(values.min()), float(values.max())
    if image.mode != "F" and low >= 0 and high <= 65535:
        bits = 8 if high <= 255 else 12 if high <= 4095 else 16
        scale, how = 255 / (2**bits - 1), f"{bits} bits made 8" if bits > 8 else "8 bits in 16"
    else:
        values, scale, how = values - low, 255 / max(high - low, 1e-12), "its range stretched to 8 bits"
    grey = Image.fromarray(np.clip(np.rint(values * scale), 0, 255).astype(np.uint8))
    return grey.convert("RGB"), [how]


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
