"""Data sets: sources, canonical order, subsets, and the images that are kept."""

from __future__ import annotations

import hashlib
import io
import multiprocessing
import os
import pickle
import struct
import subprocess
import sys
import tarfile
import urllib.error
import urllib.request
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from cifar_ablate.data import cifar, data_root, load_data
from cifar_ablate.data.canonical import canonical, stratified_order, subset
from cifar_ablate.data.cifar import download
from cifar_ablate.data.types import DataSet, RawImages, silent
from cifar_ablate.errors import DataError, OutputError, UnknownNameError
from cifar_ablate.portable.pictures import open_picture
from cifar_ablate.registry import DATA

CLASSES = ("cat", "dog", "owl")


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def small_tree(num_train: int = 4, num_test: int = 2, size_px: int = 8) -> dict[str, bytes]:
    """Entries of a small data set, by name; the pixels are random but always the same."""
    random = np.random.default_rng(0)
    entries = {}
    for split, num in (("train", num_train), ("test", num_test)):
        for class_name in CLASSES:
            for index in range(num):
                pixels = random.integers(0, 256, (size_px, size_px, 3), dtype=np.uint8)
                entries[f"{split}/{class_name}/{index}.png"] = png(pixels)
    return entries


def write_folder(folder: Path, entries: dict[str, bytes]) -> Path:
    for name, content in entries.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    return folder


def write_tar(
    file: Path, entries: dict[str, bytes], mode: str = "w", members: tuple[tarfile.TarInfo, ...] = ()
) -> Path:
    with tarfile.open(file, mode) as archive:
        for name, content in entries.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        for member in members:
            archive.addfile(member)
    return file


def load_folder(path: Path | list[str], root: Path, **options: Any) -> DataSet:
    chosen = path if isinstance(path, list) else str(path)
    return load_data("image_folder", {"path": chosen, "image_size": 8, **options}, root=root)


def assert_equal(left: DataSet, right: DataSet) -> None:
    assert left.digest == right.digest
    assert left.classes == right.classes
    for name in ("train_images", "train_labels", "test_images", "test_labels"):
        np.testing.assert_array_equal(getattr(left, name), getattr(right, name))


# --- the embedded digits ---


def test_digits_are_real_digits_in_the_documented_split(tmp_path: Path) -> None:
    data = load_data("digits", {}, root=tmp_path)
    assert data.describe() == "digits: all 1,437 training images, all 360 test images"
    assert data.train_images.shape == (1437, 3, 32, 32)
    assert data.train_images.flags.c_contiguous
    assert data.train_images.dtype == np.uint8
    assert data.train_labels.dtype == np.int64
    assert (data.num_classes, data.image_size_px, data.classes[3]) == (10, 32, "3")
    assert (data.train_images.min(), data.train_images.max()) == (0, 255)
    assert set(np.bincount(data.test_labels)) <= {35, 36, 37}
    assert not list(tmp_path.iterdir()), "what is embedded need not be kept"


def test_digits_have_a_digest_that_never_changes(tmp_path: Path) -> None:
    assert load_data("digits", {}, root=tmp_path).digest == "5aa6ebec8e2565ca0d5072db8193cdda"


def test_no_test_digit_is_a_training_digit(tmp_path: Path) -> None:
    data = load_data("digits", {}, root=tmp_path)
    train = {image.tobytes() for image in data.train_images}
    assert not train & {image.tobytes() for image in data.test_images}


# --- canonical order, digest and subsets ---


def raw_images(order: slice = slice(None)) -> RawImages:
    random = np.random.default_rng(1)
    images = random.integers(0, 256, (40, 4, 4, 3), dtype=np.uint8)
    labels = np.arange(40, dtype=np.int64) // 10
    test = (images[:8] ^ 255, labels[:8])
    return RawImages(images[order], labels[order], *test, classes=("a", "b", "c", "d"))


def test_canonical_order_does_not_depend_on_the_order_that_images_came_in() -> None:
    assert_equal(canonical("x", raw_images()), canonical("x", raw_images(slice(None, None, -1))))


def test_canonical_order_is_that_of_the_hashes_of_the_pixels() -> None:
    data = canonical("x", raw_images())
    hashes = [hashlib.sha256(image.tobytes()).digest() for image in data.train_images]
    assert hashes == sorted(hashes)


