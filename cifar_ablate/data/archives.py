"""Read tar archives as a stream: nothing is extracted, and hostile or incomplete archives are refused."""

from __future__ import annotations

import bz2
import gzip
import lzma
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO, cast

from cifar_ablate.errors import DataError

MAX_MEMBER_BYTES = 64 << 20
"""Maximum size of a file in an archive or folder."""
MAX_HEADER_BYTES = 1 << 20
"""Maximum size of an extended header, which tarfile reads into memory whole."""
MAX_FOLDERS = 50_000
"""Maximum number of folders in an archive; ImageNet with 21,841 classes has 43,684."""
BOMB_BYTES, BOMB_RATIO = 256 << 20, 100
"""An archive that unpacks to more than this many bytes and more than this many times its own size is refused."""
CHUNK_BYTES = 1 << 20
DAMAGES = (tarfile.TarError, EOFError, lzma.LZMAError, zlib.error, OSError, ValueError, RecursionError)
_LONG_NAMES = (
    *(tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK),
)


class _WholeTarInfo(tarfile.TarInfo):
    """Member headers of an archive that must end with its end mark.

    ``tarfile`` treats a missing, truncated or damaged header as the end of the archive, unless it is the first. So a
    truncated archive would be read as a smaller data set.
    """

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> _WholeTarInfo:
        """The next member with its extended headers, whose fields may be damaged, too."""
        begin = archive.fileobj.tell() if archive.fileobj is not None else 0
        try:
            return super().fromtarfile(archive)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise  # the end mark
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"{error} at byte {begin:,}, no end mark") from error
        except (ValueError, ArithmeticError) as error:  # the text of the error may repeat a megabyte of damage
            raise tarfile.ReadError(f"a field of the header at byte {begin:,} is not a number") from error

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _WholeTarInfo:
        if len(buf) == tarfile.BLOCKSIZE and not any(buf):
            return super().frombuf(buf, encoding, errors)  # raises EOFHeaderError, with which tarfile ends
        try:
            member = super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"{error}, no end mark") from error
        if member.size < 0:
            raise tarfile.ReadError(f"the member {member.name!r} has a negative size")
        if member.type in _LONG_NAMES and member.size > MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {member.size:,} bytes")
        return member


class _Unpacked:
    """The unpacked bytes of an archive, up to the limit that its size allows."""

    def __init__(self, stream: IO[bytes], path: Path) -> None:
        self.stream, self.path, self.num_bytes = stream, path, 0
        self.most = max(BOMB_BYTES, BOMB_RATIO * path.stat().st_size)

    def read(self, size: int) -> bytes:
        content = self.stream.read(size)
        self.num_bytes += len(content)
        if self.num_bytes > self.most:
            raise DataError(
                f"refused {self.path}: it unpacks to over {self.most >> 20:,} MiB, {BOMB_RATIO} times its own size or "
                "more, which images never do; use an archive of plain image files"
            )
        return content


def archive_entries(path: Path) -> Iterator[tuple[str, bytes | None]]:
    """Names and contents of an archive's members, in its order; the content of a folder is None.

    Args:
        path: A tar archive, plain or compressed with gzip, xz or bzip2, as its first bytes say.

    Raises:
        DataError: The archive is damaged or truncated, exceeds a limit of this module, or has a member that is a link,
            a device, or named outside of the archive.
    """
    num_folders = 0
    try:
        with (
            _decompressed(path) as packed,
            tarfile.open(
                fileobj=cast("IO[bytes]", stream := _Unpacked(packed, path)), mode="r|", tarinfo=_WholeTarInfo
            ) as archive,
        ):
            for member in archive:
                num_folders += member.isdir()
                _refuse_hostile(member, path, num_folders)
                file = archive.extractfile(member)
                yield member.name, None if file is None else file.read()
            while stream.read(CHUNK_BYTES):
                pass  # to the end, where the compression has its checksum
    except DataError:
        raise
    except DAMAGES as error:
        raise DataError(f"cannot read the archive {path}: {error}; fetch or make it again") from error


def _decompressed(path: Path) -> IO[bytes]:
    with path.open("rb") as file:
        magic = file.read(6)
    if magic.startswith(b"\x1f\x8b"):
        return cast("IO[bytes]", gzip.open(path))
    if magic == b"\xfd7zXZ\x00":
        return lzma.open(path)
    if magic.startswith(b"BZh"):
        return bz2.open(path)
    return path.open("rb")


def _refuse_hostile(member: tarfile.TarInfo, path: Path, num_folders: int) -> None:
    name = PurePosixPath(member.name)
    if name.is_absolute() or ".." in name.parts:
        reason = "leads out of the archive"
    elif not (member.isreg() or member.isdir()) or member.issparse():
        reason = "is a link or a device"
    elif member.size < 0:
        reason = "has a negative size"
    elif num_folders > MAX_FOLDERS:
        reason = f"is one of more than {MAX_FOLDERS:,} folders"
    elif member.size > MAX_MEMBER_BYTES:
        reason = f"is larger than {MAX_MEMBER_BYTES >> 20} MiB"
    else:
        return
    raise DataError(f"refused {path}: its member {member.name!r} {reason}; use an archive of plain image files")
