"""Detection of the kind of source that a path holds, before its images are read."""

from __future__ import annotations

import os
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

from peco.core.errors import PecoError
from peco.sources.archives import DAMAGE, StrictTarInfo, is_hidden
from peco.sources.base import IMAGE_EXTENSIONS, extension
from peco.sources.webdataset import TAR_SUFFIXES, find_tars

_EXPECTED = (
    "expected a folder, tar or zip of images, WebDataset tars (a folder, a pattern, addresses or a list of these)"
)
_FIRST_MEMBERS = 256  # of a tar, among which labels are looked for


def detect_source(path: Path) -> str:
    """The kind of a folder or file: `images`, `webdataset`, or `list` for a text file that lists tars.

    Archives are recognised by their content, but WebDataset tars must have one of TAR_SUFFIXES.

    Raises:
        PecoError: it is missing, unreadable or damaged, holds no image, or could be of two kinds.
    """
    if not path.exists():
        raise PecoError(f"{path}: no such file or folder; {_EXPECTED}")
    try:
        if path.is_dir():
            return _folder_kind(path)
        with path.open("rb") as file:
            start = file.read(2)
        if start == b"PK":
            return _zip_kind(path)
    except DAMAGE as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise PecoError(f"{path}: can't be read ({reason}); {_EXPECTED}") from None
    if kind := _tar_kind(path):
        return kind
    try:
        path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise PecoError(f"{path}: neither a folder, a tar, a zip nor a list of tars; {_EXPECTED}") from None
    return "list"


def matching_tars(pattern: str) -> list[Path]:
    """Absolute paths of the tars that a glob or brace pattern matches, each once.

    Raises:
        PecoError: nothing matches, or something other than a readable tar with images.
    """
    matches, _ = find_tars(str(Path(pattern).expanduser()))
    files = [Path(os.path.abspath(file)) for file in dict.fromkeys(matches)]
    for file in files:
        if not file.name.endswith(TAR_SUFFIXES):
            raise PecoError(
                f"{pattern}: {file.name} is no tar; a pattern must match files named {', '.join(TAR_SUFFIXES)}"
            )
        _tar_kind(file)
    return files


def _folder_kind(path: Path) -> str:
    images = tars = False
    for name in _visible_files(path):
        images |= extension(name) in IMAGE_EXTENSIONS
        tars |= name.endswith(TAR_SUFFIXES)
        if images and tars:
            raise PecoError(f"{path}: holds both images and tars; keep one kind, or name the tars by a pattern")
    if not images and not tars:
        raise PecoError(f"{path}: no image and no tar in this folder; {_EXPECTED}")
    return "images" if images else "webdataset"


def _visible_files(path: Path) -> Iterator[str]:
    def fail(error: OSError) -> None:
        raise error

    for _, folders, files in os.walk(path, onerror=fail):
        folders[:] = [name for name in folders if not is_hidden(name)]
        yield from (name for name in files if not is_hidden(name))


def _zip_kind(path: Path) -> str:
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            if extension(name) in IMAGE_EXTENSIONS and not any(map(is_hidden, name.split("/"))):
                return "images"
    raise PecoError(f"{path}: no image in this archive; {_EXPECTED}")


def _tar_kind(path: Path) -> str | None:
    """`webdataset` if an image has a label of the same name next to it (0001.jpg and 0001.cls), else `images`.

    None for a file that is no tar, neither by its content nor by its name.
    """
    images, labels, number = set(), set(), 0
    try:
        with tarfile.open(path, tarinfo=StrictTarInfo) as archive:
            for member in archive:
                folder, slash, file = member.name.rpartition("/")
                if not member.isfile() or is_hidden(file):
                    continue
                key, ending = folder + slash + file.partition(".")[0], extension(file)
                if ending in IMAGE_EXTENSIONS:
                    images.add(key)
                elif ending in ("cls", "json"):
                    labels.add(key)
                number += 1
                if images and (images & labels or number >= _FIRST_MEMBERS):
                    break
    except DAMAGE as error:
        if path.name.endswith(TAR_SUFFIXES):
            raise PecoError(f"{path}: not a readable tar ({error}); fetch or write it again") from None
        return None
    if not images:
        raise PecoError(f"{path}: no image in this archive; {_EXPECTED}")
    if not images & labels:
        return "images"
    if not path.name.endswith(TAR_SUFFIXES):
        raise PecoError(f"{path}: WebDataset tars must be named {', '.join(TAR_SUFFIXES)}; rename it")
    return "webdataset"
