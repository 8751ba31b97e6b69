"""Layouts by folders: for each kind the images of each split, the classes, and what is left out, or the refusal."""

from __future__ import annotations

from pathlib import Path

import pytest
from layout_cases import CD, NO_IMAGE, TEST, Files, Kind, check, empty, refusal, several

from peco.sources.layouts.table import LAYOUTS

ROOT = Path(__file__).parents[1]

KINDS = {
    # splits in folders
    "train, val": Kind(several("train/{c}/{i}.jpg", 10) | several("val/{c}/{i}.jpg", 7), (20, 14), CD),
    "valid beside test": Kind(
        several("train/{c}/{i}.jpg", 10) | several("valid/{c}/{i}.jpg", 7) | several("test/{c}/{i}.jpg", 4),
        (20, 14),
        CD,
        {TEST: 8},
    ),
    "dev": Kind(several("train/{c}/{i}.jpg", 10) | several("dev/{c}/{i}.jpg", 7), (20, 14), CD),
    "eval": Kind(several("TRAIN/{c}/{i}.jpg", 10) | several("Eval/{c}/{i}.jpg", 7), (20, 14), CD),
    "Training, Testing": Kind(
        several("Training/{c}/{i}.jpg", 10) | several("Testing/{c}/{i}.jpg", 7),
        (20, 14),
        CD,
        note="val is the split test",
    ),
    "a test in one folder that is no class": Kind(
        several("train/{c}/{i}.jpg", 10) | several("test/unknown/{i}.jpg", 7),
        (18, 2),
        CD,
        {TEST: 7},
        note="warning: test is not used, since none of its classes (unknown) is one of train",
    ),
    "val without labels beside a test with them": Kind(
        several("train/{c}/{i}.jpg", 10) | several("val/{i}.jpg", 5) | several("test/{c}/{i}.jpg", 4),
        (20, 8),
        CD,
        {"an unused val split without labels": 5},
        note="val has no labels and is not used; val is the split test",
    ),
    "trn, tst": Kind(several("trn/{c}/{i}.jpg", 10) | several("tst/{c}/{i}.jpg", 7), (20, 14), CD),
    "doubled": Kind(several("train/train/{c}/{i}.jpg", 10) | several("test/test/{c}/{i}.jpg", 7), (20, 14), CD),
    "seg_train": Kind(
        several("seg_train/seg_train/{c}/{i}.jpg", 10)
        | several("seg_test/seg_test/{c}/{i}.jpg", 7)
        | several("seg_pred/seg_pred/{i}.jpg", 9),
        (20, 14),
        CD,
        {"an unused part without labels": 9},
    ),
    "training_set": Kind(
        several("training_set/training_set/{c}/{i}.jpg", 10) | several("test_set/test_set/{c}/{i}.jpg", 7), (20, 14), CD
    ),
    "trainset": Kind(several("trainset/{c}/{i}.jpg", 10) | several("testset/{c}/{i}.jpg", 7), (20, 14), CD),
    "any shared words": Kind(
        several("mnist_train/{c}/{i}.jpg", 10) | several("mnist_test/{c}/{i}.jpg", 7), (20, 14), CD
    ),
    "numbered parts": Kind(
        several("train.X1/a/{i}.jpg", 4) | several("train.X2/b/{i}.jpg", 4) | several("val.X/{c}/{i}.jpg", 2, "ab"),
        (8, 4),
        ("a", "b"),
        note="train is train.X1, train.X2",
    ),
    "wrapped, with files beside": Kind(
        empty("set/README.md", "set/license.txt")
        | several("set/train/{c}/{i}.jpg", 10)
        | several("set/val/{c}/{i}.jpg", 7),
        (20, 14),
        CD,
        {NO_IMAGE: 2},
    ),
    "wrapped, with a picture beside": Kind(
        empty("logo.png") | several("set/train/{c}/{i}.jpg", 60) | several("set/val/{c}/{i}.jpg", 7),
        (120, 14),
        CD,
        {"outside the splits": 1},
    ),
    "wrapped in a folder called training_data": Kind(
        several("training_data/train/{c}/{i}.jpg", 10) | several("training_data/val/{c}/{i}.jpg", 7), (20, 14), CD
    ),
    "splits below the classes": Kind(several("{c}/train/{i}.jpg", 10) | several("{c}/val/{i}.jpg", 7), (20, 14), CD),
    "splits below the classes, some with train only": Kind(
        several("{c}/train/{i}.jpg", 10, (*CD, "eel")) | several("{c}/val/{i}.jpg", 7), (30, 14), ("cat", "dog", "eel")
    ),
    "a single class, as a class": Kind(
        several("train/cat/{i}.jpg", 10) | several("val/cat/{i}.jpg", 4),
        (10, 4),
        ("cat",),
        options={"labels": "folders"},
    ),
    "unlabelled test": Kind(
        several("train/{c}/{i}.jpg", 10) | several("test/{i}.jpg", 7),
        (18, 2),
        CD,
        {TEST: 7},
        note="test is not used, since it has no labels and train has",
    ),
    "images in folders of splits": Kind(
        several("train/images/{i}.jpg", 10) | several("val/images/{i}.jpg", 4), (10, 4)
    ),
    "no labels at all": Kind(several("train/{i}.jpg", 10) | several("test/{i}.jpg", 4), (10, 4)),
    "checkpoints of notebooks": Kind(
        several("train/{c}/{i}.jpg", 10) | several("val/{c}/{i}.jpg", 7) | empty("train/.ipynb_checkpoints/1.jpg"),
        (20, 14),
        CD,
        {"hidden": 1},
    ),
    "doubled under a longer name": Kind(
        several("cars_train/cars_train/{i}.jpg", 10) | several("cars_test/cars_test/{i}.jpg", 4), (10, 4)
    ),
    "train_mini, public_test": Kind(
        several("train_mini/{c}/{i}.jpg", 10) | several("val/{c}/{i}.jpg", 4) | several("public_test/{i}.jpg", 6),
        (20, 8),
        CD,
        {TEST: 6},
    ),
    "any words, if all folders name splits": Kind(
        several("train_a/{c}/{i}.jpg", 10) | several("val_b/{c}/{i}.jpg", 4), (20, 8), CD
    ),
    "trainval": Kind(several("trainval/{c}/{i}.jpg", 10) | several("test/{c}/{i}.jpg", 4), (20, 8), CD),
    "train_val": Kind(several("train_val/{c}/{i}.jpg", 10) | several("test/{c}/{i}.jpg", 4), (20, 8), CD),
    "a folder that holds all classes of each split": Kind(
        several("train/animals/{c}/{i}.jpg", 10) | several("val/animals/{c}/{i}.jpg", 4) | several("test/{i}.jpg", 3),
        (20, 8),
        CD,
        {TEST: 3},
    ),
    "classes of val that train lacks": Kind(
        several("train/{c}/{i}.jpg", 10) | several("val/{c}/{i}.jpg", 4, ("cat", "eel")),
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
        several("train/{c}/{i}.jpg", 5, ("a/abbey", "b/barn")) | several("val/{c}/{i}.jpg", 2, ("a/abbey", "b/barn")),
        (10, 4),
        ("a/abbey", "b/barn"),
        options={"labels": "paths"},
    ),
    "one folder is no class": Kind(several("pictures of cats/{i}.jpg", 10), (9, 1)),
    "folders of numbers are no camera": Kind(
        several("{c}/{i}.jpg", 10, ("00000001", "20000002")), (18, 2), ("00000001", "20000002")
    ),
    "files of a NAS": Kind(
        several("{c}/{i}.jpg", 10) | empty("cat/@eaDir/1.jpg/SYNO.jpg", "#recycle/2.jpg"),
        (18, 2),
        CD,
        {"hidden": 2},
    ),
    "an archive beside classes": Kind(
        several("{c}/{i}.jpg", 10) | empty("more.zip"), (18, 2), CD, {NO_IMAGE: 1}, note="not read: archives (more.zip)"
    ),
    "classes with words of splits": Kind(
        several("{c}/{i}.jpg", 10, ("train_station", "bus_stop")), (18, 2), ("bus_stop", "train_station")
    ),
    "faces with and without mask": Kind(
        several("{c}/{i}.jpg", 10, ("with_mask", "without_mask")), (18, 2), ("with_mask", "without_mask")
    ),
    "the class mask": Kind(several("{c}/{i}.jpg", 10, ("mask", "no_mask")), (18, 2), ("mask", "no_mask")),
    "few pictures beside classes": Kind(
        several("{c}/{i}.jpg", 60) | empty("cover.jpg"), (108, 12), CD, {"beside the class folders": 1}
    ),
    "masks beside their images": Kind(
        several("{c}/{i}.png", 10) | several("{c}/{i}_mask.png", 10), (18, 2), CD, {"masks": 20}
    ),
    # photos
    "photos beside a folder": Kind(
        several("IMG_{i}.jpg", 40) | several("edited/IMG_{i}.jpg", 3),
        (39, 4),
        note="40 pictures lie beside the folders edited",
    ),
    "photos beside two folders": Kind(several("IMG_{i}.jpg", 40) | several("{c}/{i}.jpg", 3), (41, 5)),
    "photos beside a folder, packed": Kind(
        several("photos/IMG_{i}.jpg", 40) | several("photos/edited/IMG_{i}.jpg", 3), (39, 4)
    ),
    "photos beside folders in train": Kind(
        several("train/{i}.jpg", 10) | several("train/edited/{i}.jpg", 3) | several("val/{i}.jpg", 4), (13, 4)
    ),
    "photos beside folders, as classes": Kind(
        several("IMG_{i}.jpg", 4) | several("{c}/{i}.jpg", 10),
        (18, 2),
        CD,
        {"beside the class folders": 4},
        options={"labels": "folders"},
    ),
    "class folders, as photos": Kind(several("{c}/{i}.jpg", 10) | empty("x.jpg"), (19, 2), options={"labels": "none"}),
    "splits and classes, without labels": Kind(
        several("train/{c}/{i}.jpg", 10) | several("val/{c}/{i}.jpg", 7), (20, 14), options={"labels": "none"}
    ),
    "a camera": Kind(several("DCIM/{c}/IMG_{i}.JPG", 10, ("100APPLE", "101APPLE")), (18, 2)),
    "a phone": Kind(several("phone/{c}/{i}.jpg", 10, ("DCIM/Camera", "Pictures/Screenshots")), (18, 2)),
    "folders of days": Kind(several("{c}/{i}.jpg", 10, ("20190501", "20190612")), (18, 2)),
    "Takeout": Kind(
        several("Takeout/Google Photos/{c}/IMG_{i}.jpg", 10, ("Photos from 2019", "Rome"))
        | several("Takeout/Google Photos/{c}/IMG_{i}.jpg.json", 10, ("Photos from 2019", "Rome")),
        (18, 2),
        left={NO_IMAGE: 20},
    ),
}


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_a_layout_becomes_splits_and_classes(kind: Kind) -> None:
    check(kind)


