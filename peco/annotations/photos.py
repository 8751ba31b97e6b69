"""Files of annotated images: where they are, their size as annotated, and their pixels."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from PIL import ExifTags, Image

from peco.core.errors import PecoError
from peco.data.images import FORMATS, decode, upright_size
from peco.files.names import IMAGE_EXTENSIONS, extension, is_hidden

# By EXIF orientation, for those that exchange width and height: undoes the rotation of `decode`.
_UNDO = {
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


@dataclass(frozen=True)
class Photo:
    """One image in the position in which it was annotated: `size` is its width and height there.

    Annotations count pixels of the upright image, or of the stored one before its EXIF rotation. `undo` leads from the first to the
    second; None for an image that was annotated upright.
    """

    path: Path
    size: tuple[int, int]
    undo: Image.Transpose | None = None

    def read(self) -> Image.Image:
        """The image, RGB.

        Raises:
            PecoError: the file is damaged.
        """
        try:
            image = decode(self.path.read_bytes())
        except OSError as error:
            raise PecoError(f"{self.path}: can't be read ({error.strerror}); fix that and run again") from None
        except PecoError as error:
            raise PecoError(f"{self.path}: can't be read: {error}; fix or remove it and its annotation") from None
        return image if self.undo is None else image.transpose(self.undo)


def annotated_photo(path: Path, declared: tuple[int, int] | None, origin: str) -> Photo:
    """The image at `path` in the position in which it has the declared width and height.

    Args:
        path: file of the image.
        declared: width and height according to its annotation; None if it has none.
        origin: the annotation of the image, for messages.

    Raises:
        PecoError: the file is missing or not an image, or it has another size.
    """
    try:
        size = upright_size(path)
    except PecoError:
        if os.path.exists(path):
            raise
        # The annotation of a missing image has to be fixed, and only the caller knows it.
        raise PecoError(f"{origin}: the image {path} is missing; fetch it or remove its annotation") from None
    if declared is None or declared == size:
        return Photo(path, size)
    undo = _UNDO.get(_orientation(path))
    if undo is not None and declared == size[::-1]:
        return Photo(path, declared, undo)
    stored = f" ({size[1]} x {size[0]} before its EXIF rotation)" if undo is not None else ""
    raise PecoError(
        f"{origin}: {path} is {size[0]} x {size[1]} pixels{stored}, but annotated as {declared[0]} x {declared[1]}; use the images "
        "that were annotated"
    )


def _orientation(path: Path) -> int:
    """EXIF orientation of an image whose header was read before; 0 for values that EXIF doesn't define."""
    with Image.open(path, formats=FORMATS) as image:
        value = image.getexif().get(ExifTags.Base.Orientation)
    return value if isinstance(value, int) else 0


def rotation_notes(photos: Iterable[Photo]) -> list[str]:
    """A sentence on the images that are read without their EXIF rotation, if there are some."""
    count = sum(photo.undo is not None for photo in photos)
    return [f"images annotated before their EXIF rotation, and read without it: {count}"] if count else []


def files_below(folder: Path) -> list[Path]:
    """All files below a folder, sorted, without hidden ones. Links to folders are followed, each folder once.

    Raises:
        PecoError: a folder can't be read, or a link leads to a folder above.
    """
    top = Path(os.path.realpath(folder))

    def fail(error: OSError) -> None:
        raise PecoError(f"{error.filename}: can't be read ({error.strerror}); check its permissions")

    found, seen = [], set()
    for place, folders, files in os.walk(folder, onerror=fail, followlinks=True):
        real = os.path.realpath(place)
        if real != str(top) and top.is_relative_to(real):
            raise PecoError(f"{place}: a link to {real}, which holds this set itself; remove it")
        folders[:] = [] if real in seen else sorted(name for name in folders if not is_hidden(name))
        found += [] if real in seen else [Path(place, name) for name in files if not is_hidden(name)]
        seen.add(real)
    return sorted(found)


def images_below(folder: Path) -> list[Path]:
    """All images below a folder, sorted. Raises as `files_below`."""
    return [path for path in files_below(folder) if extension(path.name) in IMAGE_EXTENSIONS]


def find_folder(parent: Path, *names: str) -> Path | None:
    """The first of the names that is a folder in `parent`, in any capitals.

    Raises:
        PecoError: two folders have this name in different capitals.
    """
    try:
        entries = sorted(entry.name for entry in os.scandir(parent) if entry.is_dir())
    except OSError:
        return None
    for name in names:
        found = [entry for entry in entries if entry.lower() == name.lower()]
        if len(found) > 1:
            raise PecoError(f"{parent}: {found[0]} and {found[1]} differ in their capitals only; rename or merge them")
        if found:
            return parent / found[0]
    return None


def unwrapped(folder: Path) -> Path:
    """The folder itself, or the one that it holds and nothing else, as archives often have one."""
    while True:
        try:
            entries = [path for path in folder.iterdir() if not is_hidden(path.name)]
        except OSError as error:
            raise PecoError(f"{folder}: can't be read ({error.strerror}); check its permissions") from None
        if len(entries) != 1 or not entries[0].is_dir():
            return folder
        folder = entries[0]


def stem_of(path: Path, folder: Path) -> str:
    """Path of a file below a folder without its extension, with forward slashes."""
    return path.relative_to(folder).with_suffix("").as_posix()


def by_stem(paths: list[Path], folder: Path) -> dict[str, Path]:
    """Files below a folder by their path without extension.

    Raises:
        PecoError: two files differ in their extension only.
    """
    found: dict[str, Path] = {}
    for path in paths:
        key = stem_of(path, folder)
        if key in found:
            raise PecoError(f"{path}: {found[key].name} has the same name; keep one of them")
        found[key] = path
    return found
