"""Opens the data set of the detection evaluation: scenes, or annotations in COCO's, YOLO's or Pascal VOC's form.

The layouts are in `coco.py`, `yolo.py` and `voc.py`, what is checked in `detection_records.py`. Images of train without an object
to learn are left out and counted; those of val stay, since a detection in them is a wrong one, but not all can be such. No image
may be in both splits.
"""

from __future__ import annotations

from pathlib import Path

from peco.core import config
from peco.core.errors import PecoError
from peco.evaluate.annotated import scenes as annotated_scenes
from peco.evaluate.annotated.sets import DetectionSet
from peco.evaluate.detection.coco import open_coco
from peco.evaluate.detection.records import require_distinct, require_same_kind, require_scored
from peco.evaluate.detection.voc import open_voc
from peco.evaluate.detection.yolo import open_yolo

_OPEN = {"coco": open_coco, "yolo": open_yolo, "voc": open_voc}


def open_splits(cfg: config.Detection) -> tuple[DetectionSet, DetectionSet]:
    """Train and val.

    Args:
        cfg: `source`, `path` (relative to the current folder) and, of scenes, how many.

    Raises:
        PecoError: the data is missing or wrong: the first offence, with its file and value.
    """
    path = Path(cfg.path)
    if cfg.source == "scenes":  # every scene has an object, and the splits are drawn from other numbers
        train, val = (annotated_scenes.open_detection(path, cfg.scenes, split) for split in ("train", "val"))
        return train, val
    if not path.is_dir():
        raise PecoError(f"{path}: no such folder; evaluate.detection.path must name one with annotated images")
    labeled, scored = _OPEN[cfg.source](path)
    require_distinct(labeled, scored)
    learnt = labeled.trainable()
    require_scored(scored)
    require_same_kind(learnt, scored)  # last: a split without objects has no masks either
    return learnt, scored
