"""Annotated objects: three formats give the same objects, and real photos agree in their formats."""

import json
import os
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from detection_sets import (
    CLASSES,
    DETECTION,
    HEIGHT,
    TRUTH,
    WIDTH,
    Truth,
    coco_in_one_folder,
    coco_json,
    filled,
    opened,
    runs_of,
    spoil_coco,
    write_coco,
    write_json,
    write_panoptic,
    write_voc,
    write_yolo,
)
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco_mask

from peco.annotations.photos import annotated_photo
from peco.annotations.sets import DetectionSet
from peco.boxes.coco import open_coco
from peco.boxes.open import open_splits
from peco.boxes.records import NO_OBJECT, ZERO_AREA
from peco.boxes.regions import Rle, rasterize, run_lengths
from peco.boxes.voc import open_voc
from peco.boxes.yolo import open_yolo
from peco.core.errors import PecoError
from peco.data.images import decode
from peco.scenes import scenes


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


def test_splits_may_share_a_folder(tmp_path: Path) -> None:
    coco_in_one_folder(tmp_path / "set", of_train="t")
    train, val = opened("coco", tmp_path / "set")
    assert (len(train), len(val)) == (2, 2)


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
