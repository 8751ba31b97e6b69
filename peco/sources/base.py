"""The interface of all sources of images."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import numpy as np

from peco.core.errors import PecoError

SPLITS = ("train", "val")
FIRST_NAMES = 3  # named in messages and in the index

T = TypeVar("T")


@dataclass(frozen=True)
class RawSample:
    """One image as found, not yet decoded or checked."""

    split: str  # one of SPLITS
    name: str  # path within the source; unique in it
    encoded: bytes  # the image file
    label: int  # index into the source's classes, -1: none


@dataclass(frozen=True)
class IgnoredFiles:
    """The files or samples that are ignored for one reason.

    Attributes:
        reason: in a few words, without the name of a file ("outside the splits").
        by_rule: True if the layout leaves them out by a documented rule, or they are no images. They are reported, but don't count
            towards `dataset.max_ignored`.
        names: paths within the source.
    """

    reason: str
    by_rule: bool
    names: list[str] = field(default_factory=list)

    @property
    def first(self) -> str:
        """The first names, for messages."""
        return ", ".join(self.names[:FIRST_NAMES]) + (", …" if len(self.names) > FIRST_NAMES else "")


class Ignored:
    """All that a source does not use, by reason. Images that can't be decoded are not here: they are rejected."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, bool], IgnoredFiles] = {}

    def add(self, reason: str, name: str, *, by_rule: bool = False) -> None:
        """Record one file or sample. Call it once for each, so that the numbers are right."""
        self._found.setdefault((reason, by_rule), IgnoredFiles(reason, by_rule)).names.append(name)

    def extend(self, reason: str, names: Iterable[str], *, by_rule: bool = False) -> None:
        """Record several files or samples of one reason."""
        for name in names:
            self.add(reason, name, by_rule=by_rule)

    def __iter__(self) -> Iterator[IgnoredFiles]:
        """The reasons, sorted: the order must not depend on the order of reading."""
        return iter(sorted(self._found.values(), key=lambda files: (files.reason, files.by_rule)))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Ignored) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]

    @property
    def counted(self) -> int:
        """Number of files or samples that count towards `dataset.max_ignored`."""
        return sum(len(files.names) for files in self._found.values() if not files.by_rule)


def check_ignored(path: object, ignored: Ignored, used: int, allowed: float, file: object = None) -> None:
    """Refuse a source that leaves out too many images.

    Args:
        path: of the source, for the message.
        ignored: what it doesn't use.
        used: number of images that it gives.
        allowed: `dataset.max_ignored`.
        file: that lists all that is ignored, if there is one.

    Raises:
        PecoError: the share of images that count as ignored is larger than allowed.
    """
    count = ignored.counted
    if count <= allowed * (count + used):
        return
    reasons = "; ".join(f"{len(found.names)} {found.reason}: {found.first}" for found in ignored if not found.by_rule)
    listed = f" (all are listed in {file})" if file else ""
    raise PecoError(
        f"{path}: {count} of {count + used} images have no place in its layout, more than dataset.max_ignored allows "
        f"({allowed:g}): {reasons}{listed}; move or remove them, or raise dataset.max_ignored"
    )


class Source(Protocol):
    """A set of images with its splits and classes.

    Attributes:
        classes: names of the labels; complete when `samples` is exhausted.
        ignored: what is not used; complete when `samples` is exhausted.
        notes: sentences for the summary on how the input was read, where another reading was possible ("val is 10 % of train, since
            test has no labels"); complete when `samples` is exhausted.
        total: number of samples, None if it is known only at the end.
    """

    classes: tuple[str, ...]
    ignored: Ignored
    notes: list[str]
    total: int | None

    def samples(self) -> Iterator[RawSample]:
        """Every sample once, in an order that depends on the input and `dataset.seed` only.

        Raises:
            PecoError: the input can't be read.
        """


def shuffled(items: list[T], split: str, seed: int) -> Iterator[T]:
    """The items in a random order that depends on split and seed only."""
    for i in np.random.default_rng([seed, SPLITS.index(split)]).permutation(len(items)):
        yield items[i]
