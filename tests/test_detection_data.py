"""Annotated objects: three formats give the same objects, every error is one line, views keep objects in place."""

import json
import os
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask

from peco.annotations.photos import annotated_photo
from peco.annotations.sets import DetectionSet, Objects
from peco.boxes.coco import open_coco
from peco.boxes.open import open_splits
from peco.boxes.records import NO_OBJECT, ZERO_AREA
from peco.boxes.regions import Rle, rasterize, run_lengths, segment_numbers
from peco.boxes.voc import open_voc
from peco.boxes.yolo import open_yolo
from peco.core import config
from peco.core.errors import PecoError
from peco.data import images as data_images
from peco.data.images import decode
from peco.evaluate.detection.letterbox import DetectionView, draw_view, letterbox_image, letterbox_objects, whole_view
from peco.scenes import scenes

OPTIM = config.Optim(
    epochs=1, batch_size=2, lr=1e-3, min_lr=0, warmup_epochs=0, weight_decay=0.05, betas=(0.9, 0.999), clip_grad=None,
    layer_decay=1, ema=None, accumulate=1, precision="fp32", compile=False,
)  # fmt: skip
DETECTION = config.Detection(
    source="scenes", path="data/scenes.yaml", scenes=config.AnnotatedScenes(train=4, val=2, size=64, objects=3), image_size=64,
    channels=16, drop_path=0, optim=OPTIM,
)  # fmt: skip
CLASSES = ("cat", "dog", "eel")
WIDTH, HEIGHT = 64, 32  # powers of two: shares of them are exact

# Box x0, y0, x1, y1 in whole pixels, class. The masks are rectangles, which are the same in every format.
Truth = list[tuple[tuple[int, int, int, int], int]]
TRUTH: dict[str, list[Truth]] = {
    "train": [[((2, 4, 20, 30), 0), ((16, 8, 64, 16), 2)], [], [((0, 0, 64, 32), 1), ((5, 6, 7, 9), 0)]],
    "val": [[((1, 1, 3, 4), 2)], []],
}


def save_image(path: Path, size: tuple[int, int] = (WIDTH, HEIGHT)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (10, 20, 30)).save(path)


def outline(box: tuple[int, int, int, int]) -> list[int]:
    x0, y0, x1, y1 = box
    return [x0, y0, x1, y0, x1, y1, x0, y1]


def filled(box: tuple[int, int, int, int]) -> NDArray[np.bool_]:
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    mask[box[1] : box[3], box[0] : box[2]] = True
    return mask


def runs_of(mask: NDArray[np.bool_]) -> list[int]:
    """COCO's uncompressed counts by their definition: runs down the columns, zeros first."""
    flat = np.concatenate([[0], mask.T.ravel().astype(int)])
    turns = np.flatnonzero(np.diff(flat)) if mask.any() else np.array([], dtype=int)
    return [int(n) for n in np.diff(np.concatenate([[0], turns, [mask.size]]))]


