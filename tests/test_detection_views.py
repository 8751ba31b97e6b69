"""Views of annotated objects: boxes and masks move with the image, and depend on seed, epoch and sample only."""

from pathlib import Path

import numpy as np
from detection_sets import write_coco
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from peco.annotations.sets import Objects
from peco.boxes.coco import open_coco
from peco.evaluate.detection.letterbox import DetectionView, draw_view, letterbox_image, letterbox_objects, whole_view


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
