"""Opens the data set of the segmentation evaluation: scenes, or a folder of images and masks."""

from __future__ import annotations

from pathlib import Path

from peco.annotations import scenes as annotated_scenes
from peco.annotations.sets import SegmentationSet
from peco.core import config
from peco.masks.folder import open_folder


def open_splits(cfg: config.Segmentation) -> tuple[SegmentationSet, SegmentationSet]:
    """Open the training and validation split that the parameters name.

    Raises:
        PecoError: the data is missing or wrong.
    """
    path = Path(cfg.path)
    if cfg.source == "folder":
        return open_folder(path, cfg.ignore)
    train, val = (annotated_scenes.open_segmentation(path, cfg.scenes, split) for split in ("train", "val"))
    return train, val
