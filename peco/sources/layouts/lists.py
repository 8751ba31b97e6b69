"""Splits by lists of images: ImageSets/Main/train.txt of VOC, meta/train.txt of Food-101, train.txt of YOLO."""

from __future__ import annotations

import re

from peco.core.errors import PecoError
from peco.files.names import extension, folder_of, stem
from peco.files.words import TRAIN, VAL, plain_split, words
from peco.sources.layouts.folders import class_folders
from peco.sources.layouts.listing import Listing, NameIndex, Placed, Reading

_RESOLVED = 0.9  # share of lines that must name an image
_NO_LIST = 0.1  # up to this share names in a text are a coincidence
_LABELLED = re.compile(r"(.*[^\s,])[\s,]+(\S+)")
_PREFERRED = ("Main", "Segmentation")  # of VOC's lists


def split_lists(listing: Listing) -> Reading | None:
    """Text files named after splits that list the images of each, perhaps with a label. Images in none of them belong to train.

    Raises:
        PecoError: two lists of different splits name one image, or more than a tenth of a list's lines name none.
    """
    lists = _find_lists(listing)
    if TRAIN not in lists.values():
        return None
    index = NameIndex(listing.images)
    named: dict[str, list[tuple[str, str]]] = {}  # images and labels by list
    for file in lists:
        lines = [line.strip() for line in listing.text(file).splitlines() if line.strip()]
        places = index.places(file)
        exact = index.keeps_folders((re.split(r"[\s,]", line)[0] for line in lines), places)
        named_here = [_image_and_label(line, index, places, in_folder=exact) for line in lines]
        found = [(name, label) for name, label in named_here if name]
        if len(found) < _RESOLVED * max(1, len(lines)):
            if len(found) > _NO_LIST * len(lines):
                missing = next(line for line, (name, _) in zip(lines, named_here, strict=True) if not name)
                raise PecoError(
                    f"{file} lists images of {lists[file]}, but {len(lines) - len(found)} of its {len(lines)} lines name no image, "
                    f"the first is {missing[:100]!r}; add the images, or remove the lists"
                )
            return None
        named[file] = found
    twice = _listed_twice(lists, named)
    if twice and len({_number(file) for file, split in lists.items() if split == TRAIN}) > 1:
        # Several divisions of the same images (`train1.txt`, `train2.txt`).
        first = min(_number(file) for file, split in lists.items() if split == TRAIN)
        lists = {file: split for file, split in lists.items() if _number(file) in (first, ())}
        twice = _listed_twice(lists, named)
    if twice:
        name, before, file = twice
        raise PecoError(f"{before} and {file} both list {name}; remove it from one of them, or remove a list")
    placed = {name: (file, label) for file in lists for name, label in named[file]}
    classes = {image.name: image.category for image in (class_folders(listing) or Reading([])).images}
    unlisted = sum(entry.name not in placed for entry in listing.images)
    reading = Reading([])
    # Labels are used if all lines have one, and folders are no classes.
    labelled = listing.labels == "auto" and not any(classes.values()) and all(label for _, label in placed.values())
    for entry in listing.images:
        file, label = placed.get(entry.name, ("", ""))
        category = label or None if labelled else classes.get(entry.name)
        reading.images.append(Placed(entry.name, lists.get(file, TRAIN), category))
    reading.notes.append(f"splits{' and labels' if labelled else ''} are read from {', '.join(lists)}")
    if unlisted:
        reading.notes.append(f"{unlisted} images in none of these lists are in train")
    return reading


def _listed_twice(lists: dict[str, str], named: dict[str, list[tuple[str, str]]]) -> tuple[str, str, str] | None:
    """The first image that lists of different splits name, and two such lists."""
    seen: dict[str, str] = {}
    for file, split in lists.items():
        for name, _ in named[file]:
            before = seen.setdefault(name, file)
            if lists[before] != split:
                return name, before, file
    return None


def _image_and_label(line: str, index: NameIndex, places: tuple[str, ...], *, in_folder: bool) -> tuple[str, str]:
    """The image that a line names, and the label after it, one word or number; "" for each that there isn't."""
    if name := index.find(line, places, in_folder=in_folder):
        return name, ""
    if (match := _LABELLED.fullmatch(line)) and (name := index.find(match[1], places, in_folder=in_folder)):
        return name, match[2]
    return index.find(re.split(r"[\s,]", line)[0], places, in_folder=in_folder) or "", ""


def _find_lists(listing: Listing) -> dict[str, str]:
    """The lists with their splits, all from folders of one name that have a list of train."""
    folders: dict[str, dict[str, str]] = {}
    for name in listing.others:
        if extension(name) == "txt" and (split := plain_split(stem(name))):
            folders.setdefault(folder_of(name), {})[name] = split
    names = {stem(folder) for folder, lists in folders.items() if TRAIN in lists.values()}
    best = min(names, key=lambda name: (name not in _PREFERRED, name), default=None)
    found: dict[str, str] = {}
    for folder, lists in sorted(folders.items()):
        if stem(folder) == best:
            # trainval.txt holds train.txt and val.txt.
            divided = VAL in lists.values()
            found |= {name: split for name, split in lists.items() if not (divided and _is_trainval(name))}
    return found


def _number(name: str) -> tuple[int, ...]:
    """The numbers in the name of a list."""
    return tuple(int(word) for word in words(stem(name)) if word.isdecimal())


def _is_trainval(name: str) -> bool:
    return "trainval" in words(stem(name))
