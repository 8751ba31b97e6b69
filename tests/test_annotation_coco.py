"""COCO as programs export it: each kind is read with the right objects, or refused in one line; photos that are turned."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from annotated_folders import BOX, HEIGHT, SQUARE, WIDTH, Kind, cases, check, coco, coco_of_few_points, photo, text
from PIL import Image

from peco.boxes.coco import open_coco
from peco.core.errors import PecoError

POINTS = [[6, 7], [24, 7], [24, 22], [6, 22]]
ROBOFLOW = [
    {"id": 0, "name": "animals", "supercategory": "none"},
    {"id": 1, "name": "cat", "supercategory": "animals"},
]
TWICE = [{"id": 0, "name": "cat", "supercategory": "none"}, {"id": 1, "name": "cat", "supercategory": "cat"}]
ROBOFLOW_LAYOUT: dict[str, Any] = {"annotations": "{split}/_annotations.coco.json", "splits": ("train", "valid")}


def with_masks(segmentation: object) -> Callable[[Path], None]:
    return lambda root: coco(root, segmentation=segmentation)


COCO = {
    "as COCO": Kind(coco),
    "Roboflow": Kind(lambda root: coco(root, **ROBOFLOW_LAYOUT)),
    "Roboflow, with its parent category": Kind(
        lambda root: coco(root, **ROBOFLOW_LAYOUT, categories=ROBOFLOW), notes=("the category animals (0) has no annotation",)
    ),
    "Roboflow, parent of the same name": Kind(
        lambda root: coco(root, **ROBOFLOW_LAYOUT, categories=TWICE), notes=("the category cat (0) has no annotation",)
    ),
    "file_name from the top": Kind(
        lambda root: coco(root, "{split}/{split}{i}.jpg", "{split}/{split}{i}.jpg")
    ),
    "file_name of another machine": Kind(
        lambda root: coco(root, file_name="/home/me/coco/{split}/{i}.jpg"),
        notes=("file names are read without their first folders, home/me/coco",),
    ),
    "file_name with backslashes": Kind(lambda root: coco(root, file_name="{split}\\{i}.jpg")),
    "file_name that leads out": Kind(
        lambda root: coco(root, file_name="../../{split}x{i}.jpg"), message="leads out of the folder of the set"
    ),
    "one JSON for all": Kind(
        lambda root: coco(root, "images/{i}.jpg", annotations="annotations/instances_default.json", splits=("train", "train")),
        images=(3, 1), notes=("no splits were found: 1 of 4 images are val",),
    ),
    "CVAT, images below default": Kind(
        lambda root: coco(
            root, "images/default/{i}.jpg", annotations="annotations/instances_default.json", splits=("train", "train")
        ),
        images=(3, 1), notes=("no splits were found: 1 of 4 images are val",),
    ),
    "LVIS, addresses instead of names": Kind(
        lambda root: (
            coco(root, "{split}2017/{i}.jpg", annotations="lvis_v1_{split}.json"),
            [
                p.write_text(p.read_text().replace('"file_name": "', f'"coco_url": "http://x.org/{split}2017/'))
                for split in ("train", "val")
                for p in root.glob(f"*{split}.json")
            ],
        )
    ),
    "a file that is two images": Kind(
        lambda root: coco(root, file_name="0.jpg"), message="image 1: 0.jpg is image 0 too; merge the two"
    ),
    "train without val": Kind(
        lambda root: coco(root, splits=("train", "train")), message="no annotations of the split val"
    ),
    "validation in capitals": Kind(lambda root: coco(root, splits=("Train", "Validation"))),
    "test for val": Kind(lambda root: coco(root, splits=("train", "test"))),
    "other JSON of COCO beside": Kind(
        lambda root: (coco(root), text(root / "annotations/captions_train.json", "{}"))
    ),
    "in a folder": Kind(lambda root: coco(root / "export")),
    "without sizes": Kind(lambda root: coco(root, image={"width": None, "height": None})),
    "sizes of 0": Kind(lambda root: coco(root, image={"width": 0, "height": 0})),
    "sizes as floats": Kind(lambda root: coco(root, image={"width": 48.0, "height": 40.0})),
    "byte order mark": Kind(
        lambda root: (coco(root), [p.write_text("\ufeff" + p.read_text()) for p in root.rglob("*.json")])
    ),
    "polygons": Kind(with_masks([SQUARE]), masks=True),
    "one flat polygon": Kind(with_masks(SQUARE), masks=True),
    "polygon of points": Kind(with_masks(POINTS), masks=True),
    "polygons of points": Kind(with_masks([POINTS]), masks=True),
    "polygon of dicts": Kind(with_masks([{"x": x, "y": y} for x, y in POINTS]), masks=True),
    "polygons of fewer than three points": Kind(
        coco_of_few_points, images=(2, 4), masks=True,
        skipped={"polygon of fewer than three points": 3, "image with no object": 2},
    ),
    "polygons of two points only": Kind(
        with_masks([[6, 7, 24, 22]]),
        message="nothing to train on (left out: polygon of fewer than three points: 4)",
    ),
    "points of three numbers": Kind(with_masks([[[1, 2, 3]]]), message="neither polygons nor run lengths"),
    "polygon far outside": Kind(
        with_masks([[6, 7, 24e8, 7, 24, 22]]), message="annotation 0: a polygon reaches from 6 to 2.4e+09, far outside"
    ),
    "mask without a pixel": Kind(
        with_masks({"size": [HEIGHT, WIDTH], "counts": [WIDTH * HEIGHT]}),
        message="nothing to train on (left out: mask without a pixel: 4)",
    ),
    "deeply nested": Kind(
        lambda root: (coco(root), text(root / "annotations/instances_val.json", "[" * 100_000)), message="can't be read"
    ),
    "numbers of 400 digits": Kind(
        lambda root: coco(root, bbox=[10**400, 0, 5, 5]), message="is not allowed; expected x, y, width, height"
    ),
}  # fmt: skip


@cases(COCO)
def test_kinds_of_coco(kind: Kind, tmp_path: Path) -> None:
    check(kind, tmp_path, open_coco)


# --- EXIF


def turned(root: Path, size: tuple[int, int], orientation: int = 6) -> None:
    """Photos that are stored as WIDTH x HEIGHT and seen upright as HEIGHT x WIDTH."""
    coco(root, image={"width": size[0], "height": size[1]})
    for path in root.rglob("*.jpg"):
        photo(path, orientation=orientation)


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_images_annotated_before_their_exif_rotation_are_read_without_it(orientation: int, tmp_path: Path) -> None:
    turned(tmp_path, (WIDTH, HEIGHT), orientation)
    train, _ = open_coco(tmp_path)
    stored = np.asarray(Image.open(tmp_path / "train/0.jpg"))
    assert np.array_equal(np.asarray(train.image(0)), stored)
    assert train.objects(0).boxes.tolist() == [list(BOX)]
    assert train.notes == ("images annotated before their EXIF rotation, and read without it: 4",)


def test_images_annotated_upright_are_read_upright(tmp_path: Path) -> None:
    turned(tmp_path, (HEIGHT, WIDTH))
    train, _ = open_coco(tmp_path)
    assert train.image(0).size == (HEIGHT, WIDTH)
    assert train.notes == ()


def test_a_size_that_no_rotation_explains_is_refused_with_both_sizes(tmp_path: Path) -> None:
    turned(tmp_path, (WIDTH, HEIGHT + 1))
    with pytest.raises(
        PecoError, match=r"is 40 x 48 pixels \(48 x 40 before its EXIF rotation\), but annotated as 48 x 41"
    ):
        open_coco(tmp_path)
    for path in tmp_path.rglob("*.jpg"):
        photo(path, (HEIGHT, WIDTH))
    turned_json = tmp_path / "annotations/instances_train.json"
    turned_json.write_text(turned_json.read_text().replace("41", "40"))
    with pytest.raises(
        PecoError, match="is 40 x 48 pixels, but annotated as 48 x 40"
    ):  # swapped, without an EXIF rotation
        open_coco(tmp_path)
