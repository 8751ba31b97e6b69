"""Splits and classes by the names of tars and of folders in them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping

from peco.core.errors import PecoError
from peco.files.words import split_words

_PART = re.compile(
    r"(shard|part|chunk|batch|data|images?|x)[-_. ]?[a-z]{1,2}", re.I
)  # of a set that was divided (`split`)
_NUMBER = r"([-_. ]\d+([-_. ]of[-_. ]\d+)?)+$"  # of a shard, at the end of its name


def named_splits(path: str, names: Mapping[str, str]) -> dict[str, str] | None:
    """Split of each tar: `train`, `val` or `test`, by its name, else by the nearest folder whose name has such a word.

    Args:
        path: the source, for messages.
        names: the name of each tar (`Tars.names`).

    Returns:
        The split by tar; None if no name has one, or all are `train`.

    Raises:
        PecoError: only some tars name a split, a name has two, or there are none for train.
    """
    words = {url: _nearest(name) for url, name in names.items()}
    everywhere = set.intersection(*words.values())  # the name of the data set, not of a split
    if any(len(found) > 1 for found in words.values()):
        words = {url: found - everywhere for url, found in words.items()}
    for url, found in words.items():
        if len(found) > 1:
            raise PecoError(f"{path}: {url} names two splits ({' and '.join(sorted(found))}); rename it")
    splits = {url: next(iter(found)) for url, found in words.items() if found}
    kinds = set(splits.values())
    if kinds <= {"train"} and len(splits) in (0, len(names)):
        return None
    missing = next((url for url in names if url not in splits), None)
    if missing is not None:
        raise PecoError(
            f"{path}: {missing} names no split, but others do; name all tars train…, val… or test…, or none of them"
        )
    if "train" not in kinds:
        raise PecoError(f"{path}: there are tars for {' and '.join(sorted(kinds))}, but none for train")
    return splits


def _nearest(name: str) -> set[str]:
    """The splits in the name of a tar, else in that of the nearest folder that names one."""
    return next((found for part in reversed(name.split("/")) if (found := split_words(part))), set())


def folder_split(name: str) -> str | None:
    """The split that the outermost such folder of a member's name gives: `train`, `val`, `test` or None."""
    for part in name.split("/")[:-1]:
        if len(found := split_words(part)) == 1:
            return next(iter(found))
    return None


def tar_class(name: str) -> str:
    """The class that a tar is named for: its name, else the nearest folder's, without words of splits and the shard's number.

    Empty if nothing is left.
    """
    for part in reversed(name.split("/")):
        words = [word for word in re.split(r"([-_. ])", re.sub(_NUMBER, "", part)) if not split_words(word)]
        text = "".join(words).strip("-_. ")
        if text and not text.isdecimal():
            return text
    return ""


def one_tar_a_class(names: Mapping[str, str], splits: Mapping[str, str] | None) -> bool:
    """True if the names of tars look like classes: at least two, one tar for each in each split, and not only numbered."""
    classes = {url: tar_class(name) for url, name in names.items()}
    places = Counter((splits[url] if splits else "", label) for url, label in classes.items())
    found = set(classes.values())
    numbered = len({label.rstrip("0123456789") for label in found}) == 1 and not all(map(is_wordnet_id, found))
    numbered |= all(map(_PART.fullmatch, found))
    return len(found) > 1 and "" not in found and not numbered and max(places.values()) == 1


def is_wordnet_id(name: str) -> bool:
    """True for ImageNet's names of classes, such as n01440764."""
    return re.fullmatch(r"n\d{8}", name) is not None


def folder_classes(names: Collection[str]) -> dict[str, str]:
    """The class of each member that lies in a folder: the first one below those that all share, without those of splits."""
    parts = {name: [part for part in name.split("/")[:-1] if not split_words(part)] for name in names}
    first = next(iter(parts.values()), [])
    shared = 0
    while shared < len(first) and all(part[shared : shared + 1] == [first[shared]] for part in parts.values()):
        shared += 1
    return {name: part[shared] for name, part in parts.items() if len(part) > shared}
