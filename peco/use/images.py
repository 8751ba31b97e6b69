"""Images as they are named on the command line: files, folders, patterns, tars and zips, WebDataset shards among them."""

from __future__ import annotations

import collections
import glob
import itertools
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from peco.annotations.photos import files_below
from peco.core.errors import PecoError
from peco.data.images import Picture, open_picture
from peco.files.archives import Archive, open_archive
from peco.files.names import IMAGE_EXTENSIONS, extension, is_mac_metadata
from peco.files.tar_archive import TarArchive

ARCHIVES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".zip")
AHEAD = 2  # batches that are decoded while the model works
T = TypeVar("T")


@dataclass(frozen=True)
class Found:
    """One image that was found, not yet read: a file, or a member of an archive."""

    path: Path
    member: str | None = None

    @property
    def name(self) -> str:
        """Its path; for a member of an archive the archive's path and the name in it, joined by a slash."""
        return str(self.path) if self.member is None else f"{self.path}/{self.member}"


@dataclass(frozen=True)
class Unreadable:
    """An image, or an archive, that can't be read, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class Loaded(Generic[T]):
    """An image that was read and prepared."""

    name: str
    value: T


def find(arguments: Sequence[str], output: Path | None = None) -> tuple[list[Found], list[Unreadable]]:
    """All images that the arguments name, each once, and archives that can't be opened.

    Args:
        arguments: files; folders, with all below them; tars and zips; patterns such as `photos/**/*.jpg`. In folders and archives
            only the extensions of images count.
        output: folder of results; images below it are left out.

    Raises:
        PecoError: there is nothing of this name, no file matches a pattern, a folder can't be read, or there is no image at all.
    """
    found: dict[str, Found] = {}
    broken: list[Unreadable] = []
    for argument in arguments:
        for path in _paths(argument):
            if output is not None and path.absolute().is_relative_to(output.absolute()):
                continue
            if not _is_archive(path):
                found.setdefault(str(path), Found(path))
                continue
            try:
                with _Archives() as archives:
                    names = archives.open(path).names()
            except PecoError as error:
                broken.append(Unreadable(str(path), str(error).removeprefix(f"{path}: ")))
                continue
            for name in names:
                if extension(name) in IMAGE_EXTENSIONS and not is_mac_metadata(name):
                    item = Found(path, name)
                    found.setdefault(item.name, item)
    if not found and not broken:
        raise PecoError(f"{', '.join(arguments)}: no images there; give files, folders, tars or zips of images")
    return list(found.values()), broken


def printable(name: str) -> str:
    """A name that can be printed and written as UTF-8: bytes that are not text are shown as `\\udcff`."""
    return name.encode("utf-8", "backslashreplace").decode()


def one_line(text: str) -> str:
    """A printable text in which tabs and line breaks are shown as `\\t` and `\\n`."""
    return printable(text).translate({9: "\\t", 10: "\\n", 13: "\\r"})


def locate(name: str) -> Found | None:
    """The image of this name (`Found.name`), if it is still there."""
    path = Path(name)
    if path.is_file():
        return Found(path)
    archive = next((parent for parent in path.parents if parent.is_file()), None)
    return None if archive is None else Found(archive, path.relative_to(archive).as_posix())


def load(
    items: Iterable[Found], prepare: Callable[[Picture], T], batch_size: int
) -> Iterator[list[Loaded[T] | Unreadable]]:
    """Read, decode and prepare images, in their order, in lists of `batch_size`, ahead of their use in threads.

    Args:
        items: from `find`.
        prepare: called in a thread with the image.
        batch_size: images in a list; the last one may be shorter.
    """
    with _Archives() as archives, ThreadPoolExecutor(min(os.cpu_count() or 1, 16)) as pool:
        waiting: collections.deque[list[Future[Loaded[T] | Unreadable]]] = collections.deque()
        try:
            for chunk in _chunks(items, batch_size):
                waiting.append([pool.submit(_prepared, item.name, archives.read(item), prepare) for item in chunk])
                if len(waiting) > AHEAD:
                    yield [future.result() for future in waiting.popleft()]
            while waiting:
                yield [future.result() for future in waiting.popleft()]
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _prepared(name: str, encoded: bytes | Unreadable, prepare: Callable[[Picture], T]) -> Loaded[T] | Unreadable:
    if isinstance(encoded, Unreadable):
        return encoded
    try:
        return Loaded(name, prepare(open_picture(encoded)))
    except PecoError as error:
        return Unreadable(name, str(error))


def _chunks(items: Iterable[Found], size: int) -> Iterator[list[Found]]:
    rest = iter(items)
    while chunk := list(itertools.islice(rest, size)):
        yield chunk


def _paths(argument: str) -> Iterator[Path]:
    """Files that an argument names: images and archives, or anything where it names one file."""
    path = Path(argument)
    if path.is_dir():
        yield from (p for p in files_below(path) if extension(p.name) in IMAGE_EXTENSIONS or _is_archive(p))
    elif path.exists():
        yield path
    elif glob.has_magic(argument):
        matches = sorted(glob.glob(argument, recursive=True))
        if not matches:
            raise PecoError(f"{argument}: no file matches this pattern")
        for match in matches:
            yield from _paths(match) if os.path.isdir(match) else (Path(match),)
    else:
        braces = "; leave braces to the shell, without quotes" if "{" in argument else ""
        raise PecoError(f"{argument}: no such file or folder{braces}")


def _is_archive(path: Path) -> bool:
    return path.name.lower().endswith(ARCHIVES)


class _Archives:
    """Reads members of archives, of which one is open at a time."""

    def __init__(self) -> None:
        self._path: Path | None = None
        self._archive: Archive | None = None

    def __enter__(self) -> _Archives:
        return self

    def __exit__(self, *_: Any) -> None:
        self._close()

    def open(self, path: Path) -> Archive:
        """Raises a PecoError if it can't be opened."""
        if self._archive is None or path != self._path:
            self._close()
            self._path, self._archive = path, open_archive(path, Path(tempfile.gettempdir()))
        return self._archive

    def read(self, item: Found) -> bytes | Unreadable:
        """The bytes of an image, or the reason why there are none."""
        try:
            return item.path.read_bytes() if item.member is None else self.open(item.path).read(item.member)
        except OSError as error:
            return Unreadable(item.name, error.strerror or str(error))
        except PecoError as error:
            return Unreadable(item.name, str(error).removeprefix(f"{item.path}: "))

    def _close(self) -> None:
        if isinstance(self._archive, TarArchive):
            self._archive.close()
        self._archive = None
