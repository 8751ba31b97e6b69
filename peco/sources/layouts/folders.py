"""Layouts by folders alone: splits, classes, and collections of photos."""

from __future__ import annotations

import re
from collections.abc import Sequence

from peco.core.errors import PecoError
from peco.files.words import (
    TEST,
    TRAIN,
    UNUSED,
    VAL,
    are_parts,
    is_images_folder,
    is_mask_folder,
    plain_split,
    split_folders,
)
from peco.sources.layouts.entries import Entry, by_folder, folders_of, holds_splits
from peco.sources.layouts.listing import Listing, Placed, Reading

EXPECTED = "expected images in train/<class>/ and val/<class>/, in <class>/, or side by side"
BESIDE_CLASSES = "beside the class folders"
OUTSIDE_SPLITS = "outside the splits"
# Folders of cameras (100APPLE) and of dates (2019, 20190501, 2019-05, 2019-05-01 Rome).
_YEAR, _MONTH = r"(19|20)\d\d", r"(0[1-9]|1[0-2])"
_CAMERA = re.compile(
    rf"[1-9]\d\d(?=\w*[A-Z_])[A-Z0-9_]{{5}}|{_YEAR}|{_YEAR}{_MONTH}[0-3]\d|{_YEAR}[-_.]{_MONTH}([-_.][0-3]\d)?\b.*"
)
# Of these, one is enough: there may be albums beside it.
_CAMERA_TOP = re.compile(rf"DCIM|Takeout|Photos from {_YEAR}")


def folder_splits(listing: Listing) -> Reading | None:
    """Folders that are splits: train/<class>/… and val/<class>/…, also without classes, or <class>/train/… and <class>/val/….

    Raises:
        PecoError: there are splits, but no train, or two folders for one split.
    """
    images, stray = listing.unwrapped
    inside = listing.inside
    chosen = split_folders(inside)
    if _are_classes(chosen, inside, forced=listing.forced):
        return None
    if not chosen:
        return _splits_in_classes(inside, images, listing)
    folders = {split: sorted(top for top in chosen if chosen[top] == split) for split in (TRAIN, VAL, TEST, UNUSED)}
    for split, found in folders.items():
        if split != UNUSED and len(found) > 1 and not are_parts(found):
            raise PecoError(
                f"the folders {' and '.join(found)} both name the split {split}; keep one of them, or rename the other"
            )
    parts = {
        split: [e for top in found for e in _collapse(inside[top], top, split)] for split, found in folders.items()
    }
    parts = {split: entries for split, entries in parts.items() if entries}
    reading = _classify(_without_shared(parts, forced=listing.forced), listing)
    for entry in [*stray, *(e for e in images if len(e.parts) == 1 or e.parts[0] not in chosen)]:
        masks = is_mask_folder(entry.parts[0]) and len(entry.parts) > 1
        reading.ignored.add("masks" if masks else OUTSIDE_SPLITS, entry.name, by_rule=masks)
    for split, found in folders.items():
        if len(found) > 1 and split != UNUSED:
            reading.notes.append(f"{split} is {', '.join(found)}")
    return reading


def camera_folders(listing: Listing) -> Reading | None:
    """Folders that cameras, phones, Google Takeout or dates name: their images have no labels."""
    images, stray = listing.unwrapped
    tops = sorted(folders_of(images))
    named = any(_CAMERA_TOP.fullmatch(part) for entry in listing.images for part in entry.parts[:-1])
    if listing.forced or not tops or not (named or all(map(_CAMERA.fullmatch, tops))):
        return None
    note = f"folders of cameras, albums or dates ({', '.join(tops[:3])}) are no classes; dataset.labels=folders makes them classes"
    return Reading([Placed(e.name, None, None) for e in (*images, *stray)], notes=[note])


def class_folders(listing: Listing) -> Reading | None:
    """Folders that are classes: <class>/…, two or more, with few pictures or none beside them."""
    images, stray = listing.unwrapped
    inside = listing.inside
    loose = [entry for entry in images if len(entry.parts) == 1]
    few = len(loose) <= listing.max_ignored * len(images) and len(inside) > 1
    if listing.labels == "none" or not inside or not (few or listing.forced):
        return None
    reading = Reading([Placed(e.name, None, listing.category(e)) for e in images if len(e.parts) > 1])
    reading.ignored.extend(BESIDE_CLASSES, (entry.name for entry in (*loose, *stray)))
    reading.notes += _deeper(images, listing)
    return reading


def photos(listing: Listing) -> Reading:
    """Any other images: a collection without labels."""
    reading = Reading([Placed(entry.name, None, None) for entry in listing.images])
    images, _ = listing.unwrapped
    loose = sum(len(entry.parts) == 1 for entry in images)
    if listing.labels == "auto" and loose and (folders := sorted(folders_of(images))):
        reading.notes.append(
            f"{loose} pictures lie beside the folders {', '.join(folders[:3])}{', …' if len(folders) > 3 else ''}: all images are "
            "used, without labels; dataset.labels=folders makes the folders classes"
        )
    return reading


