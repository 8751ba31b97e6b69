"""The parts that the stages on annotated sets share: training loader, counts, shown images and their files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from peco.annotations.loader import IndexLoader, IndexTransform
from peco.annotations.sets import DetectionSet, SegmentationSet
from peco.core import config
from peco.runtime.fingerprint import content_hash
from peco.runtime.model_card import Data
from peco.runtime.stage import StageRun
from peco.training.distributed import Dist

AnnotatedSet = SegmentationSet | DetectionSet
SHOWN = 6  # images of val with pictures


def index_loader(
    run: StageRun, split: AnnotatedSet, transform: IndexTransform, optim: config.Optim, dist: Dist
) -> IndexLoader:
    """Make the loader over a split to train on.

    Args:
        run: the stage, with `seed` among its parameters.
        split: split to train on.
        transform: index and epoch to fields (see `IndexLoader`).
        optim: recipe; only its batch size is used.
        dist: the processes.
    """
    return IndexLoader(
        len(split),
        transform,
        batch_size=optim.batch_size,
        seed=run.config.seed,
        rank=dist.rank,
        world=dist.world,
        workers=run.workers,
        device=dist.device,
    )


def count_images(train: AnnotatedSet, val: AnnotatedSet) -> dict[str, Any]:
    """Count the images trained on and scored, and those left out: `train_images`, `images` and, if any, `left_out` by reason."""
    counts: dict[str, Any] = {"train_images": len(train), "images": len(val)}
    if left_out := train.skipped + val.skipped:
        counts["left_out"] = dict(left_out)
    return counts


def annotated_data(source: str, path: Path, train: AnnotatedSet, val: AnnotatedSet) -> Data:
    """The annotated set of a stage for the card of its model; `source` and `path` are parameters of the stage."""
    counts = {"train images": len(train), "val images": len(val), "classes": len(train.classes)}
    return Data(source, content_hash(path), counts)


def shown_indices(val: AnnotatedSet) -> list[int]:
    """Indices of up to `SHOWN` images, evenly spaced, the first among them."""
    count = min(SHOWN, len(val))
    return [k * len(val) // count for k in range(count)]


def save_pictures(folder: Path, pictures: Mapping[str, Sequence[Image.Image]]) -> None:
    """Write each picture of each kind as `NN-KIND.png`."""
    for kind, images in pictures.items():
        for number, picture in enumerate(images):
            picture.save(folder / f"{number:02d}-{kind}.png", "PNG")