REFUSALS = {
    "two folders for val": (
        empty("train/a/1.jpg", "val/a/1.jpg", "validation/a/1.jpg"),
        "val and validation both name the split val; keep one of them, or rename the other",
    ),
    "two years": (
        empty("train2014/1.jpg", "train2017/1.jpg", "val2017/1.jpg"),
        "train2014 and train2017 both name the split train",
    ),
    "two sets with splits": (
        empty("a/train/x/1.jpg", "a/val/x/2.jpg", "b/train/x/3.jpg", "b/val/x/4.jpg", "c/5.jpg"),
        "a and b hold splits of their own, which are no classes; name the folder that is meant",
    ),
    "no train": (empty("val/a/1.jpg", "test/a/1.jpg"), "there is test, val, but no train"),
    "no image": (empty("README.md"), "no image found; expected images in train/<class>/"),
}


@pytest.mark.parametrize(("files", "message"), REFUSALS.values(), ids=REFUSALS)
def test_an_ambiguous_layout_is_refused(files: Files, message: str) -> None:
    assert message in refusal(files)


def test_docs_list_the_layouts() -> None:
    page = (ROOT / "docs/data.md").read_text(encoding="utf-8")
    rows = [f"| {layout.name} | {layout.example} | {layout.becomes} |" for layout in LAYOUTS]
    assert "\n".join(rows) in page