def _collapse(entries: list[Entry], top: str, split: str) -> list[Entry]:
    """Images of a split below folders that repeat its name (train/train/<class>) or only hold images (train/images)."""
    while True:
        inside = by_folder(entries)
        if len(inside) != 1 or any(len(entry.parts) == 1 for entry in entries):
            return entries
        ((folder, below),) = inside.items()
        if not (folder == top or plain_split(folder) == split or is_images_folder(folder)):
            return entries
        entries = below


def _without_shared(parts: dict[str, list[Entry]], *, forced: bool) -> dict[str, list[Entry]]:
    """Images without the folders that hold all of all splits (train/animals/<class> and val/animals/<class>).

    A folder without others in it stays the only class if the user wants classes.
    """
    while True:
        nested = [split for split, entries in parts.items() if folders_of(entries)]
        entries = [entry for split in nested for entry in parts[split]]
        if len(folders_of(entries)) != 1 or any(len(entry.parts) == 1 for entry in entries):
            return parts
        if forced and all(len(entry.parts) == 2 for entry in entries):
            return parts
        parts |= {split: [entry.below(1) for entry in parts[split]] for split in nested}


def _deeper(entries: Sequence[Entry], listing: Listing) -> list[str]:
    """A sentence on classes whose images lie in folders below them, where those may be meant."""
    deep = [entry for entry in entries if len(entry.parts) > 2 and not is_images_folder(entry.parts[1])]
    if listing.labels == "paths" or 2 * len(deep) <= len(entries):
        return []
    return [
        f"classes are the first folders; images lie below them ({'/'.join(deep[0].parts[:-1])}, …): dataset.labels=paths makes "
        "each of those folders a class"
    ]


def _are_classes(chosen: dict[str, str], inside: dict[str, list[Entry]], *, forced: bool) -> bool:
    """True if folders named after splits are classes: they have no folders, and there are others beside them.

    A lone `train` is one; more of them only if `dataset.labels` makes folders classes.
    """
    bare = all(len(entry.parts) == 1 for top in chosen for entry in inside[top])
    return 0 < len(chosen) < len(inside) and bare and (len(chosen) == 1 or forced)


def _splits_in_classes(inside: dict[str, list[Entry]], images: list[Entry], listing: Listing) -> Reading | None:
    """<class>/train/… and <class>/val/…; None if there are no splits.

    Raises:
        PecoError: there is no train, or only some folders hold splits.
    """
    if inside and all(map(plain_split, inside)):
        raise PecoError(f"there is {', '.join(sorted(inside))}, but no train; {EXPECTED}")
    below = {top: folders_of(entries) for top, entries in inside.items()}
    within = [
        top
        for top in sorted(inside)
        if holds_splits(below[top]) or holds_splits({e.parts[1] for e in inside[top] if len(e.parts) > 2})
    ]
    if len(within) < 2 or listing.forced:
        return None
    # Some classes may have images of one split only.
    splits = {
        top: split_folders(names) or {n: s for n in names if (s := plain_split(n))} for top, names in below.items()
    }
    if not all(splits.values()):
        raise PecoError(
            f"{within[0]} and {within[1]} hold splits of their own, which are no classes; name the folder that is meant, or set "
            "dataset.labels=folders"
        )
    reading = Reading([])
    for entry in images:
        split = splits[entry.parts[0]].get(entry.parts[1]) if len(entry.parts) > 2 else None
        if split:
            reading.images.append(Placed(entry.name, split, listing.category(entry)))
        else:
            masks = len(entry.parts) > 2 and is_mask_folder(entry.parts[1])
            reading.ignored.add("masks" if masks else OUTSIDE_SPLITS, entry.name, by_rule=masks)
    return reading


def _classify(parts: dict[str, list[Entry]], listing: Listing) -> Reading:
    """Give the images of each split their class: the first folder."""
    used = [split for split in (TRAIN, VAL, TEST) if split in parts and not (split == TEST and VAL in parts)]
    total = sum(len(parts[split]) for split in used)
    mixed = {split: [e for e in parts[split] if len(e.parts) == 1] for split in used}
    mixed = {split: loose for split, loose in mixed.items() if loose and len(loose) < len(parts[split])}
    count = sum(map(len, mixed.values()))
    few = count <= listing.max_ignored * total and all(len(folders_of(parts[split])) > 1 for split in mixed)
    unlabeled = listing.labels == "none" or (listing.labels == "auto" and not few)
    reading = Reading([])
    for split, entries in parts.items():
        for entry in entries:
            category = listing.category(entry)
            if unlabeled:
                reading.images.append(Placed(entry.name, split, None))
            elif category is None and split in mixed:
                reading.ignored.add(BESIDE_CLASSES, entry.name)
            else:
                reading.images.append(Placed(entry.name, split, category))
    if not unlabeled:
        reading.notes += _deeper([entry for split in used for entry in parts[split]], listing)
    elif mixed and listing.labels == "auto":
        reading.notes.append(
            f"{count} pictures of {' and '.join(mixed)} lie beside folders: all images are used, without labels; "
            "dataset.labels=folders makes the folders classes"
        )
    return reading
