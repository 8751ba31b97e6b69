"""The stage `annotations`: what it counts, prints and refuses before any training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from annotated_folders import HEIGHT, WIDTH, coco, coco_of_few_points, masks
from PIL import Image

from peco.core import schema
from peco.core.errors import PecoError
from peco.core.params import parse_params
from peco.report import sections
from peco.runtime.stage import StageRun
from peco.scenes import scenes
from peco.stages import annotations
from pipelines.workflow.compose import compose_params


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data/scenes.yaml").write_text(f"generator: scenes\nversion: {scenes.VERSION}\nseed: 0\n")
    return tmp_path


def check(*overrides: str) -> dict[str, Any]:
    """Run the stage; its three files by name."""
    cfg = parse_params(compose_params("smoke", list(overrides)))
    annotations.main(StageRun("annotations", schema.restrict(cfg, annotations.PARAMS)))
    files = ("annotations.json", "annotations/segmentation.json", "annotations/detection.json")
    return {name: json.loads(Path("metrics", name).read_text()) for name in files}


OWN = (
    "evaluate.detection.source=coco", "evaluate.detection.path=data/boxes",
    "evaluate.segmentation.source=folder", "evaluate.segmentation.path=data/masks",
)  # fmt: skip


def test_scenes_are_counted_and_not_drawn(capsys: pytest.CaptureFixture[str]) -> None:
    found = check()
    assert found["annotations.json"] == {
        "segmentation": {"train": 32, "val": 16, "classes": 11, "left_out": 0},
        "detection": {"train": 32, "val": 16, "classes": 10, "left_out": 0, "masks": True},
    }
    assert "detection: 32 images to train on, 16 for val, 10 classes\n" in capsys.readouterr().out


def test_own_sets_are_counted_with_what_is_left_out_and_how_they_were_read(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    coco_of_few_points(here / "data/boxes")
    masks(here / "data/masks", values=(0, 255))
    found = check(*OWN)
    assert found["annotations.json"] == {
        "segmentation": {"train": 4, "val": 4, "classes": 2, "left_out": 0},
        "detection": {"train": 2, "val": 4, "classes": 1, "objects": 6, "left_out": 5, "masks": True},
    }
    reasons = {"polygon of fewer than three points": 3, "image with no object": 2}
    assert found["annotations/detection.json"]["left_out_by_reason"] == reasons
    gaps = "the classes are the 2 indices that occur in the training masks, 0, 255; 1 to 254 are none"
    assert found["annotations/segmentation.json"]["notes"] == [gaps]
    out = capsys.readouterr().out
    assert f"segmentation: {gaps}\n" in out
    assert "detection: left out: image with no object: 2, polygon of fewer than three points: 3\n" in out


def test_another_set_of_boxes_changes_nothing_that_the_segmentation_depends_on(here: Path) -> None:
    coco(here / "data/boxes")
    masks(here / "data/masks")
    before = check(*OWN)
    coco(here / "data/boxes", bbox=[1, 2, 3, 4], segmentation=[[1, 2, 4, 2, 4, 6]])
    after = check(*OWN)
    assert after["annotations/segmentation.json"] == before["annotations/segmentation.json"]
    assert after["annotations/detection.json"] != before["annotations/detection.json"]


@pytest.mark.parametrize(
    ("file", "message"),
    [("boxes/val/2.jpg", "val/2.jpg: can't be read: "), ("masks/images/train/1.jpg", "train/1.jpg: can't be read: ")],
)
def test_pixels_that_are_damaged_are_found_here_and_not_after_the_pre_training(
    here: Path, file: str, message: str
) -> None:
    coco(here / "data/boxes")
    masks(here / "data/masks")
    path = here / "data" / file
    noise = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:-200])  # the header is whole
    with pytest.raises(PecoError, match=message):
        check(*OWN)
    assert not (here / "metrics").exists()


def test_sets_of_evaluations_that_are_off_are_not_read(here: Path) -> None:
    masks(here / "data/masks")
    found = check(*OWN, "evaluate.tasks.detection=false")
    assert "detection" not in found["annotations.json"]
    assert found["annotations/detection.json"] == {"skipped": "switched off (evaluate.tasks.detection)"}


def test_judged_triplets_are_checked(here: Path) -> None:
    bapps = ("evaluate.agreement.source=bapps", "evaluate.agreement.path=data/bapps")
    (here / "data/bapps").mkdir()
    with pytest.raises(PecoError, match="no triplets found"):
        check(*bapps)


def test_the_report_repeats_what_was_left_out(tmp_path: Path) -> None:
    metrics = {
        "evaluate/segmentation": {"images": 4, "miou": 0.5, "pixel_accuracy": 0.5},
        "annotations/segmentation": {"left_out_by_reason": {"every pixel ignored": 2}, "notes": ["test is not used"]},
        "evaluate/detection": {"failed": "broken; fix it"},
    }
    found = {
        section.key: section
        for section in sections.evaluation_sections(metrics, tmp_path, {"": "PeCo", "random_": "Random"})
    }
    assert found["segmentation"].note.endswith(" Left out: every pixel ignored: 2. Test is not used.")
    assert found["detection"].note == "It failed, and the next run tries it again: broken; fix it"
