"""The images of a listing, and the folders that hold them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from peco.files.words import is_images_folder, plain_split, split_folders


class Entry(NamedTuple):
    """An image of a listing: its name, and the parts of it that are still to be read as splits and classes."""

    name: str
    parts: tuple[str, ...]

    def below(self, depth: int) -> Entry:
        """The entry without its first folders."""
        return Entry(self.name, self.parts[depth:])


def unwrap(images: Sequence[Entry], max_ignored: float) -> tuple[list[Entry], list[Entry]]:
    """Images below the folders at the top that hold all of them, and the few that lie beside these folders."""
    inner, stray = list(images), list[Entry]()
    while True:
        inside = by_folder(inner)
        with_splits = [top for top, entries in inside.items() if holds_splits(folders_of(entries))]
        if len(inside) == 1:
            (top,) = inside
            few = len(inner) - len(inside[top]) <= max_ignored * len(inner)
            holds_folders = is_images_folder(top) or any(len(entry.parts) > 1 for entry in inside[top])
            if not with_splits and (plain_split(top) or not holds_folders or not few):
                return inner, stray
        elif len(with_splits) == 1 and not split_folders(inside):
            (top,) = with_splits
        else:
            return inner, stray
        stray += [entry for entry in inner if len(entry.parts) == 1 or entry.parts[0] != top]
        inner = inside[top]


def by_folder(images: Iterable[Entry]) -> dict[str, list[Entry]]:
    """The images below each folder at the top."""
    found: dict[str, list[Entry]] = {}
    for entry in images:
        if len(entry.parts) > 1:
            found.setdefault(entry.parts[0], []).append(entry.below(1))
    return found


def folders_of(images: Iterable[Entry]) -> set[str]:
    """The folders at the top."""
    return {entry.parts[0] for entry in images if len(entry.parts) > 1}


def holds_splits(folders: Iterable[str]) -> bool:
    """True if the folders are splits, two or more different ones."""
    return len({*split_folders(folders).values()}) > 1
