"""Images that somebody sent: archives and folders that are made to lead out, to fill the memory, or never to end."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import resource
import struct
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import Answer, Workshop
from tests.test_data import small_tree, write_folder, write_tar

SECONDS, MEGABYTES = 120.0, 600
"""At most, of the processor and of memory beside what was there: on a bomb that unpacks to gigabytes."""
STUDY = """
    study: sent
    question: Are these images safe to open?
    seeds: 1
    recipe:
      data: {name: image_folder, path: sent%s, image_size: 8}
      model: {name: resnet18-compact, width: 4}
      epochs: 1
      batch_size: 4
      optimizer: {name: sgd, lr: 0.05}
    arms: {baseline: null, flip: {augment: {hflip: {}}}}
"""


@pytest.fixture
def opened(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Answer]]:
    """Runs a study on what was sent, and sees that the answer is quick, small, and leaves nothing outside."""
    monkeypatch.setenv("CIFAR_ABLATE_DATA", str(workshop.folder / "data"))
    outside = workshop.folder.parent / f"{workshop.folder.name}-outside"
    outside.mkdir()
    (outside / "secret.png").write_bytes(next(iter(small_tree().values())))

    def run(suffix: str = "") -> Answer:
        workshop.write("sent.yaml", STUDY % suffix)
        before, began = resource.getrusage(resource.RUSAGE_SELF), time.process_time()
        answer = workshop("run", "sent.yaml", "--offline")
        after = resource.getrusage(resource.RUSAGE_SELF)
        assert time.process_time() - began < SECONDS
        assert (after.ru_maxrss - before.ru_maxrss) / 1024 < MEGABYTES
        return answer

    yield run
    assert sorted(outside.iterdir()) == [outside / "secret.png"]
    assert not list(workshop.folder.parent.glob("evil*"))


def is_one_sentence(answer: Answer, *words: str) -> None:
    assert answer.code == 1, answer
    assert answer.err.count("\n") == 1, answer.err
    assert "Traceback" not in answer.out + answer.err
    for word in words:
        assert word in answer.err


OPENERS = {".tar.gz": gzip.open, ".tar.xz": lzma.open, ".tar.bz2": bz2.open}


def header(name: str, kind: bytes, size: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, size
    return info.tobuf(tarfile.GNU_FORMAT)


def bomb(path: Path, beginning: bytes, megabytes: int) -> None:
    """A small archive whose bytes go on with so many of nothing; written a megabyte at a time."""
    opener = OPENERS["".join(path.suffixes[-2:])]
    with opener(path, "wb") as file:  # type: ignore[operator]
        file.write(beginning)
        for _ in range(megabytes):
            file.write(bytes(1 << 20))
    assert path.stat().st_size < megabytes << 20 >> 6


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK])
def test_a_header_of_a_gigabyte_is_refused_before_it_is_read(
    kind: bytes, workshop: Workshop, opened: Callable[[str], Answer]
) -> None:
    (workshop.folder / "sent.tar").write_bytes(header("x", kind, 1 << 30) + bytes(1 << 20))
    is_one_sentence(opened(".tar"), "a header of 1,073,741,824 bytes")


@pytest.mark.slow
@pytest.mark.parametrize("suffix", OPENERS)
def test_an_archive_that_unpacks_to_gigabytes_after_its_end_is_refused(
    suffix: str, workshop: Workshop, opened: Callable[[str], Answer]
) -> None:
    tree = write_tar(workshop.folder / "tree.tar", small_tree()).read_bytes()
    bomb(workshop.folder / f"sent{suffix}", tree, 600)
    is_one_sentence(opened(suffix), "it unpacks to over", "use an archive of plain image files")


def test_an_archive_of_many_large_files_beside_the_images_is_refused(
    workshop: Workshop, opened: Callable[[str], Answer]
) -> None:
    file = header("notes/zeros.bin", tarfile.REGTYPE, 60 << 20) + bytes(60 << 20)
    with gzip.open(workshop.folder / "sent.tar.gz", "wb", 1) as packed:
        for _ in range(6):
            packed.write(file)
    is_one_sentence(opened(".tar.gz"), "it unpacks to over")


@pytest.mark.slow
def test_an_archive_of_a_million_folders_is_refused(workshop: Workshop, opened: Callable[[str], Answer]) -> None:
    folders = b"".join(header(f"train/{number}", tarfile.DIRTYPE, 0) for number in range(1000))
    with gzip.open(workshop.folder / "sent.tar.gz", "wb", 1) as packed:
        for _ in range(1000):
            packed.write(folders)
    is_one_sentence(opened(".tar.gz"), "is one of more than 50,000 folders")


def test_headers_that_follow_each_other_without_end_are_refused(
    workshop: Workshop, opened: Callable[[str], Answer]
) -> None:
    (workshop.folder / "sent.tar").write_bytes(header("x", tarfile.XHDTYPE, 0) * 100_000)
    is_one_sentence(opened(".tar"), "cannot read the archive")


@pytest.mark.parametrize("format", ["base256", "pax"])
def test_a_negative_size_is_refused(format: str, workshop: Workshop, opened: Callable[[str], Answer]) -> None:
    info = tarfile.TarInfo("train/cat/a.png")
    if format == "pax":
        info.pax_headers = {"size": "-512"}
        content = info.tobuf(tarfile.PAX_FORMAT)
    else:
        block = bytearray(info.tobuf(tarfile.GNU_FORMAT))
        block[124:136] = b"\xff" * 10 + struct.pack(">h", -512)
        block[148:156] = b" " * 8
        block[148:156] = b"%06o\0 " % sum(block)
        content = bytes(block)
    (workshop.folder / "sent.tar").write_bytes(content + bytes(1024))
    is_one_sentence(opened(".tar"), "negative size")


@pytest.mark.parametrize(
    "name", ["../evil.png", "train/../../evil.png", "/tmp/evil.png", "train/cat/../../../evil.png"]
)
def test_a_member_that_leads_out_is_refused(name: str, workshop: Workshop, opened: Callable[[str], Answer]) -> None:
    write_tar(workshop.folder / "sent.tar.gz", small_tree() | {name: b"x"}, "w:gz")
    is_one_sentence(opened(".tar.gz"), "leads out of the archive")


@pytest.mark.parametrize(
    "kind",
    [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, tarfile.GNUTYPE_SPARSE],
)
def test_links_devices_and_files_with_holes_are_refused(
    kind: bytes, workshop: Workshop, opened: Callable[[str], Answer]
) -> None:
    member = tarfile.TarInfo("train/cat/link.png")
    member.type, member.linkname = kind, "/etc/passwd"
    write_tar(workshop.folder / "sent.tar", small_tree(), "w", (member,))
    is_one_sentence(opened(".tar"), "sent.tar")


def test_what_a_member_is_called_cannot_command_the_terminal(
    workshop: Workshop, opened: Callable[[str], Answer]
) -> None:
    write_tar(workshop.folder / "sent.tar", small_tree() | {"train/cat/\x1b[2J\n\u202ea.png": b"no image"})
    answer = opened(".tar")
    is_one_sentence(answer, "is not an image in a known format")
    assert not {"\x1b", "\u202e"} & set(answer.out + answer.err)


@pytest.mark.parametrize("name", ["ca\x1b[2Jt", "ca\nt", "\u202etac", "c" * 300])
def test_a_class_has_a_name_that_can_be_shown(name: str, workshop: Workshop, opened: Callable[[str], Answer]) -> None:
    tree = {entry.replace("/cat/", f"/{name}/"): content for entry, content in small_tree().items()}
    write_tar(workshop.folder / "sent.tar", tree)
    answer = opened(".tar")
    is_one_sentence(answer, "is not a valid class name", "rename it")
    assert not {"\x1b", "\u202e"} & set(answer.out + answer.err)


def test_a_zip_is_not_read_at_all(workshop: Workshop, opened: Callable[[str], Answer]) -> None:
    import zipfile

    with zipfile.ZipFile(workshop.folder / "sent.zip", "w") as file:
        file.writestr("train/cat/../../../evil.png", b"x")
    is_one_sentence(opened(".zip"), "cannot read the archive")


@pytest.mark.parametrize("place", ["train", "train/cat", "train/cat/stolen.png"])
@pytest.mark.parametrize("target", ["absolute", "relative"])
def test_a_link_out_of_a_folder_is_refused(
    place: str, target: str, workshop: Workshop, opened: Callable[[str], Answer]
) -> None:
    folder = write_folder(workshop.folder / "sent", small_tree())
    outside = workshop.folder.parent / f"{workshop.folder.name}-outside"
    link = folder / place
    if link.exists():
        link.rename(workshop.folder / "away")
    to = outside / "secret.png" if place.endswith("png") else outside
    link.symlink_to(to if target == "absolute" else os.path.relpath(to, link.parent))
    is_one_sentence(opened(""), "is a link that leads out of", "copy the images there")


def test_links_within_a_folder_and_to_a_whole_folder_are_followed(
    workshop: Workshop, opened: Callable[[str], Answer]
) -> None:
    folder = write_folder(workshop.folder / "far" / "away", small_tree())
    (folder / "train/cat/0.png").rename(folder / "train/cat-0.png")
    (folder / "train/cat/0.png").symlink_to("../cat-0.png")
    (folder / "train/cat-0.png").rename(folder / "kept.png")
    (folder / "train/cat/0.png").unlink()
    (folder / "train/cat/0.png").symlink_to("../../kept.png")
    (workshop.folder / "sent").symlink_to(folder)
    assert opened("").code == 0


def test_a_pipe_among_the_images_is_not_waited_for(workshop: Workshop, opened: Callable[[str], Answer]) -> None:
    folder = write_folder(workshop.folder / "sent", small_tree())
    os.mkfifo(folder / "train/cat/pipe.png")
    is_one_sentence(opened(""), "pipe.png is not a file")


def test_a_file_without_end_among_the_images_is_not_read(workshop: Workshop, opened: Callable[[str], Answer]) -> None:
    folder = write_folder(workshop.folder / "sent", small_tree())
    with (folder / "train/cat/zeros.png").open("wb") as file:
        file.truncate(1 << 40)
    is_one_sentence(opened(""), "zeros.png is larger than 64 MiB")


def test_a_picture_that_unpacks_to_gigabytes_is_refused(workshop: Workshop, opened: Callable[[str], Answer]) -> None:
    import zlib

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    large = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    content = io.BytesIO(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", large) + chunk(b"IDAT", zlib.compress(bytes(1 << 20))))
    write_tar(workshop.folder / "sent.tar", small_tree() | {"train/cat/bomb.png": content.getvalue()})
    is_one_sentence(opened(".tar"), "bomb.png", "decompression bomb")
