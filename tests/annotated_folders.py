"""Annotated sets as programs export them, for tests: small ones of COCO and of masks, and the check of what is read."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from peco.annotations.photos import unwrapped
from peco.core.errors import PecoError

WIDTH, HEIGHT = 48, 40
BOX = (6.0, 7.0, 24.0, 22.0)  # x0, y0, x1, y1 in pixels, of the object in every image


def photo(path: Path, size: tuple[int, int] = (WIDTH, HEIGHT), orientation: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    if orientation:
        exif[0x0112] = orientation
    pixels = np.zeros((size[1], size[0], 3), dtype=np.uint8)
    pixels[:, : size[0] // 2] = 200  # bright on the left
    Image.fromarray(pixels).save(path, exif=exif)


def text(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")


@dataclass(frozen=True)
class Kind:
    """A kind of set: what builds it, and what is read.

    Attributes:
        images: numbers of images of train and val.
        skipped: what is left out of train.
        notes: parts of sentences in the notes.
        message: instead of all that, the refusal.
    """

    build: Callable[[Path], object]
    images: tuple[int, int] = (4, 4)
    classes: tuple[str, ...] = ("cat",)
    masks: bool = False
    skipped: dict[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    message: str = ""


def coco_entry(number: int, name: str, **changed: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    image = {"id": number, "file_name": name, "width": WIDTH, "height": HEIGHT}
    x0, y0, x1, y1 = BOX
    box = {"id": number, "image_id": number, "category_id": 1, "bbox": [x0, y0, x1 - x0, y1 - y0]}
    return image, box | changed


def coco(
    root: Path,
    images: str = "{split}/{i}.jpg",
    file_name: str = "{i}.jpg",
    annotations: str = "annotations/instances_{split}.json",
    splits: tuple[str, str] = ("train", "val"),
    categories: list[dict[str, Any]] | None = None,
    image: dict[str, Any] | None = None,
    **changed: Any,
) -> None:
    """Four images with a box each in both splits."""
    for split in splits:
        pairs = [coco_entry(i, file_name.format(split=split, i=i), **changed) for i in range(4)]
        for i, (entry, _) in enumerate(pairs):
            photo(root / images.format(split=split, i=i))
            entry.update(image or {})
        content = {
            "images": [entry for entry, _ in pairs],
            "annotations": [box for _, box in pairs],
            "categories": categories or [{"id": 1, "name": "cat"}],
        }
        text(root / annotations.format(split=split), json.dumps(content))


SQUARE = [6, 7, 24, 7, 24, 22, 6, 22]


def coco_of_few_points(root: Path) -> None:
    """Two of four objects of train have polygons of two points only, one has such a polygon besides a good one."""
    coco(root, segmentation=[SQUARE])
    path = root / "annotations/instances_train.json"
    content = json.loads(path.read_text())
    content["annotations"][0]["segmentation"] = [[6, 7, 24, 22]]
    content["annotations"][1]["segmentation"] = [[6, 7]]
    content["annotations"][2]["segmentation"] = [SQUARE, [1, 2, 3, 4]]
    path.write_text(json.dumps(content))


def masks(
    root: Path,
    images: str = "images/{split}/{i}.jpg",
    annotations: str = "annotations/{split}/{i}.png",
    splits: tuple[str, str] = ("train", "val"),
    values: tuple[int, ...] = (0, 1),
    orientation: int = 0,
    mode: str = "L",
) -> None:
    for split in splits:
        for i in range(4):
            photo(root / images.format(split=split, i=i), orientation=orientation)
            mask = np.array(values, dtype=np.uint8)[np.arange(WIDTH) * len(values) // WIDTH]
            path = root / annotations.format(split=split, i=i)
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.tile(mask, (HEIGHT, 1))).convert(mode).save(path)


def cases(kinds: dict[str, Kind]) -> Any:
    return pytest.mark.parametrize("kind", kinds.values(), ids=kinds)


def check(kind: Kind, root: Path, read: Callable[[Path], tuple[Any, Any]]) -> None:
    """Every object is the one of `BOX`, and its mask, if it has one, the same rectangle."""
    kind.build(root)
    if kind.message:
        with pytest.raises(PecoError) as caught:
            read(unwrapped(root))[0].trainable()
        assert kind.message in str(caught.value)
        assert "\n" not in str(caught.value)
        return
    train, val = read(unwrapped(root))
    train = train.trainable()
    assert (len(train), len(val)) == kind.images
    assert train.classes == val.classes == kind.classes
    assert train.has_masks == kind.masks
    assert dict(train.skipped) == kind.skipped
    notes = "; ".join([*train.notes, *val.notes])
    assert all(part in notes for part in kind.notes)
    assert bool(notes) == bool(kind.notes)
    for data in (train, val):
        for i in range(len(data)):
            objects = data.objects(i)
            assert data.image(i).size == (WIDTH, HEIGHT)
            if kind.notes and "without a label file" in kind.notes[0] and not len(objects.labels):
                continue
            np.testing.assert_allclose(objects.boxes, [BOX], atol=1e-4)
            assert objects.labels.tolist() == [0]
            if kind.masks:
                rows, columns = np.nonzero(objects.masks[0])
                assert (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1) == BOX
