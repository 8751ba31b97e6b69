"""Detection of the kind of source that a path holds, before its images are read."""

from __future__ import annotations

import os
import tarfile
from pathlib import Path

from peco.core.errors import PecoError
from peco.files.archives import FolderArchive, open_archive
from peco.files.damage import DAMAGE, StrictTarInfo
from peco.files.names import extension, is_hidden, is_image_name, tidy
from peco.sources.layouts.imagenet import is_devkit
from peco.sources.parquet import is_parquet
from peco.sources.refused import refused_format
from peco.sources.webdataset.kind import NoImages, tar_kind
from peco.sources.webdataset.tars import TAR_SUFFIXES, find_tars

_EXPECTED = (
    "expected a folder, tar or zip of images, WebDataset tars (a folder, a pattern, addresses or a list of these)"
)
_NOT_READ = (".rar", ".7z", ".zst", ".tzst", ".lz4")
_TABLES = (".csv", ".tsv", ".jsonl", ".xls", ".xlsx", ".ods")


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
            start = file.read(4)
    except OSError as error:
        raise PecoError(f"{path}: can't be read ({error.strerror}); {_EXPECTED}") from None
    if start.startswith(b"PK"):
        return _require_images(path, open_archive(path, Path()).names())
    if start == b"PAR1":
        return "images"
    if path.suffix.lower() in _TABLES:
        raise PecoError(f"{path}: a table of labels; name the folder that holds it and its images")
    if path.name.lower().endswith(_NOT_READ):
        raise PecoError(f"{path}: this kind of archive is not read; unpack it, and name the folder")
    if is_image_name(path.name):
        raise PecoError(f"{path}: a single image; name the folder of the images")
    if _holds_tars(path):
        return "images"
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
    files = [Path(os.path.abspath(file)) for file in find_tars(str(Path(pattern).expanduser())).urls]
    for file in files:
        if not file.name.endswith(TAR_SUFFIXES):
            raise PecoError(
                f"{pattern}: {file.name} is no tar; a pattern must match files named {', '.join(TAR_SUFFIXES)}"
            )
        tar_kind(file)
    return files


def _folder_kind(path: Path) -> str:
    names = [n for n in FolderArchive(path, Path()).names() if not any(map(is_hidden, n.split("/")))]
    images = next((name for name in names if is_image_name(name)), None)
    tars = next((name for name in names if name.endswith(TAR_SUFFIXES) and not is_devkit(name)), None)
    if images and tars:
        raise PecoError(
            f"{path}: holds both images ({images}) and tars ({tars}); keep one kind, or name the tars by a pattern"
        )
    return "webdataset" if tars else _require_images(path, names)


def _require_images(path: Path, names: list[str]) -> str:
    if any(is_image_name(n) and not any(map(is_hidden, n.split("/"))) for n in names) or is_parquet(path):
        return "images"
    if known := refused_format(names):
        raise PecoError(f"{path}: {known}")
    held = ", ".join(sorted(names)[:3])
    raise PecoError(
        f"{path}: no image {f'among its {len(names)} files ({held}, …)' if names else 'in it'}; {_EXPECTED}"
    )


def _holds_tars(path: Path) -> bool:
    """True for a tar of tars, as ImageNet's train set is."""
    try:
        with tarfile.open(path, tarinfo=StrictTarInfo) as archive:
            first = next((member for member in archive if member.isreg()), None)
    except DAMAGE:
        return False
    return first is not None and extension(first.name) == "tar"


def _tar_kind(path: Path) -> str | None:
    """As `tar_kind`, but a known format without images is refused by its name."""
    try:
        return tar_kind(path)
    except NoImages:
        with tarfile.open(path, tarinfo=StrictTarInfo) as archive:
            _require_images(path, [tidy(member.name) for member in archive if member.isreg()])
        raise
