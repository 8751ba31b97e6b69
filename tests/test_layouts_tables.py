"""Tables and lists beside images: which columns and lines give labels and splits, and what is refused."""

from __future__ import annotations

import pytest
from layout_cases import CD, NO_IMAGE, TEST, Files, Kind, check, empty, read, refusal, several, text

KINDS = {
    "a CSV": Kind(
        {
            "labels.csv": text("file,label", *(f"{i}.jpg,{CD[i % 2]}" for i in range(20))),
            **several("images/{i}.jpg", 20),
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
            **several("images/{i}.jpg", 20),
        },
        (14, 6),
        CD,
        {NO_IMAGE: 1},
    ),
    "a competition, without extensions": Kind(
        {
            "labels.csv": text("id,breed", *(f"{i:032x},{CD[i % 2]}" for i in range(20))),
            "sample_submission.csv": text("id,cat,dog", *(f"{i + 100:032x},0.5,0.5" for i in range(9))),
            **several("train/{i:032x}.jpg", 20),
            **empty(*(f"test/{i + 100:032x}.jpg" for i in range(9))),
        },
        (18, 2),
        CD,
        {NO_IMAGE: 2, TEST: 9},
    ),
    "train.csv and test.csv over one folder": Kind(
        {
            "train.csv": text("image_id,healthy,rust", *(f"Train_{i},{i % 2},{1 - i % 2}" for i in range(20))),
            "test.csv": text("image_id", *(f"Test_{i}" for i in range(6))),
            **several("images/Train_{i}.jpg", 20),
            **several("images/Test_{i}.jpg", 6),
        },
        (18, 2),
        ("healthy", "rust"),
        {NO_IMAGE: 2, TEST: 6},
    ),
    "no header, semicolons": Kind(
        {
            "labels.csv": text(*(f"{i}.jpg;{CD[i % 2]}" for i in range(20))),
            **several("{i}.jpg", 20),
        },
        (18, 2),
        CD,
        {NO_IMAGE: 1},
    ),
    "train.csv and val.csv over folders with the same names": Kind(
        {
            "train.csv": text("file,label", *(f"{i}.jpg,{CD[i % 2]}" for i in range(14))),
            "val.csv": text("file,label", *(f"{i}.jpg,{CD[i % 2]}" for i in range(6))),
            **several("train/{i}.jpg", 14),
            **several("val/{i}.jpg", 6),
        },
        (14, 6),
        CD,
        {NO_IMAGE: 2},
        note="labels (column label) are read from val.csv",
    ),
    "a table called test, of all images": Kind(
        {
            "test.csv": text("file,label", *(f"{i}.jpg,{CD[i % 2]}" for i in range(20))),
            **several("{i}.jpg", 20),
        },
        (18, 2),
        CD,
        {NO_IMAGE: 1},
    ),
    "a table whose names fit several images": Kind(
        {
            "labels.csv": text("folder,file,label", *(f"{c},{i}.jpg,x" for c in CD for i in range(10))),
            **several("{c}/{i}.jpg", 10),
        },
        (18, 2),
        CD,
        {NO_IMAGE: 1},
        note="labels.csv is not read, since its rows name no images, or several each",
    ),
    "labels of val in a table, those of train in folders": Kind(
        {
            "val_labels.csv": text("file,label", *(f"v{i}.jpg,{CD[i % 2]}" for i in range(6))),
            **several("train/{c}/{i}.jpg", 8),
            **several("val/v{i}.jpg", 6),
        },
        (16, 6),
        CD,
        {NO_IMAGE: 1},
    ),
    "a column by its name": Kind(
        {
            "HAM_metadata.csv": text("lesion,image_id,kind,age", *(f"L{i},I_{i},{CD[i % 2]},40" for i in range(20))),
            **several("part_1/I_{i}.jpg", 20),
        },
        (18, 2),
        CD,
        {NO_IMAGE: 1},
        options={"label_field": "kind"},
    ),
    "rows on the images of a folder that is missing": Kind(
        {
            "labels.csv": text(
                "file,label",
                *(f"site{s}/{i}.jpg,{CD[(i + (s == 'A')) % 2]}" for s in "AB" for i in range(20)),
            ),
            **several("siteB/{i}.jpg", 20),
        },
        (18, 2),
        CD,
        {NO_IMAGE: 1},
        note="20 rows of labels.csv name no image, the first siteA/0.jpg",
    ),
    "rows on train, images of test": Kind(
        {
            "labels.csv": text("file,label", *(f"train/{i}.jpg,{CD[i % 2]}" for i in range(20))),
            **several("set/test/{i}.jpg", 20),
            **several("set/train/x{i}.jpg", 20),
        },
        (20, 20),
        left={NO_IMAGE: 1},
    ),
    "measurements are no labels": Kind(
        {
            "data.csv": text("file,label", *(f"{i}.jpg,{i / 7:.3f}" for i in range(1, 41))),
            **empty(*(f"{i}.jpg" for i in range(1, 41))),
        },
        (36, 4),
        left={NO_IMAGE: 1},
        note="data.csv names images, but no column is known to be their labels (label)",
    ),
    "free text is no label": Kind(
        {
            "data.csv": text("file,label", *(f"{i}.jpg,a photo of thing {i}" for i in range(40))),
            **several("{i}.jpg", 40),
        },
        (36, 4),
        left={NO_IMAGE: 1},
        note="no column is known to be their labels (label)",
    ),
    "one image a class": Kind(
        {
            "data.csv": text("file,label", *(f"{i}.jpg,n{i:08d}" for i in range(40))),
            **several("train/{i}.jpg", 40),
            **empty("val/v.jpg"),
        },
        (40, 1),
        tuple(f"n{i:08d}" for i in range(40)),
        {NO_IMAGE: 1},
    ),
    "a table and lists in UTF-16, as Windows' PowerShell writes them": Kind(
        {
            "labels.csv": "\n".join(["file,label", *(f"{i}.jpg,{CD[i % 2]}" for i in range(20))]).encode("utf-16"),
            "train.txt": "\r\n".join(f"{i}.jpg" for i in range(14)).encode("utf-16"),
            "test.txt": "\r\n".join(f"{i}.jpg" for i in range(14, 20)).encode("utf-16"),
            **several("{i}.jpg", 20),
        },
        (14, 6),
        CD,
        {NO_IMAGE: 3},
    ),
    "imagefolder with metadata.csv": Kind(
        {
            "train/metadata.csv": text("file_name,label", *(f"{i}.png,{CD[i % 2]}" for i in range(10))),
            "test/metadata.csv": text("file_name,label", *(f"{i}.png,{CD[i % 2]}" for i in range(4))),
            **several("train/{i}.png", 10),
            **several("test/{i}.png", 4),
        },
        (10, 4),
        CD,
        {NO_IMAGE: 2},
    ),
    "imagefolder with metadata.jsonl": Kind(
        {
            "train/metadata.jsonl": text(*(f'{{"file_name": "{i}.png", "label": "{CD[i % 2]}"}}' for i in range(10))),
            "test/metadata.jsonl": text(*(f'{{"file_name": "{i}.png", "label": "{CD[i % 2]}"}}' for i in range(4))),
            **several("train/{i}.png", 10),
            **several("test/{i}.png", 4),
        },
        (10, 4),
        CD,
        {NO_IMAGE: 2},
    ),
    "captions are no labels": Kind(
        {
            "metadata.csv": text("file_name,text", *(f"{i}.png,picture {i}" for i in range(10))),
            **several("{i}.png", 10),
        },
        (9, 1),
        left={NO_IMAGE: 1},
    ),
    "images in no row": Kind(
        {
            "labels.csv": text("file,label", *(f"{i}.jpg,{CD[i % 2]}" for i in range(20))),
            **several("{i}.jpg", 21),
        },
        (18, 2),
        CD,
        {NO_IMAGE: 1, "in no row of the table of labels": 1},
    ),
    "rows without an image": Kind(
        {
            "labels.csv": text("file,label", *(f"{i}.jpg,{CD[i % 2]}" for i in range(22))),
            **several("{i}.jpg", 20),
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
            **several("img/{i:06d}.jpg", 20),
        },
        (14, 3),
        left={NO_IMAGE: 3, TEST: 3},
        note="splits (column partition: 0 is train, 1 is val, 2 is test) are read from list_eval_partition.csv",
    ),
    "fastai's is_valid": Kind(
        {
            "labels.csv": text("fname,label,is_valid", *(f"{i},{CD[i % 2]},{i >= 14}" for i in range(20))),
            **several("{i}.jpg", 20),
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
            **several("Train/{c}/{i}.png", 8, "01"),
            **several("Test/{i:05d}.png", 6),
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
            **several("images_001/images/{i}.png", 12),
        },
        (9, 3),
        ("A", "B"),
        {NO_IMAGE: 4},
        note="4 rows of Data_Entry.csv have several labels: their images get none",
    ),
    "a CSV of addresses with numbers as labels": Kind(
        {
            "labels.csv": text("image,label", *(f"https://x.y/a/{i}.jpeg?w=3,{i % 2}" for i in range(20))),
            **several("{i}.jpg", 20),
        },
        (18, 2),
        ("0", "1"),
        {NO_IMAGE: 1},
    ),
    "Windows' paths, a byte order mark, quotes": Kind(
        {
            "labels.csv": b"\xef\xbb\xbf"
            + text('"File";"Class"', *(f'"C:\\set\\{i}.jpg";"{CD[i % 2]}"' for i in range(20))),
            **several("set/{i}.jpg", 20),
        },
        (18, 2),
        CD,
        {NO_IMAGE: 1},
    ),
    "several labels of an image in columns": Kind(
        {
            "train/_classes.csv": text("filename, a, b", *(f"{i}.jpg, 1, {i % 2}" for i in range(10))),
            "valid/_classes.csv": text("filename, a, b", *(f"v{i}.jpg, {i % 2}, {1 - i % 2}" for i in range(4))),
            **several("train/{i}.jpg", 10),
            **several("valid/v{i}.jpg", 4),
        },
        (10, 4),
        left={NO_IMAGE: 2},
        note="train/_classes.csv names images, but no column is known to be their labels (a, b)",
    ),
    "folders of patients, a table of findings": Kind(
        {
            "train.csv": text("Path,Sex,Edema", *(f"train/{c}/{i}.jpg,F,1.0" for c in CD for i in range(10))),
            **several("train/{c}/{i}.jpg", 10),
        },
        (18, 2),
        CD,
        {NO_IMAGE: 1},
        note="no column is known to be their labels (Sex, Edema): dataset.label_field names one",
    ),
    "labels as JSON": Kind(
        {"labels.json": b'{"0.jpg": "cat"}', **several("{i}.jpg", 10)},
        (9, 1),
        left={NO_IMAGE: 1},
        note="no labels are read from labels.json; labels must be a column of a CSV, TSV or jsonl",
    ),
    "lists with labels": Kind(
        {
            "train.txt": text(*(f"images/{i}.jpg {i % 2}" for i in range(14))),
            "val.txt": text(*(f"images/{i}.jpg {i % 2}" for i in range(14, 20))),
            **several("images/{i}.jpg", 20),
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
            **several("images/my cat {i}.jpg", 20),
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
            **several("{i}.jpg", 20),
        },
        (14, 6),
        left={NO_IMAGE: 3},
    ),
    "boxes in JSON lines are no labels": Kind(
        {
            "metadata.jsonl": text(*(f'{{"file_name": "{i}.jpg", "objects": {{"bbox": [1]}}}}' for i in range(10))),
            **several("{i}.jpg", 10),
        },
        (9, 1),
        left={NO_IMAGE: 1},
    ),
    "DTD, ten divisions": Kind(
        {
            **several("images/{c}/{i}.jpg", 10),
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
            **several("food/images/{c}/{i}.jpg", 10),
            "food/meta/train.txt": text(*(f"{c}/{i}" for c in CD for i in range(7))),
            "food/meta/test.txt": text(*(f"{c}/{i}" for c in CD for i in range(7, 10))),
            "food/meta/labels.txt": text("Cat", "Dog"),
        },
        (14, 6),
        CD,
        {NO_IMAGE: 3},
    ),
}


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_a_layout_becomes_splits_and_classes(kind: Kind) -> None:
    check(kind)


