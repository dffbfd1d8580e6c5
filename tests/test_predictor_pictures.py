"""Pictures of any format and size become what a network takes, or one sentence says why not."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cifar_ablate.data.image_folder import image_folder
from cifar_ablate.data.types import silent
from cifar_ablate.portable.pictures import MAX_PIXELS, PictureError, open_picture
from tests.predicting import content


def gradient(width: int, height: int) -> Image.Image:
    """Red grows to the right, green downwards."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([x, y, np.full_like(x, 90)], axis=2).astype(np.uint8))


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "AVIF", "ICO", "TGA"])
def test_every_common_format_is_read(format: str) -> None:
    picture = open_picture(content(gradient(64, 64), format), 32)
    assert picture.pixels.shape == (3, 32, 32)
    assert picture.pixels.dtype == np.uint8
    expected = open_picture(gradient(64, 64), 32).pixels.astype(int)
    assert abs(picture.pixels.astype(int) - expected).mean() < 12  # what GIF's 256 colours and JPEG lose


@pytest.mark.parametrize(
    ("width", "height"), [(32, 32), (33, 32), (320, 200), (10, 8), (31, 45), (1000, 40), (40, 1000)]
)
def test_a_picture_becomes_what_a_folder_of_images_would_have_made_of_it(
    tmp_path: Path, width: int, height: int
) -> None:
    for split in ("train", "test"):
        for name in ("a", "b"):
            (tmp_path / split / name).mkdir(parents=True)
            gradient(width, height).save(tmp_path / split / name / "one.png")
    images = image_folder(tmp_path, silent, path=str(tmp_path)).train_images
    mine = open_picture(tmp_path / "train" / "a" / "one.png", 32).pixels
    np.testing.assert_array_equal(mine.transpose(1, 2, 0), images[0])


def test_what_was_done_to_a_picture_is_said() -> None:
    said = {
        "320x200 resized to 32x32, its centre": gradient(320, 200),
        "64x64 resized to 32x32": gradient(64, 64),
        "32x32 as it is": gradient(32, 32),
        "CMYK made RGB, 32x32 as it is": gradient(32, 32).convert("CMYK"),
        "16 bits made 8, 32x32 as it is": Image.fromarray(np.full((32, 32), 40_000, np.uint16)),
        "12 bits made 8, 32x32 as it is": Image.fromarray(np.full((32, 32), 4_000, np.uint16)),
        "8 bits in 16, 32x32 as it is": Image.fromarray(np.full((32, 32), 100, np.uint16)),
        "its range stretched to 8 bits, 32x32 as it is": Image.fromarray(np.full((32, 32), 0.5, np.float32)),
    }
    assert {text: open_picture(image, 32).how for text, image in said.items()} == {text: text for text in said}


def test_of_a_line_the_centre_alone_is_resized() -> None:
    """Resized as a whole it would take gigabytes; training images may not have such sides."""
    line = np.zeros((8, 200_000, 3), np.uint8)
    line[:, 99_996:100_004] = 200
    assert (open_picture(line, 32).pixels == 200).all()


def test_training_images_are_read_as_they_are_stored() -> None:
    """Their digests are on record: EXIF orientation and transparency must not begin to matter."""
    photo = gradient(40, 32)
    exif = Image.Exif()
    exif[0x0112] = 3
    expected = open_picture(photo, 32).pixels
    turned = open_picture(content(photo, "PNG", exif=exif), 32, as_stored=True)
    assert (turned.pixels == expected).all()
    clear = photo.convert("RGBA")
    clear.putalpha(7)
    assert (open_picture(content(clear), 32, as_stored=True).pixels == expected).all()
    dot = open_picture(content(Image.new("RGB", (1, 1), (1, 2, 3))), 32, as_stored=True)
    assert dot.pixels[:, 31, 31].tolist() == [1, 2, 3]
    for image, said in (
        (Image.fromarray(np.full((32, 32), 40_000, np.uint16)), "more than 8 bits per channel"),
        (Image.new("L", (101, 1)), "one side may be at most 100 times the other"),
    ):
        with pytest.raises(PictureError, match=said):
            open_picture(content(image), 32, as_stored=True)


