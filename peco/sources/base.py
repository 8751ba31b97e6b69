"""The interface of all sources of images."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Protocol, TypeVar

import numpy as np

IMAGE_EXTENSIONS = ("jpg", "jpeg", "jpe", "png", "webp", "bmp", "gif", "tif", "tiff", "ppm", "pgm")
SPLITS = ("train", "val")

T = TypeVar("T")


@dataclass(frozen=True)
class RawSample:
    """One image as found, not yet decoded or checked."""

    split: str  # one of SPLITS
    name: str  # path within the source; unique in it
    encoded: bytes  # the image file
    label: int  # index into the source's classes, -1: none


class Source(Protocol):
    """A set of images with its splits and classes.

    Attributes:
        classes: names of the labels; complete when `samples` is exhausted.
        ignored: numbers of ignored files by reason; complete when `samples` is exhausted.
        total: number of samples, None if it is known only at the end.
    """

    classes: tuple[str, ...]
    ignored: Counter[str]
    total: int | None

    def samples(self) -> Iterator[RawSample]:
        """Every sample once, in an order that depends on the input and `dataset.seed` only.

        Raises:
            PecoError: the input can't be read.
        """


def extension(name: str) -> str:
    """Extension of a file name in lower case, without the dot."""
    return PurePosixPath(name).suffix[1:].lower()


def hashed(name: str, seed: int) -> int:
    """A pseudorandom number in [0, 2**64) that depends on name and seed only."""
    text = f"{seed}/{name}".encode("utf-8", "surrogateescape")
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big")


def shuffled(items: list[T], split: str, seed: int) -> Iterator[T]:
    """The items in a random order that depends on split and seed only."""
    for i in np.random.default_rng([seed, SPLITS.index(split)]).permutation(len(items)):
        yield items[i]
