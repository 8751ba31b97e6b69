"""Annotated images for segmentation: folders, the built-in scenes, crops and batches."""

from __future__ import annotations

import dataclasses
import os
import shutil
import tarfile
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from peco.annotations import scenes as annotated_scenes
from peco.annotations.loader import IndexLoader
from peco.annotations.sets import IGNORE
from peco.core import config
from peco.core.errors import PecoError
from peco.core.params import parse_params
from peco.data.images import decode, upright_size
from peco.evaluate.segmentation import crop as segmentation_crop
from peco.evaluate.segmentation.crop import Crop
from peco.masks.folder import open_folder
from peco.scenes import scenes
from peco.sources.open import VAL_START
from pipelines.workflow.compose import PRESETS, compose_params

WIDTH, HEIGHT = 20, 12
RIGHT, LEFT = 0, 1  # index of the class in the halves of `half_and_half`


def half_and_half(right: int = RIGHT, left: int = LEFT) -> np.ndarray:
    mask = np.full((HEIGHT, WIDTH), right, dtype=np.uint8)
    mask[:, : WIDTH // 2] = left
    return mask


def write(path: Path, pixels: np.ndarray | Image.Image) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    (pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)).save(path)


def photo(value: int = 90) -> np.ndarray:
    return np.full((HEIGHT, WIDTH, 3), value, dtype=np.uint8)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A good folder in ADE20K's layout: two images to train on, one to validate on."""
    for split, names in (("training", ("a", "b")), ("validation", ("c",))):
        for name in names:
            write(tmp_path / "images" / split / f"{name}.jpg", photo())
            write(tmp_path / "annotations" / split / f"{name}.png", half_and_half())
    return tmp_path


# --- layouts


@pytest.mark.parametrize(
    ("images", "masks", "train", "val"),
    [
        ("images/{}", "annotations/{}", "training", "validation"),
        ("images/{}", "annotations/{}", "train", "val"),
        ("{}", "{}annot", "train", "val"),
        ("{}", "{}annot", "train", "test"),
        ("{}", "{}_labels", "train", "val"),
        ("{}/images", "{}/masks", "train", "val"),
    ],
)
def test_layouts_are_recognized(tmp_path: Path, images: str, masks: str, train: str, val: str) -> None:
    for split, count in ((train, 3), (val, 2)):
        for i in range(count):
            write(tmp_path / images.format(split) / f"city{i}/frame.png", photo(10 * i))
            write(tmp_path / masks.format(split) / f"city{i}/frame.png", half_and_half())
    found = open_folder(tmp_path, None)
    assert [len(data) for data in found] == [3, 2]
    for data in found:
        assert data.classes == ("0", "1") and data.skipped == Counter()
        assert [np.asarray(data.image(i))[0, 0, 0] for i in range(len(data))] == [10 * i for i in range(len(data))]
        assert data.mask(1).dtype == np.int32 and np.array_equal(data.mask(1), half_and_half())


def test_val_is_preferred_to_test(tmp_path: Path) -> None:
    for split, value in (("train", 1), ("val", 2), ("test", 3)):
        write(tmp_path / split / "x.png", photo(value))
        write(tmp_path / f"{split}annot" / "x.png", half_and_half())
    assert np.asarray(open_folder(tmp_path, None)[1].image(0))[0, 0, 0] == 2


def test_camvid_masks_may_end_in_l_and_other_files_do_not_count(tmp_path: Path) -> None:
    for split in ("train", "val"):
        write(tmp_path / split / "0001TP.png", photo())
        write(tmp_path / f"{split}_labels" / "0001TP_L.png", half_and_half())
        (tmp_path / split / "readme.txt").write_text("photos")
        (tmp_path / split / "._0001TP.png").write_text("left by a system")
    assert [len(data) for data in open_folder(tmp_path, None)] == [1, 1]


# --- classes and indices


