"""Random access to the files of a folder, a tar or a zip, by name."""

from __future__ import annotations

import os
import re
import stat
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from peco.core.errors import PecoError
from peco.files.damage import DAMAGE, damage_reason
from peco.files.links import OUT_OF_IT, Lost, resolve_links
from peco.files.names import by_tidy_name, is_hidden, tidy
from peco.files.tar_archive import TarArchive, several_of_a_name

# Of zip files also: a password, and compressions or versions that Python doesn't know.
_ZIP_DAMAGE = (*DAMAGE, RuntimeError, NotImplementedError)
_MAX_MEMBER = 1 << 30  # bytes of a zip's member; no image is larger, and a damaged size must not fill the memory
_UTF8_NAME = 0x800  # flag of a zip's member
_IMAGENET_TAR = re.compile(r"(.*/)?(ILSVRC2012_img_\w+|n\d{8})\.tar")  # read as folders

EXPECTED = "expected a folder, a tar, a tar.gz or a zip of images"


class Archive(Protocol):
    """Files by name (`peco.files.names.tidy`). Links to files and folders are followed.

    Attributes:
        lost: links that can't be followed.
        notes: sentences for the summary.
    """

    lost: list[Lost]
    notes: list[str]

    def names(self) -> list[str]: ...

    def read(self, name: str) -> bytes:
        """The content of a file.

        Raises:
            PecoError: it can't be read or unpacked.
        """


def open_archive(path: Path, work: Path) -> Archive:
    """Open a folder, a zip, or a tar, which may be compressed.

    Args:
        path: recognised by its content, not by its name.
        work: folder for the temporary, unpacked copy of a compressed tar, which allows no random access.

    Raises:
        PecoError: it is missing, unreadable, damaged, or of another kind; or a link may hide a folder of images.
    """
    if path.is_dir():
        return FolderArchive(path, work)
    try:
        with open(path, "rb") as file:
            start = file.read(8)
        return ZipArchive(path) if start.startswith(b"PK") else TarArchive(path, start, work)
    except FileNotFoundError:
        raise PecoError(f"{path}: no such file or folder; {EXPECTED}") from None
    except _ZIP_DAMAGE as error:
        raise PecoError(f"{path}: can't be read as an archive ({damage_reason(error)}); {EXPECTED}") from None


