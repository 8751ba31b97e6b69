"""The table of layouts, in the order in which they are tried."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from peco.core.errors import PecoError
from peco.files.names import is_hidden, is_image_name, is_mac_metadata
from peco.sources.base import Ignored
from peco.sources.layouts.annotated import annotated_set
from peco.sources.layouts.entries import Entry
from peco.sources.layouts.folders import EXPECTED, camera_folders, class_folders, folder_splits, photos
from peco.sources.layouts.imagenet import imagenet
from peco.sources.layouts.listing import Listing, Reading
from peco.sources.layouts.lists import split_lists
from peco.sources.layouts.masks import masks_beside_images, masks_in_folders
from peco.sources.layouts.tables import label_table
from peco.sources.refused import unread_format


@dataclass(frozen=True)
class Layout:
    """One row of the table, which docs/data.md shows.

    Attributes:
        name: as in the summary.
        example: files that have this layout.
        becomes: splits and labels.
        read: returns None for a listing of another layout.
    """

    name: str
    example: str
    becomes: str
    read: Callable[[Listing], Reading | None]


LAYOUTS = (
    Layout(
        "ImageNet",
        "`train/<class>/…` or class tars, `val/…` without folders, and `LOC_val_solution.csv`, `val_annotations.txt` or the devkit",
        "splits and classes; labels of val from that file",
        imagenet,
    ),
    Layout(
        "table of labels",
        "`labels.csv`, `.tsv` or `metadata.jsonl` with names and labels, perhaps splits; images anywhere",
        "labels from the table; splits from its column, its name or the folders",
        label_table,
    ),
    Layout(
        "annotated set",
        "COCO, YOLO, VOC, ADE20K, Cityscapes, mmsegmentation: images with masks, boxes or captions beside",
        "splits from folders or lists; no labels",
        annotated_set,
    ),
    Layout(
        "splits in folders",
        "`train/<class>/…`, `valid/<class>/…`; `train/…`, `test/…`; `<class>/train/…`, `<class>/val/…`",
        "splits; classes where there are folders below them",
        folder_splits,
    ),
    Layout(
        "splits in lists",
        "`meta/train.txt`, `meta/test.txt` beside `images/<class>/…`; `train.txt` with a label after each name",
        "splits from the lists, classes from the folders, else from the lists",
        split_lists,
    ),
    Layout(
        "camera folders",
        "`DCIM/…`, `100APPLE/…`, `Photos from 2019/…`, `2019-05-01 Rome/…`",
        "no labels",
        camera_folders,
    ),
    Layout(
        "class folders",
        "`<class>/…`, two folders or more, at most a few pictures beside them",
        "classes",
        class_folders,
    ),
    Layout("collection", "any other images, also pictures beside folders", "no labels", photos),
)


_TABLES = re.compile(r".*\.(csv|tsv|jsonl|json|xlsx?|ods|csv\.gz)", re.I)
_MOST_TABLES = 5  # more files are annotations of single images


def _unread_labels(others: list[str]) -> list[str]:
    """A sentence on tables that may hold the labels of images that got none."""
    tables = [name for name in others if _TABLES.fullmatch(name)]
    if not 0 < len(tables) <= _MOST_TABLES:
        return []
    return [
        f"no labels are read from {', '.join(tables)}; labels must be a column of a CSV, TSV or jsonl that names the images"
    ]


def read_listing(names: Iterable[str], read: Callable[[str], bytes], **options: Any) -> tuple[str, Reading]:
    """The name of the layout that the files have, and their reading.

    Args:
        names: tidy names of all files.
        read: returns the content of a file.
        options: `labels`, `label_field` and `max_ignored` of `Listing`.

    Raises:
        PecoError: there is no image, or the splits or labels are ambiguous. The message doesn't name the path, which is unknown
            here.
    """
    ignored = Ignored()
    images, others = [], []
    for name in sorted(names):
        if is_mac_metadata(name):
            continue
        if any(map(is_hidden, name.split("/"))):
            if is_image_name(name):
                ignored.add("hidden", name, by_rule=True)
        elif is_image_name(name):
            images.append(name)
        else:
            others.append(name)
    ignored.extend("not an image by its name", others, by_rule=True)
    found = masks_in_folders(images, forced=options.get("labels") in ("folders", "paths"))
    images = [name for name in images if name not in found.masks and name not in found.unknown]
    masks = masks_beside_images(images)
    ignored.extend("masks", sorted(found.masks | masks), by_rule=True)
    ignored.extend("beside the folders of images and masks", sorted(found.unknown))
    entries = tuple(Entry(name, tuple(name.split("/"))) for name in images if name not in masks)
    if not entries:
        raise PecoError(f"no image found; {EXPECTED}")
    listing = Listing(entries, tuple(others), read, masked=bool(found.masks), **options)
    for layout in LAYOUTS:
        if reading := layout.read(listing):
            for files in reading.ignored:
                ignored.extend(files.reason, files.names, by_rule=files.by_rule)
            reading.ignored = ignored
            reading.notes += listing.notes
            if known := unread_format(others):
                reading.notes.append(f"not read: {known}")
            labeled = any(image.category is not None for image in reading.images)
            if listing.labels == "auto" and not labeled and not listing.notes and layout.read is not annotated_set:
                reading.notes += _unread_labels(others)
            return layout.name, reading
    raise AssertionError("the last layout takes everything")