def test_names_come_from_classes_txt_and_the_ignored_index_is_no_class(root: Path) -> None:
    (root / "classes.txt").write_text("void\nsky\nroad\n")
    for mask in root.rglob("*.png"):
        write(mask, half_and_half(0, 2))
    train, val = open_folder(root, 0)
    assert train.classes == val.classes == ("sky", "road")
    expected = np.where(half_and_half(0, 2) == 2, 1, IGNORE)
    assert np.array_equal(val.mask(0), expected)


def test_an_ignored_index_may_lie_beyond_the_classes(root: Path) -> None:
    write(root / "annotations/training/a.png", half_and_half(255, 1))
    train, _ = open_folder(root, 255)
    assert train.classes == ("0", "1")
    assert set(np.unique(train.mask(0))) == {IGNORE, 1}


def test_ade20k_table_of_classes(root: Path) -> None:
    (root / "objectInfo150.txt").write_text(
        "Idx\tRatio\tTrain\tVal\tName\n1\t0.1\t9\t8\twall\n2\t0.1\t7\t6\tsky, air\n"
    )
    train, _ = open_folder(root, 0)
    assert train.classes == ("wall", "sky, air")
    assert np.array_equal(train.mask(0), np.where(half_and_half() == 1, 0, IGNORE))


@pytest.mark.parametrize("kind", ["palette", "16 bits", "bilevel", "tiff"])
def test_kinds_of_mask_files_are_read(root: Path, kind: str) -> None:
    file = root / "annotations/training/a.png"
    image = Image.fromarray(half_and_half())
    if kind == "palette":
        image = image.convert("P")
        image.putdata(half_and_half().ravel().tolist())
        image.putpalette([0, 0, 0, 200, 10, 10])
    elif kind == "16 bits":
        image = Image.fromarray(half_and_half().astype(np.uint16))
    elif kind == "bilevel":
        image = Image.fromarray(half_and_half().astype(bool))
    file.unlink()
    write(file.with_suffix(".tif" if kind == "tiff" else ".png"), image)
    assert np.array_equal(open_folder(root, None)[0].mask(0), half_and_half())


def test_a_photo_that_is_stored_sideways_fits_its_upright_mask(root: Path) -> None:
    file = root / "images/training/a.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees
    Image.fromarray(photo().transpose(1, 0, 2)).save(file, exif=exif)
    assert upright_size(file) == (WIDTH, HEIGHT)
    assert open_folder(root, None)[0].image(0).size == (WIDTH, HEIGHT)


@pytest.mark.parametrize(
    ("mode", "size"),
    [("1", (7, 40)), ("1", (40, 7)), ("1", (8, 8)), ("1", (10_000, 8_948)), ("1", (10_000, 8_947)), ("F", (9, 9))],
)
def test_an_image_that_is_opened_can_be_decoded(mode: str, size: tuple[int, int], tmp_path: Path) -> None:
    """Every undecodable image is found at opening, not during the work."""
    file = tmp_path / "x.tif"
    Image.new(mode, size).save(file)
    try:
        with warnings.catch_warnings(action="ignore"):
            expected = decode(file.read_bytes()).size
    except PecoError:
        with pytest.raises(PecoError, match=r"x\.tif: can't be read as an image \(.* pixels\)"):
            upright_size(file)
    else:
        assert upright_size(file) == expected == size


def test_images_without_any_known_pixel_are_left_out_and_counted(root: Path) -> None:
    write(root / "annotations/training/a.png", half_and_half(9, 9))
    train, val = open_folder(root, 9)
    assert (len(train), train.skipped) == (1, Counter({"every pixel ignored": 1}))
    assert (len(val), val.skipped) == (1, Counter())


# --- bad input: one-line errors


def bad_size(root: Path) -> None:
    write(root / "annotations/training/b.png", half_and_half()[:-1])


def bad_index(root: Path) -> None:
    (root / "classes.txt").write_text("sky\nroad\n")
    write(root / "annotations/training/b.png", half_and_half(2))


