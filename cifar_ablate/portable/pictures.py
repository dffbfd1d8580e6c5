"""The one image decoder and resizer: training data, ``cifar-ablate predict``, the page and packages all use it."""

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
"""Formats that Pillow may open. Its full list includes EPS, for which it would run Ghostscript."""
SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".avif", ".ico", ".tga"),
)
MAX_PIXELS = 64_000_000
"""Default limit on width x height, checked before anything is decoded. Large cameras have 60 megapixels."""
MIN_SIDE_PX = 8
"""Smallest width and height that a prediction accepts."""
MAX_ASPECT = 100
"""Largest ratio of the longer to the shorter side that is resized as a whole."""
MAX_BYTES = 100_000_000
"""Maximum size of a file."""
DEEP_MODES = ("I;16", "I;16B", "I;16L", "I;16N", "I", "F")
"""Pillow's modes with more than 8 bits per channel."""


class PictureError(ValueError):
    """An image that is missing, damaged or unusable; the message gives its name, the reason and the cure."""


@dataclass(frozen=True, eq=False)
class Picture:
    """An image at the size of a network."""

    pixels: NDArray[np.uint8]
    """uint8 [3, size, size], RGB, 0 to 255."""
    how: str
    """How the image was converted and resized, such as ``640x480 resized to 32x32, its centre``."""


def open_picture(
    source: str | Path | bytes | Image.Image | NDArray[Any],
    size_px: int,
    *,
    name: str = "",
    max_pixels: int = MAX_PIXELS,
    as_stored: bool = False,
) -> Picture:
    """Decode an image, convert it to RGB, resize its shorter side (bilinear, antialiased) and crop its centre.

    Args:
        source: A path, the content of a file, a PIL image, or an array: uint8 [H, W] grey, [H, W, 3] RGB or
            [H, W, 4] RGBA.
        size_px: Height and width of the result in pixels.
        name: Name in error messages; a path is its own name.
        max_pixels: Largest accepted width x height.
        as_stored: Read the image as ``data.image_folder`` reads training images, whose digests are on record: ignore
            EXIF orientation and transparency, refuse more than 8 bits per channel and sides beyond 1:100, accept any
            other size. By default, rotate the image as EXIF says, blend transparency with white, reduce deeper
            channels to 8 bits, and refuse images smaller than 8x8.

    Raises:
        PictureError: The image is missing, empty, damaged, in an unknown format, too small or too large.
    """
    name = name or (str(source) if isinstance(source, str | Path) else "the image")
    notes: list[str] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of large images, which are checked here, and of odd metadata
        image = _image_of(source, name, max_pixels)
        _check_size(image.size, name, max_pixels, as_stored=as_stored)
        try:
            if as_stored:
                image = _stored_rgb(image)
            else:
                frames = getattr(image, "n_frames", 1) if isinstance(source, str | Path | bytes) else 1
                notes += [f"the first of {frames} frames"] if frames > 1 else []
                image, more = _as_rgb(ImageOps.exif_transpose(image))
                notes += more
        except PictureError as error:
            raise PictureError(f"{name} {error}") from None
        except Exception as error:  # Pillow's decoders raise almost any class on damaged bytes
            raise _damaged(name, error) from None
    image, resized = _to_size(image, size_px)
    pixels = np.ascontiguousarray(np.asarray(image, dtype=np.uint8).transpose(2, 0, 1))
    return Picture(pixels, ", ".join([*notes, resized]))


def _image_of(source: Any, name: str, max_pixels: int) -> Image.Image:
    """The image, of which a file is opened but not decoded yet."""
    if isinstance(source, np.ndarray):
        return _of_array(source, name)
    if isinstance(source, Image.Image):
        return source
    if not isinstance(source, str | Path | bytes):
        raise PictureError(f"{name} is a {type(source).__name__}; give a path, bytes, a PIL image or a numpy array")
    try:
        return Image.open(io.BytesIO(_content(source, name)), formats=FORMATS)
    except PictureError:
        raise
    except UnidentifiedImageError:
        known = ", ".join(FORMATS)
        raise PictureError(f"{name} is not an image in a known format ({known}); convert it, or leave it out") from None
    except Image.DecompressionBombError:
        raise PictureError(
            f"{name} is too large (a decompression bomb); at most {max_pixels // 1_000_000} megapixels are decoded: "
            "make it smaller"
        ) from None
    except Exception as error:
        raise _damaged(name, error) from None


