"""Random access to the files of a folder, a tar or a zip, by name."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import shutil
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Any, Protocol

from peco.core.errors import PecoError

# Exceptions of damaged archives, with any compression.
DAMAGE = (tarfile.TarError, zipfile.BadZipFile, lzma.LZMAError, zlib.error, EOFError, OSError)

_COMPRESSED: dict[bytes, Callable[..., Any]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ\x00": lzma.open,
}


class StrictTarInfo(tarfile.TarInfo):
    """Header that makes a damaged archive an error: tarfile itself takes a bad header for the end of the archive."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> StrictTarInfo:
        try:
            return super().fromtarfile(archive)
        except (tarfile.InvalidHeaderError, tarfile.TruncatedHeaderError) as error:  # type: ignore[attr-defined]
            raise tarfile.ReadError(f"{error} at byte {archive.offset}") from None


class Archive(Protocol):
    """Files by name: paths relative to the top, with forward slashes."""

    def names(self) -> list[str]: ...

    def read(self, name: str) -> bytes: ...


def open_archive(path: Path, work: Path) -> Archive:
    """Open a folder, a zip, or a tar, which may be compressed.

    Args:
        path: recognised by its content, not by its name.
        work: folder for the temporary, unpacked copy of a compressed tar, which allows no random access.

    Raises:
        PecoError: it is missing, unreadable, damaged, or of another kind.
    """
    expected = "expected a folder, a tar, a tar.gz or a zip of images"
    if path.is_dir():
        return _Folder(path)
    try:
        with open(path, "rb") as file:
            start = file.read(8)
        return _Zip(path) if start.startswith(b"PK") else _Tar(path, start, work)
    except FileNotFoundError:
        raise PecoError(f"{path}: no such file or folder; {expected}") from None
    except DAMAGE as error:
        raise PecoError(f"{path}: can't be read as an archive ({error}); {expected}") from None


class _Folder:
    def __init__(self, root: Path) -> None:
        self._root = root

    def names(self) -> list[str]:
        return list(self._walk())

    def _walk(self) -> Iterator[str]:
        def fail(error: OSError) -> None:
            raise PecoError(f"{error.filename}: can't be read ({error.strerror}); check its permissions")

        for folder, folders, files in os.walk(self._root, onerror=fail):
            folders[:] = [name for name in folders if not is_hidden(name)]
            below = Path(folder).relative_to(self._root)
            yield from ((below / name).as_posix() for name in files)

    def read(self, name: str) -> bytes:
        try:
            return (self._root / name).read_bytes()
        except OSError as error:
            raise PecoError(f"{self._root / name}: can't be read ({error.strerror}); check its permissions") from None


class _Tar:
    def __init__(self, path: Path, start: bytes, work: Path) -> None:
        self._path = path
        self._file: IO[bytes] = open(path, "rb")  # noqa: SIM115 (kept open for `read`)
        for magic, unpack in _COMPRESSED.items():
            if start.startswith(magic):
                work.mkdir(parents=True, exist_ok=True)
                self._file = tempfile.TemporaryFile(dir=work)  # noqa: SIM115
                with unpack(path, "rb") as packed:
                    shutil.copyfileobj(packed, self._file)
                self._file.seek(0)
        self._spans: dict[str, tuple[int, int]] = {}  # offset and size in bytes; of equal names the last counts
        with tarfile.open(fileobj=self._file, mode="r:", tarinfo=StrictTarInfo) as archive:
            for member in archive:
                name = _tidy(member.name)
                if member.isreg():
                    self._spans[name] = (member.offset_data, member.size)
                elif member.islnk() and _tidy(member.linkname) in self._spans:
                    self._spans[name] = self._spans[_tidy(member.linkname)]
                archive.members = []  # type: ignore[attr-defined]  # or tarfile keeps every header

    def names(self) -> list[str]:
        return list(self._spans)

    def read(self, name: str) -> bytes:
        offset, size = self._spans[name]
        try:
            self._file.seek(offset)
            return self._file.read(size)
        except OSError as error:
            raise PecoError(f"{self._path}: can't be read ({error.strerror}); fix that and run again") from None


class _Zip:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._zip = zipfile.ZipFile(path)
        self._names = {_tidy(i.filename): i.filename for i in self._zip.infolist() if not i.is_dir()}

    def names(self) -> list[str]:
        return list(self._names)

    def read(self, name: str) -> bytes:
        try:
            return self._zip.read(self._names[name])
        except (
            *DAMAGE,
            RuntimeError,
            NotImplementedError,
        ) as error:  # the last two: a password, an unknown compression
            raise PecoError(f"{self._path}: {name} can't be unpacked ({error}); write the zip again") from None


def is_hidden(part: str) -> bool:
    """True for the names of files and folders that operating systems add and hide."""
    return part.startswith(".") or part == "__MACOSX"


def _tidy(name: str) -> str:
    return "/".join(part for part in PurePosixPath(name).parts if part not in ("/", "."))