def bad_index_in_val(root: Path) -> None:
    write(root / "annotations/validation/c.png", half_and_half(7))


def no_image(root: Path) -> None:
    (root / "images/training/b.jpg").unlink()


def no_mask(root: Path) -> None:
    (root / "annotations/validation/c.png").unlink()


def empty_split(root: Path) -> None:
    (root / "images/validation/c.jpg").unlink()


def no_split(root: Path) -> None:
    shutil.rmtree(root / "images/validation")


def unknown_layout(root: Path) -> None:
    (root / "images").rename(root / "pictures")


def other_classes_in_val(root: Path) -> None:
    (root / "annotations/training/classes.txt").write_text("sky\nroad\n")
    (root / "annotations/validation/classes.txt").write_text("sky\ncar\n")


def colors_for_indices(root: Path) -> None:
    write(root / "annotations/training/a.png", photo() + np.array([0, 0, 1], dtype=np.uint8))


def damaged_mask(root: Path) -> None:
    file = root / "annotations/training/a.png"
    file.write_bytes(file.read_bytes()[:50])


def lossy_mask(root: Path) -> None:
    (root / "annotations/training/a.png").unlink()
    write(root / "annotations/training/a.jpg", half_and_half())


def damaged_image(root: Path) -> None:
    (root / "images/training/a.jpg").write_bytes(b"no photo")


def two_of_a_name(root: Path) -> None:
    write(root / "images/training/a.png", photo())


def all_ignored(root: Path) -> None:
    write(root / "annotations/validation/c.png", half_and_half(255, 255))


def name_twice(root: Path) -> None:
    (root / "classes.txt").write_text("sky\nsky\n")


def blank_name(root: Path) -> None:
    (root / "classes.txt").write_text("sky\n\nroad\n")


def broken_table(root: Path) -> None:
    (root / "objectInfo150.txt").write_text("Idx\tName\nwall\t1\n")


def only_ignored_class(root: Path) -> None:
    (root / "classes.txt").write_text("void\n")
    for mask in root.rglob("*.png"):
        write(mask, half_and_half(0, 0))


@pytest.mark.parametrize(
    ("spoil", "ignore", "message"),
    [
        (bad_size, None, r"b\.png: .*b\.jpg is 20 x 12 pixels, but annotated as 20 x 11"),
        (bad_index, None, r"b\.png: class index 2 is out of range, the list of classes has 0 to 1"),
        (bad_index_in_val, None, r"c\.png: class index 7 is out of range.* training .* 0 to 1 .*splits differ"),
        (bad_index_in_val, 255, r"c\.png: class index 7"),
        (no_image, None, r"b\.png: a mask for a missing image"),
        (no_mask, None, r"c\.jpg: no mask"),
        (empty_split, None, r"images/validation: no image; the split is empty"),
        (no_split, None, r"no split val; .*annotations/validation has masks, but there is no .*images/validation"),
        (unknown_layout, None, r"no split train; .*annotations/training has masks, but there is no .*images/training"),
        (
            other_classes_in_val,
            None,
            r"validation/classes\.txt: class 1 is 'car', but 'road' in .*training/classes\.txt",
        ),
        (colors_for_indices, None, r"a\.png: an image of mode RGB; expected one channel"),
        (damaged_mask, None, r"a\.png: can't be read as a mask"),
        (lossy_mask, None, r"a\.jpg: a mask as JPEG, which changes the indices"),
        (damaged_image, None, r"a\.jpg: can't be read as an image"),
        (two_of_a_name, None, r"a\.png: a\.jpg has the same name"),
        (all_ignored, 255, r"validation: every pixel is to be ignored \(evaluate\.segmentation\.ignore 255\)"),
        (name_twice, None, r"classes\.txt: the name 'sky' twice"),
        (blank_name, None, r"classes\.txt: no names, or a line without one"),
        (broken_table, None, r"objectInfo150\.txt: not a table"),
        (only_ignored_class, 0, r"no class is left besides the ignored index 0"),
    ],
)
def test_bad_folders_are_one_line_errors(root: Path, spoil: Any, ignore: int | None, message: str) -> None:
    spoil(root)
    with pytest.raises(PecoError, match=message) as error:
        open_folder(root, ignore)
    assert "\n" not in str(error.value)


