"""Stage `evaluate@segmentation`: UPerNet on the backbone, from its pre-trained and from random weights, alike.

The scores are those of the last step on val: no choice is made, so none has to be made on a third split.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from peco.core import config, workfiles
from peco.core.publishing import staging
from peco.data.loader import Fields
from peco.data.order import AUGMENT, sample_rng
from peco.evaluate.annotated import scenes as annotated_scenes
from peco.evaluate.annotated.loader import IndexLoader
from peco.evaluate.annotated.sets import SegmentationSet
from peco.evaluate.segmentation import data as segmentation_data
from peco.evaluate.segmentation import model as segmentation
from peco.runtime import paths
from peco.runtime.evaluation import STARTS, require_task, write_details
from peco.runtime.stage import StageRun, run_stage
from peco.training.distributed import Dist
from peco.training.loop import train

PARAMS = ("seed", "evaluate.tasks.segmentation", "evaluate.segmentation")
PICTURES = paths.METRICS / "pictures" / "segmentation"
SHOWN = 6  # images of val
PICTURE_SIDES = (128, 320)  # pixels; smaller pictures are enlarged by whole factors, larger ones reduced


@dataclass(frozen=True)
class AnnotatedCrop:
    """A training view of a sample and its mask."""

    data: SegmentationSet
    seed: int
    size: int
    scale: tuple[float, float]

    def __call__(self, index: int, epoch: int) -> Fields:
        image = self.data.image(index)
        rng = sample_rng(self.seed, epoch, index, AUGMENT)
        crop = segmentation_data.draw(rng, self.scale, image.width, image.height, self.size)
        pixels, mask = segmentation_data.apply(image, self.data.mask(index), crop, self.size)
        return {"index": index, "image": pixels, "mask": mask}


def main(run: StageRun) -> None:
    require_task(run, "segmentation")
    cfg, seed = run.config.evaluate.segmentation, run.config.seed
    dist = Dist.init()
    train_split, val = open_splits(cfg)
    transform = AnnotatedCrop(train_split, seed, cfg.image_size, cfg.scale)
    shown = [k * len(val) // min(SHOWN, len(val)) for k in range(min(SHOWN, len(val)))]
    images = [val.image(i) for i in shown]
    pictures = {"image": [np.asarray(image) for image in images]}
    pictures["truth"] = [segmentation.colors(val.mask(i)) for i in shown]
    metrics: dict[str, Any] = {"train_images": len(train_split), "images": len(val)}
    if left_out := train_split.skipped + val.skipped:
        metrics["left_out"] = dict(left_out)
    details: dict[str, Any] = {}
    work = run.work([Path(cfg.path), paths.BACKBONE], dist.share)
    loader = IndexLoader(
        len(train_split), transform, batch_size=cfg.optim.batch_size, seed=seed, rank=dist.rank, world=dist.world,
        workers=run.workers, device=dist.device,
    )  # fmt: skip
    for start in STARTS:
        model = segmentation.build(
            paths.BACKBONE, len(train_split.classes), cfg, pretrained=start.pretrained, seed=seed
        )
        task = segmentation.SegmentationTask(model)
        name = f"segmentation_{start.name}"
        logs = train(task, loader, name=name, optim=cfg.optim, seed=seed, dist=dist, work=work / name)
        matrix = segmentation.evaluate(model, val, dist.rank, dist.world, dist.all_reduce_sum)
        scores = segmentation.scores(matrix, val.classes)
        details[f"{start.prefix}iou"] = scores.pop("iou")
        metrics |= {f"{start.prefix}{score}": value for score, value in scores.items()}
        if dist.rank == 0:
            pictures[start.name] = [segmentation.colors(mask) for mask in segmentation.predict(model, images)]
        logs.close()
    if dist.rank == 0:
        with staging(PICTURES) as folder:
            write_pictures(folder, pictures)
            write_details(folder, details)
        run.metrics(metrics)
        workfiles.mark_finished(work)


def open_splits(cfg: config.Segmentation) -> tuple[SegmentationSet, SegmentationSet]:
    """Training and validation split that the parameters name.

    Raises:
        PecoError: the data is missing or wrong.
    """
    path = Path(cfg.path)
    if cfg.source == "folder":
        return segmentation_data.open_folder(path, cfg.ignore)
    train, val = (annotated_scenes.open_segmentation(path, cfg.scenes, split) for split in ("train", "val"))
    return train, val


def write_pictures(folder: Path, pictures: dict[str, list[np.ndarray]]) -> None:
    """Write `NN-KIND.png` for each picture (H, W, 3) of each kind."""
    least, most = PICTURE_SIDES
    for kind, images in pictures.items():
        for number, pixels in enumerate(images):
            picture = Image.fromarray(pixels)
            grow = -(-least // max(picture.size))
            filter_ = Image.Resampling.BICUBIC if kind == "image" else Image.Resampling.NEAREST
            if grow > 1:
                picture = picture.resize((picture.width * grow, picture.height * grow), Image.Resampling.NEAREST)
            elif max(picture.size) > most:
                size = segmentation_data.resized(*picture.size, most * min(picture.size) / max(picture.size))
                picture = picture.resize(size, filter_)
            picture.save(folder / f"{number:02d}-{kind}.png", "PNG")


if __name__ == "__main__":
    run_stage("evaluate@segmentation", PARAMS, main)