def coco_json(split: str, segmentation: str = "polygons") -> dict[str, Any]:
    images, annotations = [], []
    for i, objects in enumerate(TRUTH[split]):
        images.append({"id": 100 + i, "file_name": f"{i}.png", "width": WIDTH, "height": HEIGHT})
        for box, label in objects:
            entry: dict[str, Any] = {"id": len(annotations) + 1, "image_id": 100 + i, "category_id": 10 * label + 5}
            entry |= {"bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]], "iscrowd": 0}
            if segmentation == "polygons":
                entry["segmentation"] = [outline(box)]
            elif segmentation == "runs":
                entry["segmentation"] = {"size": [HEIGHT, WIDTH], "counts": runs_of(filled(box))}
            annotations.append(entry)
    categories = [{"id": 10 * i + 5, "name": name} for i, name in enumerate(CLASSES)]
    return {"images": images, "annotations": annotations, "categories": categories}


def write_json(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def write_coco(root: Path, segmentation: str = "polygons") -> Path:
    for split, objects in TRUTH.items():
        write_json(root / "annotations" / f"instances_{split}2017.json", coco_json(split, segmentation))
        for i in range(len(objects)):
            save_image(root / f"{split}2017" / f"{i}.png")
    return root


def write_panoptic(root: Path) -> Path:
    """Later objects hide earlier ones in the masks; boxes stay whole."""
    for split, images in TRUTH.items():
        content = coco_json(split)
        content["categories"].append({"id": 99, "name": "sky", "isthing": 0})
        annotations = []
        for i, objects in enumerate(images):
            save_image(root / "images" / f"{split}2017" / f"{i}.png")
            numbers = np.zeros((HEIGHT, WIDTH), dtype=np.int64)
            segments = [{"id": 7, "category_id": 99, "bbox": [0, 0, 1, 1], "iscrowd": 0}]
            for n, (box, label) in enumerate(objects):
                number = 70_000 * (n + 1)  # needs all three channels
                numbers[filled(box)] = number
                size = [box[2] - box[0], box[3] - box[1]]
                segments.append({"id": number, "category_id": 10 * label + 5, "bbox": [*box[:2], *size], "iscrowd": 0})
            rgb = np.stack([numbers % 256, numbers // 256 % 256, numbers // 65536], axis=2).astype(np.uint8)
            png = root / "annotations" / f"panoptic_{split}2017" / f"{i}.png"
            png.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rgb).save(png)
            annotations.append({"image_id": 100 + i, "file_name": f"{i}.png", "segments_info": segments})
        write_json(root / "annotations" / f"panoptic_{split}2017.json", content | {"annotations": annotations})
    return root


def write_yolo(root: Path, polygons: bool = True) -> Path:
    root.mkdir(parents=True)
    names = dict(zip((3, 7, 8), CLASSES, strict=True))
    (root / "data.yaml").write_text(yaml.safe_dump({"train": "images/train", "val": "images/val", "names": names}))
    for split, images in TRUTH.items():
        for i, objects in enumerate(images):
            save_image(root / "images" / split / f"{i}.png")
            labels = root / "labels" / split / f"{i}.txt"
            labels.parent.mkdir(parents=True, exist_ok=True)
            lines = []
            for (x0, y0, x1, y1), label in objects:
                if polygons:
                    values = [v / (WIDTH, HEIGHT)[k % 2] for k, v in enumerate(outline((x0, y0, x1, y1)))]
                else:
                    values = [(x0 + x1) / 2 / WIDTH, (y0 + y1) / 2 / HEIGHT, (x1 - x0) / WIDTH, (y1 - y0) / HEIGHT]
                lines.append(" ".join(map(str, [(3, 7, 8)[label], *values])))
            if lines:  # an image without objects has no file
                labels.write_text("\n".join(lines) + "\n")
    return root


def write_voc(root: Path) -> Path:
    for split, images in TRUTH.items():
        names = [f"{split}_{i}" for i in range(len(images))]
        listed = root / "ImageSets" / "Main" / f"{split}.txt"
        listed.parent.mkdir(parents=True, exist_ok=True)
        listed.write_text("\n".join(names) + "\n")
        for name, objects in zip(names, images, strict=True):
            save_image(root / "JPEGImages" / f"{name}.png")
            entries = "".join(voc_object(box, CLASSES[label]) for box, label in objects)
            path = root / "Annotations" / f"{name}.xml"
            path.parent.mkdir(exist_ok=True)
            path.write_text(
                f"<annotation><size><width>{WIDTH}</width><height>{HEIGHT}</height></size>{entries}</annotation>"
            )
    return root


def voc_object(box: tuple[int, int, int, int], name: str, extra: str = "") -> str:
    sides = dict(zip(("xmin", "ymin", "xmax", "ymax"), (box[0] + 1, box[1] + 1, box[2], box[3]), strict=True))
    corners = "".join(f"<{side}>{value}</{side}>" for side, value in sides.items())
    return f"<object><name>{name}</name>{extra}<bndbox>{corners}</bndbox></object>"


def require_truth(data: DetectionSet, truth: list[Truth], *, masks: bool) -> None:
    assert data.classes == CLASSES and data.has_masks == masks and len(data) == len(truth)
    for i, objects in enumerate(truth):
        found = data.objects(i)
        assert found.boxes.dtype == np.float32 and found.labels.dtype == np.int64 and found.crowd.dtype == np.bool_
        assert found.boxes.shape == (len(objects), 4)
        assert found.boxes.tolist() == [list(box) for box, _ in objects]
        assert found.labels.tolist() == [label for _, label in objects]
        assert not found.crowd.any()
        assert (found.masks is not None) == masks
        assert data.image(i).size == (WIDTH, HEIGHT) and data.image(i).mode == "RGB"
        if found.masks is not None:
            assert found.masks.shape == (len(objects), HEIGHT, WIDTH) and found.masks.dtype == np.bool_
            assert all((mask == filled(box)).all() for mask, (box, _) in zip(found.masks, objects, strict=True))


def opened(source: str, root: Path) -> tuple[DetectionSet, DetectionSet]:
    return open_splits(replace(DETECTION, source=source, path=str(root)))  # type: ignore[arg-type]


# --- formats


@pytest.mark.parametrize(
    ("write", "source", "masks"),
    [
        (write_coco, open_coco, True),
        (lambda root: write_coco(root, "runs"), open_coco, True),
        (lambda root: write_coco(root, "none"), open_coco, False),
        (write_yolo, open_yolo, True),
        (lambda root: write_yolo(root, polygons=False), open_yolo, False),
        (write_voc, open_voc, False),
    ],
    ids=["coco-polygons", "coco-runs", "coco-boxes", "yolo-polygons", "yolo-boxes", "voc"],
)
def test_all_formats_give_the_same_objects(
    write: Callable[[Path], Path],
    source: Callable[[Path], tuple[DetectionSet, DetectionSet]],
    masks: bool,
    tmp_path: Path,
) -> None:
    train, val = source(write(tmp_path / "set"))
    require_truth(train, TRUTH["train"], masks=masks)
    require_truth(val, TRUTH["val"], masks=masks)
    assert not train.skipped and not val.skipped


def test_things_of_a_panoptic_set_are_objects(tmp_path: Path) -> None:
    train, val = open_coco(write_panoptic(tmp_path))
    assert train.classes == val.classes == CLASSES
    require_truth(val, TRUTH["val"], masks=True)
    below, above = train.objects(0).masks  # type: ignore[misc]
    (lower, _), (upper, _) = TRUTH["train"][0]
    assert (above == filled(upper)).all() and (below == filled(lower) & ~filled(upper)).all()


def test_coco_and_voc_have_crowds(tmp_path: Path) -> None:
    root = write_coco(tmp_path / "coco", "runs")
    content = coco_json("train", "runs")
    content["annotations"][0]["iscrowd"] = 1
    write_json(root / "annotations/instances_train2017.json", content)
    assert open_coco(root)[0].objects(0).crowd.tolist() == [True, False]
    root = write_voc(tmp_path / "voc")
    path = root / "Annotations/train_0.xml"
    path.write_text(path.read_text().replace("<name>cat</name>", "<name>cat</name><difficult>1</difficult>"))
    assert open_voc(root)[0].objects(0).crowd.tolist() == [True, False]


@given(st.integers(0, 1000), st.sampled_from([(1, 1), (7, 5), (40, 300)]), st.floats(0, 1))
def test_compressed_run_lengths_are_decoded(seed: int, size: tuple[int, int], share: float) -> None:
    mask = np.random.default_rng(seed).random(size) < share
    packed = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))["counts"]
    counts = run_lengths(packed)
    assert list(counts) == runs_of(mask)
    assert (rasterize([Rle(counts)], size[::-1])[0] == mask).all()
    for damaged in (packed + b"P", b"1N"):  # more is announced; a negative count
        with pytest.raises(ValueError, match="run lengths"):
            run_lengths(damaged)


def test_a_set_may_have_packed_masks(tmp_path: Path) -> None:
    root = write_coco(tmp_path)
    for split in ("train", "val"):
        content = coco_json(split)
        boxes = [box for objects in TRUTH[split] for box, _ in objects]
        for entry, box in zip(content["annotations"], boxes, strict=True):
            packed = coco_mask.encode(np.asfortranarray(filled(box), dtype=np.uint8))["counts"].decode()
            entry["segmentation"] = {"size": [HEIGHT, WIDTH], "counts": packed}
        write_json(root / f"annotations/instances_{split}2017.json", content)
    for data, split in zip(open_coco(root), ("train", "val"), strict=True):
        require_truth(data, TRUTH[split], masks=True)


def test_images_without_objects_are_scored_but_not_trained_on(tmp_path: Path) -> None:
    for source, root in (
        ("coco", write_coco(tmp_path / "c")),
        ("yolo", write_yolo(tmp_path / "y")),
        ("voc", write_voc(tmp_path / "v")),
    ):
        train, val = opened(source, root)
        assert (len(train), len(val)) == (2, 2)
        assert train.skipped == {NO_OBJECT: 1} and not val.skipped
        assert train.objects(1).boxes.tolist() == [[0, 0, 64, 32], [5, 6, 7, 9]]


def test_scenes_are_a_set_with_masks(tmp_path: Path) -> None:
    path = tmp_path / "scenes.yaml"
    path.write_text(f"generator: scenes\nversion: {scenes.VERSION}\nseed: 0\n")
    train, val = open_splits(replace(DETECTION, path=str(path)))
    assert (len(train), len(val), train.classes) == (4, 2, scenes.CLASSES)
    assert train.has_masks and train.objects(0).masks is not None
    with pytest.raises(PecoError, match=r"no such folder; evaluate\.detection\.path"):
        opened("coco", tmp_path / "none")


@pytest.mark.parametrize("orientation", [1, 2, 3, 4, 5, 6, 7, 8, 9])  # EXIF defines 1 to 8
def test_an_image_has_the_size_in_which_it_is_seen(orientation: int, tmp_path: Path) -> None:
    path = tmp_path / "photo.jpg"
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", (WIDTH, HEIGHT)).save(path, exif=exif)
    assert annotated_photo(path, None, "").size == decode(path.read_bytes()).size


# --- bad input


def spoil_coco(root: Path, change: Callable[[dict[str, Any]], object], split: str = "train") -> None:
    content = coco_json(split)
    change(content)
    write_json(root / f"annotations/instances_{split}2017.json", content)


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


def replace_in(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_boxes_of_zero_area_are_counted_and_rounded_ones_clipped(tmp_path: Path) -> None:
    root = write_coco(tmp_path)
    spoil_coco(
        root,
        lambda c: (c["annotations"][0].update(bbox=[3, 4, 0, 5]), c["annotations"][1].update(bbox=[-0.5, 0, 65, 5])),
    )
    train, _ = open_coco(root)
    assert train.skipped == {ZERO_AREA: 1}
    assert train.objects(0).boxes.tolist() == [[0, 0, 64, 5]] and train.objects(0).labels.tolist() == [2]
    assert train.objects(0).masks.shape == (1, HEIGHT, WIDTH)  # type: ignore[union-attr]


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


def coco_in_one_folder(root: Path, of_train: str = "") -> None:
    write_coco(root)
    for split in TRUTH:
        content = coco_json(split)
        for entry in content["images"]:
            image = root / f"{split}2017" / entry["file_name"]
            if split == "train":
                entry["file_name"] = of_train + entry["file_name"]
            (root / "images").mkdir(exist_ok=True)
            image.rename(root / "images" / entry["file_name"])
        write_json(root / f"annotations/instances_{split}2017.json", content)


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


def test_splits_may_share_a_folder(tmp_path: Path) -> None:
    coco_in_one_folder(tmp_path / "set", of_train="t")
    train, val = opened("coco", tmp_path / "set")
    assert (len(train), len(val)) == (2, 2)


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


# --- views


def random_objects(seed: int, width: int, height: int) -> Objects:
    rng = np.random.default_rng(seed)
    corners = np.sort(rng.random((5, 2, 2)), axis=1) * [width, height]
    boxes = corners.reshape(5, 4).astype(np.float32)
    rows, columns = np.mgrid[:height, :width] + 0.5
    masks = np.stack([(columns > x0) & (columns < x1) & (rows > y0) & (rows < y1) for x0, y0, x1, y1 in boxes])
    return Objects(boxes, np.arange(5), masks, np.array([False, False, True, False, False]))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(20, 90), st.integers(20, 90), st.sampled_from([32, 48]))
def test_boxes_and_masks_move_with_the_image(seed: int, width: int, height: int, side: int) -> None:
    objects = random_objects(seed, width, height)
    view = draw_view(np.random.default_rng(seed), (width, height), side, (0.5, 2.0))
    seen = letterbox_objects(objects, (width, height), view, side)
    assert seen.masks is not None and seen.masks.shape[1:] == (side, side)
    assert 2 not in seen.labels and not seen.crowd.any()
    assert (seen.boxes >= 0).all() and (seen.boxes[:, [0, 2]] <= view.seen[0]).all()
    assert (seen.boxes[:, [1, 3]] <= view.seen[1]).all()
    slack = 1 + max(view.size) / min(width, height)  # a pixel of the image and one of the view
    for box, mask, label in zip(seen.boxes, seen.masks, seen.labels, strict=True):
        rows, columns = np.nonzero(mask)
        bounds = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert np.abs(bounds - box).max() <= slack
        picture = np.where(objects.masks[label][..., None], 255, 0).astype(np.uint8).repeat(3, axis=2)  # type: ignore[index]
        shown = letterbox_image(Image.fromarray(picture), view, side)[: view.seen[1], : view.seen[0], 0]
        sure = (shown < 5) | (shown > 250)
        assert np.mean((shown > 127)[sure] == mask[: view.seen[1], : view.seen[0]][sure]) > 0.98


@given(st.integers(1, 2000), st.integers(1, 2000), st.sampled_from([32, 64, 224]))
def test_the_scored_view_holds_the_whole_image(width: int, height: int, side: int) -> None:
    view = whole_view((width, height), side)
    assert max(view.size) == side and view.seen == view.size and (view.left, view.top, view.flip) == (0, 0, False)
    scale = view.scale((width, height))
    assert np.allclose([width * scale[0], height * scale[1]], view.size)


def test_a_view_depends_on_seed_epoch_and_sample_only(tmp_path: Path) -> None:
    train = open_coco(write_coco(tmp_path))[0]
    views = {key: DetectionView(train, key[0], 32, (0.5, 2.0))(2, key[1]) for key in ((0, 0), (0, 1), (1, 0))}
    again = DetectionView(train, 0, 32, (0.5, 2.0))(2, 0)
    assert all(np.array_equal(again[name], value) for name, value in views[0, 0].items())
    assert not np.array_equal(again["boxes"], views[0, 1]["boxes"])
    assert not np.array_equal(again["boxes"], views[1, 0]["boxes"])
    shapes = {name: value.shape for name, value in again.items()}
    assert shapes == {"image": (32, 32, 3), "boxes": (100, 4), "labels": (100,), "masks": (100, 32, 4)}
    count = int((again["labels"] >= 0).sum())
    assert count and not again["boxes"][count:].any() and (again["labels"][count:] == -1).all()


# --- real photos


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = os.environ.get("PECO_TEST_DATA")
    if not folder or not (Path(folder) / "coco100_det_seg.tar").is_file():
        pytest.skip("PECO_TEST_DATA names no folder with coco100_det_seg.tar")
    root = tmp_path_factory.mktemp("coco100")
    with tarfile.open(Path(folder) / "coco100_det_seg.tar") as archive:
        archive.extractall(root, filter="data")
    return root


@pytest.mark.data
def test_photos_agree_as_yolo_boxes_polygons_and_panoptic_masks(photos: Path) -> None:
    boxes, polygons, panoptic = (
        photos / name for name in ("object_detection", "instance_segmentation", "panoptic_segmentation")
    )
    for root in (boxes, polygons, panoptic):
        (root / "images").symlink_to(photos / "images")
    categories = json.loads((panoptic / "annotations/panoptic_val2017.json").read_text())["categories"]
    names = {c["id"]: c["name"] for c in categories if c["isthing"]}
    (polygons / "data.yaml").write_text(
        yaml.safe_dump({"train": "images/train2017", "val": "images/val2017", "names": names})
    )

    train, val = open_yolo(boxes)
    assert (len(train), len(val), len(train.classes), train.has_masks) == (100, 100, 80, False)
    assert [sum(len(split.objects(i).labels) for i in range(100)) for split in (train, val)] == [741, 709]
    assert sum(not len(train.objects(i).labels) for i in range(100)) == 2

    with_polygons, with_parts = open_yolo(polygons)[1], open_coco(panoptic)[1]
    assert with_polygons.classes == with_parts.classes and with_parts.has_masks
    agreeing = []
    for i in range(0, 100, 5):
        polygons_, parts = with_polygons.objects(i), with_parts.objects(i)
        union = polygons_.masks.any(axis=0), parts.masks[~parts.crowd].any(axis=0)  # type: ignore[union-attr,index]
        agreeing.append(np.logical_and(*union).sum() / max(1, np.logical_or(*union).sum()))
    assert np.median(agreeing) > 0.9  # the panoptic annotations were drawn separately
