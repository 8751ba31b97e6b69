"""Splits by lists of images: ImageSets/Main/train.txt of VOC, meta/train.txt of Food-101, train.txt of YOLO."""

from __future__ import annotations

from peco.files.names import extension, folder_of, stem
from peco.files.words import TRAIN, VAL, plain_split
from peco.sources.layouts.folders import class_folders
from peco.sources.layouts.listing import Listing, NameIndex, Placed, Reading

_RESOLVED = 0.9  # share of lines that must name an image
_PREFERRED = ("Main", "Segmentation")  # of VOC's lists


def split_lists(listing: Listing) -> Reading | None:
    """Text files named after splits that list the images of each. Images in none of them belong to train."""
    lists = _find_lists(listing)
    if TRAIN not in lists.values():
        return None
    index = NameIndex(listing.images)
    splits: dict[str, str] = {}
    for file, split in lists.items():
        lines = [line.strip() for line in listing.text(file).splitlines() if line.strip()]
        folder = folder_of(file)
        named = [index.find(line, folder) or index.find(line.split()[0], folder) for line in lines]
        if sum(name is not None for name in named) < _RESOLVED * max(1, len(lines)):
            return None
        splits |= {name: split for name in named if name is not None}
    classes = {image.name: image.category for image in (class_folders(listing) or Reading([])).images}
    unlisted = sum(entry.name not in splits for entry in listing.images)
    reading = Reading(
        [Placed(entry.name, splits.get(entry.name, TRAIN), classes.get(entry.name)) for entry in listing.images]
    )
    reading.notes.append(f"splits are read from {', '.join(lists)}")
    if unlisted:
        reading.notes.append(f"{unlisted} images in none of these lists are in train")
    return reading


def _find_lists(listing: Listing) -> dict[str, str]:
    """The lists with their splits, all from folders of one name that have a list of train."""
    folders: dict[str, dict[str, str]] = {}
    for name in listing.others:
        if extension(name) == "txt" and (split := TRAIN if _is_trainval(name) else plain_split(stem(name))):
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


def _is_trainval(name: str) -> bool:
    return stem(name).lower() == "trainval"
