"""Annotated objects that can't be used: every error is one line that names the file or the annotation."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from detection_sets import (
    HEIGHT,
    WIDTH,
    coco_in_one_folder,
    opened,
    replace_in,
    save_image,
    spoil_coco,
    write_coco,
    write_panoptic,
    write_voc,
    write_yolo,
)
from PIL import Image

from peco.boxes.coco import open_coco
from peco.boxes.regions import segment_numbers
from peco.boxes.voc import open_voc
from peco.boxes.yolo import open_yolo
from peco.core.errors import PecoError
from peco.data import images as data_images

# --- files and annotations


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["annotations"][1].update(image_id=999), r"train2017\.json: annotation 2: there is no image 999"),
        (lambda c: c["images"][0].update(file_name="gone.png"), r"image 100: the image .*gone\.png is missing"),
        (lambda c: c["images"][0].update(width=65), r"image 100: .* is 64 x 32 pixels, but annotated as 65 x 32"),
        (lambda c: c["images"].append(c["images"][0]), r"image 100: listed twice"),
        (lambda c: c["annotations"][0].update(category_id=6), r"annotation 1: category_id 6 is not among"),
        (lambda c: c["annotations"][0].update(category_id="cat"), r"annotation 1: category_id is 'cat'; expected int"),
        (
            lambda c: c["annotations"][0].update(bbox=[60, 0, 10, 5]),
            r"annotation 1: the box .* 60, 0, 70, 5 lies outside",
        ),
        (lambda c: c["annotations"][0].update(bbox=[-3, 0, 10, 5]), "lies outside the image of 64 x 32"),
        (lambda c: c["annotations"][0].update(bbox=[3, 0, -1, 5]), "3, 0, 2, 5 is not valid"),
        (lambda c: c["annotations"][0].update(bbox=[3, 0, float("nan"), 5]), r"bbox \[3, 0, nan, 5\] is not allowed"),
        (lambda c: c["annotations"][0].update(bbox=[3, 0, 5]), r"bbox \[3, 0, 5\] is not allowed"),
        (lambda c: c["annotations"][0].pop("segmentation"), "annotation 2 has a mask, .*annotation 1 has none"),
        (lambda c: c["annotations"][0].update(segmentation=[[1, 2, 3]]), "neither polygons nor run lengths"),
        (lambda c: c["annotations"][0].update(segmentation=[["a"] * 6]), "neither polygons nor run lengths"),
        (
            lambda c: c["annotations"][0].update(segmentation={"size": [64, 32], "counts": [2048]}),
            r"annotation 1: a mask of size \[64, 32\] .* on an image of \[32, 64\]",
        ),
        (lambda c: c["categories"][0].update(name="dog"), "two classes are called dog"),
        (lambda c: c["categories"][0].update(name="cow"), r"val2017\.json: categories differ .* \(cat\)"),
        (lambda c: (c["images"].clear(), c["annotations"].clear()), r"train2017\.json: no image in this split"),
        (lambda c: c["annotations"].clear(), r"train2017\.json: no image has an object; there is nothing to train on"),
        (
            lambda c: [a.pop("segmentation") for a in c["annotations"]],
            r"train2017\.json: boxes only, while .*val2017\.json has masks; expected masks in both or none",
        ),
        (
            lambda c: c["categories"][0].update(isthing=0),
            r"annotation 1: category_id 5 has isthing 0, so it has no obj",
        ),
        (lambda c: c.pop("images"), "images is None; expected list"),
    ],
)
def test_errors_in_coco_are_one_line(change: Callable[[dict[str, Any]], object], message: str, tmp_path: Path) -> None:
    root = write_coco(tmp_path)
    spoil_coco(root, change)
    with pytest.raises(PecoError, match=message) as caught:
        opened("coco", root)
    assert "\n" not in str(caught.value)


def test_files_that_are_not_a_coco_set_are_refused(tmp_path: Path) -> None:
    with pytest.raises(PecoError, match="no annotations of the split train; expected"):
        open_coco(tmp_path)
    root = write_coco(tmp_path)
    (root / "annotations/instances_train2014.json").write_text("{}")
    with pytest.raises(PecoError, match="a second annotation file of train"):
        open_coco(root)
    (root / "annotations/instances_train2014.json").unlink()
    for text in ("{", "[]"):
        (root / "annotations/instances_val2017.json").write_text(text)
        with pytest.raises(PecoError, match=r"val2017\.json.*expected COCO's JSON"):
            open_coco(root)


@pytest.mark.parametrize("counts", ["5", "P", [5], [2049], [2048.0], [-1, 2049], ["a"], ""])
def test_run_lengths_that_dont_add_up_are_refused(counts: object, tmp_path: Path) -> None:
    root = write_coco(tmp_path)
    spoil_coco(root, lambda c: c["annotations"][0].update(segmentation={"size": [HEIGHT, WIDTH], "counts": counts}))
    with pytest.raises(
        PecoError, match="annotation 1: the run lengths of its mask don't add up to the image's 2048 pixels"
    ):
        open_coco(root)


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("labels/train/0.txt", "9 0.5 0.5 1 1", r"0\.txt: line 1: class 9 is not among the names of .*data\.yaml"),
        ("labels/train/0.txt", "3.5 0.5 0.5 1 1", "class 3.5 is not among"),
        ("labels/train/0.txt", "-1 0.5 0.5 1 1", "class -1 is not among"),
        ("labels/train/0.txt", "3 0 0 1.5 0 1 1", "line 1: the box .* lies outside the image"),
        ("labels/train/0.txt", "3 0.5 0.5 1", "3 numbers after the class; expected 4, or"),
        ("labels/train/0.txt", "3 0 0 1 0 1 1 0.5", "7 numbers after the class"),
        ("labels/train/0.txt", "3 a 0.5 1 1", "'3 a 0.5 1 1' is not a line of numbers"),
        ("labels/train/0.txt", "3 0 0 nan 0 1 1", "is not a line of numbers"),
        ("labels/train/0.txt", "3 0.5 0.5 1 1", "has a mask, .* has none"),
        ("labels/val/7.txt", "3 0.5 0.5 1 1", r"val/7\.txt: there is no image 7"),
        ("images/train/0.png", "no image", r"0\.png: can't be read"),
        ("data.yaml", "names: [a]\ntrain: images/none\nval: images/val", "train: images/none: no such folder"),
        ("data.yaml", "names: [a]\ntrain: ../images/none\nval: images/val", "no such folder of images below"),
        ("data.yaml", "names: [a]\nval: images/val", "train is None; expected a folder"),
        ("data.yaml", "names: [a]\nnc: 2\ntrain: images/train\nval: images/val", "nc is 2, but there are 1 names"),
        ("data.yaml", "train: images/train\nval: images/val", "names is None; expected"),
        ("data.yaml", "[", "can't be read"),
        ("data.yaml", "text", "holds no keys"),
    ],
)
def test_errors_in_yolo_are_one_line(file: str, text: str, message: str, tmp_path: Path) -> None:
    root = write_yolo(tmp_path / "set")
    (root / file).write_text(text)
    with pytest.raises(PecoError, match=message) as caught:
        open_yolo(root)
    assert "\n" not in str(caught.value)


def test_yolo_without_its_files_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PecoError, match=r"no data\.yaml or config\.yaml"):
        open_yolo(tmp_path)
    root = write_yolo(tmp_path / "set")
    for path in (root / "images/val").iterdir():
        path.unlink()
    for path in (root / "labels/val").iterdir():
        path.unlink()
    with pytest.raises(PecoError, match="labels/val: no image in this split"):
        open_yolo(root)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda root: (root / "JPEGImages/val_0.png").unlink(), r"val\.txt: the image val_0 is missing in JPEGImages"),
        (lambda root: (root / "Annotations/val_0.xml").unlink(), r"val_0\.xml: can't be read"),
        (lambda root: save_image(root / "JPEGImages/val_0.png", (32, 64)), r"val_0\.xml: .* is 32 x 64 pixels, but annotated"),
        (lambda root: replace_in(root / "Annotations/val_0.xml", "eel", "emu"), "no object of train is a emu; the splits"),
        (lambda root: replace_in(root / "Annotations/val_0.xml", "eel", ""), "an object without a name"),
        (lambda root: replace_in(root / "Annotations/val_0.xml", "<xmin>2", "<xmin>two"), "bndbox/xmin is 'two'"),
        (lambda root: replace_in(root / "Annotations/val_0.xml", "<xmax>3", "<xmax>99"), r"val_0\.xml: eel: the box .* outside"),
        (lambda root: (root / "ImageSets/Main/val.txt").write_text("\n"), r"val\.txt: no image in this split"),
        (lambda root: (root / "ImageSets/Main/val.txt").unlink(), "Main: no list of val; add it"),
    ],
)  # fmt: skip
def test_errors_in_voc_are_one_line(change: Callable[[Path], object], message: str, tmp_path: Path) -> None:
    root = write_voc(tmp_path)
    change(root)
    with pytest.raises(PecoError, match=message) as caught:
        open_voc(root)
    assert "\n" not in str(caught.value)


def test_a_decompression_bomb_is_a_one_line_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_panoptic(tmp_path / "set")
    png = root / "annotations/panoptic_val2017/0.png"
    monkeypatch.setattr(data_images, "MAX_PIXELS", WIDTH * HEIGHT - 1)
    for read in (lambda: opened("coco", root), lambda: segment_numbers(png)):
        with pytest.raises(PecoError, match=r"0\.png: can't be read .*more than 2047 pixels") as caught:
            read()
        assert "\n" not in str(caught.value)


def test_only_the_formats_of_training_images_are_opened(tmp_path: Path) -> None:
    root = write_panoptic(tmp_path / "set")
    png = root / "annotations/panoptic_val2017/0.png"
    Image.open(png).convert("RGB").save(png, "PCX")
    for read in (lambda: opened("coco", root), lambda: segment_numbers(png)):
        with pytest.raises(PecoError, match=r"panoptic_val2017/0\.png: can't be read"):
            read()


# --- splits


def test_a_training_split_without_objects_is_refused(tmp_path: Path) -> None:
    root = write_yolo(tmp_path / "set", polygons=False)
    for path in (root / "labels/train").iterdir():
        path.unlink()
    with pytest.raises(PecoError, match=r"labels/train: no image has an object"):
        opened("yolo", root)


def yolo_without_labels_of_val(root: Path) -> None:
    write_yolo(root)
    for path in (root / "labels/val").iterdir():
        path.unlink()


def coco_with_val(root: Path, **changed: object) -> None:
    write_coco(root)
    spoil_coco(root, lambda c: [entry.update(changed) for entry in c["annotations"]], "val")


def voc_of_difficult_ones(root: Path) -> None:
    write_voc(root)
    replace_in(root / "Annotations/val_0.xml", "<name>eel</name>", "<name>eel</name><difficult>1</difficult>")


def coco_without_annotations_of_val(root: Path) -> None:
    write_coco(root)
    spoil_coco(root, lambda c: c["annotations"].clear(), "val")


@pytest.mark.parametrize(
    ("write", "source", "origin"),
    [
        (coco_without_annotations_of_val, "coco", r"val2017\.json"),
        (lambda root: coco_with_val(root, iscrowd=1), "coco", r"val2017\.json"),
        (lambda root: coco_with_val(root, bbox=[1, 1, 0, 3]), "coco", r"val2017\.json"),
        (yolo_without_labels_of_val, "yolo", "labels/val"),
        (voc_of_difficult_ones, "voc", r"val\.txt"),
    ],
    ids=["coco", "coco-crowds", "coco-zero-area", "yolo", "voc-difficult"],
)
def test_a_val_split_without_an_object_to_score_is_refused(
    write: Callable[[Path], object], source: str, origin: str, tmp_path: Path
) -> None:
    write(tmp_path / "set")
    with pytest.raises(PecoError, match=rf"{origin}: no image has an object to score .*; add annotations") as caught:
        opened(source, tmp_path / "set")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_label_folder_of_another_name_is_not_a_split_without_objects(split: str, tmp_path: Path) -> None:
    root = write_yolo(tmp_path / "set")
    (root / "labels" / split).rename(root / "labels/other")
    message = rf"labels/{split}: no such folder; expected the label files of the images in .*images/{split}$"
    with pytest.raises(PecoError, match=message):
        opened("yolo", root)


def yolo_with_equal_splits(root: Path) -> None:
    replace_in(write_yolo(root) / "data.yaml", "images/val", "images/train")


def yolo_with_a_link_to_train(root: Path) -> None:
    write_yolo(root)
    for kind in ("images", "labels"):
        (root / kind / "val").rename(root / kind / "unused")
        (root / kind / "val").symlink_to("train")


def voc_with_an_image_in_both_lists(root: Path) -> None:
    path = write_voc(root) / "ImageSets/Main/val.txt"
    path.write_text(path.read_text() + "train_2\n")


@pytest.mark.parametrize(
    ("write", "source", "message"),
    [
        (yolo_with_equal_splits, "yolo", r"labels/train: .*: 3 of 3, the first is .*images/train/0\.png;"),
        (yolo_with_a_link_to_train, "yolo", r"labels/val: .*: 3 of 3, the first is .*images/val/0\.png;"),
        (voc_with_an_image_in_both_lists, "voc", r"val\.txt: .*: 1 of 3, the first is .*JPEGImages/train_2\.png;"),
        (coco_in_one_folder, "coco", r"val2017\.json: .*: 2 of 2, the first is .*images/0\.png;"),
    ],
    ids=["yolo", "yolo-link", "voc", "coco"],
)
def test_an_image_in_both_splits_is_refused(
    write: Callable[[Path], object], source: str, message: str, tmp_path: Path
) -> None:
    write(tmp_path / "set")
    with pytest.raises(PecoError, match=message) as caught:
        opened(source, tmp_path / "set")
    assert "images that are in train too" in str(caught.value) and "\n" not in str(caught.value)
