"""The splits of annotated sets: the folders that name them, and the division of a set that has none."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from peco.core.errors import PecoError
from peco.files.names import hashed, is_hidden
from peco.files.words import plain_split, split_words, words

VAL_SHARE = 0.2  # of a set without splits


def split_of(name: str) -> str | None:
    """The split that a name contains as a word (`train2017`, `Valid`, `images_test`); None without exactly one."""
    found = split_words(name)
    return found.pop() if len(found) == 1 else None


def split_folder(parent: Path | None, split: str) -> Path | None:
    """The folder of a split; `test` serves as val where there is no other.

    Raises:
        PecoError: two folders name the split.
    """
    if parent is None:
        return None
    try:
        names = sorted(entry.name for entry in os.scandir(parent) if entry.is_dir() and not is_hidden(entry.name))
    except OSError:
        return None
    for wanted in (split, "test") if split == "val" else (split,):
        found = [name for name in names if plain_split(name) == wanted]
        if len(found) > 1:
            raise PecoError(f"{parent}: {found[0]} and {found[1]} both name the split {wanted}; keep one of them")
        if found:
            return parent / found[0]
    return None


def split_list(folder: Path, split: str) -> Path | None:
    """The list of a split among `train.txt`, `val.txt` and the like; `trainval` and `test` serve where there are no others.

    Raises:
        PecoError: two lists name the split.
    """
    lists = sorted(path for path in folder.iterdir() if path.suffix.lower() == ".txt" and not is_hidden(path.name))
    for joined in (False, True):
        for wanted in (split, "test") if split == "val" else (split,):
            names = [p for p in lists if plain_split(p.stem) == wanted and ("trainval" in words(p.stem)) == joined]
            if len(names) > 1:
                raise PecoError(f"{names[1]}: a second list of {wanted} next to {names[0].name}; keep one of them")
            if names:
                return names[0]
    return None


def divide(names: Iterable[str], origin: str) -> tuple[set[str], str]:
    """Names of val, the `VAL_SHARE` with the lowest hashes, and a sentence on it for the summary.

    Raises:
        PecoError: there are fewer than two names.
    """
    ordered = sorted(names, key=lambda name: hashed(name, 0))
    if len(ordered) < 2:
        raise PecoError(f"{origin}: {len(ordered)} annotated images; expected two or more, to train on and for val")
    count = max(1, round(VAL_SHARE * len(ordered)))
    return set(
        ordered[:count]
    ), f"no splits were found: {count} of {len(ordered)} images are val, by a hash of their names"
