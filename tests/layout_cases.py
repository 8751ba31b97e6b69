"""Kinds of folders and archives of images for the tests of layouts: the files of each, and what they become."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import pytest

from peco.core.errors import PecoError
from peco.sources.imagefolder import Layout, read_layout

CD = ("cat", "dog")
# Reasons for which files are left out.
TEST = "an unused test split"
NO_IMAGE = "not an image by its name"

Files = dict[str, bytes]


@dataclass(frozen=True)
class Kind:
    """Files, and what they become.

    Attributes:
        files: contents by name.
        counts: numbers of images of train and val.
        classes: names of the classes in order.
        left: numbers of the files left out, by reason.
        note: a part of one of the notes.
        options: settings of the data set other than its defaults.
    """

    files: Files
    counts: tuple[int, int]
    classes: tuple[str, ...] = ()
    left: dict[str, int] = field(default_factory=dict)
    note: str = ""
    options: dict[str, Any] = field(default_factory=dict)


def empty(*names: str) -> Files:
    """Files whose contents don't matter."""
    return dict.fromkeys(names, b"")


def several(pattern: str, count: int, classes: Iterable[str] = CD) -> Files:
    """`count` files for each class; the pattern has {c} and {i}, or {i} alone."""
    classes = classes if "{c}" in pattern else ("",)
    return empty(*(pattern.format(c=c, i=i) for c in classes for i in range(count)))


def text(*lines: str) -> bytes:
    return "\n".join(lines).encode()


def read(files: Files, **options: Any) -> Layout:
    return read_layout(files, 0.1, 0, read=files.__getitem__, **options)


def check(kind: Kind) -> None:
    """Read the files, and compare the result with the expected one; no file is lost in silence."""
    layout = read(kind.files, **kind.options)
    assert {split: len(images) for split, images in layout.splits.items()} == dict(
        zip(("train", "val"), kind.counts, strict=True)
    )
    assert layout.classes == kind.classes
    assert {found.reason: len(found.names) for found in layout.ignored} == kind.left
    assert any(kind.note in note for note in layout.notes), layout.notes
    used = [image for images in layout.splits.values() for image, _ in images]
    ignored = [image for found in layout.ignored for image in found.names]
    assert sorted(used + ignored) == sorted(kind.files)


def refusal(files: Files, **options: Any) -> str:
    """The message with which the files are refused."""
    with pytest.raises(PecoError) as error:
        read(files, **options)
    return str(error.value)
