"""Layouts of folders and archives: for each kind the images of each split, the classes, and what is left out, or the refusal."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.io import savemat

from peco.core.errors import PecoError
from peco.sources.imagefolder import read_layout
from peco.sources.layouts.table import LAYOUTS

ROOT = Path(__file__).parents[1]
CD = ("cat", "dog")


def several(pattern: str, count: int, classes: Iterable[str] = CD) -> list[str]:
    """`count` names for each class; the pattern has {c} and {i}, or {i} alone."""
    classes = classes if "{c}" in pattern else ("",)
    return [pattern.format(c=c, i=i) for c in classes for i in range(count)]


def text(*lines: str) -> bytes:
    return "\n".join(lines).encode()


def devkit(numbers: list[int], names: dict[int, str]) -> dict[str, bytes]:
    """The devkit's ground truth and meta.mat."""
    kinds = [("ILSVRC2012_ID", "O"), ("WNID", "O")]
    meta = io.BytesIO()
    savemat(meta, {"synsets": np.array(list(names.items()), dtype=kinds)[:, None]})
    return {
        "ILSVRC2012_validation_ground_truth.txt": text(*map(str, numbers)),
        "meta.mat": meta.getvalue(),
    }


def packed(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(f"devkit/data/{name}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


WNIDS = ("n01440764", "n02102040")
IMAGENET = [
    *several("ILSVRC/Data/CLS-LOC/train/{c}/{c}_{i}.JPEG", 4, WNIDS),
    *several("ILSVRC/Data/CLS-LOC/val/ILSVRC2012_val_{i:08d}.JPEG", 3),
    *several("ILSVRC/Data/CLS-LOC/test/ILSVRC2012_test_{i:08d}.JPEG", 5),
    *several("ILSVRC/Annotations/CLS-LOC/train/{c}/{c}_{i}.xml", 4, WNIDS),
]
TARS = [
    *several("ILSVRC2012_img_train/{c}/{c}_{i}.JPEG", 4, WNIDS),
    *several("ILSVRC2012_img_val/ILSVRC2012_val_{i:08d}.JPEG", 3),
]
TRUTH = devkit([2, 1, 2], {1: "n02102040", 2: "n01440764"})


@dataclass(frozen=True)
class Kind:
    """Files, and what they become. `counts` are the images of train and val, `left` the ignored files by reason."""

    files: list[str] | dict[str, bytes]
    counts: tuple[int, int]
    classes: tuple[str, ...] = ()
    left: dict[str, int] = field(default_factory=dict)
    note: str = ""
    options: dict[str, Any] = field(default_factory=dict)


TEST = "an unused test split"
NO_IMAGE = "not an image by its name"
KINDS = {
    # splits in folders
    "train, val": Kind(several("train/{c}/{i}.jpg", 10) + several("val/{c}/{i}.jpg", 7), (20, 14), CD),
    "valid beside test": Kind(
        several("train/{c}/{i}.jpg", 10) + several("valid/{c}/{i}.jpg", 7) + several("test/{c}/{i}.jpg", 4),
        (20, 14),
        CD,
        {TEST: 8},
    ),
    "dev": Kind(several("train/{c}/{i}.jpg", 10) + several("dev/{c}/{i}.jpg", 7), (20, 14), CD),
    "eval": Kind(several("TRAIN/{c}/{i}.jpg", 10) + several("Eval/{c}/{i}.jpg", 7), (20, 14), CD),
    "Training, Testing": Kind(
        several("Training/{c}/{i}.jpg", 10) + several("Testing/{c}/{i}.jpg", 7),
        (20, 14),
        CD,
        note="val is the split test",
    ),
    "trn, tst": Kind(several("trn/{c}/{i}.jpg", 10) + several("tst/{c}/{i}.jpg", 7), (20, 14), CD),
    "doubled": Kind(several("train/train/{c}/{i}.jpg", 10) + several("test/test/{c}/{i}.jpg", 7), (20, 14), CD),
    "seg_train": Kind(
        several("seg_train/seg_train/{c}/{i}.jpg", 10)
        + several("seg_test/seg_test/{c}/{i}.jpg", 7)
        + several("seg_pred/seg_pred/{i}.jpg", 9),
        (20, 14),
        CD,
        {"an unused part without labels": 9},
    ),
    "training_set": Kind(
        several("training_set/training_set/{c}/{i}.jpg", 10) + several("test_set/test_set/{c}/{i}.jpg", 7), (20, 14), CD
    ),
    "trainset": Kind(several("trainset/{c}/{i}.jpg", 10) + several("testset/{c}/{i}.jpg", 7), (20, 14), CD),
    "any shared words": Kind(
        several("mnist_train/{c}/{i}.jpg", 10) + several("mnist_test/{c}/{i}.jpg", 7), (20, 14), CD
    ),
    "numbered parts": Kind(
        several("train.X1/a/{i}.jpg", 4) + several("train.X2/b/{i}.jpg", 4) + several("val.X/{c}/{i}.jpg", 2, "ab"),
        (8, 4),
        ("a", "b"),
        note="train is train.X1, train.X2",
    ),
    "wrapped, with files beside": Kind(
        ["set/README.md", "set/license.txt", *several("set/train/{c}/{i}.jpg", 10), *several("set/val/{c}/{i}.jpg", 7)],
        (20, 14),
        CD,
        {NO_IMAGE: 2},
    ),
    "wrapped, with a picture beside": Kind(
        ["logo.png", *several("set/train/{c}/{i}.jpg", 60), *several("set/val/{c}/{i}.jpg", 7)],
        (120, 14),
        CD,
        {"outside the splits": 1},
    ),
    "wrapped in a folder called training_data": Kind(
        several("training_data/train/{c}/{i}.jpg", 10) + several("training_data/val/{c}/{i}.jpg", 7), (20, 14), CD
    ),
    "splits below the classes": Kind(several("{c}/train/{i}.jpg", 10) + several("{c}/val/{i}.jpg", 7), (20, 14), CD),
    "splits below the classes, some with train only": Kind(
        several("{c}/train/{i}.jpg", 10, (*CD, "eel")) + several("{c}/val/{i}.jpg", 7), (30, 14), ("cat", "dog", "eel")
    ),
    "a single class, as a class": Kind(
        several("train/cat/{i}.jpg", 10) + several("val/cat/{i}.jpg", 4),
        (10, 4),
        ("cat",),
        options={"labels": "folders"},
    ),
    "unlabelled test": Kind(
        several("train/{c}/{i}.jpg", 10) + several("test/{i}.jpg", 7),
        (18, 2),
        CD,
        {TEST: 7},
        note="test is not used, since it has no labels and train has",
    ),
    "images in folders of splits": Kind(
        several("train/images/{i}.jpg", 10) + several("val/images/{i}.jpg", 4), (10, 4)
    ),
    "no labels at all": Kind(several("train/{i}.jpg", 10) + several("test/{i}.jpg", 4), (10, 4)),
    "checkpoints of notebooks": Kind(
        several("train/{c}/{i}.jpg", 10) + several("val/{c}/{i}.jpg", 7) + ["train/.ipynb_checkpoints/1.jpg"],
        (20, 14),
        CD,
        {"hidden": 1},
    ),
    "doubled under a longer name": Kind(
        several("cars_train/cars_train/{i}.jpg", 10) + several("cars_test/cars_test/{i}.jpg", 4), (10, 4)
    ),
    "train_mini, public_test": Kind(
        several("train_mini/{c}/{i}.jpg", 10) + several("val/{c}/{i}.jpg", 4) + several("public_test/{i}.jpg", 6),
        (20, 8),
        CD,
        {TEST: 6},
    ),
    "any words, if all folders name splits": Kind(
        several("train_a/{c}/{i}.jpg", 10) + several("val_b/{c}/{i}.jpg", 4), (20, 8), CD
    ),
    "trainval": Kind(several("trainval/{c}/{i}.jpg", 10) + several("test/{c}/{i}.jpg", 4), (20, 8), CD),
    "train_val": Kind(several("train_val/{c}/{i}.jpg", 10) + several("test/{c}/{i}.jpg", 4), (20, 8), CD),
    "a folder that holds all classes of each split": Kind(
        several("train/animals/{c}/{i}.jpg", 10) + several("val/animals/{c}/{i}.jpg", 4) + several("test/{i}.jpg", 3),
        (20, 8),
        CD,
        {TEST: 3},
    ),
    "classes of val that train lacks": Kind(
        several("train/{c}/{i}.jpg", 10) + several("val/{c}/{i}.jpg", 4, ("cat", "eel")),
        (20, 8),
        ("cat", "dog", "eel"),
        note="warning: 1 of 3 classes have no image of train: eel",
    ),
    # classes
    "classes": Kind(several("{c}/{i}.jpg", 10), (18, 2), CD),
    "a class called train": Kind(
        several("{c}/{i}.jpg", 10, ("train", "bus", "tram")), (27, 3), ("bus", "train", "tram")
    ),
    "classes called train and test": Kind(
        several("{c}/{i}.jpg", 10, ("train", "test", "cat")),
        (27, 3),
        ("cat", "test", "train"),
        options={"labels": "folders"},
    ),
    "a class called test": Kind(several("{c}/{i}.jpg", 10, ("test", "cat")), (18, 2), ("cat", "test")),
    "classes that differ in capitals": Kind(
        several("{c}/{i}.jpg", 10, ("Cat", "cat", "dog")),
        (27, 3),
        ("Cat", "cat", "dog"),
        note="warning: classes that differ in capitals only: Cat, cat",
    ),
    "folders below classes": Kind(
        several("{c}/1/{i}.jpg", 5, ("a/abbey", "a/attic", "b/barn")),
        (13, 2),
        ("a", "b"),
        note="images lie below them (a/abbey/1, …): dataset.labels=paths",
    ),
    "folders below classes, as classes": Kind(
        several("{c}/{i}.jpg", 5, ("a/abbey", "a/attic", "b/barn")),
        (12, 3),
        ("a/abbey", "a/attic", "b/barn"),
        options={"labels": "paths"},
    ),
    "folders below splits, as classes": Kind(
        several("train/{c}/{i}.jpg", 5, ("a/abbey", "b/barn")) + several("val/{c}/{i}.jpg", 2, ("a/abbey", "b/barn")),
        (10, 4),
        ("a/abbey", "b/barn"),
        options={"labels": "paths"},
    ),
    "one folder is no class": Kind(several("pictures of cats/{i}.jpg", 10), (9, 1)),
    "folders of numbers are no camera": Kind(
        several("{c}/{i}.jpg", 10, ("00000001", "20000002")), (18, 2), ("00000001", "20000002")
    ),
    "files of a NAS": Kind(
        [*several("{c}/{i}.jpg", 10), "cat/@eaDir/1.jpg/SYNO.jpg", "#recycle/2.jpg"],
        (18, 2),
        CD,
        {"hidden": 2},
    ),
    "an archive beside classes": Kind(
        [*several("{c}/{i}.jpg", 10), "more.zip"], (18, 2), CD, {NO_IMAGE: 1}, note="not read: archives (more.zip)"
    ),
    "classes with words of splits": Kind(
        several("{c}/{i}.jpg", 10, ("train_station", "bus_stop")), (18, 2), ("bus_stop", "train_station")
    ),
    "faces with and without mask": Kind(
        several("{c}/{i}.jpg", 10, ("with_mask", "without_mask")), (18, 2), ("with_mask", "without_mask")
    ),
    "the class mask": Kind(several("{c}/{i}.jpg", 10, ("mask", "no_mask")), (18, 2), ("mask", "no_mask")),
    "few pictures beside classes": Kind(
        [*several("{c}/{i}.jpg", 60), "cover.jpg"], (108, 12), CD, {"beside the class folders": 1}
    ),
    "masks beside their images": Kind(
        several("{c}/{i}.png", 10) + several("{c}/{i}_mask.png", 10), (18, 2), CD, {"masks": 20}
    ),
    # photos
    "photos beside a folder": Kind(
        several("IMG_{i}.jpg", 40) + several("edited/IMG_{i}.jpg", 3),
        (39, 4),
        note="40 pictures lie beside the folders edited",
    ),
    "photos beside two folders": Kind(several("IMG_{i}.jpg", 40) + several("{c}/{i}.jpg", 3), (41, 5)),
    "photos beside a folder, packed": Kind(
        several("photos/IMG_{i}.jpg", 40) + several("photos/edited/IMG_{i}.jpg", 3), (39, 4)
    ),
    "photos beside folders in train": Kind(
        several("train/{i}.jpg", 10) + several("train/edited/{i}.jpg", 3) + several("val/{i}.jpg", 4), (13, 4)
    ),
    "photos beside folders, as classes": Kind(
        several("IMG_{i}.jpg", 4) + several("{c}/{i}.jpg", 10),
        (18, 2),
        CD,
        {"beside the class folders": 4},
        options={"labels": "folders"},
    ),
    "class folders, as photos": Kind([*several("{c}/{i}.jpg", 10), "x.jpg"], (19, 2), options={"labels": "none"}),
    "splits and classes, without labels": Kind(
        several("train/{c}/{i}.jpg", 10) + several("val/{c}/{i}.jpg", 7), (20, 14), options={"labels": "none"}
    ),
    "a camera": Kind(several("DCIM/{c}/IMG_{i}.JPG", 10, ("100APPLE", "101APPLE")), (18, 2)),
    "a phone": Kind(several("phone/{c}/{i}.jpg", 10, ("DCIM/Camera", "Pictures/Screenshots")), (18, 2)),
    "folders of days": Kind(several("{c}/{i}.jpg", 10, ("20190501", "20190612")), (18, 2)),
    "Takeout": Kind(
        several("Takeout/Google Photos/{c}/IMG_{i}.jpg", 10, ("Photos from 2019", "Rome"))
        + several("Takeout/Google Photos/{c}/IMG_{i}.jpg.json", 10, ("Photos from 2019", "Rome")),
        (18, 2),
        left={NO_IMAGE: 20},
    ),
    # annotated sets
    "COCO": Kind(
        several("train2017/{i:012d}.jpg", 16)
        + several("val2017/{i:012d}.jpg", 6)
        + ["annotations/instances_train2017.json"],
        (16, 6),
        left={NO_IMAGE: 1},
        note="an annotated set",
    ),
    "COCO with panoptic masks": Kind(
        several("train2017/{i}.jpg", 16)
        + several("val2017/{i}.jpg", 6)
        + several("annotations/panoptic_train2017/{i}.png", 16),
        (16, 6),
        left={"masks": 16},
    ),
    "Roboflow COCO": Kind(
        [f"{s}/{i}.jpg" for s, n in (("train", 10), ("valid", 4), ("test", 2)) for i in range(n)]
        + [f"{s}/_annotations.coco.json" for s in ("train", "valid", "test")],
        (10, 4),
        left={NO_IMAGE: 3, TEST: 2},
    ),
    "YOLO": Kind(
        [
            f"{k}/{s}/{i}.{e}"
            for k, e in (("images", "jpg"), ("labels", "txt"))
            for s, n in (("train", 10), ("val", 4))
            for i in range(n)
        ]
        + ["data.yaml"],
        (10, 4),
        left={NO_IMAGE: 15},
    ),
    "Roboflow YOLO": Kind(
        [
            f"{s}/{k}/{i}.{e}"
            for k, e in (("images", "jpg"), ("labels", "txt"))
            for s, n in (("train", 10), ("valid", 4))
            for i in range(n)
        ]
        + ["data.yaml"],
        (10, 4),
        left={NO_IMAGE: 15},
    ),
    "VOC": Kind(
        {
            **dict.fromkeys(several("VOCdevkit/VOC2012/JPEGImages/{i:06d}.jpg", 12), b""),
            **dict.fromkeys(several("VOCdevkit/VOC2012/Annotations/{i:06d}.xml", 12), b""),
            **dict.fromkeys(several("VOCdevkit/VOC2012/SegmentationClass/{i:06d}.png", 5), b""),
            **dict.fromkeys(several("VOCdevkit/VOC2012/SegmentationObject/{i:06d}.png", 5), b""),
            "VOCdevkit/VOC2012/ImageSets/Main/train.txt": text(*(f"{i:06d}" for i in range(8))),
            "VOCdevkit/VOC2012/ImageSets/Main/val.txt": text(*(f"{i:06d}" for i in range(8, 11))),
            "VOCdevkit/VOC2012/ImageSets/Main/trainval.txt": text(*(f"{i:06d}" for i in range(11))),
            "VOCdevkit/VOC2012/ImageSets/Main/cat_train.txt": text("000000 -1"),
        },
        (9, 3),
        left={NO_IMAGE: 16, "masks": 10},
        note="1 images in none of these lists are in train",
    ),
    "labelImg": Kind(
        several("{i}.jpg", 20) + several("{i}.xml", 20), (18, 2), left={NO_IMAGE: 20}, note="an annotated set"
    ),
    "labelme": Kind(several("{c}/{i}.jpg", 10) + several("{c}/{i}.json", 10), (18, 2), left={NO_IMAGE: 20}),
    "ADE20K": Kind(
        several("images/training/{i}.jpg", 16)
        + several("images/validation/{i}.jpg", 6)
        + several("annotations/training/{i}.png", 16)
        + several("annotations/validation/{i}.png", 6),
        (16, 6),
        left={"masks": 22},
    ),
    "Cityscapes": Kind(
        several("leftImg8bit/train/{c}/{i}_leftImg8bit.png", 5, ("aachen", "bochum"))
        + several("leftImg8bit/val/{c}/{i}_leftImg8bit.png", 3, ("ulm",))
        + several("gtFine/train/{c}/{i}_gtFine_labelIds.png", 5, ("aachen", "bochum"))
        + several("gtFine/val/{c}/{i}_gtFine_labelIds.png", 3, ("ulm",)),
        (10, 3),
        left={"masks": 13},
    ),
    "mmsegmentation": Kind(
        [f"{k}/{s}/{i}.png" for k in ("img_dir", "ann_dir") for s, n in (("train", 6), ("val", 3)) for i in range(n)],
        (6, 3),
        left={"masks": 9},
    ),
    "CamVid": Kind(
        [f"{s}/{i}.png" for s, n in (("train", 6), ("val", 3), ("trainannot", 6), ("valannot", 3)) for i in range(n)],
        (6, 3),
        left={"masks": 9},
    ),
    "BDD100K, with coloured masks": Kind(
        several("seg/images/train/{i}.jpg", 6)
        + several("seg/images/val/{i}.jpg", 3)
        + several("seg/labels/train/{i}_train_id.png", 6)
        + several("seg/color_labels/train/{i}_train_color.png", 6),
        (6, 3),
        left={"masks": 12},
    ),
    "Mapillary Vistas 2": Kind(
        several("training/images/{i}.jpg", 6)
        + several("validation/images/{i}.jpg", 3)
        + several("training/v1.2/{c}/{i}.png", 6, ("instances", "labels"))
        + several("training/v2.0/panoptic/{i}.png", 6),
        (6, 3),
        left={"masks": 18},
    ),
    "LoveDA": Kind(
        several("Train/{c}/images_png/{i}.png", 5, ("Rural", "Urban"))
        + several("Train/{c}/masks_png/{i}.png", 5, ("Rural", "Urban"))
        + several("Val/{c}/images_png/{i}.png", 2, ("Rural", "Urban")),
        (10, 4),
        left={"masks": 10},
    ),
    "CelebAMask-HQ": Kind(
        several("CelebA-HQ-img/{i}.jpg", 10) + several("CelebAMask-HQ-mask-anno/0/{i:05d}_hair.png", 10),
        (9, 1),
        left={"masks": 10},
    ),
    "labelme's export": Kind(
        several("JPEGImages/{i}.jpg", 10)
        + several("SegmentationClassPNG/{i}.png", 10)
        + several("SegmentationClassVisualization/{i}.jpg", 10),
        (9, 1),
        left={"masks": 20},
    ),
    "ADE20K in full, with parts of objects": Kind(
        several("images/training/urban/street/{i}.jpg", 10)
        + several("images/training/urban/street/{i}_seg.png", 10)
        + several("images/training/urban/street/{i}_parts_1.png", 10)
        + several("images/training/urban/street/{i}/instance_000.png", 10),
        (9, 1),
        left={"masks": 30},
    ),
    "FiftyOne": Kind(
        several("train/data/{i}.jpg", 10)
        + several("train/labels/masks/{i}.png", 3)
        + several("validation/data/{i}.jpg", 4),
        (10, 4),
        left={"masks": 3},
    ),
    "MVTec, each object with splits": Kind(
        several("{c}/train/good/{i}.png", 5, ("bottle", "cable"))
        + several("{c}/test/broken/{i}.png", 2, ("bottle", "cable"))
        + several("{c}/ground_truth/broken/{i}_mask.png", 2, ("bottle", "cable")),
        (10, 4),
        left={"masks": 4},
    ),
    "an unknown folder beside images and masks": Kind(
        several("images/{i}.jpg", 10) + several("masks/{i}.png", 10) + several("edges/{i}.png", 10),
        (9, 1),
        left={"masks": 10, "beside the folders of images and masks": 10},
    ),
    "Carvana": Kind(several("train/{i}.jpg", 10) + several("train_masks/{i}_mask.gif", 10), (9, 1), left={"masks": 10}),
    "an annotated set, its folders as classes": Kind(
        several("images/{c}/{i}.jpg", 10) + several("segmentations/{c}/{i}.png", 10),
        (18, 2),
        CD,
        {"masks": 20},
        options={"labels": "folders"},
    ),
    # tables and lists
    "a CSV": Kind(
        {
            "labels.csv": text("file,label", *(f"{i}.jpg,{CD[i % 2]}" for i in range(20))),
            **dict.fromkeys(several("images/{i}.jpg", 20), b""),
        },
        (18, 2),
        CD,
        {NO_IMAGE: 1},
        note="labels (column label) are read from labels.csv",
    ),
    "a TSV with splits": Kind(
        {
            "labels.tsv": text(
                "path\tlabel\tsplit",
                *(f"images/{i}.jpg\t{CD[i % 2]}\t{'train' if i < 14 else 'valid'}" for i in range(20)),
            ),
            **dict.fromkeys(several("images/{i}.jpg", 20), b""),
        },
        (14, 6),
        CD,
        {NO_IMAGE: 1},
    ),
    "a competition, without extensions": Kind(
        {
            "labels.csv": text("id,breed", *(f"{i:032x},{CD[i % 2]}" for i in range(20))),
            "sample_submission.csv": text("id,cat,dog", *(f"{i + 100:032x},0.5,0.5" for i in range(9))),
            **dict.fromkeys((f"train/{i:032x}.jpg" for i in range(20)), b""),
            **dict.fromkeys((f"test/{i + 100:032x}.jpg" for i in range(9)), b""),
        },
        (18, 2),
        CD,
        {NO_IMAGE: 2, TEST: 9},
    ),
    "train.csv and test.csv over one folder": Kind(
        {
            "train.csv": text("image_id,healthy,rust", *(f"Train_{i},{i % 2},{1 - i % 2}" for i in range(20))),
            "test.csv": text("image_id", *(f"Test_{i}" for i in range(6))),
            **dict.fromkeys(several("images/Train_{i}.jpg", 20), b""),
            **dict.fromkeys(several("images/Test_{i}.jpg", 6), b""),
        },
        (18, 2),
        ("healthy", "rust"),
        {NO_IMAGE: 2, TEST: 6},
    ),
    "no header, semicolons": Kind(
        {
            "labels.csv": text(*(f"{i}.jpg;{CD[i % 2]}" for i in range(20))),
            **dict.fromkeys(several("{i}.jpg", 20), b""),
        },
        (18, 2),
        CD,
        {NO_IMAGE: 1},
    ),
    "train.csv and val.csv over folders with the same names": Kind(
        {
            "train.csv": text("file,label", *(f"{i}.jpg,{CD[i % 2]}" for i in range(14))),
            "val.csv": text("file,label", *(f"{i}.jpg,{CD[i % 2]}" for i in range(6))),
            **dict.fromkeys(several("train/{i}.jpg", 14), b""),
            **dict.fromkeys(several("val/{i}.jpg", 6), b""),
        },
        (14, 6),
        CD,
        {NO_IMAGE: 2},
        note="labels (column label) are read from val.csv",
    ),
    "a table called test, of all images": Kind(
        {
            "test.csv": text("file,label", *(f"{i}.jpg,{CD[i % 2]}" for i in range(20))),
            **dict.fromkeys(several("{i}.jpg", 20), b""),
        },
        (18, 2),
        CD,
        {NO_IMAGE: 1},
    ),
    "a table whose names fit several images": Kind(
        {
            "labels.csv": text("folder,file,label", *(f"{c},{i}.jpg,x" for c in CD for i in range(10))),
            **dict.fromkeys(several("{c}/{i}.jpg", 10), b""),
        },
        (18, 2),
        CD,
        {NO_IMAGE: 1},
        note="labels.csv is not read, since its rows name no images, or several each",
    ),
    "labels of val in a table, those of train in folders": Kind(
        {
            "val_labels.csv": text("file,label", *(f"v{i}.jpg,{CD[i % 2]}" for i in range(6))),
            **dict.fromkeys(several("train/{c}/{i}.jpg", 8), b""),
            **dict.fromkeys(several("val/v{i}.jpg", 6), b""),
        },
        (16, 6),
        CD,
        {NO_IMAGE: 1},
    ),
    "a column by its name": Kind(
        {
            "HAM_metadata.csv": text("lesion,image_id,kind,age", *(f"L{i},I_{i},{CD[i % 2]},40" for i in range(20))),
            **dict.fromkeys(several("part_1/I_{i}.jpg", 20), b""),
        },
        (18, 2),
        CD,
        {NO_IMAGE: 1},
        options={"label_field": "kind"},
    ),
    "imagefolder with metadata.jsonl": Kind(
        {
            "train/metadata.jsonl": text(*(f'{{"file_name": "{i}.png", "label": "{CD[i % 2]}"}}' for i in range(10))),
            "test/metadata.jsonl": text(*(f'{{"file_name": "{i}.png", "label": "{CD[i % 2]}"}}' for i in range(4))),
            **dict.fromkeys(several("train/{i}.png", 10), b""),
            **dict.fromkeys(several("test/{i}.png", 4), b""),
        },
        (10, 4),
        CD,
        {NO_IMAGE: 2},
    ),
    "captions are no labels": Kind(
        {
            "metadata.csv": text("file_name,text", *(f"{i}.png,picture {i}" for i in range(10))),
            **dict.fromkeys(several("{i}.png", 10), b""),
        },
        (9, 1),
        left={NO_IMAGE: 1},
    ),
    "images in no row": Kind(
        {
            "labels.csv": text("file,label", *(f"{i}.jpg,{CD[i % 2]}" for i in range(20))),
            **dict.fromkeys(several("{i}.jpg", 21), b""),
        },
        (18, 2),
        CD,
        {NO_IMAGE: 1, "in no row of the table of labels": 1},
    ),
    "rows without an image": Kind(
        {
            "labels.csv": text("file,label", *(f"{i}.jpg,{CD[i % 2]}" for i in range(22))),
            **dict.fromkeys(several("{i}.jpg", 20), b""),
        },
        (18, 2),
        CD,
        {NO_IMAGE: 1},
        note="2 rows of labels.csv name no image, the first 20.jpg",
    ),
    "CelebA, partitions by number": Kind(
        {
            "list_eval_partition.csv": text(
                "image_id,partition", *(f"{i:06d}.jpg,{0 if i < 14 else 1 if i < 17 else 2}" for i in range(20))
            ),
            "list_attr_celeba.csv": text("image_id,Male,Young", *(f"{i:06d}.jpg,1,-1" for i in range(20))),
            "list_bbox_celeba.csv": text("image_id,x_1,y_1", *(f"{i:06d}.jpg,95,71" for i in range(20))),
            **dict.fromkeys(several("img/{i:06d}.jpg", 20), b""),
        },
        (14, 3),
        left={NO_IMAGE: 3, TEST: 3},
        note="splits (column partition: 0 is train, 1 is val, 2 is test) are read from list_eval_partition.csv",
    ),
    "fastai's is_valid": Kind(
        {
            "labels.csv": text("fname,label,is_valid", *(f"{i},{CD[i % 2]},{i >= 14}" for i in range(20))),
            **dict.fromkeys(several("{i}.jpg", 20), b""),
        },
        (14, 6),
        CD,
        {NO_IMAGE: 1},
        note="labels (column label) and splits (column is_valid: False is train, True is val) are read from labels.csv",
    ),
    "GTSRB, classes in columns of three tables": Kind(
        {
            "Train.csv": text("Width,ClassId,Path", *(f"27,{c},Train/{c}/{i}.png" for c in "01" for i in range(8))),
            "Test.csv": text("Width,ClassId,Path", *(f"27,{i % 2},Test/{i:05d}.png" for i in range(6))),
            **dict.fromkeys(several("Train/{c}/{i}.png", 8, "01"), b""),
            **dict.fromkeys(several("Test/{i:05d}.png", 6), b""),
        },
        (16, 6),
        ("0", "1"),
        {NO_IMAGE: 2},
        note="labels (column ClassId) are read from Test.csv",
    ),
    "ChestX-ray14, several labels and lists": Kind(
        {
            "Data_Entry.csv": text(
                "Image Index,Finding Labels,Age", *(f"{i}.png,{('A', 'B', 'A|B')[i % 3]},40" for i in range(12))
            ),
            "BBox_List.csv": text("Image Index,Finding Label,Bbox [x,y,w,h]", "0.png,A,1,2,3,4"),
            "train_val_list.txt": text(*(f"{i}.png" for i in range(9))),
            "test_list.txt": text(*(f"{i}.png" for i in range(9, 12))),
            **dict.fromkeys(several("images_001/images/{i}.png", 12), b""),
        },
        (9, 3),
        ("A", "B"),
        {NO_IMAGE: 4},
        note="4 rows of Data_Entry.csv have several labels: their images get none",
    ),
    "a CSV of addresses with numbers as labels": Kind(
        {
            "labels.csv": text("image,label", *(f"https://x.y/a/{i}.jpeg?w=3,{i % 2}" for i in range(20))),
            **dict.fromkeys(several("{i}.jpg", 20), b""),
        },
        (18, 2),
        ("0", "1"),
        {NO_IMAGE: 1},
    ),
    "Windows' paths, a byte order mark, quotes": Kind(
        {
            "labels.csv": b"\xef\xbb\xbf"
            + text('"File";"Class"', *(f'"C:\\set\\{i}.jpg";"{CD[i % 2]}"' for i in range(20))),
            **dict.fromkeys(several("set/{i}.jpg", 20), b""),
        },
        (18, 2),
        CD,
        {NO_IMAGE: 1},
    ),
    "several labels of an image in columns": Kind(
        {
            "train/_classes.csv": text("filename, a, b", *(f"{i}.jpg, 1, {i % 2}" for i in range(10))),
            "valid/_classes.csv": text("filename, a, b", *(f"v{i}.jpg, {i % 2}, {1 - i % 2}" for i in range(4))),
            **dict.fromkeys(several("train/{i}.jpg", 10), b""),
            **dict.fromkeys(several("valid/v{i}.jpg", 4), b""),
        },
        (10, 4),
        left={NO_IMAGE: 2},
        note="train/_classes.csv names images, but no column is known to be their labels (a, b)",
    ),
    "folders of patients, a table of findings": Kind(
        {
            "train.csv": text("Path,Sex,Edema", *(f"train/{c}/{i}.jpg,F,1.0" for c in CD for i in range(10))),
            **dict.fromkeys(several("train/{c}/{i}.jpg", 10), b""),
        },
        (18, 2),
        CD,
        {NO_IMAGE: 1},
        note="no column is known to be their labels (Sex, Edema): dataset.label_field names one",
    ),
    "labels as JSON": Kind(
        {"labels.json": b'{"0.jpg": "cat"}', **dict.fromkeys(several("{i}.jpg", 10), b"")},
        (9, 1),
        left={NO_IMAGE: 1},
        note="no labels are read from labels.json; labels must be a column of a CSV, TSV or jsonl",
    ),
    "lists with labels": Kind(
        {
            "train.txt": text(*(f"images/{i}.jpg {i % 2}" for i in range(14))),
            "val.txt": text(*(f"images/{i}.jpg {i % 2}" for i in range(14, 20))),
            **dict.fromkeys(several("images/{i}.jpg", 20), b""),
        },
        (14, 6),
        ("0", "1"),
        {NO_IMAGE: 2},
        note="splits and labels are read from train.txt, val.txt",
    ),
    "names with blanks, labels after commas": Kind(
        {
            "train.txt": text(*(f"images/my cat {i}.jpg, {CD[i % 2]}" for i in range(14))),
            "test.txt": text(*(f"images/my cat {i}.jpg, {CD[i % 2]}" for i in range(14, 20))),
            **dict.fromkeys(several("images/my cat {i}.jpg", 20), b""),
        },
        (14, 6),
        CD,
        {NO_IMAGE: 2},
    ),
    "lists in parts": Kind(
        {
            "train1.txt": text(*(f"{i}.jpg" for i in range(7))),
            "train2.txt": text(*(f"{i}.jpg" for i in range(7, 14))),
            "val.txt": text(*(f"{i}.jpg" for i in range(14, 20))),
            **dict.fromkeys(several("{i}.jpg", 20), b""),
        },
        (14, 6),
        left={NO_IMAGE: 3},
    ),
    "boxes in JSON lines are no labels": Kind(
        {
            "metadata.jsonl": text(*(f'{{"file_name": "{i}.jpg", "objects": {{"bbox": [1]}}}}' for i in range(10))),
            **dict.fromkeys(several("{i}.jpg", 10), b""),
        },
        (9, 1),
        left={NO_IMAGE: 1},
    ),
    "DTD, ten divisions": Kind(
        {
            **dict.fromkeys(several("images/{c}/{i}.jpg", 10), b""),
            **{
                f"labels/{split}{n}.txt": text(*(f"{c}/{(i + n) % 10}.jpg" for c in CD for i in part))
                for split, part in (("train", range(4)), ("val", range(4, 7)), ("test", range(7, 10)))
                for n in (1, 2)
            },
        },
        (8, 6),
        CD,
        {NO_IMAGE: 6, TEST: 6},
        note="splits are read from labels/test1.txt, labels/train1.txt, labels/val1.txt",
    ),
    "Food-101": Kind(
        {
            **dict.fromkeys(several("food/images/{c}/{i}.jpg", 10), b""),
            "food/meta/train.txt": text(*(f"{c}/{i}" for c in CD for i in range(7))),
            "food/meta/test.txt": text(*(f"{c}/{i}" for c in CD for i in range(7, 10))),
            "food/meta/labels.txt": text("Cat", "Dog"),
        },
        (14, 6),
        CD,
        {NO_IMAGE: 3},
    ),
    # ImageNet
    "ImageNet of Kaggle": Kind(
        {
            **dict.fromkeys(IMAGENET, b""),
            "LOC_val_solution.csv": text(
                "ImageId,PredictionString", *(f"ILSVRC2012_val_{i:08d},{WNIDS[i % 2]} 1 2 3 4" for i in range(3))
            ),
            "LOC_synset_mapping.txt": text("n01440764 tench", "n02102040 springer"),
        },
        (8, 3),
        WNIDS,
        {NO_IMAGE: 10, TEST: 5},
        note="labels of val are read from LOC_val_solution.csv",
    ),
    "ImageNet, the devkit": Kind(
        {**dict.fromkeys(TARS, b""), **{f"ILSVRC2012_devkit_t12/data/{n}": d for n, d in TRUTH.items()}},
        (8, 3),
        WNIDS,
        {NO_IMAGE: 2},
    ),
    "ImageNet, the devkit packed": Kind(
        {**dict.fromkeys(TARS, b""), "ILSVRC2012_devkit_t12.tar.gz": packed(TRUTH)}, (8, 3), WNIDS, {NO_IMAGE: 1}
    ),
    "ImageNet without the labels of val": Kind(TARS, (8, 3), WNIDS, note="val has no labels, though train has"),
    "Tiny-ImageNet": Kind(
        {
            **dict.fromkeys(several("tiny-imagenet-200/train/{c}/images/{c}_{i}.JPEG", 5, WNIDS), b""),
            **dict.fromkeys(several("tiny-imagenet-200/train/{c}/{c}_boxes{i}.txt", 1, WNIDS), b""),
            **dict.fromkeys(several("tiny-imagenet-200/val/images/val_{i}.JPEG", 4), b""),
            **dict.fromkeys(several("tiny-imagenet-200/test/images/test_{i}.JPEG", 6), b""),
            "tiny-imagenet-200/val/val_annotations.txt": text(
                *(f"val_{i}.JPEG\t{WNIDS[i % 2]}\t0\t0\t9\t9" for i in range(4))
            ),
            "tiny-imagenet-200/wnids.txt": text(*WNIDS),
        },
        (10, 4),
        WNIDS,
        {NO_IMAGE: 4, TEST: 6},
    ),
}


def read(files: list[str] | dict[str, bytes], **options: Any) -> Any:
    content = files if isinstance(files, dict) else dict.fromkeys(files, b"")
    return read_layout(content, 0.1, 0, read=content.__getitem__, **options)


@pytest.mark.parametrize("name", KINDS)
def test_a_layout_becomes_splits_and_classes(name: str) -> None:
    kind = KINDS[name]
    layout = read(kind.files, **kind.options)
    assert {split: len(images) for split, images in layout.splits.items()} == dict(
        zip(("train", "val"), kind.counts, strict=True)
    )
    assert layout.classes == kind.classes
    assert {found.reason: len(found.names) for found in layout.ignored} == kind.left
    assert any(kind.note in note for note in layout.notes), layout.notes
    used = [image for images in layout.splits.values() for image, _ in images]
    ignored = [image for found in layout.ignored for image in found.names]
    assert sorted(used + ignored) == sorted(kind.files)  # nothing is lost in silence


def test_the_labels_of_val_follow_the_numbers_of_the_devkit() -> None:
    layout = read(KINDS["ImageNet, the devkit"].files)
    assert [category for _, category in layout.splits["val"]] == ["n01440764", "n02102040", "n01440764"]


def test_labels_come_from_the_row_of_each_image() -> None:
    layout = read(KINDS["a TSV with splits"].files)
    assert layout.splits["val"][0] == ("images/14.jpg", "cat")


REFUSALS = {
    "two folders for val": (
        ["train/a/1.jpg", "val/a/1.jpg", "validation/a/1.jpg"],
        "val and validation both name the split val; keep one of them, or rename the other",
    ),
    "two years": (
        ["train2014/1.jpg", "train2017/1.jpg", "val2017/1.jpg"],
        "train2014 and train2017 both name the split train",
    ),
    "two sets with splits": (
        ["a/train/x/1.jpg", "a/val/x/2.jpg", "b/train/x/3.jpg", "b/val/x/4.jpg", "c/5.jpg"],
        "a and b hold splits of their own, which are no classes; name the folder that is meant",
    ),
    "two lists for an image": (
        {"train.txt": b"1.jpg\n2.jpg\n", "val.txt": b"2.jpg\n", "1.jpg": b"", "2.jpg": b""},
        "train.txt and val.txt both list 2.jpg; remove it from one of them, or remove a list",
    ),
    "no train": (["val/a/1.jpg", "test/a/1.jpg"], "there is test, val, but no train"),
    "no image": (["README.md"], "no image found; expected images in train/<class>/"),
    "a row without a split": (
        {"a.csv": b"file,label,split\n1.jpg,cat,train\n2.jpg,dog,\n", "1.jpg": b"", "2.jpg": b""},
        "a.csv: '' in the column split is no split; expected train, val or test in each row",
    ),
    "two labels for an image": (
        {"a.csv": b"file,label\n1.jpg,cat\n1.jpg,dog\n", "1.jpg": b""},
        "a.csv gives 1.jpg the labels cat and dog; keep one, or set dataset.label_field",
    ),
    "a strange class in val's list": (
        {**dict.fromkeys(TARS, b""), "val_annotations.txt": b"ILSVRC2012_val_00000000.JPEG\tn09\n"},
        "val_annotations.txt: names the class n09, which is not in train",
    ),
    "a list of val that is too short": (
        {**dict.fromkeys(TARS, b""), **devkit([1], {1: "n01440764"})},
        "1 labels for 3 images of val; both must be complete",
    ),
    "numbers without their names": (
        {**dict.fromkeys(TARS, b""), "ILSVRC2012_validation_ground_truth.txt": b"1\n2\n1\n"},
        "needs meta.mat of the devkit beside it",
    ),
    "a damaged devkit": ({**dict.fromkeys(TARS, b""), "ILSVRC2012_devkit_t12.tar.gz": b"?"}, "can't be read as a tar"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_an_ambiguous_layout_is_refused(name: str) -> None:
    files, message = REFUSALS[name]
    with pytest.raises(PecoError) as error:
        read(files)  # type: ignore[arg-type]
    assert message in str(error.value)


def test_a_column_that_no_table_has_is_refused() -> None:
    with pytest.raises(PecoError, match=r"dataset.label_field: no table has the column kind; there are file, label"):
        read({"a.csv": b"file,label\n1.jpg,cat\n2.jpg,dog\n", "1.jpg": b"", "2.jpg": b""}, label_field="kind")


def test_docs_list_the_layouts() -> None:
    page = (ROOT / "docs/data.md").read_text(encoding="utf-8")
    rows = [f"| {layout.name} | {layout.example} | {layout.becomes} |" for layout in LAYOUTS]
    assert "\n".join(rows) in page