def test_equal_images_are_ordered_by_label() -> None:
    raw = raw_images()
    same = replace(raw, train_images=np.zeros_like(raw.train_images), train_labels=raw.train_labels[::-1].copy())
    assert canonical("x", same).train_labels.tolist() == sorted(raw.train_labels.tolist())


def test_the_digest_knows_pixels_labels_and_class_names() -> None:
    raw = raw_images()
    brighter = raw.train_images.copy()
    brighter[0, 0, 0, 0] ^= 1
    relabelled = raw.train_labels.copy()
    relabelled[0] = 3
    variants = [
        raw,
        replace(raw, train_images=brighter),
        replace(raw, train_labels=relabelled),
        replace(raw, classes=("a", "b", "c", "e")),
    ]
    assert len({canonical("x", variant).digest for variant in variants}) == len(variants)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train_images": np.zeros((40, 4, 4, 3), np.float32)}, "uint8"),
        ({"train_images": np.zeros((40, 4, 6, 3), np.uint8)}, "one square size"),
        ({"train_images": np.zeros((40, 6, 6, 3), np.uint8)}, "one square size"),
        ({"train_labels": np.zeros(40, np.int32)}, "int64"),
        ({"train_labels": np.full(40, 4)}, "name a class"),
        ({"train_labels": np.zeros(40, np.int64)}, "no training image of class b, c, d"),
        ({"test_images": np.zeros((0, 4, 4, 3), np.uint8), "test_labels": np.zeros(0, np.int64)}, "no test images"),
    ],
)
def test_a_source_that_hands_in_something_else_is_told(change: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        canonical("x", replace(raw_images(), **change))


def test_a_subset_is_stratified_and_in_canonical_order(tmp_path: Path) -> None:
    data = load_data("digits", {}, train_size=100, root=tmp_path)
    full = load_data("digits", {}, root=tmp_path)
    assert np.bincount(data.train_labels).tolist() == [10] * 10
    position = {image.tobytes(): index for index, image in enumerate(full.train_images)}
    places = [position[image.tobytes()] for image in data.train_images]
    assert places == sorted(places)
    assert data.digest == full.digest
    assert data.describe() == "digits: 100 of 1,437 training images, all 360 test images"


def test_a_smaller_subset_lies_inside_a_larger_one() -> None:
    labels = np.repeat([0, 1, 2], [7, 31, 200])
    order = stratified_order(labels, seed=3)
    assert sorted(order.tolist()) == list(range(len(labels)))
    for size in range(3, len(labels)):
        counts = np.bincount(labels[order[:size]], minlength=3)
        share = size * np.array([7, 31, 200]) / len(labels)
        assert (counts >= 1).all()
        assert (np.abs(counts - share) < 2).all(), (size, counts, share)


def test_the_subset_is_the_same_for_ever() -> None:
    assert stratified_order(np.repeat([0, 1], 5), seed=1729)[:6].tolist() == [0, 7, 1, 9, 2, 6]
    assert (
        stratified_order(np.repeat([0, 1], 50), seed=1).tolist() != stratified_order(np.repeat([0, 1], 50), 2).tolist()
    )


@pytest.mark.parametrize(("size", "cure"), [(2000, "at most 1,437"), (9, "at least 10")])
def test_a_train_size_out_of_range_names_the_limit(size: int, cure: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=cure):
        load_data("digits", {}, train_size=size, root=tmp_path)


def test_a_subset_of_everything_is_everything() -> None:
    data = canonical("x", raw_images())
    assert_equal(subset(data, 40), data)


# --- folders and archives ---


def test_a_folder_and_archives_of_it_give_the_same_data(tmp_path: Path) -> None:
    entries = small_tree()
    names = sorted(entries)
    folder = load_folder(write_folder(tmp_path / "folder", entries), tmp_path)
    for mode, suffix in (("w", "tar"), ("w:gz", "tar.gz"), ("w:xz", "tar.xz"), ("w:bz2", "tar.bz2")):
        file = write_tar(tmp_path / f"whole.{suffix}", {name: entries[name] for name in reversed(names)}, mode)
        assert_equal(load_folder(file, tmp_path), folder)
    halves = tmp_path / "halves"
    halves.mkdir()
    first = write_tar(halves / "a.tar", {name: entries[name] for name in names[::2]})
    second = write_tar(halves / "b.tar.gz", {f"./{name}": entries[name] for name in names[1::2]}, "w:gz")
    assert_equal(load_folder(halves, tmp_path), folder)
    assert_equal(load_folder([str(second), str(first)], tmp_path), folder)
    assert folder.classes == CLASSES
    assert folder.describe() == "image_folder: all 12 training images, all 6 test images"


def test_hidden_files_and_what_stands_beside_the_splits_are_ignored(tmp_path: Path) -> None:
    entries = small_tree()
    more = {"README.md": b"x", "train/.DS_Store": b"x", "train/cat/._0.png": b"x", "__MACOSX/train/cat/0.png": b"x"}
    plain = load_folder(write_folder(tmp_path / "plain", entries), tmp_path)
    assert_equal(load_folder(write_folder(tmp_path / "more", entries | more), tmp_path), plain)
    assert_equal(load_folder(write_tar(tmp_path / "more.tar", entries | more), tmp_path), plain)


@pytest.mark.parametrize("name", ["../evil.png", "train/../../evil.png", "/etc/evil.png"])
def test_an_archive_that_leads_outside_is_refused(name: str, tmp_path: Path) -> None:
    file = write_tar(tmp_path / "hostile.tar", small_tree() | {name: b"x"})
    with pytest.raises(DataError, match="leads out of the archive") as caught:
        load_folder(file, tmp_path)
    assert name in str(caught.value)
    assert not (tmp_path / "evil.png").exists()


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_an_archive_with_links_or_devices_is_refused(kind: bytes, tmp_path: Path) -> None:
    member = tarfile.TarInfo("train/cat/link.png")
    member.type, member.linkname = kind, "/etc/passwd"
    file = write_tar(tmp_path / "hostile.tar.gz", small_tree(), "w:gz", (member,))
    with pytest.raises(DataError, match=r"'train/cat/link\.png' is a link or a device"):
        load_folder(file, tmp_path)


def test_a_huge_member_is_refused_before_it_is_read(tmp_path: Path) -> None:
    file = tmp_path / "huge.tar"
    info = tarfile.TarInfo("train/cat/huge.png")
    info.size = 1 << 40
    file.write_bytes(info.tobuf() + bytes(1024))
    with pytest.raises(DataError, match="larger than 64 MiB"):
        load_folder(file, tmp_path)


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:xz", "w:bz2"])
def test_an_archive_that_lost_its_end_is_not_a_smaller_data_set(mode: str, tmp_path: Path) -> None:
    whole = write_tar(tmp_path / "whole.tar", small_tree(size_px=16), mode).read_bytes()
    file = tmp_path / "cut.tar"
    for share in (0.3, 0.6, 0.9):
        end = int(len(whole) * share)
        file.write_bytes(whole[: end - end % 512] if mode == "w" else whole[:end])
        with pytest.raises(DataError, match=r"cannot read the archive .*cut\.tar"):
            load_folder(file, tmp_path)
    if mode != "w":
        file.write_bytes(whole[:-3])
        with pytest.raises(DataError, match=r"cannot read the archive .*cut\.tar"):
            load_folder(file, tmp_path)


def test_a_damaged_header_in_the_middle_is_not_the_end(tmp_path: Path) -> None:
    file = write_tar(tmp_path / "whole.tar", small_tree())
    content = bytearray(file.read_bytes())
    at = content.index(b"train/owl/0.png")
    content[at] ^= 1
    file.write_bytes(content)
    with pytest.raises(DataError, match="bad checksum, no end mark"):
        load_folder(file, tmp_path)


def tar_with(kind: bytes, record: bytes, body: bytes = b"") -> bytes:
    """Three images, and a header before the second that says more of it."""
    images = [content for name, content in small_tree().items() if name.startswith("train")][:3]
    blocks = []
    for number, content in enumerate(images):
        if number == 1:
            extended = tarfile.TarInfo("more")
            extended.type, extended.size = kind, len(record)
            blocks += [extended.tobuf(), record + bytes(-len(record) % 512)]
        member = tarfile.TarInfo(f"train/cat/{number}.png")
        held = body if body and number == 1 else content
        member.size = len(held)
        blocks += [member.tobuf(), held + bytes(-len(held) % 512)]
    return b"".join([*blocks, bytes(1024)])


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE])
def test_an_extended_header_with_a_damaged_digit_is_not_the_end(kind: bytes, tmp_path: Path) -> None:
    file = tmp_path / "damaged.tar"
    file.write_bytes(tar_with(kind, b"00 path=train/cat/b\n"))
    with pytest.raises(
        DataError, match=r"cannot read the archive .*damaged\.tar: invalid header at byte [\d,]+, no end"
    ):
        load_folder(file, tmp_path)