def test_a_missing_folder_and_a_truncated_photo_are_named(root: Path) -> None:
    with pytest.raises(PecoError, match="nowhere: no such folder"):
        open_folder(root / "nowhere", None)
    train, _ = open_folder(root, None)
    file = root / "images/training/a.jpg"
    file.write_bytes(file.read_bytes()[:-200])
    with pytest.raises(PecoError, match=r"a\.jpg: can.t be read: truncated"):
        train.image(0)
    file.unlink()
    with pytest.raises(PecoError, match=r"a\.jpg: can't be read"):
        train.image(0)


# --- crops


sides = st.integers(8, 90)


@given(sides, sides, st.integers(8, 40), st.tuples(st.floats(0.2, 1), st.floats(1, 3)), st.integers(0, 99))
@settings(deadline=None, max_examples=60)
def test_crops_are_inside_the_resized_image_and_keep_its_aspect(
    width: int, height: int, size: int, scale: tuple[float, float], seed: int
) -> None:
    crop = segmentation_crop.draw(np.random.default_rng(seed), scale, width, height, size)
    assert crop == segmentation_crop.draw(np.random.default_rng(seed), scale, width, height, size)
    assert scale[0] * size - 1 <= min(crop.width, crop.height) <= scale[1] * size + 1
    assert abs(crop.width / width - crop.height / height) <= 0.5 / width + 0.5 / height
    assert 0 <= crop.left <= max(0, crop.width - size) and 0 <= crop.top <= max(0, crop.height - size)
    rng = np.random.default_rng(seed)
    image = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
    mask = rng.integers(IGNORE, 5, (height, width), dtype=np.int32)
    pixels, labels = segmentation_crop.apply(image, mask, crop, size)
    assert pixels.shape == (size, size, 3) and pixels.dtype == np.uint8
    assert labels.shape == (size, size) and labels.dtype == np.int32
    assert set(np.unique(labels)) <= {IGNORE, *np.unique(mask)}


@given(st.integers(10, 40), st.integers(10, 40), st.booleans(), st.integers(0, 99))
@settings(deadline=None, max_examples=40)
def test_without_resizing_a_crop_is_a_slice(width: int, height: int, flip: bool, seed: int) -> None:
    size = 16
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    mask = rng.integers(0, 200, (height, width), dtype=np.int32)
    left, top = int(rng.integers(max(0, width - size) + 1)), int(rng.integers(max(0, height - size) + 1))
    pixels, labels = segmentation_crop.apply(Image.fromarray(image), mask, Crop(width, height, left, top, flip), size)
    expected = np.full((size, size, 3), segmentation_crop.FILL), np.full((size, size), IGNORE)
    for whole, canvas in zip((image, mask), expected, strict=True):
        part = whole[top : top + size, left : left + size]
        canvas[: part.shape[0], : part.shape[1]] = part
    assert np.array_equal(pixels, expected[0][:, ::-1] if flip else expected[0])
    assert np.array_equal(labels, expected[1][:, ::-1] if flip else expected[1])


def test_image_and_mask_stay_together_when_resized() -> None:
    y, x = np.mgrid[:60, :80]
    mask = ((x - 30) ** 2 + (y - 25) ** 2 < 400).astype(np.int32)
    image = Image.fromarray(np.repeat(255 * mask[..., None], 3, axis=2).astype(np.uint8))
    for seed in range(8):
        crop = segmentation_crop.draw(np.random.default_rng(seed), (0.6, 2.0), 80, 60, 48)
        pixels, labels = segmentation_crop.apply(image, mask, crop, 48)
        known = labels != IGNORE
        assert np.mean((pixels[..., 0] > 127)[known] == (labels == 1)[known]) > 0.97


