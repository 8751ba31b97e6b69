"""Valid annotated sets: boxes, masks, judged triplets."""

from __future__ import annotations

import io
from random import Random
from typing import Any

import numpy as np
from PIL import Image

from .archives import pack_tar, pack_zip
from .files import Files
from .inputs import SET, SIDE, as_json, as_yaml, below, picture, text


def mask(number: int, values: tuple[int, ...] = (0, 1, 2)) -> bytes:
    """A mask of class indices."""
    out = io.BytesIO()
    Image.fromarray(
        np.array(values, dtype=np.uint8)[np.random.default_rng(number).integers(0, len(values), (SIDE, SIDE))]
    ).save(out, "PNG")
    return out.getvalue()


def coco(rng: Random) -> Files:
    """COCO's JSON with polygons, run lengths, boxes only, or the panoptic form."""
    form = rng.choice(["polygons", "counts", "packed", "boxes", "panoptic"])
    files: Files = {}
    for split, first in (("train", 0), ("val", 10)):
        ids = range(first, first + 3)
        entries = [{"id": i, "file_name": f"{i}.png", "width": SIDE, "height": SIDE} for i in ids]
        annotations: list[dict[str, Any]] = []
        for i in ids:
            files[f"{SET}/{split}/{i}.png"] = picture(i)
            if form == "panoptic":
                numbers = np.zeros((SIDE, SIDE, 3), dtype=np.uint8)
                numbers[2:8, 2:8, 0] = 1
                out = io.BytesIO()
                Image.fromarray(numbers).save(out, "PNG")
                files[f"{SET}/annotations/panoptic_{split}/{i}.png"] = out.getvalue()
                segment = {"id": 1, "category_id": 1, "bbox": [2, 2, 6, 6], "iscrowd": 0, "area": 36}
                annotations.append({"image_id": i, "file_name": f"{i}.png", "segments_info": [segment]})
                continue
            object_: dict[str, Any] = {
                "id": i,
                "image_id": i,
                "category_id": 1 + i % 2,
                "bbox": [2, 2, 6, 6.5],
                "iscrowd": 0,
            }
            if form == "polygons":
                object_["segmentation"] = [[2, 2, 8, 2, 8, 8.5, 2, 8]]
            elif form == "counts":
                object_["segmentation"] = {"size": [SIDE, SIDE], "counts": [20, 50, SIDE * SIDE - 70]}
            elif form == "packed":
                object_["segmentation"] = {"size": [SIDE, SIDE], "counts": "d0b1j4"}
            annotations.append(object_)
        prefix = "panoptic_" if form == "panoptic" else "instances_"
        categories = [{"id": number, "name": name, "isthing": 1} for number, name in ((1, "cat"), (2, "dog"))]
        files[f"{SET}/annotations/{prefix}{split}.json"] = as_json(
            {"images": entries, "annotations": annotations, "categories": categories}
        )
    return files


def yolo(rng: Random) -> Files:
    """YOLO's folders with data.yaml or classes.txt, boxes or polygons."""
    line = rng.choice(["0 0.5 0.5 0.25 0.25", "1 0.1 0.1 0.5 0.1 0.5 0.5", "0 0.5 0.5 0.25 0.25 0.4 0.4 2"])
    files: Files = {}
    for split, first in (("train", 0), ("val", 10)):
        for i in range(first, first + 3):
            files[f"{SET}/images/{split}/{i}.png"] = picture(i)
            files[f"{SET}/labels/{split}/{i}.txt"] = text(line, line)
    content: dict[str, Any] = {
        "path": ".",
        "train": "images/train",
        "val": "images/val",
        "names": {0: "cat", 1: "dog"},
        "nc": 2,
    }
    if line.endswith(" 2"):
        content["kpt_shape"] = [1, 3]
    form = rng.randrange(4)
    if form == 0:
        files[f"{SET}/classes.txt"] = text("cat", "dog")
    elif form == 1:
        content |= {"train": "train.txt", "val": ["images/val"], "names": ["cat", "dog"]}
        files[f"{SET}/train.txt"] = text(*(f"./images/train/{i}.png" for i in range(3)))
    if form:
        files[f"{SET}/data.yaml"] = as_yaml(content)
    return files


def voc(rng: Random) -> Files:
    """Pascal VOC, with lists or without."""
    files: Files = {}
    listed = rng.random() < 0.6
    for i in range(6):
        size = f"<size><width>{SIDE}</width><height>{SIDE}</height><depth>3</depth></size>"
        box = "<bndbox><xmin>2</xmin><ymin>3</ymin><xmax>9</xmax><ymax>10</ymax></bndbox>"
        name = f"<name>{'cat' if i % 2 else 'dog'}</name>"
        content = f"{size}<object>{name}<difficult>0</difficult>{box}</object>"
        files[f"{SET}/JPEGImages/{i}.jpg"] = picture(i, "JPEG")
        files[f"{SET}/Annotations/{i}.xml"] = f"<annotation>{content}</annotation>".encode()
    if listed:
        files |= {f"{SET}/ImageSets/Main/train.txt": text(0, 1, 2, 3), f"{SET}/ImageSets/Main/val.txt": text(4, 5)}
    return files


def masks(rng: Random) -> Files:
    """Images and masks of class indices."""
    files: Files = {}
    named = rng.random() < 0.5
    layout = rng.choice(
        [
            "images/{split}/{i}.png annotations/{split}/{i}.png",
            "{split}/images/{i}.jpg {split}/masks/{i}_mask.png",
            "images/{i}.png masks/{i}.png",
        ]
    )
    image, of_mask = layout.split()
    for i in range(6):
        place = {"split": "val" if i > 3 else "train", "i": i}
        files[f"{SET}/{image.format(**place)}"] = picture(i, "JPEG" if image.endswith("jpg") else "PNG")
        files[f"{SET}/{of_mask.format(**place)}"] = mask(i)
    if named:
        files[f"{SET}/classes.txt"] = text("sky", "sea", "land")
    return files


def two_afc(rng: Random) -> Files:
    """Judged triplets in a folder, tar or zip."""
    files: Files = {}
    for i in range(3):
        out = io.BytesIO()
        np.save(out, np.array([i / 2], dtype=np.float32))
        files |= {f"val/cnn/{part}/{i:06d}.png": picture(10 * i + n) for n, part in enumerate(("ref", "p0", "p1"))}
        files[f"val/cnn/judge/{i:06d}.npy"] = out.getvalue()
    form = rng.randrange(4)
    if form == 0:
        return {f"{SET}.tar": pack_tar(files)}
    return {f"{SET}.zip": pack_zip(files)} if form == 1 else below(SET, files)
