"""What a detector sees of an annotated image: the image fitted into a square, and in training flipped and rescaled at random.

How is drawn once as numbers, from (seed, epoch, sample).

Legend: S side of the square, M = `MAX_OBJECTS`, N objects, H W pixels of the image.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from peco.data.loader import Fields
from peco.data.order import AUGMENT, sample_rng
from peco.evaluate.annotated.sets import DetectionSet, Objects

MAX_OBJECTS = 100  # learnt in one image, the largest; COCO's fullest has 93
MIN_SIDE = 1.0  # pixels of the view; smaller objects are not learnt
PADDING = 128  # grey


@dataclass(frozen=True)
class Fit:
    """How an image is laid into a square: resized, cropped where it is larger, flipped, and padded on the right and below.

    Args:
        size: width and height of the resized image.
        left, top: first column and row of it that are seen.
        seen: width and height of what is seen.
        flip: left to right.
    """

    size: tuple[int, int]
    left: int
    top: int
    seen: tuple[int, int]
    flip: bool

    def scale(self, image: tuple[int, int]) -> NDArray[np.float32]:
        """Pixels of the view for a pixel of an image of this width and height, for x0, y0, x1, y1: (4,)."""
        factors = (self.size[0] / image[0], self.size[1] / image[1])
        return np.array(factors * 2, dtype=np.float32)


def fitted(image: tuple[int, int], side: int) -> Fit:
    """The whole of an image of this width and height, as large as the square allows: the view that is scored."""
    size = _resized(image, side)
    return Fit(size, 0, 0, size, flip=False)


def draw(rng: np.random.Generator, image: tuple[int, int], side: int, jitter: tuple[float, float]) -> Fit:
    """A training view.

    Args:
        rng: of the sample.
        image: its width and height.
        side: of the square.
        jitter: range of the factor by which the image is larger than it would fit, log-uniform.
    """
    factor = np.exp(rng.uniform(*np.log(jitter)))
    flip = bool(rng.random() < 0.5)
    width, height = _resized(image, float(side * factor))
    seen = min(width, side), min(height, side)
    left, top = int(rng.integers(width - seen[0] + 1)), int(rng.integers(height - seen[1] + 1))
    return Fit((width, height), left, top, seen, flip)


def _resized(image: tuple[int, int], longer: float) -> tuple[int, int]:
    factor = longer / max(image)
    return max(1, round(image[0] * factor)), max(1, round(image[1] * factor))


def fit_image(image: Image.Image, fit: Fit, side: int) -> NDArray[np.uint8]:
    """The view's pixels, uint8 (S, S, 3)."""
    fx, fy = image.width / fit.size[0], image.height / fit.size[1]
    right, bottom = fit.left + fit.seen[0], fit.top + fit.seen[1]
    box = (fit.left * fx, fit.top * fy, min(right * fx, image.width), min(bottom * fy, image.height))
    pixels = np.asarray(image.resize(fit.seen, Image.Resampling.BICUBIC, box=box))
    square = np.full((side, side, 3), PADDING, dtype=np.uint8)
    square[: fit.seen[1], : fit.seen[0]] = pixels[:, ::-1] if fit.flip else pixels
    return square


def fit_objects(objects: Objects, image: tuple[int, int], fit: Fit, side: int) -> Objects:
    """The objects as seen in the view; those that nothing can be learnt of, crowds too, are left out.

    Args:
        objects: in pixels of the image.
        image: its width and height.
        fit: the view.
        side: S; masks come out as (N, S, S).
    """
    boxes = objects.boxes * fit.scale(image) - np.array([fit.left, fit.top] * 2, dtype=np.float32)
    boxes = boxes.clip(0, np.array(fit.seen * 2, dtype=np.float32))
    if fit.flip:
        boxes[:, [0, 2]] = fit.seen[0] - boxes[:, [2, 0]]
    keep = ~objects.crowd & (boxes[:, 2:] - boxes[:, :2] >= MIN_SIDE).all(axis=1)
    masks = None
    if objects.masks is not None:
        masks = np.zeros((len(boxes), side, side), dtype=np.bool_)
        columns, rows = (
            ((np.arange(seen) + first + 0.5) * whole / size).astype(np.int64)
            for seen, first, whole, size in zip(fit.seen, (fit.left, fit.top), image, fit.size, strict=True)
        )
        if fit.flip:
            columns = columns[::-1]
        masks[:, : fit.seen[1], : fit.seen[0]] = objects.masks[:, rows[:, None], columns]
        keep &= masks.any(axis=(1, 2))
        masks = masks[keep]
    return Objects(boxes[keep], objects.labels[keep], masks, objects.crowd[keep])


@dataclass(frozen=True)
class DetectionView:
    """A training view of a sample and its objects, in arrays of one shape for all samples.

    Returns "image" uint8 (S, S, 3), "boxes" float32 (M, 4), "labels" int64 (M,), -1 where there is no further object, and of a
    set with masks "masks", uint8 (M, S, ceil(S / 8)): eight pixels of a row in a byte, or masks would be most of what is moved.
    """

    data: DetectionSet
    seed: int
    side: int
    jitter: tuple[float, float]

    def __call__(self, index: int, epoch: int) -> Fields:
        image = self.data.image(index)
        fit = draw(sample_rng(self.seed, epoch, index, AUGMENT), image.size, self.side, self.jitter)
        objects = fit_objects(self.data.objects(index), image.size, fit, self.side)
        areas = np.prod(objects.boxes[:, 2:] - objects.boxes[:, :2], axis=1)
        order = np.sort(np.argsort(-areas, kind="stable")[:MAX_OBJECTS])
        fields: Fields = {
            "image": fit_image(image, fit, self.side),
            "boxes": _padded(objects.boxes[order], 0),
            "labels": _padded(objects.labels[order], -1),
        }
        if objects.masks is not None:
            fields["masks"] = _padded(np.packbits(objects.masks[order], axis=-1), 0)
        return fields


def _padded(values: np.ndarray, fill: int) -> np.ndarray:
    padded = np.full((MAX_OBJECTS, *values.shape[1:]), fill, dtype=values.dtype)
    padded[: len(values)] = values
    return padded
