"""Protocols of annotated images, the input of the segmentation and detection evaluations.

A set is one split. Implementations check everything when a set is opened (sizes, indices, missing files, an empty split) and raise
a `PecoError` that names the first problem with its file and value. Images and objects that are left out, as documented, are counted
in `skipped` by reason. `notes` are sentences on how the set was read, where another reading was possible.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

IGNORE = -1
"""Index in a mask of pixels that are neither trained on nor scored."""


def left_out_words(skipped: Mapping[str, int]) -> str:
    """The counts of what is left out, for a message."""
    return ", ".join(f"{reason}: {count}" for reason, count in sorted(skipped.items()))


class AnnotatedSet(Protocol):
    """Annotated images of one split."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes 0 to C - 1, without a background or an ignored one."""

    @property
    def skipped(self) -> Counter[str]:
        """Number of images or objects left out at opening, by reason."""

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences on how the set was read."""

    def __len__(self) -> int: ...

    def image(self, i: int) -> Image.Image:
        """Image i in the position in which it was annotated, RGB."""


class SegmentationSet(AnnotatedSet, Protocol):
    """Images with a class for every pixel."""

    def mask(self, i: int) -> NDArray[np.int32]:
        """Class index of each pixel of image i, (H, W): 0 to C - 1, or `IGNORE`."""


@dataclass(frozen=True)
class Objects:
    """The N objects of one image."""

    boxes: NDArray[np.float32]  # (N, 4) x0, y0, x1, y1 in pixels, inside the image and of positive area
    labels: NDArray[np.int64]  # (N,) class index 0 to C - 1
    masks: NDArray[np.bool_] | None  # (N, H, W); None if the set has no masks
    crowd: NDArray[np.bool_]  # (N,) regions of many objects, in which detections count as neither right nor wrong


class DetectionSet(AnnotatedSet, Protocol):
    """Images with boxes, and with masks if `has_masks`."""

    @property
    def has_masks(self) -> bool:
        """True if every object has a mask."""

    def objects(self, i: int) -> Objects:
        """The objects of image i, possibly none."""