def test_scale_and_flip_are_drawn_evenly() -> None:
    crops = [segmentation_crop.draw(np.random.default_rng(i), (0.5, 2.0), 100, 100, 100) for i in range(400)]
    assert 0.4 < np.mean([crop.flip for crop in crops]) < 0.6
    assert abs(np.mean([crop.width for crop in crops]) - 125) < 8


# --- scenes

SIZES = config.AnnotatedScenes(train=6, val=4, size=32, objects=3)


@pytest.fixture
def descriptor(tmp_path: Path) -> Path:
    path = tmp_path / "scenes.yaml"
    path.write_text(f"generator: scenes\nversion: {scenes.VERSION}\nseed: 3\n")
    return path


def test_scenes_for_segmentation_and_detection_are_the_same(descriptor: Path) -> None:
    for split, count in (("train", 6), ("val", 4)):
        masks = annotated_scenes.open_segmentation(descriptor, SIZES, split)
        boxes = annotated_scenes.open_detection(descriptor, SIZES, split)
        assert len(masks) == len(boxes) == count and boxes.has_masks
        assert masks.classes == ("background", *boxes.classes) == ("background", *scenes.CLASSES)
        for i in range(count):
            assert np.array_equal(np.asarray(masks.image(i)), np.asarray(boxes.image(i)))
            mask, objects = masks.mask(i), boxes.objects(i)
            assert mask.dtype == np.int32 and mask.shape == (32, 32)
            assert objects.masks is not None and not objects.crowd.any()
            assert np.array_equal(mask > 0, objects.masks.any(axis=0))
            for label, visible, (x0, y0, x1, y1) in zip(objects.labels, objects.masks, objects.boxes, strict=True):
                assert np.array_equal(mask == label + 1, visible)
                rows, columns = np.nonzero(visible)
                assert (x0, y0, x1, y1) == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)


def test_annotated_scenes_are_not_used_for_pre_training(descriptor: Path) -> None:
    drawn = {first + i for split, first in annotated_scenes.FIRST.items() for i in (0, annotated_scenes.MAX_COUNT - 1)}
    assert len(drawn) == 4 and min(drawn) > 2 * VAL_START
    with pytest.raises(PecoError, match=r"scenes\.val: 10000001 is not allowed; expected at most 10000000"):
        annotated_scenes.open_segmentation(descriptor, dataclasses.replace(SIZES, val=10_000_001), "val")
    with pytest.raises(PecoError, match=r"nothing\.yaml: can't be read"):
        annotated_scenes.open_segmentation(descriptor.with_name("nothing.yaml"), SIZES, "val")
    with pytest.raises(IndexError):
        annotated_scenes.open_segmentation(descriptor, SIZES, "val").image(4)


@pytest.mark.parametrize("preset", PRESETS)
def test_the_cache_holds_all_scenes_of_an_evaluation(preset: str) -> None:
    """Epochs are permutations: of slightly too few places most scenes would be drawn again in each epoch."""
    evaluate = parse_params(compose_params(preset, [])).evaluate
    for sizes in (evaluate.segmentation.scenes, evaluate.detection.scenes):
        assert sizes.train + sizes.val <= annotated_scenes.CACHED


