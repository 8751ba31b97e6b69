"""Annotated images: what evaluations of segmentation and detection read, wherever it comes from.

A set is one split. Whoever implements one of these protocols checks everything when it is opened (sizes, indices, missing files, an
empty split) and raises a `PecoError` that names the first offence with its file and value. What is documented to be left out is
counted in `skipped` by its reason.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

IGNORE = -1
"""Index in a mask of pixels that are neither learnt nor scored."""


class SegmentationSet(Protocol):
    """Images with a class for every pixel."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes 0 to C - 1; what is ignored is not among them."""

    @property
    def skipped(self) -> Counter[str]:
        """What was left out at opening, by the reason."""

    def __len__(self) -> int: ...

    def image(self, i: int) -> Image.Image:
        """Image i, upright, RGB."""

    def mask(self, i: int) -> NDArray[np.int32]:
        """Class index of each pixel of image i, (H, W): 0 to C - 1, or `IGNORE`."""


@dataclass(frozen=True)
class Objects:
    """The N objects of one image."""

    boxes: NDArray[np.float32]  # (N, 4) x0, y0, x1, y1 in pixels, inside the image and of positive area
    labels: NDArray[np.int64]  # (N,) class index 0 to C - 1
    masks: NDArray[np.bool_] | None  # (N, H, W); None where the set has no masks
    crowd: NDArray[np.bool_]  # (N,) regions of many objects, in which detections are neither right nor wrong


class DetectionSet(Protocol):
    """Images with boxes, and with masks where `has_masks`."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes 0 to C - 1, without a background."""

    @property
    def has_masks(self) -> bool:
        """Whether every object has a mask."""

    @property
    def skipped(self) -> Counter[str]:
        """What was left out at opening, by the reason."""

    def __len__(self) -> int: ...

    def image(self, i: int) -> Image.Image:
        """Image i, upright, RGB."""

    def objects(self, i: int) -> Objects:
        """The objects of image i; there may be none."""
