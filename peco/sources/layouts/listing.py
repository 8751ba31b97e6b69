"""What a layout gets, a listing of names, and what it returns, a reading of it."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from peco.core.errors import PecoError
from peco.files.names import without_extension
from peco.sources.base import Ignored


class Entry(NamedTuple):
    """An image of a listing: its name, and the parts of it that are still to be read as splits and classes."""

    name: str
    parts: tuple[str, ...]

    def below(self, depth: int) -> Entry:
        """The entry without its first folders."""
        return Entry(self.name, self.parts[depth:])


@dataclass(frozen=True)
class Listing:
    """The files of a folder, tar or zip.

    Attributes:
        images: sorted by name, without masks.
        others: names of the files that are no images, sorted.
        read: returns the content of a file; raises PecoError.
        labels, label_field: the parameters.
        max_ignored: share of pictures next to class folders up to which the folders are classes.
        masked: True if masks were found in folders of their own.
    """

    images: tuple[Entry, ...]
    others: tuple[str, ...]
    read: Callable[[str], bytes]
    labels: str = "auto"
    label_field: str | None = None
    max_ignored: float = 0.01
    masked: bool = False

    def named(self, *names: str) -> list[str]:
        """Other files with one of these base names, in lower or upper case."""
        wanted = {name.lower() for name in names}
        return [name for name in self.others if name.rsplit("/", 1)[-1].lower() in wanted]

    def text(self, name: str) -> str:
        """Content of a text file: UTF-8, else Latin-1."""
        data = self.read(name)
        try:
            return data.decode("utf-8-sig")
        except UnicodeDecodeError:
            return data.decode("latin-1")

    def rows(self, name: str, delimiter: str) -> list[list[str]]:
        """The rows of a table with their cells, without empty rows.

        Raises:
            PecoError: it isn't a table.
        """
        try:
            rows = csv.reader(self.text(name).splitlines(), delimiter=delimiter, skipinitialspace=True)
            return [[cell.strip() for cell in row] for row in rows if any(cell.strip() for cell in row)]
        except csv.Error as error:
            raise PecoError(f"{name}: can't be read as a table ({error}); fix or remove it") from None


@dataclass(frozen=True)
class Placed:
    """An image with its split (None: not known yet) and class (None: no label)."""

    name: str
    split: str | None
    category: str | None


@dataclass
class Reading:
    """A listing as a layout reads it."""

    images: list[Placed]
    ignored: Ignored = field(default_factory=Ignored)
    notes: list[str] = field(default_factory=list)

    @property
    def labeled(self) -> bool:
        """True if any image has a label."""
        return any(image.category is not None for image in self.images)


class NameIndex:
    """Finds images by what lists and tables write: paths from any folder, base names, with or without an extension."""

    def __init__(self, images: Iterable[Entry]) -> None:
        self._found: dict[str, str | None] = {}  # None: of several images
        for image in images:
            for form in _forms(image.name):
                self._found[form] = image.name if form not in self._found else None
        for image in images:  # a whole path is never ambiguous
            self._found[image.name] = image.name

    def find(self, text: str, folder: str = "") -> str | None:
        """The image that a text in a file of this folder means, None if there is none or more than one."""
        text = text.replace("\\", "/").strip().removeprefix("./")
        while text.startswith("../"):
            text = text[3:]
        parts = text.split("/")[-2:]
        for form in (f"{folder}/{text}", text, "/".join(parts), parts[-1]):
            if name := self._found.get(form):
                return name
        return None


def _forms(name: str) -> set[str]:
    parts = name.split("/")
    return {form for path in (name, "/".join(parts[-2:]), parts[-1]) for form in (path, without_extension(path))}
