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
    "no train": (["val/a/1.jpg", "test/a/1.jpg"], "there is test, val, but no train"),
    "no image": (["README.md"], "no image found; expected images in train/<class>/"),
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
