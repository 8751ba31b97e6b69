"""Opens the data set of the detection evaluation: scenes, or annotations in the format of COCO, YOLO or Pascal VOC.

The layouts are described in `coco_files.py`, `yolo_files.py` and `voc_files.py`; the checks are in `records.py`. Images of train
without an object to learn are left out and counted. Those of val stay, since a detection in them is wrong, but some image of val
must have an object. No image may be in both splits.
"""

from __future__ import annotations

from pathlib import Path

from peco.annotations import scenes as annotated_scenes
from peco.annotations.photos import unwrapped
from peco.annotations.sets import DetectionSet
from peco.boxes.coco import open_coco
from peco.boxes.records import require_distinct, require_objects, require_same_masks
from peco.boxes.voc import open_voc
from peco.boxes.yolo import open_yolo
from peco.core import config
from peco.core.errors import PecoError
from peco.files.names import capital_twins

_OPEN = {"coco": open_coco, "yolo": open_yolo, "voc": open_voc}


def open_splits(cfg: config.Detection) -> tuple[DetectionSet, DetectionSet]:
    """Open train and val.

    Args:
        cfg: `source`, `path` (relative to the current folder) and, for scenes, their numbers.

    Raises:
        PecoError: the data is missing or wrong; the message names the first problem with its file and value.
    """
    path = Path(cfg.path)
    if cfg.source == "scenes":  # every scene has an object, and the splits have different scenes
        scenes = [annotated_scenes.open_detection(path, cfg.scenes, split) for split in ("train", "val")]
        return scenes[0], scenes[1]
    if not path.is_dir():
        raise PecoError(f"{path}: no such folder; evaluate.detection.path must name one with annotated images")
    train, val = _OPEN[cfg.source](unwrapped(path))
    require_distinct(train, val)
    train = train.trainable()
    require_objects(val)
    require_same_masks(train, val)  # last: a split without objects has no masks either
    twins = capital_twins(train.classes)
    return (train.noted(f"warning: classes that differ in capitals only: {', '.join(twins)}") if twins else train), val