class FolderArchive:
    """A folder. Links are followed within it; tars of ImageNet count as folders.

    Attributes:
        plain: True if other programs see the same files: no links to folders, and all names are tidy.

    Raises:
        PecoError: a folder can't be listed, or a link leads to a folder outside.
    """

    def __init__(self, root: Path, work: Path) -> None:
        self._root = root
        self._top = Path(os.path.realpath(root))
        self.lost: list[Lost] = []
        self.notes: list[str] = []
        self.plain = True
        self._files = by_tidy_name(sorted(self._walk("", (self._top,))))
        self.plain &= all(short == name for short, name in self._files.items())
        self._members: dict[str, tuple[Path, int, int]] = {}  # of tars in this folder: tar, offset and size
        for name in [name for name in self._files if _IMAGENET_TAR.fullmatch(name)]:
            path = root / self._files[name]
            tar = open_archive(path, work)
            if isinstance(tar, TarArchive):
                del self._files[name]
                folder = name.removesuffix(".tar")
                self._members |= {f"{folder}/{member}": (path, *tar.span(member)) for member in tar.names()}
                self.notes += tar.notes
                tar.close()  # ImageNet has a thousand

    @property
    def files(self) -> dict[str, Path]:
        """Each file of the folder by its name, also links and tars."""
        return {short: self._root / name for short, name in self._files.items()}

    def names(self) -> list[str]:
        return [*self._files, *self._members]

    def read(self, name: str) -> bytes:
        path, offset, size = self._members[name] if name in self._members else (self._root / self._files[name], 0, -1)
        try:
            with path.open("rb") as file:
                file.seek(offset)
                return file.read(size)
        except OSError as error:
            raise PecoError(f"{path}: can't be read ({error.strerror}); check its permissions") from None

    def _walk(self, folder: str, above: tuple[Path, ...]) -> Iterator[str]:
        """Files below a folder of the root, with those behind links. `above` are the real paths of the folders above."""
        try:
            entries = sorted(os.scandir(self._root / folder), key=lambda entry: entry.name)
        except OSError as error:
            if any(map(is_hidden, folder.split("/"))):
                return
            raise PecoError(f"{error.filename}: can't be read ({error.strerror}); check its permissions") from None
        for entry in entries:
            name = f"{folder}/{entry.name}" if folder else entry.name
            link = entry.is_symlink()
            real = Path(os.path.realpath(entry.path)) if link else None
            if real is not None and not self._leads_inside(name, real, above):
                continue
            if real.is_dir() if real is not None else entry.is_dir():
                self.plain &= not link
                yield from self._walk(name, (*above, real or above[-1] / entry.name))
            elif entry.is_file():
                yield name
            else:  # opening a named pipe would wait for ever
                self.lost.append(Lost(tidy(name), "not a regular file"))

    def _leads_inside(self, name: str, real: Path, above: tuple[Path, ...]) -> bool:
        """True for a link to a file or folder of this root; other links are recorded or refused."""
        if os.path.exists(real) and real.is_relative_to(self._top) and real not in above:
            return True
        lost = Lost(tidy(name), "a link in a circle" if real in above else OUT_OF_IT)
        if lost.reason == OUT_OF_IT and (os.path.isdir(real) or lost.may_be_folder):
            raise PecoError(
                f"{self._root / name}: a link to {real}, which is outside of {self._root}; put copies in its place "
                "(`cp -rL` copies what links lead to)"
            )
        self.lost.append(lost)
        return False


class ZipArchive:
    """A zip. Names with backslashes are paths too.

    Raises:
        PecoError: a link leads out of it and may be a folder.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._zip = zipfile.ZipFile(path)
        members, links = {}, {}
        again: dict[str, int] = {}
        for info in self._zip.infolist():
            if info.filename.endswith(("/", "\\")):
                continue
            if info.filename in members:
                again[info.filename] = again.get(info.filename, 0) + 1
            members[info.filename] = info
            if stat.S_ISLNK(info.external_attr >> 16):
                links[info.filename] = info
        tidy_names = by_tidy_name([_zip_name(info) for name, info in members.items() if name not in links])
        by_name = {_zip_name(info): info for info in members.values()}
        self._members = {short: by_name[name] for short, name in tidy_names.items()}
        targets = {tidy(_zip_name(info)): self._unpack(info).decode("utf-8", "replace") for info in links.values()}
        followed, self.lost = resolve_links(str(path), list(self._members), targets)
        self._members |= {name: self._members[target] for name, target in followed.items()}
        self.notes = [several_of_a_name(again)] if again else []

    def names(self) -> list[str]:
        return list(self._members)

    def read(self, name: str) -> bytes:
        return self._unpack(self._members[name])

    def _unpack(self, info: zipfile.ZipInfo) -> bytes:
        try:
            if info.file_size > _MAX_MEMBER:
                raise ValueError(f"{info.file_size} bytes")
            return self._zip.read(info)
        except _ZIP_DAMAGE as error:
            raise PecoError(
                f"{self._path}: {tidy(info.filename)} can't be unpacked ({damage_reason(error)}); write the zip again"
            ) from None


def _zip_name(info: zipfile.ZipInfo) -> str:
    """Name of a member. Many programs write UTF-8 without its flag; zipfile then reads the bytes as code page 437."""
    if info.flag_bits & _UTF8_NAME:
        return info.filename
    try:
        return info.filename.encode("cp437").decode("utf-8")
    except UnicodeError:
        return info.filename