def test_labels_come_from_the_row_of_each_image() -> None:
    layout = read(KINDS["a TSV with splits"].files)
    assert layout.splits["val"][0] == ("images/14.jpg", "cat")


REFUSALS = {
    "lists of images that are missing": (
        {
            "meta/train.txt": text(*(f"cat/{i}" for i in range(10))),
            "meta/test.txt": text(*(f"dog/{i}" for i in range(10))),
            **several("images/{c}/{i}.jpg", 8),
        },
        "meta/test.txt lists images of test, but 2 of its 10 lines name no image, the first is 'dog/8'; add the images, or remove",
    ),
    "two lists for an image": (
        {"train.txt": b"1.jpg\n2.jpg\n", "val.txt": b"2.jpg\n", **empty("1.jpg", "2.jpg")},
        "train.txt and val.txt both list 2.jpg; remove it from one of them, or remove a list",
    ),
    "a row without a split": (
        {"a.csv": b"file,label,split\n1.jpg,cat,train\n2.jpg,dog,\n", **empty("1.jpg", "2.jpg")},
        "a.csv: '' in the column split is no split; expected train, val or test in each row",
    ),
    "two labels for an image": (
        {"a.csv": b"file,label\n1.jpg,cat\n1.jpg,dog\n", **empty("1.jpg")},
        "a.csv gives 1.jpg the labels cat and dog; keep one, or set dataset.label_field",
    ),
}


@pytest.mark.parametrize(("files", "message"), REFUSALS.values(), ids=REFUSALS)
def test_an_ambiguous_layout_is_refused(files: Files, message: str) -> None:
    assert message in refusal(files)


def test_a_column_that_no_table_has_is_refused() -> None:
    files = {"a.csv": b"file,label\n1.jpg,cat\n2.jpg,dog\n", **empty("1.jpg", "2.jpg")}
    assert "dataset.label_field: no table has the column kind; there are file, label" in refusal(
        files, label_field="kind"
    )
