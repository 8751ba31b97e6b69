"""What every source of images gives, whatever it reads from."""

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
    """One image as found, not yet looked into."""

    split: str  # one of SPLITS
    name: str  # where it was found, relative to the source; unique in its source
    image: bytes
    label: int  # index into the source's classes, -1 where it has none


class Source(Protocol):
    """A set of images with its splits and classes.

    Attributes:
        classes: names of the labels; complete once `samples` has come to its end.
        ignored: how many files were left out, by reason; complete once `samples` has come to its end.
        total: number of samples, None where it is known only at the end.
    """

    classes: tuple[str, ...]
    ignored: Counter[str]
    total: int | None

    def samples(self) -> Iterator[RawSample]:
        """Every sample once, in an order that depends on the input and `dataset.seed` alone.

        Raises:
            PecoError: the input can't be read.
        """


def extension(name: str) -> str:
    """Extension of a file name in lower case, without the dot."""
    return PurePosixPath(name).suffix[1:].lower()


def hashed(name: str, seed: int) -> int:
    """A number in [0, 2**64) that looks random and depends on name and seed alone."""
    text = f"{seed}/{name}".encode("utf-8", "surrogateescape")
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big")


def shuffled(items: list[T], split: str, seed: int) -> Iterator[T]:
    """The items in the order that this seed gives to a split."""
    for i in np.random.default_rng([seed, SPLITS.index(split)]).permutation(len(items)):
        yield items[i]
