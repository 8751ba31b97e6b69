"""Opening a tar wherever it is, and the members that hold data: names, offsets and sizes."""

from __future__ import annotations

import os
import re
import shutil
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

from peco.core.errors import PecoError
from peco.files.damage import DAMAGE, StrictTarInfo
from peco.files.links import Lost, resolve_links
from peco.files.names import is_hidden, is_image_name, is_mac_metadata, tidy
from peco.files.tar_archive import COMPRESSED
from peco.sources.webdataset.tars import is_address

# Meaning of curl's exit statuses.
_CURL = {
    6: "there is no such host",
    7: "the server can't be reached",
    22: "the server has no such file",
    28: "no answer in time",
}
# Errors of the clients of object stores, which have no class in common: module and base class.
_CLIENT_ERRORS = (
    ("botocore.exceptions", "BotoCoreError"),
    ("botocore.exceptions", "ClientError"),
    ("aiohttp", "ClientError"),
    ("gcsfs.retry", "HttpError"),
    ("google.auth.exceptions", "GoogleAuthError"),
    ("azure.core.exceptions", "AzureError"),
    ("paramiko", "SSHException"),
    ("requests", "RequestException"),
)


@dataclass(frozen=True, slots=True)
class Member:
    """A file in a tar: its name there, and where its bytes are."""

    name: str
    offset: int
    size: int

    def read(self, file: IO[bytes]) -> bytes:
        """Its bytes."""
        file.seek(self.offset)
        return file.read(self.size)


@dataclass(frozen=True)
class Listing:
    """The members of a tar.

    Attributes:
        members: regular files, and links to them with the place of the file that they name.
        lost: names of links that name no file of the tar.
        hidden: names of images in folders, or with names, that operating systems hide.
        closed: False if the tar lacks the zeros at its end, as if its writer had been interrupted between two members.
    """

    members: list[Member]
    lost: list[str]
    hidden: list[str]
    closed: bool


@contextmanager
def opened_tar(url: str, work: Path) -> Iterator[IO[bytes]]:
    """A seekable, uncompressed tar. One at an address, or a compressed one, is copied to a temporary file in `work`.

    Raises:
        PecoError: it can't be read, for any reason that lies in the file, the address or the connection.
    """
    try:
        with _local(url, work) as file, _unpacked(file, work) as plain:
            yield plain
    except PecoError:
        raise
    except _errors(url) as error:
        if isinstance(error, OSError) and error.strerror and not is_address(url):
            raise PecoError(f"{url}: can't be read ({error.strerror}); fix that and run again") from None
        raise PecoError(
            f"{url}: can't be read as a WebDataset tar ({_reason(error)}); fetch or write it again"
        ) from None


def list_members(file: IO[bytes], url: str) -> Listing:
    """The members of a tar in their order, without those that webdataset skips and those that operating systems hide.

    Tars that were put one behind the other are read to the end.

    Raises:
        PecoError: a link leads out of the tar and may be a folder.
        tarfile.TarError, OSError, ValueError: it is damaged; `opened_tar` turns these into a PecoError.
    """
    end = file.seek(0, os.SEEK_END)
    file.seek(max(end - tarfile.BLOCKSIZE, 0))
    closed = not file.read().strip(b"\0")
    file.seek(0)
    found: list[Member] = []
    hidden: list[str] = []
    links: dict[str, str] = {}
    with tarfile.open(
        fileobj=file, mode="r:", tarinfo=StrictTarInfo, ignore_zeros=True, encoding="utf-8", errors="surrogateescape"
    ) as archive:
        for info in archive:
            archive.members = []  # type: ignore[attr-defined]  # or tarfile keeps every header
            name = re.sub(r"^(\.\./)+", "", tidy(info.name))
            if _is_skipped(name):
                if info.isreg() and is_image_name(name) and not is_mac_metadata(name):
                    hidden.append(name)
                continue
            if info.issym():
                links[name] = info.linkname
            elif info.islnk():
                links[name] = "/" + info.linkname
            elif info.isreg():
                if info.offset_data + info.size > end:
                    raise tarfile.ReadError("unexpected end of data")
                if info.sparse is not None:
                    raise tarfile.ReadError(f"{name} is a sparse file; pack it without --sparse")
                found.append(Member(name, info.offset_data, info.size))
    lost: list[Lost] = []
    if links:
        places = {member.name: member for member in found}
        followed, lost = resolve_links(url, list(places), links)
        found += [Member(name, places[target].offset, places[target].size) for name, target in followed.items()]
    return Listing(found, [link.name for link in lost], hidden, closed)


def _is_skipped(name: str) -> bool:
    """True for hidden files such as macOS' `._0001.jpg`, and for names that begin with `__x__`, as in webdataset."""
    return not name or any(map(is_hidden, name.split("/"))) or re.match(r"__[^/]*__($|/)", name) is not None


@contextmanager
def _unpacked(file: IO[bytes], work: Path) -> Iterator[IO[bytes]]:
    """The file itself, or a temporary, unpacked copy of a compressed one."""
    start = file.read(8)
    file.seek(0)
    unpack = next((unpack for magic, unpack in COMPRESSED.items() if start.startswith(magic)), None)
    if unpack is None:
        yield file
        return
    work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=work) as copy:
        with unpack(file, "rb") as packed:
            shutil.copyfileobj(packed, copy, 1 << 20)
        copy.seek(0)
        yield cast(IO[bytes], copy)


@contextmanager
def _local(url: str, work: Path) -> Iterator[IO[bytes]]:
    if not is_address(url):
        with open(url, "rb") as file:
            yield file
        return
    work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=work) as copy:
        with _remote(url) as stream:
            shutil.copyfileobj(stream, copy, 1 << 20)  # to the end, so that the failure of a program is noticed
        copy.seek(0)
        yield cast(IO[bytes], copy)


def _remote(url: str) -> IO[bytes]:
    from webdataset.gopen import gopen, gopen_schemes

    if url.split(":")[0] in gopen_schemes:
        return cast(IO[bytes], gopen(url, "rb"))
    import fsspec  # type: ignore[import-untyped]  # webdataset has no s3

    return cast(IO[bytes], fsspec.open(url, "rb").open())


def _errors(url: str) -> tuple[type[BaseException], ...]:
    """The errors that opening and reading this tar can raise."""
    damage = (*DAMAGE, RecursionError, MemoryError)
    if not is_address(url):
        return damage
    loaded = [(sys.modules[module], name) for module, name in _CLIENT_ERRORS if module in sys.modules]
    clients = [getattr(module, name) for module, name in loaded if hasattr(module, name)]
    return (*damage, ImportError, LookupError, TypeError, RuntimeError, *clients)


def _reason(error: BaseException) -> str:
    """The reason of an error in one line. webdataset reads http by curl and reports only curl's exit status."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    text = " ".join(text.split()) or type(error).__name__
    status = re.search(r"'curl'.* exit (\d+)", text)
    return _CURL.get(int(status[1]), f"curl ended with status {status[1]}") if status else text
