"""The parts that all formats of annotated objects share: checks at opening, and the set itself.

Rules for boxes in every format: a box that reaches beyond the image by at most `SLACK` pixels (annotations are rounded) is clipped,
by more is an error; a box of zero area is left out and counted. An object whose polygons all have fewer than three points has no
mask: where the others have masks, it is left out and counted.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from peco.annotations.photos import Photo, rotation_notes
from peco.annotations.sets import Objects, left_out_words
from peco.boxes.regions import Polygons, Region, Rle, rasterize
from peco.core.errors import PecoError

SLACK = 1.0  # pixels
ZERO_AREA = "box of zero area"
FEW_POINTS = "polygon of fewer than three points"
NO_PIXEL = "mask without a pixel"
NO_OBJECT = "image with no object"


@dataclass(frozen=True)
class Annotation:
    """One object as annotated; `origin` is its file and position, for messages."""

    box: tuple[float, float, float, float]  # x0, y0, x1, y1 in pixels
    label: int
    crowd: bool
    region: Region | None
    origin: str


@dataclass(frozen=True)
class Record:
    """One image and its objects after the checks."""

    photo: Photo
    boxes: NDArray[np.float32]  # (N, 4)
    labels: NDArray[np.int64]  # (N,)
    crowd: NDArray[np.bool_]  # (N,)
    regions: tuple[Region, ...] | None


class RecordedSet:
    """A `DetectionSet` over image files.

    Args:
        origin: file or folder of the set, for messages.
        classes: names.
        has_masks: True if the records have regions.
        records: one for each image.
        skipped: number of images or objects left out, by reason.
        notes: sentences on how the set was read.

    Raises:
        PecoError: there is no image, or two classes have the same name.
    """

    def __init__(
        self,
        origin: str,
        classes: tuple[str, ...],
        has_masks: bool,
        records: Sequence[Record],
        skipped: Counter[str],
        notes: Sequence[str] = (),
    ) -> None:
        if not records:
            raise PecoError(f"{origin}: no image in this split; expected at least one")
        if twice := next((name for name, count in Counter(classes).items() if count > 1), None):
            raise PecoError(f"{origin}: two classes are called {twice}; rename or merge them")
        self.origin, self.classes, self.has_masks, self.skipped = origin, classes, has_masks, skipped
        self.records = tuple(records)
        self._notes = tuple(notes)

    @property
    def notes(self) -> tuple[str, ...]:
        return (*self._notes, *rotation_notes(record.photo for record in self.records))

    def noted(self, *notes: str) -> RecordedSet:
        """The same set with more sentences on how it was read."""
        return RecordedSet(
            self.origin, self.classes, self.has_masks, self.records, self.skipped, (*notes, *self._notes)
        )

    def __len__(self) -> int:
        return len(self.records)

    def image(self, i: int) -> Image.Image:
        """Image i in the position in which it was annotated, RGB.

        Raises:
            PecoError: the file is damaged.
        """
        return self.records[i].photo.read()

    def objects(self, i: int) -> Objects:
        """The objects of image i.

        Raises:
            PecoError: a panoptic PNG can't be read.
        """
        record = self.records[i]
        masks = None if record.regions is None else rasterize(record.regions, record.photo.size)
        return Objects(record.boxes, record.labels, masks, record.crowd)

    def trainable(self) -> RecordedSet:
        """Keep the images with an object to learn; those left out are counted.

        Raises:
            PecoError: no image is left.
        """
        kept = [record for record in self.records if not record.crowd.all()]  # nothing is learned from crowds
        if not kept:
            reasons = f" (left out: {left_out_words(self.skipped)})" if self.skipped else ""
            raise PecoError(f"{self.origin}: no image has an object; there is nothing to train on{reasons}")
        left_out = Counter({NO_OBJECT: len(self) - len(kept)}) if len(kept) < len(self) else Counter()
        return RecordedSet(self.origin, self.classes, self.has_masks, kept, self.skipped + left_out, self._notes)


def make_record(photo: Photo, annotations: Iterable[Annotation], has_masks: bool, skipped: Counter[str]) -> Record:
    """Check the objects of an image; those left out are counted in `skipped`.

    Raises:
        PecoError: a box is not finite or outside the image, or a polygon is far outside.
    """
    boxes, kept, regions = [], [], []
    for annotation in annotations:
        box = _inside(annotation, *photo.size)
        if box is None:
            skipped[ZERO_AREA] += 1
            continue
        if has_masks:
            region = _usable(annotation, photo.size, skipped)
            if region is None:
                continue
            regions.append(region)
        boxes.append(box)
        kept.append(annotation)
    return Record(
        photo,
        np.array(boxes, dtype=np.float32).reshape(-1, 4),
        np.array([a.label for a in kept], dtype=np.int64),
        np.array([a.crowd for a in kept], dtype=np.bool_),
        tuple(regions) if has_masks else None,
    )


def _usable(annotation: Annotation, size: tuple[int, int], skipped: Counter[str]) -> Region | None:
    """The region without polygons that have no area; None if nothing is left."""
    region = annotation.region
    if isinstance(region, Rle) and not sum(region.counts[1::2]):
        skipped[NO_PIXEL] += 1
        return None
    if not isinstance(region, Polygons):
        return region
    for outline in region.outlines:
        for values, side in ((outline[0::2], size[0]), (outline[1::2], size[1])):
            if values and not -side <= min(values) <= max(values) <= 2 * side:
                raise PecoError(
                    f"{annotation.origin}: a polygon reaches from {min(values):g} to {max(values):g}, far outside the image of "
                    f"{size[0]} x {size[1]} pixels; fix or remove it"
                )
    outlines = tuple(outline for outline in region.outlines if len(outline) > 4)
    if len(outlines) < len(region.outlines):
        skipped[FEW_POINTS] += len(region.outlines) - len(outlines)
    return Polygons(outlines) if outlines else None


def _inside(annotation: Annotation, width: int, height: int) -> tuple[float, float, float, float] | None:
    """The box, clipped to the image; None if its area is zero in float32."""
    x0, y0, x1, y1 = annotation.box
    shown = ", ".join(f"{value:g}" for value in annotation.box)
    if not all(map(math.isfinite, annotation.box)) or x1 < x0 or y1 < y0:
        raise PecoError(f"{annotation.origin}: the box x0, y0, x1, y1 = {shown} is not valid; fix or remove it")
    if min(x0, y0) < -SLACK or x1 > width + SLACK or y1 > height + SLACK:
        raise PecoError(
            f"{annotation.origin}: the box x0, y0, x1, y1 = {shown} lies outside the image of {width} x {height} pixels; "
            "fix or remove it"
        )
    x0, y0, x1, y1 = max(x0, 0.0), max(y0, 0.0), min(x1, width), min(y1, height)
    positive = np.float32(x1) > np.float32(x0) and np.float32(y1) > np.float32(y0)
    return (x0, y0, x1, y1) if positive else None


def require_same_masks(train: RecordedSet, val: RecordedSet) -> None:
    """Check that both splits have masks, or none of them.

    Raises:
        PecoError: one has masks, the other only boxes.
    """
    if train.has_masks != val.has_masks:
        with_masks, without = (train, val) if train.has_masks else (val, train)
        raise PecoError(
            f"{without.origin}: boxes only, while {with_masks.origin} has masks; expected masks in both or none"
        )


def require_distinct(train: RecordedSet, val: RecordedSet) -> None:
    """Check that no image is in both splits: its score would measure memorisation.

    Raises:
        PecoError: an image is in both.
    """
    # Folders may be links to one another. Links of files are not followed: under DVC, equal files may or may not be links to one.
    folders = {record.photo.path.parent for data in (train, val) for record in data.records}
    real = {folder: folder.resolve() for folder in folders}
    of_train = {real[record.photo.path.parent] / record.photo.path.name for record in train.records}
    both = [
        record.photo.path
        for record in val.records
        if real[record.photo.path.parent] / record.photo.path.name in of_train
    ]
    if both:
        raise PecoError(
            f"{val.origin}: images that are in train too: {len(both)} of {len(val)}, the first is {both[0]}; remove them "
            "from one of the splits"
        )


def require_objects(val: RecordedSet) -> None:
    """Check that an image has an object that can be detected: otherwise there is no score.

    Raises:
        PecoError: no image has one.
    """
    if all(record.crowd.all() for record in val.records):
        raise PecoError(
            f"{val.origin}: no image has an object to score (crowds and difficult ones don't count); add annotations of val"
        )


def have_masks(annotations: Iterable[Annotation]) -> bool:
    """True if the objects of a split have masks.

    Raises:
        PecoError: some have a mask, others have none.
    """
    first: dict[bool, str] = {}
    for annotation in annotations:
        first.setdefault(annotation.region is not None, annotation.origin)
    if len(first) == 2:
        raise PecoError(f"{first[True]} has a mask, {first[False]} has none; expected masks for all or none")
    return True in first
