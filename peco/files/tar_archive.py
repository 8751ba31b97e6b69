"""Random access to the members of a tar, also of one that is compressed or holds tars."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import shutil
import tarfile
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

from peco.core.errors import PecoError
from peco.files.damage import StrictTarInfo
from peco.files.links import Lost, resolve_links
from peco.files.names import extension, is_mac_metadata, tidy

COMPRESSED: dict[bytes, Callable[..., Any]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ\x00": lzma.open,
}


def several_of_a_name(again: Mapping[str, int]) -> str:
    """A sentence on members whose names come again, by the number of their earlier ones."""
    first = min(again)
    return f"warning: {sum(again.values())} members are not used, since later ones have their names, such as {first}"


def is_compressed(path: Path) -> bool:
    """True for a file that begins as a compressed tar does."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        start = file.read(8)
    return any(start.startswith(magic) for magic in COMPRESSED)


class TarArchive:
    """The members of a tar; of equal names the last counts. Tars in it (ImageNet has one a class) are folders.

    Tars that were put one behind the other are read to the end.

    Args:
        path: the tar.
        start: its first bytes.
        work: folder for the unpacked copy of a compressed one.

    Attributes:
        lost: links that can't be followed.
        notes: sentences for the summary: on members of equal names, and on a tar that may be cut off.

    Raises:
        PecoError: a link leads out of it and may be a folder.
        tarfile.TarError, OSError: it is damaged or unreadable.
    """

    def __init__(self, path: Path, start: bytes, work: Path) -> None:
        self._path = path
        self._file: IO[bytes] = open(path, "rb")  # noqa: SIM115 (kept open for `read`)
        for magic, unpack in COMPRESSED.items():
            if start.startswith(magic):
                work.mkdir(parents=True, exist_ok=True)
                self._file = tempfile.TemporaryFile(dir=work)  # noqa: SIM115
                with unpack(path, "rb") as packed:
                    shutil.copyfileobj(packed, self._file)
                self._file.seek(0)
        self._spans: dict[str, tuple[int, int]] = {}  # offset and size in bytes
        self._again: dict[str, int] = {}  # earlier members of a name
        self._unclosed: list[str] = []  # tars without the zeros at their end
        links: dict[str, str] = {}
        end = self._file.seek(0, os.SEEK_END)
        self._scan("", 0, end, links)
        nested = [name for name in self._spans if extension(name) == "tar" and not is_mac_metadata(name)]
        for name in nested:
            offset, size = self._spans.pop(name)
            self._scan(name.removesuffix(".tar") + "/", offset, offset + size, links)
        self.notes = self._warnings()
        self.lost: list[Lost]
        followed, self.lost = resolve_links(str(path), list(self._spans), links)
        self._spans |= {name: self._spans[target] for name, target in followed.items()}

    def _scan(self, folder: str, begin: int, end: int, links: dict[str, str]) -> None:
        """Read the headers of the tar that has these bytes of the file."""
        self._file.seek(max(begin, end - tarfile.BLOCKSIZE))
        if self._file.read(tarfile.BLOCKSIZE).strip(b"\0"):
            self._unclosed.append(self._path.name if begin == 0 else folder.removesuffix("/") + ".tar")
        self._file.seek(begin)
        with tarfile.open(fileobj=self._file, mode="r:", tarinfo=StrictTarInfo, ignore_zeros=True) as archive:
            for member in archive:
                if member.offset >= end:
                    break
                if member.isreg() and member.offset_data + member.size > end:
                    raise tarfile.ReadError("unexpected end of data")
                name = folder + tidy(member.name)
                if name in self._spans:
                    self._again[name] = self._again.get(name, 0) + 1
                if member.isreg():
                    self._spans[name] = (member.offset_data, member.size)
                    links.pop(name, None)
                elif member.islnk() and folder + tidy(member.linkname) in self._spans:
                    self._spans[name] = self._spans[folder + tidy(member.linkname)]
                elif member.issym() or member.islnk():
                    links[name] = member.linkname if member.issym() else "/" + folder + tidy(member.linkname)
                    self._spans.pop(name, None)
                archive.members = []  # type: ignore[attr-defined]  # or tarfile keeps every header

    def _warnings(self) -> list[str]:
        """Sentences on tars that may be cut off between two members, and on members of equal names."""
        return [
            *(f"warning: {name} lacks the mark of a tar's end and may be cut off" for name in self._unclosed[:1]),
            *([several_of_a_name(self._again)] if self._again else []),
        ]

    def names(self) -> list[str]:
        return list(self._spans)

    def span(self, name: str) -> tuple[int, int]:
        """Offset and size in bytes of a member, in the unpacked tar."""
        return self._spans[name]

    def close(self) -> None:
        self._file.close()

    def read(self, name: str) -> bytes:
        offset, size = self._spans[name]
        try:
            self._file.seek(offset)
            return self._file.read(size)
        except OSError as error:
            raise PecoError(f"{self._path}: can't be read ({error.strerror}); fix that and run again") from None