def _content(source: str | Path | bytes, name: str) -> bytes:
    if isinstance(source, bytes):
        content = source
    else:
        try:
            path = Path(source)
            kind = path.stat().st_mode
            if stat.S_ISDIR(kind):
                raise PictureError(f"{name} is a folder; name an image")
            if not stat.S_ISREG(kind):  # reading a pipe would wait, reading a device would never end
                raise PictureError(f"{name} is not a file; name an image")
            with path.open("rb") as file:
                content = file.read(MAX_BYTES + 1)
        except OSError as error:
            raise PictureError(f"cannot read {name}: {error.strerror}; correct its name, or leave it out") from None
        except PictureError:
            raise
        except ValueError as error:  # such as a name with a null byte
            raise PictureError(f"cannot read {name!r}: {error}; correct its name") from None
    if len(content) > MAX_BYTES:
        raise PictureError(f"{name} has more than {MAX_BYTES // 1_000_000} MB; save it smaller")
    if not content:
        raise PictureError(f"{name} is empty (0 bytes); save it again, or leave it out")
    return content


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


def _check_size(size: tuple[int, int], name: str, max_pixels: int, *, as_stored: bool) -> None:
    width, height = size
    if as_stored and max(size) > MAX_ASPECT * min(size):
        raise PictureError(
            f"{name} has {width:,} x {height:,} pixels, and one side may be at most {MAX_ASPECT} times the other; crop "
            "it, or leave it out"
        )
    if width * height > max_pixels:
        raise PictureError(
            f"{name} has {width:,} x {height:,} pixels; at most {max_pixels // 1_000_000} megapixels are decoded: "
            "make it smaller"
        )
    if not as_stored and min(size) < MIN_SIDE_PX:
        raise PictureError(
            f"{name} has {width} x {height} pixels, which is too small; give at least {MIN_SIDE_PX} x {MIN_SIDE_PX}"
        )


def _stored_rgb(image: Image.Image) -> Image.Image:
    if image.mode in DEEP_MODES:
        raise PictureError(
            "has more than 8 bits per channel; convert it to 8 bits, so that you choose how its range is scaled"
        )
    return image.convert("RGB")


def _as_rgb(image: Image.Image) -> tuple[Image.Image, list[str]]:
    if image.mode in DEEP_MODES:
        return _from_deep(image)
    if image.mode == "La":
        image = image.convert("LA")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        is_transparent = rgba.getchannel("A").getextrema() != (255, 255)
        return Image.alpha_composite(white, rgba).convert("RGB"), ["laid on white"] if is_transparent else []
    names = {"CMYK": "CMYK", "YCbCr": "YCbCr", "LAB": "Lab"}
    notes = [f"{names[image.mode]} made RGB"] if image.mode in names else []
    return image.convert("RGB"), notes


def _from_deep(image: Image.Image) -> tuple[Image.Image, list[str]]:
    """Scale 16 or 12 bits to 8 where the values fit one of them; otherwise stretch their range to 8 bits."""
    values = np.asarray(image, dtype=np.float32)
    if not np.isfinite(values).all():
        raise PictureError("has pixels that are not finite numbers; save it again, or leave it out")
    low, high = float(values.min()), float(values.max())
    if image.mode != "F" and low >= 0 and high <= 65535:
        bits = 8 if high <= 255 else 12 if high <= 4095 else 16
        scale, how = 255 / (2**bits - 1), f"{bits} bits made 8" if bits > 8 else "8 bits in 16"
    else:
        values, scale, how = values - low, 255 / max(high - low, 1e-12), "its range stretched to 8 bits"
    grey = Image.fromarray(np.clip(np.rint(values * scale), 0, 255).astype(np.uint8))
    return grey.convert("RGB"), [how]


def _to_size(image: Image.Image, size_px: int) -> tuple[Image.Image, str]:
    """Resize the shorter side to ``size_px``, then crop the centre; also says so in words."""
    width, height = image.size
    if image.size == (size_px, size_px):
        return image, f"{size_px}x{size_px} as it is"
    side = min(width, height)
    if max(width, height) > MAX_ASPECT * side:  # resized as a whole, a line of a million pixels would take gigabytes
        left, top = (width - side) // 2, (height - side) // 2
        image = image.crop((left, top, left + side, top + side))
    scale = size_px / side
    new_width, new_height = (max(size_px, round(length * scale)) for length in image.size)
    left, top = (new_width - size_px) // 2, (new_height - size_px) // 2
    image = image.resize((new_width, new_height), Image.Resampling.BILINEAR)
    image = image.crop((left, top, left + size_px, top + size_px))
    how = f"{width}x{height} resized to {size_px}x{size_px}"
    return image, how if width == height else f"{how}, its centre"
