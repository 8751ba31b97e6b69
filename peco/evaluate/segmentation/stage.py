"""Stage `evaluate@segmentation`: UPerNet on the backbone, from pre-trained and from random weights, and on the reference.

The model trained from pre-trained weights is a result, `artifacts/segmenter`.

The scores are those of the last step on val: nothing is chosen, so no third split is needed.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from peco.annotations.sets import SegmentationSet
from peco.annotations.stages import annotated_data, count_images, index_loader, save_pictures, shown_indices
from peco.core import workfiles
from peco.core.publishing import staging
from peco.data.loader import Fields
from peco.data.order import AUGMENT, sample_rng
from peco.evaluate.common import reference_inputs, require_task, starts, write_details
from peco.evaluate.segmentation import crop as segmentation_crop
from peco.evaluate.segmentation import model as segmentation
from peco.evaluate.segmentation import storage
from peco.evaluate.segmentation.task import SegmentationTask
from peco.masks.open import open_splits
from peco.runtime import model_card, paths
from peco.runtime.stage import StageRun, run_stage
from peco.training.distributed import Dist
from peco.training.loop import train

PARAMS = ("seed", "evaluate.reference", "evaluate.tasks.segmentation", "evaluate.segmentation")
PICTURES = paths.PICTURES / "segmentation"
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
        crop = segmentation_crop.draw(rng, self.scale, image.width, image.height, self.size)
        pixels, mask = segmentation_crop.apply(image, self.data.mask(index), crop, self.size)
        return {"index": index, "image": pixels, "mask": mask}


def main(run: StageRun) -> None:
    require_task(run, "segmentation")
    cfg, seed = run.config.evaluate.segmentation, run.config.seed
    dist = Dist.init()
    train_split, val = open_splits(cfg)
    metrics = count_images(train_split, val)
    shown = shown_indices(val)
    images = [val.image(i) for i in shown]
    pictures = {
        "image": [_resize(Image.fromarray(np.asarray(image)), Image.Resampling.BICUBIC) for image in images],
        "truth": [_draw_mask(val.mask(i)) for i in shown],
    }
    details: dict[str, Any] = {}
    reference = run.config.evaluate.reference
    work = run.work([Path(cfg.path), paths.BACKBONE, *reference_inputs(reference)], dist.share)
    transform = AnnotatedCrop(train_split, seed, cfg.image_size, cfg.scale)
    loader = index_loader(run, train_split, transform, cfg.optim, dist)
    for start in starts(reference, seed):
        classes = len(train_split.classes)
        model = segmentation.build_segmenter(start.make, classes, cfg, seed=seed, any_network=start.is_reference)
        task = SegmentationTask(model)
        name = f"segmentation_{start.name}"
        logs = train(task, loader, name=name, optim=cfg.optim, seed=seed, dist=dist, work=work / name)
        matrix = segmentation.evaluate_segmenter(model, val, dist.rank, dist.world, dist.all_reduce_sum)
        scores = segmentation.scores(matrix, val.classes)
        details[f"{start.prefix}iou"] = scores.pop("iou")
        metrics |= {f"{start.prefix}{score}": value for score, value in scores.items()}
        if dist.rank == 0:
            pictures[start.name] = [_draw_mask(mask) for mask in segmentation.predict(model, images)]
            if start.is_result:
                extra = model_card.lineage_of(paths.BACKBONE)
                storage.save(paths.SEGMENTER, model, paths.BACKBONE, train_split.classes, cfg, extra)
        logs.close()
    if dist.rank == 0:
        data = annotated_data(cfg.source, Path(cfg.path), train_split, val)
        facts = model_card.Facts(data, metrics, model_card.Training(cfg.optim, len(train_split), "the backbone"), seed)
        model_card.write(paths.SEGMENTER, facts)
        with staging(PICTURES) as folder:
            save_pictures(folder, pictures)
            write_details(folder, details)
        run.metrics(metrics)
        workfiles.mark_finished(work)


def _draw_mask(mask_HW: NDArray[np.int32]) -> Image.Image:
    return _resize(Image.fromarray(segmentation.colorize(mask_HW)), Image.Resampling.NEAREST)


def _resize(picture: Image.Image, reduce_by: Image.Resampling) -> Image.Image:
    """Bring the longer side of a picture into `PICTURE_SIDES`; `reduce_by` is the filter for larger pictures."""
    least, most = PICTURE_SIDES
    factor = -(-least // max(picture.size))
    if factor > 1:
        return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
    if max(picture.size) > most:
        size = segmentation_crop.resized(*picture.size, most * min(picture.size) / max(picture.size))
        return picture.resize(size, reduce_by)
    return picture


if __name__ == "__main__":
    run_stage("evaluate@segmentation", PARAMS, main)
