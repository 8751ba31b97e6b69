"""Letterboxing: an annotated image is fitted into a square, in training with a random flip and scale.

The random parameters of a view are drawn once, from (seed, epoch, sample).

Legend: S side of the square, M = `MAX_OBJECTS`, N objects, H W pixels of the image.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from peco.annotations.sets import DetectionSet, Objects
from peco.data.loader import Fields
from peco.data.order import AUGMENT, sample_rng

MAX_OBJECTS = 100  # trained on in an image, the largest ones; in COCO an image has at most 93
MIN_SIDE = 1.0  # pixels of the view; smaller objects are not trained on
PADDING = 128  # grey


@dataclass(frozen=True)
class Letterbox:
    """Placement of an image in a square: resize, crop if larger, flip, and pad on the right and below.

    Args:
        size: width and height of the resized image.
        left, top: first visible column and row of the resized image.
        seen: width and height of the visible part.
        flip: True to mirror left and right.
    """

    size: tuple[int, int]
    left: int
    top: int
    seen: tuple[int, int]
    flip: bool

    def scale(self, image: tuple[int, int]) -> NDArray[np.float32]:
        """Factors (4,) from coordinates x0, y0, x1, y1 in an image of this width and height to those in the view."""
        factors = (self.size[0] / image[0], self.size[1] / image[1])
        return np.array(factors * 2, dtype=np.float32)


def whole_view(image: tuple[int, int], side: int) -> Letterbox:
    """View of a whole image of this width and height, as large as the square allows, for scoring."""
    size = _resized(image, side)
    return Letterbox(size, 0, 0, size, flip=False)


def draw_view(rng: np.random.Generator, image: tuple[int, int], side: int, jitter: tuple[float, float]) -> Letterbox:
    """Draw a training view.

    Args:
        rng: generator of the sample.
        image: width and height of the image.
        side: side of the square.
        jitter: range of the image's scale relative to the one that fits exactly, log-uniform.
    """
    factor = np.exp(rng.uniform(*np.log(jitter)))
    flip = bool(rng.random() < 0.5)
    width, height = _resized(image, float(side * factor))
    seen = min(width, side), min(height, side)
    left, top = int(rng.integers(width - seen[0] + 1)), int(rng.integers(height - seen[1] + 1))
    return Letterbox((width, height), left, top, seen, flip)


def _resized(image: tuple[int, int], longer: float) -> tuple[int, int]:
    factor = longer / max(image)
    return max(1, round(image[0] * factor)), max(1, round(image[1] * factor))


def letterbox_image(image: Image.Image, view: Letterbox, side: int) -> NDArray[np.uint8]:
    """Pixels of the view, uint8 (S, S, 3)."""
    fx, fy = image.width / view.size[0], image.height / view.size[1]
    right, bottom = view.left + view.seen[0], view.top + view.seen[1]
    box = (view.left * fx, view.top * fy, min(right * fx, image.width), min(bottom * fy, image.height))
    pixels = np.asarray(image.resize(view.seen, Image.Resampling.BICUBIC, box=box))
    square = np.full((side, side, 3), PADDING, dtype=np.uint8)
    square[: view.seen[1], : view.seen[0]] = pixels[:, ::-1] if view.flip else pixels
    return square


def letterbox_objects(objects: Objects, image: tuple[int, int], view: Letterbox, side: int) -> Objects:
    """Objects as seen in the view, without crowds and without those too small or out of view.

    Args:
        objects: in pixels of the image.
        image: width and height of the image.
        view: the view.
        side: S; the masks returned are (N, S, S).
    """
    boxes = objects.boxes * view.scale(image) - np.array([view.left, view.top] * 2, dtype=np.float32)
    boxes = boxes.clip(0, np.array(view.seen * 2, dtype=np.float32))
    if view.flip:
        boxes[:, [0, 2]] = view.seen[0] - boxes[:, [2, 0]]
    keep = ~objects.crowd & (boxes[:, 2:] - boxes[:, :2] >= MIN_SIDE).all(axis=1)
    masks = None
    if objects.masks is not None:
        masks = np.zeros((len(boxes), side, side), dtype=np.bool_)
        columns, rows = (
            ((np.arange(seen) + first + 0.5) * whole / size).astype(np.int64)
            for seen, first, whole, size in zip(view.seen, (view.left, view.top), image, view.size, strict=True)
        )
        if view.flip:
            columns = columns[::-1]
        masks[:, : view.seen[1], : view.seen[0]] = objects.masks[:, rows[:, None], columns]
        keep &= masks.any(axis=(1, 2))
        masks = masks[keep]
    return Objects(boxes[keep], objects.labels[keep], masks, objects.crowd[keep])


@dataclass(frozen=True)
class DetectionView:
    """A training view of a sample and its objects, in arrays of the same shapes for all samples.

    Returns "image" uint8 (S, S, 3), "boxes" float32 (M, 4), "labels" int64 (M,), padded with -1, and for a set with masks "masks"
    uint8 (M, S, ceil(S / 8)). A byte holds eight pixels of a row: otherwise masks would be most of the data moved.
    """

    data: DetectionSet
    seed: int
    side: int
    jitter: tuple[float, float]

    def __call__(self, index: int, epoch: int) -> Fields:
        image = self.data.image(index)
        view = draw_view(sample_rng(self.seed, epoch, index, AUGMENT), image.size, self.side, self.jitter)
        objects = letterbox_objects(self.data.objects(index), image.size, view, self.side)
        areas = np.prod(objects.boxes[:, 2:] - objects.boxes[:, :2], axis=1)
        order = np.sort(np.argsort(-areas, kind="stable")[:MAX_OBJECTS])
        fields: Fields = {
            "image": letterbox_image(image, view, self.side),
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
