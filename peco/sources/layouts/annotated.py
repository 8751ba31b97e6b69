"""Sets annotated with boxes or masks: COCO, YOLO, VOC, ADE20K, Cityscapes and the like. Their photographs are used."""

from __future__ import annotations

import re
from dataclasses import replace

from peco.files.names import extension, folder_of, stem, without_extension
from peco.files.words import is_images_folder
from peco.sources.layouts.folders import folder_splits, photos
from peco.sources.layouts.listing import Listing, Reading
from peco.sources.layouts.lists import split_lists

_COCO = re.compile(
    r"(.*/)?(_annotations\.coco|(instances|person_keypoints|captions|panoptic|stuff)_[^/]*|[^/]*coco[^/]*)\.json", re.I
)
_YOLO = re.compile(r"(.*/)?(data|dataset|coco\d*)\.ya?ml", re.I)
_ANNOTATIONS = {"labels", "annotations", "annotation", "ann", "anns", "xmls", "label", "json", "jsons"}


def annotated_set(listing: Listing) -> Reading | None:
    """Images with masks in folders of their own, or with annotation files: splits by lists or folders, no labels."""
    if listing.forced or not (listing.masked or _has_annotations(listing)):
        return None
    bare = replace(listing, labels="none")
    reading = folder_splits(bare) or split_lists(bare) or photos(bare)
    reading.notes.append(
        "an annotated set: its images get no labels, and masks are not used; dataset.labels=folders makes the folders classes"
    )
    return reading


def _has_annotations(listing: Listing) -> bool:
    stems = {stem(entry.name) for entry in listing.images}
    labels = any(extension(name) == "txt" and stem(name) in stems for name in listing.others)
    if any(_COCO.fullmatch(name) or (labels and _YOLO.fullmatch(name)) for name in listing.others):
        return True
    texts = [name for name in listing.others if extension(name) in ("xml", "txt", "json")]
    if not texts:
        return False
    folders = {folder for name in {folder_of(entry.name) for entry in listing.images} for folder in _with_parents(name)}
    with_images = {folder.rpartition("/")[0] for folder in folders if is_images_folder(folder.rpartition("/")[2])}
    beside: dict[str, list[str]] = {}  # texts by their folder of annotations, which has one of images beside it
    for name in texts:
        for folder in _with_parents(folder_of(name)):
            above, _, last = folder.rpartition("/")
            if last.lower() in _ANNOTATIONS and above in with_images:
                beside.setdefault(folder, []).append(stem(name))
    if any(2 * sum(text in stems for text in found) >= len(found) for found in beside.values()):
        return True
    images = {without_extension(entry.name) for entry in listing.images}
    return 2 * sum(without_extension(name) in images for name in texts) >= len(listing.images)


def _with_parents(folder: str) -> list[str]:
    """A folder and those above it, without the top."""
    parts = folder.split("/") if folder else []
    return ["/".join(parts[:depth]) for depth in range(1, len(parts) + 1)]
