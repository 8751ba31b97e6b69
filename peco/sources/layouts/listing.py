"""The input of a layout, a listing of names, and its result, a reading of it."""

from __future__ import annotations

import codecs
import csv
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property

from peco.core.errors import PecoError
from peco.files.names import folder_of, is_image_name, stem, without_extension
from peco.files.words import named_split, plain_split
from peco.sources.base import Ignored
from peco.sources.layouts.entries import Entry, by_folder, unwrap


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
        notes: sentences for the summary by layouts that don't fit.
    """

    images: tuple[Entry, ...]
    others: tuple[str, ...]
    read: Callable[[str], bytes]
    labels: str = "auto"
    label_field: str | None = None
    max_ignored: float = 0.01
    masked: bool = False
    notes: list[str] = field(default_factory=list)

    @cached_property
    def unwrapped(self) -> tuple[list[Entry], list[Entry]]:
        """Images below the folders at the top that hold all of them, and the few that lie beside these folders."""
        return unwrap(self.images, self.max_ignored)

    @cached_property
    def inside(self) -> dict[str, list[Entry]]:
        """The unwrapped images below each folder."""
        return by_folder(self.unwrapped[0])

    @property
    def forced(self) -> bool:
        """True if the user wants folders to be classes."""
        return self.labels in ("folders", "paths")

    def category(self, entry: Entry) -> str | None:
        """The class of an entry that begins with the folders of classes; None for a picture beside them."""
        *folders, _ = entry.parts
        if not folders or self.labels == "none":
            return None
        return "/".join(folders) if self.labels == "paths" else folders[0]

    def named(self, *names: str) -> list[str]:
        """Other files with one of these base names, in lower or upper case."""
        wanted = {name.lower() for name in names}
        return [name for name in self.others if name.rsplit("/", 1)[-1].lower() in wanted]

    def text(self, name: str) -> str:
        """Content of a text file: UTF-16 with its mark (as Windows' PowerShell writes it), UTF-8, else Latin-1."""
        data = self.read(name)
        utf_16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        try:
            return data.decode("utf-16" if utf_16 else "utf-8-sig")
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


class NameIndex:
    """Finds images by what lists and tables write: paths from any folder, addresses, base names, with or without an extension."""

    def __init__(self, images: Iterable[Entry]) -> None:
        self._found: dict[str, str | None] = {}  # None: of several images
        for image in images:
            for form in _forms(image.name):
                self._found[form] = image.name if form not in self._found else None
        for image in images:  # a whole path is never ambiguous
            self._found[image.name] = image.name
        self._of_split: dict[str, list[str]] = {}  # folders that are named for splits
        for folder in sorted({folder_of(image.name) for image in images}):
            if split := plain_split(folder.rpartition("/")[2]):
                self._of_split.setdefault(split, []).append(folder)

    def places(self, file: str) -> tuple[str, ...]:
        """Folders in which names in a list or table are looked for first: its own, and those of the split in its name."""
        named = named_split(stem(file))
        return (folder_of(file), *(self._of_split.get(named[0], ()) if named else ()))

    def find(self, text: str, places: Iterable[str] = (), *, in_folder: bool = False) -> str | None:
        """The image that a text means, None if there is none or more than one.

        Args:
            text: what a list or table writes.
            places: see `places`.
            in_folder: a folder in the text must be that of the image. If false, another one will do, but for that of another split.
        """
        text = text.replace("\\", "/").strip().removeprefix("./")
        if "://" in text:
            text = text.partition("?")[0]
        while text.startswith("../"):
            text = text[3:]
        parts = text.split("/")[-2:]
        for form in (*(f"{place}/{text}" for place in places), text, "/".join(parts)):
            if name := self._found.get(form):
                return name
        if in_folder and len(parts) > 1:
            return None
        base = self._found.get(parts[-1])
        if not base and is_image_name(parts[-1]):
            base = self._found.get(without_extension(parts[-1]))
        return base if base and not _of_other_splits(folder_of(text), folder_of(base)) else None

    def keeps_folders(self, texts: Iterable[str], places: Iterable[str]) -> bool:
        """True if one of the texts names an image with its folder: then a text with another folder means another image."""
        places = tuple(places)
        return any(self.find(text, places, in_folder=True) for text in texts if "/" in text or "\\" in text)


def _of_other_splits(folder: str, other: str) -> bool:
    """True if two folders name splits that differ, such as `train` and `test`."""
    splits = [{split for part in each.split("/") if (split := plain_split(part))} for each in (folder, other)]
    return bool(splits[0] and splits[1] and not splits[0] & splits[1])


def _forms(name: str) -> set[str]:
    parts = name.split("/")
    return {form for path in (name, "/".join(parts[-2:]), parts[-1]) for form in (path, without_extension(path))}
