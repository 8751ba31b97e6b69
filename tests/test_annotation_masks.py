"""Masks as programs export them: each kind is read with the right classes, or refused in one line; words of splits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from annotated_folders import HEIGHT, WIDTH, Kind, cases, masks, photo, text
from PIL import Image

from peco.annotations.splits import split_of
from peco.core.errors import PecoError
from peco.masks.folder import open_folder


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