def test_of_an_animation_the_first_frame_is_taken() -> None:
    frames = [Image.new("RGB", (32, 32), color) for color in ("red", "green", "blue")]
    picture = open_picture(content(frames[0], "GIF", save_all=True, append_images=frames[1:]), 32)
    assert picture.how.startswith("the first of 3 frames")
    assert picture.pixels[:, 0, 0].tolist() == [255, 0, 0]


def test_transparency_is_laid_on_white() -> None:
    picture = open_picture(content(Image.new("RGBA", (32, 32), (0, 0, 0, 0))), 32)
    assert (picture.pixels == 255).all()
    assert picture.how == "laid on white, 32x32 as it is"
    opaque = open_picture(content(gradient(32, 32).convert("RGBA")), 32)
    assert opaque.how == "32x32 as it is"


def test_a_photo_taken_with_a_turned_camera_is_turned_back() -> None:
    photo = gradient(40, 32)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: to be rotated by 90 degrees clockwise
    turned = open_picture(content(photo.rotate(90, expand=True), "PNG", exif=exif), 32).pixels
    assert abs(turned.astype(int) - open_picture(photo, 32).pixels.astype(int)).max() <= 1


def test_grey_arrays_colours_and_16_bits_come_out_alike() -> None:
    grey = np.linspace(0, 255, 32 * 32).astype(np.uint8).reshape(32, 32)
    expected = np.repeat(grey[None], 3, axis=0)
    for source in (grey, grey[..., None], np.repeat(grey[..., None], 3, axis=2), Image.fromarray(grey)):
        assert (open_picture(source, 32).pixels == expected).all()
    deep = content(Image.fromarray(grey.astype(np.uint16) * 257), "PNG")
    assert (open_picture(deep, 32).pixels == expected).all()


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (b"", "is empty (0 bytes)"),
        (b"hello, this is no picture", "is not an image in a known format"),
        (content(gradient(64, 64))[:120], "is damaged"),
        (content(gradient(1, 1)), "1 x 1 pixels, which is too small"),
        (content(gradient(300, 7)), "300 x 7 pixels, which is too small"),
        (content(Image.new("1", (20_000, 20_000))), "at most 64 megapixels are decoded: make it smaller"),
        (np.zeros((32, 32, 2), np.uint8), "give uint8 [H, W]"),
        (np.zeros((32, 32, 3), np.float32), "give uint8 [H, W]"),
        (np.zeros((0, 32, 3), np.uint8), "empty array"),
        (Path("nowhere.png"), "cannot read nowhere.png"),
        (Path(), "is a folder"),
        ("a\0b.png", "cannot read"),
        (None, "give a path, bytes, a PIL image or a numpy array"),
        ([1, 2], "give a path, bytes, a PIL image or a numpy array"),
        (Image.fromarray(np.full((32, 32), np.nan, np.float32)), "pixels that are not finite"),
    ],
)
def test_what_is_no_usable_picture_is_one_sentence(source: object, said: str) -> None:
    with pytest.raises(PictureError) as error:
        open_picture(source, 32)  # type: ignore[arg-type]
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_a_bomb_is_refused_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    """64 MB of black pixels in a file of 64 kB: by its header alone."""
    side = int(MAX_PIXELS**0.5) + 1
    bomb = content(Image.new("1", (side, side)))
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda self: pytest.fail("decoded"))
    with pytest.raises(PictureError, match="at most 64 megapixels"):
        open_picture(bomb, 32)


def test_formats_that_run_other_programs_are_not_opened() -> None:
    """Pillow would start Ghostscript on it."""
    script = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\nshowpage\n%%EOF\n"
    assert Image.open(io.BytesIO(script)).format == "EPS"
    with pytest.raises(PictureError, match="not an image in a known format"):
        open_picture(script, 32, name="innocent.png")
