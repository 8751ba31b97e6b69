"""The parts that all formats of annotated objects share: checks at opening, decoding of masks, and the set itself.

Rules for boxes in every format: a box that reaches beyond the image by at most `SLACK` pixels (annotations are rounded) is clipped,
by more is an error; a box of zero area is left out and counted.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from peco.core.errors import PecoError
from peco.data.images import FORMATS, decode, upright_size
from peco.evaluate.annotated.sets import Objects
from peco.sources.base import IMAGE_EXTENSIONS, extension

SLACK = 1.0  # pixels
ZERO_AREA = "box of zero area"
NO_OBJECT = "image with no object"


@dataclass(frozen=True)
class Polygons:
    """A region in COCO and YOLO: the union of polygons, each x0 y0 x1 y1 … in pixels."""

    outlines: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Rle:
    """A region in COCO's run lengths: number of pixels outside, inside, outside, … down the columns."""

    counts: tuple[int, ...]


@dataclass(frozen=True)
class Segment:
    """A region in a panoptic PNG: the pixels with the number R + 256 G + 65536 B."""

    png: Path
    number: int


Region: TypeAlias = Polygons | Rle | Segment


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
    """One image and its objects after the checks; `size` is its width and height."""

    path: Path
    size: tuple[int, int]
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

    Raises:
        PecoError: there is no image, or two classes have the same name.
    """

    def __init__(
        self, origin: str, classes: tuple[str, ...], has_masks: bool, records: Sequence[Record], skipped: Counter[str]
    ) -> None:
        if not records:
            raise PecoError(f"{origin}: no image in this split; expected at least one")
        if twice := next((name for name, count in Counter(classes).items() if count > 1), None):
            raise PecoError(f"{origin}: two classes are called {twice}; rename or merge them")
        self.origin, self.classes, self.has_masks, self.skipped = origin, classes, has_masks, skipped
        self.records = tuple(records)

    def __len__(self) -> int:
        return len(self.records)

    def image(self, i: int) -> Image.Image:
        """Image i, upright, RGB.

        Raises:
            PecoError: the file is damaged.
        """
        path = self.records[i].path
        try:
            return decode(path.read_bytes())
        except (PecoError, OSError) as error:
            raise PecoError(f"{path}: can't be read: {error}; fix or remove image and annotation") from None

    def objects(self, i: int) -> Objects:
        """The objects of image i.

        Raises:
            PecoError: a panoptic PNG can't be read.
        """
        record = self.records[i]
        masks = None if record.regions is None else rasterize(record.regions, record.size)
        return Objects(record.boxes, record.labels, masks, record.crowd)

    def trainable(self) -> RecordedSet:
        """Keep the images with an object to learn; those left out are counted.

        Raises:
            PecoError: no image is left.
        """
        kept = [record for record in self.records if not record.crowd.all()]  # nothing is learned from crowds
        if not kept:
            raise PecoError(f"{self.origin}: no image has an object; there is nothing to train on")
        left_out = Counter({NO_OBJECT: len(self) - len(kept)}) if len(kept) < len(self) else Counter()
        return RecordedSet(self.origin, self.classes, self.has_masks, kept, self.skipped + left_out)


def make_record(
    path: Path, size: tuple[int, int], annotations: Iterable[Annotation], has_masks: bool, skipped: Counter[str]
) -> Record:
    """Check the objects of an image; those left out are counted in `skipped`.

    Raises:
        PecoError: a box is not finite or outside the image.
    """
    boxes, kept = [], []
    for annotation in annotations:
        box = _inside(annotation, *size)
        if box is None:
            skipped[ZERO_AREA] += 1
        else:
            boxes.append(box)
            kept.append(annotation)
    return Record(
        path,
        size,
        np.array(boxes, dtype=np.float32).reshape(-1, 4),
        np.array([a.label for a in kept], dtype=np.int64),
        np.array([a.crowd for a in kept], dtype=np.bool_),
        tuple(a.region for a in kept if a.region is not None) if has_masks else None,
    )


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


def image_size(path: Path, origin: str) -> tuple[int, int]:
    """Width and height of an image, upright, from its header.

    Args:
        path: file of the image.
        origin: the annotation of the image, for messages.

    Raises:
        PecoError: the file is missing or not an image.
    """
    try:
        return upright_size(path)
    except PecoError:
        if os.path.exists(path):
            raise
        # The annotation of a missing image has to be fixed, and only the caller knows it.
        raise PecoError(f"{origin}: the image {path} is missing; fetch it or remove its annotation") from None


def require_size(path: Path, found: tuple[int, int], declared: tuple[int, int], origin: str) -> None:
    """Check that an image has the size (width, height) of its annotation.

    Raises:
        PecoError: it has another size.
    """
    if found != declared:
        raise PecoError(
            f"{origin}: {path} is {found[0]} x {found[1]} pixels, but annotated as {declared[0]} x {declared[1]}; "
            "use the images that were annotated"
        )


def images_in(folder: Path) -> list[Path]:
    """List the images directly in a folder, sorted by name, without hidden files.

    Raises:
        PecoError: there is no such folder.
    """
    if not folder.is_dir():
        raise PecoError(f"{folder}: no such folder; expected the images of a split there")
    return sorted(p for p in folder.iterdir() if extension(p.name) in IMAGE_EXTENSIONS and not p.name.startswith("."))


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
    folders = {record.path.parent for data in (train, val) for record in data.records}
    real = {folder: folder.resolve() for folder in folders}
    of_train = {real[record.path.parent] / record.path.name for record in train.records}
    both = [record.path for record in val.records if real[record.path.parent] / record.path.name in of_train]
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


def rasterize(regions: Sequence[Region], size: tuple[int, int]) -> NDArray[np.bool_]:
    """Convert regions to masks (N, H, W); polygons by COCO's own rules.

    Args:
        regions: regions of one image.
        size: width and height of the image.

    Raises:
        PecoError: a panoptic PNG can't be read.
    """
    from pycocotools import mask as coco_mask

    width, height = size
    masks = np.zeros((len(regions), height, width), dtype=np.bool_)
    maps: dict[Path, NDArray[np.int64]] = {}
    for number, region in enumerate(regions):
        if isinstance(region, Segment):
            if region.png not in maps:
                maps[region.png] = segment_numbers(region.png)
            masks[number] = maps[region.png] == region.number
            continue
        if isinstance(region, Polygons):
            outlines = [list(outline) for outline in region.outlines if len(outline) > 4]  # fewer points have no area
            if not outlines:
                continue
            counts = run_lengths(coco_mask.merge(coco_mask.frPyObjects(outlines, height, width))["counts"])
        else:
            counts = region.counts
        masks[number] = np.repeat(np.arange(len(counts)) % 2 == 1, counts).reshape(width, height).T
    return masks


def run_lengths(packed: bytes) -> tuple[int, ...]:
    """Decode COCO's compressed run lengths.

    Each count, from the fourth on its difference to the one two before, is a signed number in groups of five bits, the lowest
    first. A character holds a group, offset by "0", plus 32 if another group follows.

    Raises:
        ValueError: the text ends within a number, or a count is negative.
    """
    counts: list[int] = []
    value = bits = 0
    for character in packed:
        group = character - 48
        value |= (group & 31) << bits
        bits += 5
        if not group & 32:
            if group & 16:
                value -= 1 << bits
            counts.append(value + (counts[-2] if len(counts) > 2 else 0))
            value = bits = 0
    if bits or min(counts, default=0) < 0:
        raise ValueError("not the run lengths of a mask")
    return tuple(counts)


def segment_numbers(png: Path) -> NDArray[np.int64]:
    """Read the number of each pixel of a panoptic PNG, (H, W).

    Raises:
        PecoError: the file can't be read.
    """
    try:
        with Image.open(png, formats=FORMATS) as image:
            rgb = np.asarray(image.convert("RGB"), dtype=np.int64)
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError) as error:
        raise PecoError(f"{png}: can't be read ({error}); fetch or create it again") from None
    numbers: NDArray[np.int64] = rgb @ np.array([1, 256, 65536])
    return numbers