@pytest.mark.parametrize(
    "record",
    [
        b"20 GNU.sparse.map=x\n",
        b"21 GNU.sparse.size=x\n",
        b"25 GNU.sparse.realsize=x\n",
        b"22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n",
        b"9" * 5000 + b" path=a\n",
    ],
    ids=["map", "size", "real size", "body", "a length of 5,000 digits"],
)
def test_an_extended_header_whose_numbers_are_none_is_named(record: bytes, tmp_path: Path) -> None:
    file = tmp_path / "damaged.tar"
    file.write_bytes(tar_with(tarfile.XHDTYPE, record, body=b"none"))
    with pytest.raises(DataError) as caught:
        load_folder(file, tmp_path)
    assert f"cannot read the archive {file}: " in str(caught.value)
    assert len(str(caught.value)) < 300 + len(str(file))


@pytest.mark.parametrize("content", [b"", b"not an image", b"RIFF\x10\x00\x00\x00WEBPVP8L"])
def test_a_damaged_image_is_named(content: bytes, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "folder", small_tree() | {"train/dog/bad.webp": content})
    with pytest.raises(DataError, match=r"train/dog/bad\.webp in .*folder is (empty|not an image|damaged)"):
        load_folder(folder, tmp_path)


def test_a_cut_off_webp_is_named(tmp_path: Path) -> None:
    file = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, "WEBP", lossless=True)
    for end in (30, 100, len(file.getvalue()) // 2):
        folder = write_folder(tmp_path / str(end), small_tree() | {"test/dog/cut.webp": file.getvalue()[:end]})
        with pytest.raises(DataError, match=r"test/dog/cut\.webp"):
            load_folder(folder, tmp_path)


@pytest.mark.filterwarnings("ignore")  # the refusal must not come from the warning filter of the tests
def test_a_decompression_bomb_is_refused(tmp_path: Path) -> None:
    header = struct.pack(">IIBBBBB", 12_000, 12_000, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(bytes(100)))]
    bomb = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )
    folder = write_folder(tmp_path / "folder", small_tree() | {"train/cat/bomb.png": bomb})
    with pytest.raises(DataError, match=r"bomb\.png.* has 12,000 x 12,000 pixels; at most 89 megapixels"):
        load_folder(folder, tmp_path)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"train/cat/notes.txt": b"x"}, r"train/cat/notes\.txt in .* is not an image"),
        ({"train/stray.png": b"x"}, r"train/stray\.png in .* is out of place"),
        ({"train/cat/deep/0.png": b"x"}, r"train/cat/deep.* in .* is out of place"),
        ({"train/emu/0.png": png(np.zeros((8, 8, 3), np.uint8))}, r"test/ has no image of emu"),
    ],
)
def test_what_does_not_fit_the_layout_is_named(entries: dict[str, bytes], message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        load_folder(write_folder(tmp_path / "folder", small_tree() | entries), tmp_path)
    with pytest.raises(DataError, match=message):
        load_folder(write_tar(tmp_path / "archive.tar", small_tree() | entries), tmp_path)


def test_an_empty_class_folder_is_an_error(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "folder", small_tree())
    for split in ("train", "test"):
        (folder / split / "yak").mkdir()
    with pytest.raises(DataError, match="train/ has no image of yak"):
        load_folder(folder, tmp_path)


def test_the_same_archive_twice_is_an_error(tmp_path: Path) -> None:
    file = write_tar(tmp_path / "a.tar", small_tree())
    with pytest.raises(DataError, match="comes a second time"):
        load_folder([str(file), str(file)], tmp_path)


def test_places_without_images_say_what_is_expected(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no file or folder .*nowhere.*looked from"):
        load_folder(tmp_path / "nowhere", tmp_path)
    with pytest.raises(DataError, match="neither train/ and test/ nor a tar archive"):
        load_folder(tmp_path, tmp_path)
    with pytest.raises(DataError, match="empty list"):
        load_folder([], tmp_path)
    with pytest.raises(DataError, match=r"cannot read .*test"):
        load_folder(write_folder(tmp_path / "half", {"train/cat/0.png": b"x"}), tmp_path)
    with pytest.raises(DataError, match="tar -C DIR -cf FILE train test"):
        load_folder(write_tar(tmp_path / "deeper.tar", {"mine/train/cat/0.png": b"x"}), tmp_path)
    (tmp_path / "text.tar").write_bytes(b"hello")
    with pytest.raises(DataError, match=r"cannot read the archive .*text\.tar"):
        load_folder(tmp_path / "text.tar", tmp_path)


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("~nobody-of-this-name/images", "leads nowhere: "),
        ("x" * 300, "xxx...: File name too long; correct `path`"),
        (f"images/{'x' * 100_000}", "xxx...: File name too long; correct `path`"),
    ],
    ids=["a home of nobody", "a name that is too long", "a name that no message repeats"],
)
def test_a_place_that_cannot_be_looked_at_is_a_sentence(path: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        load_folder([path], tmp_path)
    assert says in str(caught.value)
    assert "; correct `path` of image_folder" in str(caught.value)
    assert len(str(caught.value)) < 300


def test_a_folder_that_may_not_be_entered_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_folder(tmp_path / "folder", small_tree())
    is_dir = Path.is_dir

    def refused(self: Path) -> bool:
        if self.parent == folder / "train":
            raise PermissionError(13, "Permission denied")
        return is_dir(self)

    monkeypatch.setattr(Path, "is_dir", refused)
    with pytest.raises(DataError, match=r"cannot read .*: Permission denied; correct `path` of image_folder, or its"):
        load_folder(folder, tmp_path)


def test_other_sizes_and_modes_become_rgb_squares(tmp_path: Path) -> None:
    wide = np.zeros((20, 40, 3), np.uint8)
    wide[:, 10:30] = 200  # the centre crop keeps just this
    grey, clear = io.BytesIO(), io.BytesIO()
    Image.fromarray(wide[..., 0]).save(grey, "PNG")
    Image.fromarray(wide).convert("RGBA").save(clear, "PNG")
    contents = {"rgb": png(wide), "grey": grey.getvalue(), "rgba": clear.getvalue()}
    entries = {f"{split}/{name}/0.png": content for split in ("train", "test") for name, content in contents.items()}
    data = load_folder(write_folder(tmp_path / "folder", entries), tmp_path)
    assert data.train_images.shape == (3, 3, 8, 8)
    assert (data.train_images[..., 2:6] == 200).all()
    larger = load_folder(tmp_path / "folder", tmp_path, image_size=24)
    assert larger.image_size_px == 24


@pytest.mark.parametrize("size", [(1_000_000, 1), (1, 1_000_000), (101, 1), (70_000_000, 1)])
def test_a_line_of_a_million_pixels_is_refused_before_it_is_resized(size: tuple[int, int], tmp_path: Path) -> None:
    file = io.BytesIO()
    Image.new("L", size).save(file, "PNG")
    folder = write_folder(tmp_path / "folder", small_tree() | {"train/dog/line.png": file.getvalue()})
    with pytest.raises(
        DataError, match=r"train/dog/line\.png in .* has [\d,]+ x [\d,]+ pixels, and one side may be at most"
    ):
        load_folder(folder, tmp_path)


def test_a_banner_is_still_resized_whole_and_then_cut(tmp_path: Path) -> None:
    """So its bits, and with them the fingerprints of trainings on it, stay what they were."""
    pixels = np.random.default_rng(0).integers(0, 256, (4, 400, 3), dtype=np.uint8)
    found = open_picture(png(pixels), 8, as_stored=True).pixels
    expected = Image.fromarray(pixels).resize((800, 8), Image.Resampling.BILINEAR).crop((396, 0, 404, 8))
    np.testing.assert_array_equal(found.transpose(1, 2, 0), np.asarray(expected))


@pytest.mark.parametrize("size", [0, 1025])
def test_images_have_sizes_that_fit_into_the_memory(size: int) -> None:
    with pytest.raises(ValidationError, match="image_size"):
        DATA.options("image_folder").model_validate({"path": "images", "image_size": size})


def test_sixteen_bit_images_are_not_clipped_in_silence(tmp_path: Path) -> None:
    deep = png(np.full((8, 8), 40_000, np.uint16))
    with pytest.raises(DataError, match="more than 8 bits"):
        load_folder(write_folder(tmp_path / "folder", small_tree() | {"train/cat/deep.png": deep}), tmp_path)


# --- what is kept ---


def kept_files(root: Path) -> list[Path]:
    return sorted((root / "decoded").glob("*.safetensors"))


def test_images_are_decoded_once_and_again_when_a_file_changes(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "folder", small_tree())
    first = load_folder(folder, tmp_path)
    calls: list[str] = []
    again = load_data(
        "image_folder",
        {"path": str(folder), "image_size": 8},
        root=tmp_path,
        report=lambda what, done, total: calls.append(what),
    )
    assert_equal(first, again)
    assert not calls
    assert len(kept_files(tmp_path)) == 1
    write_folder(folder, {"train/cat/more.png": png(np.zeros((8, 8, 3), np.uint8))})
    assert load_folder(folder, tmp_path).num_train_full == 13
    assert load_folder(folder, tmp_path, image_size=4).image_size_px == 4
    assert len(kept_files(tmp_path)) == 3


@pytest.mark.parametrize("damage", ["cut", "empty", "flipped", "foreign"])
def test_a_damaged_kept_file_is_made_again(damage: str, tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    folder = write_folder(tmp_path / "folder", small_tree())
    first = load_folder(folder, tmp_path)
    (file,) = kept_files(tmp_path)
    content = file.read_bytes()
    if damage == "cut":
        file.write_bytes(content[:-100])
    elif damage == "empty":
        file.write_bytes(b"")
    elif damage == "flipped":
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    else:
        save_file({"x": np.zeros(3)}, file)
    assert_equal(load_folder(folder, tmp_path), first)
    assert file.stat().st_size == len(content)
    calls: list[str] = []
    options = {"path": str(folder), "image_size": 8}
    load_data("image_folder", options, root=tmp_path, report=lambda what, done, total: calls.append(what))
    assert not calls


def test_a_root_that_cannot_be_written_only_costs_time(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "folder", small_tree())
    writable = load_folder(folder, tmp_path / "writable")
    blocked = tmp_path / "blocked"
    blocked.write_text("a file where the folder should be: refused even to the superuser")
    assert_equal(load_folder(folder, blocked), writable)
    read_only = tmp_path / "read_only"
    (read_only / "decoded").mkdir(parents=True)
    (read_only / "decoded").chmod(0o555)
    try:
        assert_equal(load_folder(folder, read_only), writable)
    finally:
        (read_only / "decoded").chmod(0o755)


def load_in_process(path: str, root: str, decoded: Any) -> str:
    def report(what: str, done: int, total: int | None) -> None:
        if what.startswith("decoding"):
            decoded.put(os.getpid())

    return load_data("image_folder", {"path": path, "image_size": 8}, root=Path(root), report=report).digest


def test_four_processes_at_once_decode_once(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "folder", small_tree(num_train=60))
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager, context.Pool(4) as pool:
        decoded = manager.Queue()
        digests = pool.starmap(load_in_process, [(str(folder), str(tmp_path), decoded)] * 4, chunksize=1)
        assert decoded.qsize() == 1
        pool.close()
        pool.join()
    assert set(digests) == {load_folder(folder, tmp_path).digest}
    assert not list((tmp_path / "decoded").glob("*.part"))


def test_the_root_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CIFAR_ABLATE_DATA", str(tmp_path))
    assert data_root() == tmp_path
    monkeypatch.delenv("CIFAR_ABLATE_DATA")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert data_root() == tmp_path / "cifar-ablate"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert data_root() == Path.home() / ".cache" / "cifar-ablate"


def test_an_unknown_source_suggests_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'cifar10'"):
        load_data("cifar_10", {}, root=tmp_path)


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = (
        "import sys; from cifar_ablate.data import load_data; from cifar_ablate.registry import DATA; DATA.names();"
        "print({'torch', 'torchvision', 'sklearn', 'PIL', 'safetensors'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


# --- the official archives ---


class Python2Pickler(pickle._Pickler):
    """Writes bytes as Python 2 wrote its strings, as the official batches have them."""

    dispatch = pickle._Pickler.dispatch.copy()

    def save_str2(self, text: bytes) -> None:
        self.write(b"T" + struct.pack("<i", len(text)) + text)

    dispatch[bytes] = save_str2


def official_pickle(content: Any) -> bytes:
    file = io.BytesIO()
    Python2Pickler(file, protocol=2).dump(content)
    return file.getvalue().replace(b"numpy._core.multiarray", b"numpy.core.multiarray")


def official_archive(file: Path, entries: dict[str, bytes]) -> cifar.Official:
    """Write a small archive in the official layout and return what describes it."""
    folder = "cifar-10-batches-py"
    write_tar(file, {f"{folder}/{name}": content for name, content in entries.items()}, "w:gz")
    return cifar.Official(
        url="http://127.0.0.1:9/cifar-10-python.tar.gz",
        filename=file.name,
        md5=hashlib.md5(file.read_bytes()).hexdigest(),
        folder=folder,
        train_files=("data_batch_1", "data_batch_2"),
        test_files=("test_batch",),
        meta_file="batches.meta",
        classes_key="label_names",
        label_key="labels",
    )


def official_entries() -> dict[str, bytes]:
    random = np.random.default_rng(5)
    entries = {"batches.meta": official_pickle({b"label_names": [b"cat", b"dog"]}), "readme.html": b"<html>"}
    for name in ("data_batch_1", "data_batch_2", "test_batch"):
        data = random.integers(0, 256, (4, 3072), dtype=np.uint8)
        entries[name] = official_pickle({b"batch_label": b"x", b"labels": [0, 1, 1, 0], b"data": data})
    return entries


def test_an_official_archive_is_read_as_torchvision_reads_it(tmp_path: Path) -> None:
    entries = official_entries()
    raw = cifar.read_official(tmp_path / "a.tar.gz", official_archive(tmp_path / "a.tar.gz", entries), silent)
    first = pickle.loads(entries["data_batch_1"], encoding="latin1")  # ours, written three lines above
    np.testing.assert_array_equal(raw.train_images[:4], first["data"].reshape(4, 3, 32, 32).transpose(0, 2, 3, 1))
    assert raw.train_labels.tolist() == [0, 1, 1, 0] * 2
    assert raw.test_images.shape == (4, 32, 32, 3)
    assert raw.classes == ("cat", "dog")
    assert canonical("x", raw).train_images.shape == (8, 3, 32, 32)


def test_an_official_archive_with_another_md5_is_not_read(tmp_path: Path) -> None:
    official = official_archive(tmp_path / "a.tar.gz", official_entries())
    with pytest.raises(DataError, match="delete it and run again"):
        cifar.read_official(tmp_path / "a.tar.gz", replace(official, md5="0" * 32), silent)


class Hostile:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch hostile",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (pickle.dumps(Hostile(), 2), r"it names posix\.system"),
        (b"cbuiltins\neval\n(S'1'\ntR.", r"it names builtins\.eval"),
        (b"cnumpy.lib.npyio\nload\n.", "it names numpy"),
        (pickle.dumps([1]), "holds a list"),
        (b"\x80\x02}", "cannot read"),
    ],
)
def test_a_hostile_pickle_is_refused(
    content: bytes, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    official = official_archive(tmp_path / "a.tar.gz", official_entries() | {"data_batch_2": content})
    with pytest.raises(DataError, match=message):
        cifar.read_official(tmp_path / "a.tar.gz", official, silent)
    assert not (tmp_path / "hostile").exists()


def test_an_official_archive_without_a_batch_names_it(tmp_path: Path) -> None:
    entries = official_entries()
    del entries["test_batch"]
    official = official_archive(tmp_path / "a.tar.gz", entries)
    with pytest.raises(DataError, match="has no test_batch"):
        cifar.read_official(tmp_path / "a.tar.gz", official, silent)


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_torchvision_says_what_the_reader_asks_it(name: str) -> None:
    from torchvision import datasets

    official = cifar.Official.of(getattr(datasets, name.upper()), label_key="labels")
    assert official.filename == {"cifar10": "cifar-10-python.tar.gz", "cifar100": "cifar-100-python.tar.gz"}[name]
    assert len(official.md5) == 32
    assert official.url.startswith("https://")


class Answer(io.BytesIO):
    """What urlopen gives; the connection breaks after ``breaks_at`` bytes."""

    def __init__(self, content: bytes, breaks_at: int | None = None) -> None:
        super().__init__(content)
        self.headers = {"Content-Length": str(len(content))}
        self.breaks_at = breaks_at

    def read(self, size: int | None = -1, /) -> bytes:
        if self.breaks_at is not None and self.tell() >= self.breaks_at:
            raise ConnectionResetError("connection reset")
        return super().read(min(size or 1, 1000))


def test_without_a_network_the_error_says_where_to_put_what(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: Any, **__: Any) -> None:
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(urllib.request, "urlopen", unreachable)
    root = tmp_path / "root"
    for name, archive in (("cifar10", "cifar-10-python.tar.gz"), ("cifar100", "cifar-100-python.tar.gz")):
        with pytest.raises(DataError, match="no route to host") as caught:
            load_data(name, {}, root=root)
        for part in (archive, str(root), "image_folder"):
            assert part in str(caught.value)
        assert "\n" not in str(caught.value)
    assert [path for path in root.iterdir() if path.name != "decoded"] == []


def test_a_download_is_whole_and_verified_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = bytes(range(256)) * 40
    md5 = hashlib.md5(content).hexdigest()
    target = tmp_path / "file"
    seen: list[tuple[int, int | None]] = []

    def fetch(answer: Answer) -> None:
        monkeypatch.setattr(urllib.request, "urlopen", lambda *_, **__: answer)
        download("https://x.invalid/file", target, md5, lambda _, *count: seen.append(count), otherwise="do this")

    for answer in (Answer(content, breaks_at=3000), Answer(content[:-1]), Answer(b"<html>sign in</html>")):
        with pytest.raises(DataError, match="do this"):
            fetch(answer)
        assert list(tmp_path.iterdir()) == []
    fetch(Answer(content))
    assert target.read_bytes() == content
    assert seen[-1] == (len(content), len(content))
    assert list(tmp_path.iterdir()) == [target]


def test_a_download_into_a_place_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="CIFAR_ABLATE_DATA"):
        download("https://x.invalid/a", tmp_path / "file" / "a", "", silent, otherwise="")


def test_a_folder_copy_that_is_not_cifar10_is_not_taken_for_it(tmp_path: Path) -> None:
    write_folder(tmp_path / "cifar10", small_tree(size_px=32))
    with pytest.raises(DataError, match="12 training and 6 test images in 3 classes are not CIFAR-10"):
        load_data("cifar10", {}, root=tmp_path)


# --- the real CIFAR-10 ---


@pytest.mark.slow
@pytest.mark.real
def test_the_real_cifar10_is_what_everybody_calls_cifar10(cifar_root: Path) -> None:
    data = load_data("cifar10", {}, root=cifar_root)
    assert data.describe() == "cifar10: all 50,000 training images, all 10,000 test images"
    assert data.digest == cifar.CIFAR10_DIGEST
    assert data.classes[:3] == ("airplane", "automobile", "bird")
    assert np.bincount(data.train_labels).tolist() == [5000] * 10
    assert np.bincount(data.test_labels).tolist() == [1000] * 10
    mean = data.train_images.mean(axis=(0, 2, 3)) / 255
    np.testing.assert_allclose(mean, [0.4914, 0.4822, 0.4465], atol=1e-4)  # as every published recipe has it


@pytest.mark.real
def test_a_subset_of_the_real_cifar10_is_nested_and_stratified(cifar_root: Path) -> None:
    large = load_data("cifar10", {}, train_size=5000, root=cifar_root)
    small = load_data("cifar10", {}, train_size=1000, root=cifar_root)
    assert large.describe() == "cifar10: 5,000 of 50,000 training images, all 10,000 test images"
    assert np.bincount(large.train_labels).tolist() == [500] * 10
    assert np.bincount(small.train_labels).tolist() == [100] * 10
    assert {image.tobytes() for image in small.train_images} < {image.tobytes() for image in large.train_images}


@pytest.mark.slow
@pytest.mark.real
def test_half_of_the_real_cifar10_is_a_stratified_image_folder(
    real_archives: list[Path], cifar_root: Path, tmp_path: Path
) -> None:
    half = load_data("image_folder", {"path": str(real_archives[0])}, root=tmp_path)
    assert half.describe() == "image_folder: all 25,000 training images, all 5,000 test images"
    assert np.bincount(half.train_labels).tolist() == [2500] * 10
    whole = {image.tobytes() for image in load_data("cifar10", {}, root=cifar_root).train_images}
    assert all(image.tobytes() in whole for image in half.train_images)


@pytest.mark.slow
@pytest.mark.real
def test_extracted_real_images_equal_those_in_their_archive(real_archives: list[Path], tmp_path: Path) -> None:
    entries: dict[str, bytes] = {}
    counts: dict[str, int] = {}
    with tarfile.open(real_archives[1], "r|xz") as archive:
        for member in archive:
            class_folder = member.name.rpartition("/")[0]
            if member.isreg() and counts.get(class_folder, 0) < 3:
                file = archive.extractfile(member)
                assert file is not None
                entries[member.name] = file.read()
                counts[class_folder] = counts.get(class_folder, 0) + 1
    assert len(entries) == 60
    folder = load_folder(write_folder(tmp_path / "folder", entries), tmp_path, image_size=32)
    archived = load_folder(write_tar(tmp_path / "part.tar.xz", entries, "w:xz"), tmp_path, image_size=32)
    assert_equal(folder, archived)
