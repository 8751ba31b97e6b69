"""YOLO as programs export it: each kind is read with the right objects, or refused in one line."""

from __future__ import annotations

from pathlib import Path

import yaml
from annotated_folders import Kind, cases, check, photo, text

from peco.boxes.yolo import open_yolo

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
    "confidences and numbers of tracks": Kind(
        lambda root: yolo(root, line=LINE.strip() + " 0.93 1\n"), message="as a tracker writes a box with confidence and number"
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


@cases(YOLO)
def test_kinds_of_yolo(kind: Kind, tmp_path: Path) -> None:
    check(kind, tmp_path, open_yolo)
