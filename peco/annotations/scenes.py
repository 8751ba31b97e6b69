"""Scenes of the built-in set with several objects each, as annotated sets; the generator gives exact annotations.

Segmentation and detection get the same scenes. None of them is used for pre-training or for probes.
"""

from __future__ import annotations

from collections import Counter
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from peco.annotations.sets import Objects
from peco.core import config
from peco.core.errors import PecoError
from peco.scenes import scenes
from peco.scenes.descriptor import read_descriptor

BACKGROUND = "background"
FIRST = {"train": 10_000_000, "val": 20_000_000}
"""Index of the first scene of each split, beyond all scenes that `peco/sources/open.py` draws."""
MAX_COUNT = 10_000_000
CACHED = 2048  # scenes: both splits of any preset, so that each scene is drawn once
CACHED_SIZE = 128  # maximum side in pixels of cached scenes; larger ones would take more than 0.3 GB


def open_segmentation(path: Path, sizes: config.AnnotatedScenes, split: str) -> SegmentationScenes:
    """Open a split for segmentation, with the background as class 0 before the classes of the scenes.

    Args:
        path: descriptor, the same as for the images to pre-train on.
        sizes: number of scenes, their size and number of objects.
        split: `train` or `val`.

    Raises:
        PecoError: the descriptor is missing or wrong.
    """
    return SegmentationScenes(*_open(path, sizes, split))


def open_detection(path: Path, sizes: config.AnnotatedScenes, split: str) -> DetectionScenes:
    """Open a split for detection, with masks. As `open_segmentation`, but without a background."""
    return DetectionScenes(*_open(path, sizes, split))


class _Scenes:
    """Images `first` to `first + count` of the data set `seed`."""

    def __init__(self, seed: int, first: int, count: int, size: int, objects: int) -> None:
        self._seed, self._first, self._count, self._size, self._objects = seed, first, count, size, objects
        self.skipped: Counter[str] = Counter()
        self.notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return self._count

    def image(self, i: int) -> Image.Image:
        return Image.fromarray(self._scene(i).image)

    def _scene(self, i: int) -> scenes.Scene:
        if not 0 <= i < self._count:
            raise IndexError(f"scene {i} of {self._count}")
        render = _render_cached if self._size <= CACHED_SIZE else scenes.render
        return render(self._seed, self._first + i, self._size, self._objects)


class SegmentationScenes(_Scenes):
    """A `SegmentationSet`. Lesser objects that are mostly hidden are not annotated, so they count as background."""

    classes = (BACKGROUND, *scenes.CLASSES)

    def mask(self, i: int) -> NDArray[np.int32]:
        scene = self._scene(i)
        classes = 1 + scene.classes.astype(np.int32)
        # The masks are disjoint, so the sum is the class of the object that covers a pixel.
        return np.tensordot(classes, scene.masks.astype(np.int32), axes=1)


class DetectionScenes(_Scenes):
    """A `DetectionSet`."""

    classes = scenes.CLASSES
    has_masks = True

    def objects(self, i: int) -> Objects:
        scene = self._scene(i)
        return Objects(scene.boxes, scene.classes, scene.masks, np.zeros(len(scene.classes), dtype=bool))


def _open(path: Path, sizes: config.AnnotatedScenes, split: str) -> tuple[int, int, int, int, int]:
    count: int = getattr(sizes, split)
    if count > MAX_COUNT:
        raise PecoError(f"scenes.{split}: {count} is not allowed; expected at most {MAX_COUNT}")
    return read_descriptor(path), FIRST[split], count, sizes.size, sizes.objects


_render_cached = lru_cache(maxsize=CACHED)(scenes.render)
