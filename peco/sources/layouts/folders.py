"""Layouts by folders alone: splits, classes, and collections of photos."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

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
from peco.sources.layouts.listing import Entry, Listing, Placed, Reading

EXPECTED = "expected images in train/<class>/ and val/<class>/, in <class>/, or side by side"
BESIDE_CLASSES = "beside the class folders"
OUTSIDE_SPLITS = "outside the splits"
# Folders of cameras (100APPLE) and of dates (2019, 2019-05, 2019-05-01 Rome), and one of Google Takeout, which also has albums.
_CAMERA = re.compile(r"\d{3}[A-Z0-9_]{5}|(19|20)\d\d|(19|20)\d\d[-_.](0\d|1[0-2])([-_.][0-3]\d)?\b.*")
_TAKEOUT = re.compile(r"Photos from (19|20)\d\d")


def folder_splits(listing: Listing) -> Reading | None:
    """Folders that are splits: train/<class>/… and val/<class>/…, also without classes, or <class>/train/… and <class>/val/….

    Raises:
        PecoError: there are splits, but no train, or two folders for one split.
    """
    images, stray = unwrap(listing.images, listing.max_ignored)
    inside = _by_folder(images)
    chosen = split_folders(inside)
    if _are_classes(chosen, inside, listing.labels):
        return None
    if not chosen:
        return _splits_in_classes(inside, images)
    folders = {split: sorted(top for top in chosen if chosen[top] == split) for split in (TRAIN, VAL, TEST, UNUSED)}
    for split, found in folders.items():
        if split != UNUSED and len(found) > 1 and not are_parts(found):
            raise PecoError(
                f"the folders {' and '.join(found)} both name the split {split}; keep one of them, or rename the other"
            )
    parts = {split: [e for top in found for e in _collapse(inside[top], split)] for split, found in folders.items()}
    reading = _classify({split: entries for split, entries in parts.items() if entries}, listing)
    for entry in [*stray, *(e for e in images if len(e.parts) == 1 or e.parts[0] not in chosen)]:
        masks = is_mask_folder(entry.parts[0]) and len(entry.parts) > 1
        reading.ignored.add("masks" if masks else OUTSIDE_SPLITS, entry.name, by_rule=masks)
    for split, found in folders.items():
        if len(found) > 1 and split != UNUSED:
            reading.notes.append(f"{split} is {', '.join(found)}")
    return reading


def camera_folders(listing: Listing) -> Reading | None:
    """Folders that cameras, Google Takeout or dates name: their images have no labels."""
    images, stray = unwrap(listing.images, listing.max_ignored)
    tops = sorted(_folders(images))
    named = any(map(_TAKEOUT.fullmatch, tops)) or all(map(_CAMERA.fullmatch, tops))
    if listing.labels == "folders" or not tops or not named:
        return None
    note = f"folders of a camera or of dates ({', '.join(tops[:3])}) are no classes; dataset.labels=folders makes them classes"
    return Reading([Placed(e.name, None, None) for e in (*images, *stray)], notes=[note])


def class_folders(listing: Listing) -> Reading | None:
    """Folders that are classes: <class>/…, with few pictures or none beside them."""
    images, stray = unwrap(listing.images, listing.max_ignored)
    inside = _by_folder(images)
    loose = [entry for entry in images if len(entry.parts) == 1]
    few = len(loose) <= listing.max_ignored * len(images) and (len(inside) > 1 or not loose)
    if listing.labels == "none" or not inside or not (few or listing.labels == "folders"):
        return None
    reading = Reading([Placed(e.name, None, e.parts[0]) for e in images if len(e.parts) > 1])
    reading.ignored.extend(BESIDE_CLASSES, (entry.name for entry in (*loose, *stray)))
    return reading


def photos(listing: Listing) -> Reading:
    """Any other images: a collection without labels."""
    reading = Reading([Placed(entry.name, None, None) for entry in listing.images])
    images, _ = unwrap(listing.images, listing.max_ignored)
    if listing.labels == "auto" and (folders := sorted(_folders(images))):
        loose = sum(len(entry.parts) == 1 for entry in images)
        reading.notes.append(
            f"{loose} pictures lie beside the folders {', '.join(folders[:3])}{', …' if len(folders) > 3 else ''}: all images are "
            "used, without labels; dataset.labels=folders makes the folders classes"
        )
    return reading


def unwrap(images: Sequence[Entry], max_ignored: float) -> tuple[list[Entry], list[Entry]]:
    """Images below the folders at the top that hold all of them, and the few that lie beside these folders."""
    inner, stray = list(images), list[Entry]()
    while True:
        inside = _by_folder(inner)
        with_splits = [top for top, entries in inside.items() if len({*split_folders(_folders(entries)).values()}) > 1]
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


def _by_folder(images: Iterable[Entry]) -> dict[str, list[Entry]]:
    """The images below each folder at the top."""
    found: dict[str, list[Entry]] = {}
    for entry in images:
        if len(entry.parts) > 1:
            found.setdefault(entry.parts[0], []).append(entry.below(1))
    return found


def _folders(images: Iterable[Entry]) -> set[str]:
    """The folders at the top."""
    return {entry.parts[0] for entry in images if len(entry.parts) > 1}


def _collapse(entries: list[Entry], split: str) -> list[Entry]:
    """Images of a split below folders that repeat its name (train/train/<class>) or only hold images (train/images)."""
    while True:
        inside = _by_folder(entries)
        if len(inside) != 1 or any(len(entry.parts) == 1 for entry in entries):
            return entries
        ((folder, below),) = inside.items()
        if not (plain_split(folder) == split or is_images_folder(folder)):
            return entries
        entries = below


def _are_classes(chosen: dict[str, str], inside: dict[str, list[Entry]], labels: str) -> bool:
    """True if folders named after splits are classes: they have no folders, and there are others beside them.

    A lone `train` is one; more of them only if `dataset.labels` is `folders`.
    """
    bare = all(len(entry.parts) == 1 for top in chosen for entry in inside[top])
    return 0 < len(chosen) < len(inside) and bare and (len(chosen) == 1 or labels == "folders")


def _splits_in_classes(inside: dict[str, list[Entry]], images: list[Entry]) -> Reading | None:
    """<class>/train/… and <class>/val/…; None if there are no splits."""
    if inside and all(map(plain_split, inside)):
        raise PecoError(f"there is {', '.join(sorted(inside))}, but no train; {EXPECTED}")
    splits = {top: split_folders(_folders(entries)) for top, entries in inside.items()}
    if len(splits) < 2 or not all(len({*found.values()}) > 1 for found in splits.values()):
        return None
    reading = Reading([])
    for entry in images:
        split = splits[entry.parts[0]].get(entry.parts[1]) if len(entry.parts) > 2 else None
        if split:
            reading.images.append(Placed(entry.name, split, entry.parts[0]))
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
    few = count <= listing.max_ignored * total and all(len(_folders(parts[split])) > 1 for split in mixed)
    unlabeled = listing.labels == "none" or (listing.labels == "auto" and not few)
    reading = Reading([])
    for split, entries in parts.items():
        for entry in entries:
            category = entry.parts[0] if len(entry.parts) > 1 else None
            if unlabeled:
                reading.images.append(Placed(entry.name, split, None))
            elif category is None and split in mixed:
                reading.ignored.add(BESIDE_CLASSES, entry.name)
            else:
                reading.images.append(Placed(entry.name, split, category))
    if unlabeled and mixed:
        reading.notes.append(
            f"{count} pictures of {' and '.join(mixed)} lie beside folders: all images are used, without labels; "
            "dataset.labels=folders makes the folders classes"
        )
    return reading
