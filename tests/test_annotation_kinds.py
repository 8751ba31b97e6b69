"""Annotated sets as programs export them: each kind is read with the right objects, or refused in one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from peco.annotations.splits import split_of
from peco.boxes.coco import open_coco
from peco.boxes.voc import open_voc
from peco.boxes.yolo import open_yolo
from peco.core.errors import PecoError
from peco.masks.folder import open_folder

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


# --- COCO


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
            photo(root / images.format(split=split, i=i), orientation=6 if "turned" in images else 0)
            entry.update(image or {})
        content = {
            "images": [entry for entry, _ in pairs],
            "annotations": [box for _, box in pairs],
            "categories": categories or [{"id": 1, "name": "cat"}],
        }
        text(root / annotations.format(split=split), json.dumps(content))


def with_masks(segmentation: object) -> Callable[[Path], None]:
    return lambda root: coco(root, segmentation=segmentation)


def coco_of_few_points(root: Path) -> None:
    """Two of four objects of train have polygons of two points only, one has such a polygon besides a good one."""
    coco(root, segmentation=[SQUARE])
    path = root / "annotations/instances_train.json"
    content = json.loads(path.read_text())
    content["annotations"][0]["segmentation"] = [[6, 7, 24, 22]]
    content["annotations"][1]["segmentation"] = [[6, 7]]
    content["annotations"][2]["segmentation"] = [SQUARE, [1, 2, 3, 4]]
    path.write_text(json.dumps(content))


SQUARE = [6, 7, 24, 7, 24, 22, 6, 22]
POINTS = [[6, 7], [24, 7], [24, 22], [6, 22]]
ROBOFLOW = [
    {"id": 0, "name": "animals", "supercategory": "none"},
    {"id": 1, "name": "cat", "supercategory": "animals"},
]
TWICE = [{"id": 0, "name": "cat", "supercategory": "none"}, {"id": 1, "name": "cat", "supercategory": "cat"}]
ROBOFLOW_LAYOUT: dict[str, Any] = {"annotations": "{split}/_annotations.coco.json", "splits": ("train", "valid")}

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

# --- YOLO

LINE = "0 0.3125 0.3625 0.375 0.375\n"


def yolo(
    root: Path,
    images: str = "images/{split}/{i}.jpg",
    labels: str = "labels/{split}/{i}.txt",
    line: str = LINE,
    splits: tuple[str, str] = ("train", "val"),
    **data: object,
) -> None:
    for split in splits:
        for i in range(4):
            photo(root / images.format(split=split, i=i))
            text(root / labels.format(split=split, i=i), line)
    content = {"train": f"images/{splits[0]}", "val": f"images/{splits[1]}", "names": ["cat"]} | data
    text(root / "data.yaml", yaml.safe_dump({key: value for key, value in content.items() if value is not None}))


def yolo_lists(root: Path, name: str) -> None:
    yolo(root, train="train.txt", val=["val.txt"])
    for split in ("train", "val"):
        text(root / f"{split}.txt", "".join(name.format(split=split, i=i) + "\n" for i in range(4)))


def yolo_with_classes_txt(root: Path, images: str, labels: str) -> None:
    yolo(root, images, labels)
    (root / "data.yaml").unlink()
    text(root / "classes.txt", "cat\n")


KEY_POINTS = LINE.strip() + " 0.3 0.3 2 0.4 0.4 2\n"
YOLO = {
    "as ultralytics": Kind(yolo),
    "Roboflow": Kind(
        lambda root: yolo(
            root, "{split}/images/{i}.jpg", "{split}/labels/{i}.txt", splits=("train", "valid"),
            train="../train/images", val="../valid/images",
        )
    ),
    "of another machine": Kind(
        lambda root: yolo(root, path="/content/datasets/x", train="/content/datasets/x/images/train", val="images/val")
    ),
    "valid instead of val": Kind(lambda root: yolo(root, val=None, valid="images/val")),
    "test for val": Kind(
        lambda root: yolo(root, val=None, test="images/val"), notes=("names no val: test is used as val",)
    ),
    "a list of folders": Kind(lambda root: yolo(root, train=["images/train"], val=["images/val"])),
    "lists of images": Kind(lambda root: yolo_lists(root, "./images/{split}/{i}.jpg")),
    "lists of another machine": Kind(lambda root: yolo_lists(root, "/data/set/images/{split}/{i}.jpg")),
    "nested folders": Kind(lambda root: yolo(root, "images/{split}/a/{i}.jpg", "labels/{split}/a/{i}.txt")),
    "labels beside images": Kind(lambda root: yolo(root, labels="images/{split}/{i}.txt")),
    "labels beside images, no folder images": Kind(
        lambda root: yolo(root, "{split}/{i}.jpg", "{split}/{i}.txt", train="train", val="val")
    ),
    "a folder images above the set": Kind(lambda root: yolo(root / "images/set")),
    "capitals": Kind(
        lambda root: yolo(
            root, "Images/{split}/{i}.jpg", "Labels/{split}/{i}.txt", train="Images/train", val="Images/val"
        )
    ),
    "Label Studio": Kind(
        lambda root: yolo_with_classes_txt(root, "images/{split}{i}.jpg", "labels/{split}{i}.txt"),
        images=(6, 2), notes=("no splits were found: 2 of 8 images are val",),
    ),
    "labelImg": Kind(lambda root: yolo_with_classes_txt(root, "{split}/{i}.jpg", "{split}/{i}.txt")),
    "data.yaml of another name": Kind(lambda root: (yolo(root), (root / "data.yaml").rename(root / "coco8.yaml"))),
    "darknet's lists": Kind(
        lambda root: (
            yolo_with_classes_txt(root, "obj/{split}{i}.jpg", "obj/{split}{i}.txt"),
            [
                text(root / f"{name}.txt", "".join(f"data/obj/{split}{i}.jpg\n" for i in range(4)))
                for name, split in (("train", "train"), ("valid", "val"))
            ],
        )
    ),
    "key points": Kind(
        lambda root: yolo(root, line=KEY_POINTS, kpt_shape=[2, 3]),
        notes=("kpt_shape: the boxes are used, the key points are not",),
    ),
    "key points that differ": Kind(
        lambda root: yolo(root, line=KEY_POINTS, kpt_shape=[3, 3]),
        message="10 numbers after the class; expected 4 of the box and 9 of the key points",
    ),
    "a confidence column": Kind(
        lambda root: yolo(root, line=LINE.strip() + " 0.93\n"), message="looks like the confidence of a prediction"
    ),
    "images without label files": Kind(
        lambda root: (yolo(root), (root / "labels/val/3.txt").unlink()),
        notes=("labels/val: images without a label file, read as images without an object: 1",),
    ),
    "polygons": Kind(
        lambda root: yolo(root, line="0 0.125 0.175 0.5 0.175 0.5 0.55 0.3 0.55 0.125 0.55\n"), masks=True
    ),
    "rotated boxes": Kind(
        lambda root: yolo(root, line="0 0.125 0.175 0.5 0.175 0.5 0.55 0.125 0.55\n"),
        masks=True, notes=("each outline has four points, as in sets of rotated boxes: they are read as masks",),
    ),
    "byte order mark": Kind(lambda root: yolo(root, line="\ufeff" + LINE)),
    "a path of 5,000 letters": Kind(lambda root: yolo(root, train="x" * 5000), message="no such folder of images"),
    "a date that doesn't exist": Kind(
        lambda root: (yolo(root), text(root / "data.yaml", "train: 2001-99-99\n")), message="can't be read"
    ),
    "a path with a zero": Kind(lambda root: yolo(root, train="a\0b"), message="no such folder of images"),
    "no names": Kind(lambda root: yolo(root, names=None), message="names is None"),
}  # fmt: skip

# --- Pascal VOC


def voc(
    root: Path,
    images: str = "JPEGImages/{name}.jpg",
    annotations: str = "Annotations/{name}.xml",
    lists: bool = True,
    size: tuple[int, int] = (WIDTH, HEIGHT),
    name: str = "{split}{i}",
    head: str = "",
) -> None:
    x0, y0, x1, y1 = (int(value) for value in BOX)
    sides = f"<xmin>{x0 + 1}</xmin><ymin>{y0 + 1}</ymin><xmax>{x1}</xmax><ymax>{y1}</ymax>"
    for split in ("train", "val"):
        names = [name.format(split=split, i=i) for i in range(4)]
        for one in names:
            photo(root / images.format(name=one, split=split))
            entry = f"<object><name>cat</name><bndbox>{sides}</bndbox></object>"
            shape = f"<size><width>{size[0]}</width><height>{size[1]}</height></size>"
            text(root / annotations.format(name=one, split=split), f"{head}<annotation>{shape}{entry}</annotation>")
        if lists:
            text(root / f"ImageSets/Main/{split}.txt", "\n".join(names) + "\n")


DIVIDED: dict[str, Any] = {"images": (6, 2), "notes": ("no splits were found: 2 of 8 images are val",)}
VOC = {
    "as Pascal VOC": Kind(voc),
    "size of 0 x 0": Kind(lambda root: voc(root, size=(0, 0))),
    "trainval and test": Kind(
        lambda root: (
            voc(root),
            [
                (root / "ImageSets/Main" / old).rename(root / "ImageSets/Main" / new)
                for old, new in (("train.txt", "trainval.txt"), ("val.txt", "test.txt"))
            ],
        ),
        notes=("test is used as val",),
    ),
    "two years": Kind(
        lambda root: (voc(root / "VOC2007"), voc(root / "VOC2012")),
        message="lists of a part of",
    ),
    "names with blanks": Kind(lambda root: voc(root, name="my {split} {i}")),
    "names with blanks that differ in the first word": Kind(lambda root: voc(root, name="{split}{i} of mine")),
    "names with an extension in the lists": Kind(
        lambda root: (
            voc(root),
            [p.write_text(p.read_text().replace("\n", ".jpg\n")) for p in (root / "ImageSets/Main").iterdir()],
        )
    ),
    "images and annotations": Kind(
        lambda root: voc(root, "images/{name}.jpg", "annotations/{name}.xml", lists=False), **DIVIDED
    ),
    "in capitals": Kind(lambda root: voc(root, "Images/{name}.jpg", "ANNOTATIONS/{name}.xml", lists=False), **DIVIDED),
    "labelImg, beside the images": Kind(lambda root: voc(root, "{name}.jpg", "{name}.xml", lists=False), **DIVIDED),
    "Roboflow": Kind(lambda root: voc(root, "{split}/{name}.jpg", "{split}/{name}.xml", lists=False)),
    "splits below both folders": Kind(
        lambda root: voc(root, "images/{split}/{name}.jpg", "annotations/{split}/{name}.xml", lists=False)
    ),
    "splits above both folders": Kind(
        lambda root: voc(root, "{split}/images/{name}.jpg", "{split}/annotations/{name}.xml", lists=False)
    ),
    "an image without an XML": Kind(
        lambda root: (voc(root, "{name}.jpg", "{name}.xml", lists=False), photo(root / "more.jpg")),
        skipped={"image without an annotation": 1}, **DIVIDED,
    ),
    "an XML without an image": Kind(
        lambda root: (voc(root, "{name}.jpg", "{name}.xml", lists=False), (root / "val1.jpg").unlink()),
        message="val1.xml: there is no image val1; add it or remove the annotation",
    ),
    "no annotations": Kind(lambda root: photo(root / "a.jpg"), message="no XML; expected ImageSets/Main"),
    "an unknown encoding": Kind(
        lambda root: voc(root, head='<?xml version="1.0" encoding="klingon"?>'), message="can't be read"
    ),
    "a width of infinity": Kind(
        lambda root: voc(root, size=(float("inf"), 1)), message="size/width is 'inf'; expected a number"  # type: ignore[arg-type]
    ),
}  # fmt: skip


def cases(kinds: dict[str, Kind]) -> Any:
    return pytest.mark.parametrize("kind", kinds.values(), ids=kinds)


def check(kind: Kind, root: Path, read: Callable[[Path], tuple[Any, Any]]) -> None:
    """Every object is the one of `BOX`, and its mask, if it has one, the same rectangle."""
    kind.build(root)
    if kind.message:
        with pytest.raises(PecoError) as caught:
            read(root)[0].trainable()
        assert kind.message in str(caught.value)
        assert "\n" not in str(caught.value)
        return
    train, val = read(root)
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


def unwrapping(read: Callable[[Path], tuple[Any, Any]]) -> Callable[[Path], tuple[Any, Any]]:
    from peco.annotations.photos import unwrapped

    return lambda root: read(unwrapped(root))


@cases(COCO)
def test_kinds_of_coco(kind: Kind, tmp_path: Path) -> None:
    check(kind, tmp_path, unwrapping(open_coco))


@cases(YOLO)
def test_kinds_of_yolo(kind: Kind, tmp_path: Path) -> None:
    check(kind, tmp_path, unwrapping(open_yolo))


@cases(VOC)
def test_kinds_of_voc(kind: Kind, tmp_path: Path) -> None:
    check(kind, tmp_path, unwrapping(open_voc))


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


# --- masks


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


def cityscapes(root: Path, kind: str, others: tuple[str, ...] = ()) -> None:
    for one in (kind, *others):
        masks(
            root, "leftImg8bit/{split}/ulm/ulm_{i}_leftImg8bit.png", f"gtFine/{{split}}/ulm/ulm_{{i}}_gtFine_{one}.png",
            values=(0, 1) if one == kind else (7, 8, 9),
        )  # fmt: skip


def voc_masks(root: Path) -> None:
    masks(root, "JPEGImages/{split}{i}.jpg", "SegmentationClass/{split}{i}.png")
    photo(root / "JPEGImages/other.jpg")
    for split in ("train", "val"):
        text(root / f"ImageSets/Segmentation/{split}.txt", "".join(f"{split}{i}\n" for i in range(4)))


def two_masks_of_an_image(root: Path) -> None:
    masks(root)
    Image.new("L", (WIDTH, HEIGHT)).save(root / "annotations/val/3_mask.tif")


TWO = ("0", "1")
MASKS = {
    "ADE20K": Kind(lambda root: masks(root, splits=("training", "validation")), classes=TWO),
    "mmsegmentation": Kind(lambda root: masks(root, "img_dir/{split}/{i}.jpg", "ann_dir/{split}/{i}.png"), classes=TWO),
    "images and masks": Kind(lambda root: masks(root, annotations="masks/{split}/{i}.png"), classes=TWO),
    "images and labels": Kind(lambda root: masks(root, annotations="labels/{split}/{i}.png"), classes=TWO),
    "in capitals": Kind(lambda root: masks(root, "Images/{split}/{i}.jpg", "Masks/{split}/{i}.png", ("Train", "Val")), classes=TWO),
    "train and valid": Kind(lambda root: masks(root, splits=("train", "valid")), classes=TWO),
    "with years": Kind(lambda root: masks(root, annotations="masks/{split}/{i}.png", splits=("train2017", "val2017")), classes=TWO),
    "folders of splits": Kind(lambda root: masks(root, "{split}/images/{i}.jpg", "{split}/masks/{i}.png"), classes=TWO),
    "Carvana": Kind(lambda root: masks(root, "{split}/{i}.jpg", "{split}_masks/{i}_mask.gif"), classes=TWO),
    "train_images and train_masks": Kind(
        lambda root: masks(root, "{split}_images/{i}.jpg", "{split}_masks/{i}.png"), classes=TWO
    ),
    "two folders of masks": Kind(
        lambda root: (
            masks(root, "{split}/{i}.jpg", "{split}_masks/{i}.png"), masks(root, "{split}/{i}.jpg", "{split}_labels/{i}.png")
        ),
        message="train_labels and train_masks both may have the masks of train; move one away",
    ),
    "any suffix": Kind(lambda root: masks(root, annotations="masks/{split}/{i}_train_id.png"), classes=TWO),
    "Roboflow, beside the images": Kind(
        lambda root: masks(root, "{split}/{i}.jpg", "{split}/{i}_mask.png", ("train", "valid")), classes=TWO
    ),
    "beside the images, without splits": Kind(
        lambda root: masks(root, "{i}.jpg", "{i}_mask.png"), images=(3, 1), classes=TWO,
        notes=("no splits were found: 1 of 4 images are val",),
    ),
    "masks as JPEG": Kind(
        lambda root: masks(root, annotations="masks/{split}/{i}.jpg"),
        message="masks/train/0.jpg: a mask as JPEG, which changes the indices of classes",
    ),
    "masks of colours": Kind(
        lambda root: (masks(root), Image.new("RGB", (WIDTH, HEIGHT), (1, 2, 3)).save(root / "annotations/val/3.png")),
        message="convert colours to indices first",
    ),
    "suffix _mask": Kind(lambda root: masks(root, annotations="masks/{split}/{i}_mask.png"), classes=TWO),
    "Cityscapes": Kind(
        lambda root: cityscapes(root, "labelTrainIds", ("labelIds", "instanceIds")), classes=TWO
    ),
    "Cityscapes, labelIds only": Kind(lambda root: cityscapes(root, "labelIds", ("color",)), classes=TWO),
    "Pascal VOC": Kind(voc_masks, classes=TWO),
    "without splits": Kind(
        lambda root: masks(root, "images/{i}.jpg", "masks/{i}.png"), images=(3, 1), classes=TWO,
        notes=("no splits were found: 1 of 4 images are val",),
    ),
    "test besides val": Kind(
        lambda root: (masks(root), masks(root, splits=("test", "test"))), classes=TWO, notes=("images/test is not used",)
    ),
    "in a folder": Kind(lambda root: masks(root / "export"), classes=TWO),
    "0 and 255": Kind(
        lambda root: masks(root, values=(0, 255)), classes=("0", "255"),
        notes=("the classes are the 2 indices that occur in the training masks, 0, 255; 1 to 254 are none",),
    ),
    "gaps": Kind(
        lambda root: masks(root, values=(0, 3, 4, 9)), classes=("0", "3", "4", "9"),
        notes=("0, 3 to 4, 9; 1 to 2, 5 to 8 are none",),
    ),
    "255 besides classes": Kind(
        lambda root: masks(root, values=(0, 1, 255)), classes=("0", "1", "255"),
        notes=("if 255 means no class, set evaluate.segmentation.ignore=255",),
    ),
    "shades of grey": Kind(
        lambda root: masks(root, values=(*range(0, 235, 5), 255)), classes=(*map(str, range(0, 235, 5)), "255"),
        notes=("warning: 48 indices up to 255 occur, as in masks that were resized with smoothing",),
    ),
    "grey in RGB": Kind(lambda root: masks(root, mode="RGB"), classes=TWO),
    "annotated before EXIF": Kind(
        lambda root: masks(root, orientation=8), classes=TWO, notes=("before their EXIF rotation, and read without it: 4",)
    ),
    "two masks of an image": Kind(
        two_masks_of_an_image, message="is a mask of the same image; keep one of them"
    ),
    "two folders of a split": Kind(
        lambda root: (masks(root), masks(root, splits=("val", "validation"))), message="both name the split val; keep one"
    ),
}  # fmt: skip


@cases(MASKS)
def test_kinds_of_masks(kind: Kind, tmp_path: Path) -> None:
    kind.build(tmp_path)
    if kind.message:
        with pytest.raises(PecoError) as caught:
            open_folder(tmp_path, None)
        assert kind.message in str(caught.value)
        return
    train, val = open_folder(tmp_path, None)
    assert (len(train), len(val)) == kind.images
    assert train.classes == val.classes == kind.classes
    notes = "; ".join([*train.notes, *val.notes])
    assert all(part in notes for part in kind.notes)
    assert bool(notes) == bool(kind.notes)
    expected = np.arange(WIDTH) * len(kind.classes) // WIDTH
    for data in (train, val):
        for i in range(len(data)):
            assert data.image(i).size == (WIDTH, HEIGHT)
            assert np.array_equal(data.mask(i), np.tile(expected, (HEIGHT, 1)))


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train", "train"), ("TRAINING", "train"), ("train2017", "train"), ("seg_train", "train"), ("valid", "val"),
        ("dev", "val"), ("test", "test"), ("cats", None), ("train_val", "train"), ("valley", None),
    ],
)  # fmt: skip
def test_words_of_splits(name: str, split: str | None) -> None:
    assert split_of(name) == split
