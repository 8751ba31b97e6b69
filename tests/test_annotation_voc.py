"""Pascal VOC as programs export it: each kind is read with the right objects, or refused in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from annotated_folders import BOX, HEIGHT, WIDTH, Kind, cases, check, photo, text

from peco.boxes.voc import open_voc


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


@cases(VOC)
def test_kinds_of_voc(kind: Kind, tmp_path: Path) -> None:
    check(kind, tmp_path, open_voc)