def test_uncached_scenes_are_the_same(descriptor: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cached = annotated_scenes.open_segmentation(descriptor, SIZES, "val").mask(1)
    monkeypatch.setattr(annotated_scenes, "CACHED_SIZE", 16)
    assert np.array_equal(cached, annotated_scenes.open_segmentation(descriptor, SIZES, "val").mask(1))


# --- batches


def numbered(index: int, epoch: int) -> dict[str, Any]:
    if index == 99:
        raise PecoError("sample 99 is broken")
    return {"index": index, "epoch": epoch, "image": np.full((2, 2, 3), index, dtype=np.uint8)}


def keys(count: int, batch_size: int, start: int, stop: int, **rank_and_world: int) -> list[list[tuple[int, int]]]:
    loader = IndexLoader(count, numbered, batch_size=batch_size, seed=5, **rank_and_world)
    return [list(zip(b["index"].tolist(), b["epoch"].tolist(), strict=True)) for b in loader.batches(start, stop)]


@given(st.integers(1, 40), st.sampled_from([1, 2, 4]), st.integers(1, 4))
@settings(deadline=None, max_examples=25)
def test_every_epoch_is_a_permutation_and_ranks_share_the_batches(count: int, world: int, share: int) -> None:
    batch_size, steps = world * share, -(-3 * count // (world * share))
    whole = keys(count, batch_size, 0, steps)
    stream = [key for batch in whole for key in batch]
    for epoch in range(3):
        assert sorted(stream[epoch * count : (epoch + 1) * count]) == [(i, epoch) for i in range(count)]
    parts = [keys(count, batch_size, 0, steps, rank=rank, world=world) for rank in range(world)]
    assert [[key for part in step for key in part] for step in zip(*parts, strict=True)] == whole
    assert keys(count, batch_size, steps // 2, steps) == whole[steps // 2 :]  # resumed


def test_workers_change_nothing_and_pixels_become_floats() -> None:
    assert keys(11, 4, 1, 6, workers=2) == keys(11, 4, 1, 6)
    first = next(IndexLoader(11, numbered, batch_size=4, seed=5).batches(0, 1))
    assert first["image"].shape == (4, 3, 2, 2)
    np.testing.assert_allclose(first["image"][:, 0, 0, 0], first["index"] / 255, rtol=1e-6)
    orders = [keys(30, 30, epoch, epoch + 1)[0] for epoch in (0, 1)]
    assert [i for i, _ in orders[0]] != [i for i, _ in orders[1]] != list(range(30))


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_about_a_sample_is_one_line_in_any_process(workers: int) -> None:
    with pytest.raises(PecoError, match=r"^sample 99 is broken$"):
        list(IndexLoader(100, numbered, batch_size=10, seed=0, workers=workers).batches(0, 10))


def test_loader_refuses_batches_that_cannot_be_divided() -> None:
    with pytest.raises(PecoError, match="the split is empty"):
        IndexLoader(0, numbered, batch_size=4, seed=0)
    with pytest.raises(PecoError, match="batch_size: 4 is not allowed; expected a multiple of 3 processes"):
        IndexLoader(9, numbered, batch_size=4, seed=0, world=3)


# --- real masks


@pytest.mark.data
def test_samples_of_ade20k_are_read(tmp_path: Path) -> None:
    folder = os.environ.get("PECO_TEST_DATA")
    if not folder or not (Path(folder) / "format_samples.tar").is_file():
        pytest.skip("PECO_TEST_DATA names no folder with format_samples.tar")
    with tarfile.open(Path(folder) / "format_samples.tar") as tar:
        tar.extractall(tmp_path, filter="data")
    samples = tmp_path / "ade20k"
    for kind, suffix in (("images", ".jpg"), ("annotations", ".png")):
        for number, split in ((1, "training"), (2, "training"), (3, "validation")):
            file = samples / kind / f"ADE_val_0000000{number}{suffix}"
            (samples / kind / split).mkdir(exist_ok=True)
            file.rename(samples / kind / split / file.name)
    train, val = open_folder(samples, 0)
    assert (len(train), len(val), len(train.classes), train.classes[0]) == (2, 1, 150, "wall")
    for data in (train, val):
        for i in range(len(data)):
            mask = data.mask(i)
            assert mask.shape == data.image(i).size[::-1] and mask.min() == IGNORE and mask.max() < 150
            raw = np.asarray(Image.open(sorted((samples / "annotations").rglob("*.png"))[i + (data is val) * 2]))
            assert np.array_equal(mask, raw.astype(np.int32) - 1)
