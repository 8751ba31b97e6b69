"""Regions of objects in the forms of COCO and YOLO, and the masks (H, W) that they become."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from peco.core.errors import PecoError
from peco.data.images import DAMAGE, FORMATS, check_size, image_reason

MOST_BITS = 40  # of a run length in COCO's compressed form


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


def is_number(value: object) -> bool:
    """True for a finite number in JSON."""
    if isinstance(value, int) and not isinstance(value, bool):
        return abs(value) < 2**53
    return isinstance(value, float) and math.isfinite(value)


def parse_outlines(value: list[Any]) -> tuple[tuple[float, ...], ...]:
    """Outlines of polygons in the forms in which programs write them, each as x0 y0 x1 y1 …

    An outline is a list of numbers, as in COCO, or of points `[x, y]` or `{"x": x, "y": y}`. `value` is a list of outlines, or one
    outline. Outlines of fewer than three points are not left out.

    Raises:
        ValueError: it has none of these forms.
    """
    if value and (outline := _outline(value)) is not None:
        return (outline,)
    outlines = [_outline(item) if isinstance(item, list) else None for item in value]
    if any(outline is None for outline in outlines):
        raise ValueError("not the outlines of polygons")
    return tuple(outline for outline in outlines if outline is not None)


def _outline(value: list[Any]) -> tuple[float, ...] | None:
    """Numbers x0 y0 x1 y1 … of one outline; None if it is none."""
    if all(map(is_number, value)):
        return tuple(map(float, value)) if len(value) % 2 == 0 else None
    points: list[Any] = [[point.get("x"), point.get("y")] if isinstance(point, dict) else point for point in value]
    if not all(isinstance(point, list) and len(point) == 2 and all(map(is_number, point)) for point in points):
        return None
    return tuple(float(number) for point in points for number in point)


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
    maps: dict[Path, NDArray[np.int32]] = {}
    for number, region in enumerate(regions):
        if isinstance(region, Segment):
            if region.png not in maps:
                maps[region.png] = segment_numbers(region.png)
            masks[number] = maps[region.png] == region.number
            continue
        if isinstance(region, Polygons):
            outlines = [list(outline) for outline in region.outlines]
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
        if bits > MOST_BITS:
            raise ValueError("not the run lengths of a mask")
        if not group & 32:
            if group & 16:
                value -= 1 << bits
            counts.append(value + (counts[-2] if len(counts) > 2 else 0))
            value = bits = 0
    if bits or min(counts, default=0) < 0:
        raise ValueError("not the run lengths of a mask")
    return tuple(counts)


def segment_numbers(png: Path) -> NDArray[np.int32]:
    """Read the number of each pixel of a panoptic PNG, (H, W).

    Raises:
        PecoError: the file can't be read.
    """
    try:
        with Image.open(png, formats=FORMATS) as image:
            check_size(image)
            rgb = np.asarray(image.convert("RGB"))
    except (PecoError, *DAMAGE) as error:
        raise PecoError(f"{png}: can't be read ({image_reason(error)}); fetch or create it again") from None
    red, green, blue = (rgb[..., channel].astype(np.int32) for channel in range(3))
    return red | green << 8 | blue << 16
