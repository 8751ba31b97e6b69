"""Behaviour and statistics of the procedural data set `scenes`."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pytest

from peco.scenes.scenes import CLASSES, MIN_VISIBLE, Scene, fingerprint, render

FINGERPRINT = "c78b4d0eb0e8e6ba02a6d8d51de474033b570f3f906d4c672ef3368ddb804625"


@lru_cache(maxsize=1)
def many() -> tuple[Scene, ...]:
    """The first 400 images, enough for statistics."""
    return tuple(render(0, index) for index in range(400))


def same(a: Scene, b: Scene) -> bool:
    arrays = ("image", "boxes", "classes", "masks", "visible")
    return a.label == b.label and all(np.array_equal(getattr(a, n), getattr(b, n)) for n in arrays)


def test_pixels_are_frozen() -> None:
    assert fingerprint() == FINGERPRINT, "pixels changed: raise VERSION, then pin the new value"


@pytest.mark.parametrize("objects", [1, 3])
def test_render_depends_on_its_arguments_only(objects: int) -> None:
    first = render(3, 11, 48, objects)
    for index in (12, 5):  # other calls in between must leave no trace
        render(3, index, 64, 2)
    assert same(first, render(3, 11, 48, objects))
    assert not np.array_equal(first.image, render(3, 12, 48, objects).image)
    assert not np.array_equal(first.image, render(4, 11, 48, objects).image)


def test_labels_are_balanced_and_not_periodic() -> None:
    labels = np.array([scene.label for scene in many()])
    blocks = labels.reshape(-1, len(CLASSES))
    assert (np.sort(blocks, axis=1) == np.arange(len(CLASSES))).all()
    assert len({tuple(block) for block in blocks}) > 30


@pytest.mark.parametrize("size", [32, 50, 64, 200, 512])
@pytest.mark.parametrize("objects", [1, 4])
def test_ground_truth_is_consistent_at_every_size(size: int, objects: int) -> None:
    for index in range(4):
        scene = render(1, index, size, objects)
        count = len(scene.classes)
        assert scene.image.shape == (size, size, 3) and scene.image.dtype == np.uint8
        assert scene.boxes.shape == (count, 4) and scene.boxes.dtype == np.float32
        assert scene.masks.shape == (count, size, size) and scene.masks.dtype == np.bool_
        assert scene.classes.dtype == np.int64 and scene.visible.dtype == np.float32
        assert 1 <= count <= objects
        assert scene.classes[0] == scene.label
        assert len(set(scene.classes.tolist())) == count
        assert scene.masks.sum(axis=0).max() <= 1, "visible parts must not overlap"
        for box, mask in zip(scene.boxes, scene.masks, strict=True):
            rows, columns = np.nonzero(mask)
            assert box.tolist() == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


def test_main_object_is_large_and_mostly_visible() -> None:
    visible = np.array([scene.visible[0] for scene in many()])
    assert (visible >= MIN_VISIBLE).all()
    assert 0.1 < (visible < 0.95).mean() < 0.9, "some objects are partly covered, some are not"
    boxes = np.stack([scene.boxes[0] for scene in many()])
    side = np.max(boxes[:, 2:] - boxes[:, :2], axis=1) / 64
    assert np.quantile(side, 0.02) > 0.5 and np.quantile(side, 0.98) < 1


def test_main_object_has_the_largest_visible_part() -> None:
    scenes = [render(2, index, 64, objects=4) for index in range(60)]
    for scene in scenes:
        areas = scene.masks.sum(axis=(1, 2))
        assert areas[0] >= areas.max() - 6  # areas are compared before they are rounded to pixels
    assert np.mean([len(scene.classes) for scene in scenes]) > 3
    assert min(scene.visible.min() for scene in scenes) < 0.9, "objects overlap at times"


def test_scene_looks_alike_at_twice_the_size() -> None:
    for index in range(5):
        small, large = render(5, index, 64), render(5, index, 128)
        halved = large.image.reshape(64, 2, 64, 2, 3).mean(axis=(1, 3))
        assert np.abs(halved - small.image).mean() < 12
        assert np.abs(large.boxes[0] / 2 - small.boxes[0]).max() <= 2


def test_power_spectrum_falls_as_in_photographs() -> None:
    window = np.hanning(64)[:, None] * np.hanning(64)
    power = np.zeros((64, 64))
    for scene in many():
        gray = scene.image.mean(axis=2)
        power += np.abs(np.fft.fft2((gray - gray.mean()) * window)) ** 2
    frequency = np.fft.fftfreq(64, 1 / 64)
    ring = np.rint(np.hypot(frequency[:, None], frequency)).astype(int).ravel()
    radial = np.bincount(ring, power.ravel()) / np.bincount(ring)
    band = np.arange(2, 31)  # cycles in an image side
    slope = np.polyfit(np.log(band), np.log(radial[band]), 1)[0]
    assert -2.8 < slope < -1.5


def test_patches_are_neither_flat_nor_noise() -> None:
    gray = np.stack([scene.image.mean(axis=2) for scene in many()])
    patches = gray.reshape(-1, 8, 8, 8, 8).swapaxes(2, 3).reshape(-1, 8, 8)
    assert (patches.std(axis=(1, 2)) < 2).mean() < 0.02, "hardly any patch is flat"
    centered = gray - gray.mean(axis=(1, 2), keepdims=True)
    neighbors = (centered[:, :, 1:] * centered[:, :, :-1]).mean() / (centered**2).mean()
    assert 0.75 < neighbors < 0.98


def test_color_and_area_do_not_reveal_the_class() -> None:
    labels = np.array([scene.label for scene in many()])
    image_color = np.stack([scene.image.mean(axis=(0, 1)) for scene in many()])
    object_color = np.stack([scene.image[scene.masks[0]].mean(axis=0) for scene in many()])
    for color in (image_color, object_color):
        means = np.stack([color[labels == c].mean(axis=0) for c in range(len(CLASSES))])
        error = color.std(axis=0) / np.sqrt(len(labels) / len(CLASSES))
        assert (np.abs(means - color.mean(axis=0)) < 4 * error).all()
    area = np.array([scene.masks[0].sum() / scene.visible[0] for scene in many()])
    by_class = np.array([area[labels == c].mean() for c in range(len(CLASSES))])
    assert by_class.max() / by_class.min() < 1.2


BAD = [(-1, 0), (0, -1), (0, 0, 31), (0, 0, 513), (0, 0, 64, 0), (0, 0, 64, 9)]


@pytest.mark.parametrize("arguments", BAD)
def test_bad_arguments_are_refused(arguments: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="must"):
        render(*arguments)
