"""Stage `evaluate@detection`: Mask R-CNN on the backbone, from its pre-trained and from random weights, alike.

The scores are those of the last step on val: no choice is made, so none has to be made on a third split.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn

from peco.core import workfiles
from peco.core.publishing import staging
from peco.evaluate.annotated.loader import IndexLoader
from peco.evaluate.annotated.sets import DetectionSet
from peco.evaluate.detection import coco_eval
from peco.evaluate.detection import pictures as detection_pictures
from peco.evaluate.detection.data import open_splits
from peco.evaluate.detection.letterbox import DetectionView
from peco.evaluate.detection.model import DetectionTask, build_detector, detect
from peco.runtime import paths
from peco.runtime.evaluation import STARTS, require_task, write_details
from peco.runtime.stage import StageRun, run_stage
from peco.training.distributed import Dist
from peco.training.loop import train

PARAMS = ("seed", "evaluate.tasks.detection", "evaluate.detection")
PICTURES = paths.METRICS / "pictures" / "detection"
SHOWN = 6  # images of val
JITTER = (0.8, 1.25)  # of the scale in training
SCORED_AT_ONCE = 8  # images


def main(run: StageRun) -> None:
    require_task(run, "detection")
    cfg, seed = run.config.evaluate.detection, run.config.seed
    dist = Dist.init()
    train_split, val = open_splits(cfg)
    transform = DetectionView(train_split, seed, cfg.image_size, JITTER)
    shown = [k * len(val) // min(SHOWN, len(val)) for k in range(min(SHOWN, len(val)))]
    pictures: dict[str, list[Image.Image]] = {
        "truth": [detection_pictures.draw(val.image(i), val.objects(i), val.classes) for i in shown]
    }
    metrics: dict[str, Any] = {"train_images": len(train_split), "images": len(val), "masks": val.has_masks}
    if left_out := train_split.skipped + val.skipped:
        metrics["left_out"] = dict(left_out)
    details: dict[str, Any] = {}
    work = run.work([Path(cfg.path), paths.BACKBONE], dist.share)
    loader = IndexLoader(
        len(train_split), transform, batch_size=cfg.optim.batch_size, seed=seed, rank=dist.rank, world=dist.world,
        workers=run.workers, device=dist.device,
    )  # fmt: skip
    for start in STARTS:
        model = build_detector(
            paths.BACKBONE,
            len(train_split.classes),
            cfg,
            masks=train_split.has_masks,
            pretrained=start.pretrained,
            seed=seed,
        )
        task = DetectionTask(model)
        name = f"detection_{start.name}"
        logs = train(task, loader, name=name, optim=cfg.optim, seed=seed, dist=dist, work=work / name)
        scores = evaluate(model, val, cfg.image_size, dist)
        for score, value in scores.items():
            (details if score.endswith("_per_class") else metrics)[f"{start.prefix}{score}"] = value
        if dist.rank == 0:
            pictures[start.name] = [_picture(model, val, i, cfg.image_size) for i in shown]
        logs.close()
    if dist.rank == 0:
        with staging(PICTURES) as folder:
            for kind, images in pictures.items():
                for number, picture in enumerate(images):
                    picture.save(folder / f"{number:02d}-{kind}.png", "PNG")
            write_details(folder, details)
        run.metrics(metrics)
        workfiles.mark_finished(work)


def _picture(model: nn.Module, data: DetectionSet, i: int, side: int) -> Image.Image:
    """Image i with as many detections, the surest, as it has objects."""
    image = data.image(i)
    (found,) = detect(model, [image], side)
    return detection_pictures.draw(image, found, data.classes, most=len(data.objects(i).labels))


def evaluate(model: nn.Module, data: DetectionSet, side: int, dist: Dist) -> dict[str, Any]:
    """Scores of a detector on a split (see `coco_eval.average_precision`); every rank looks at a part of it, all get the scores.

    Args:
        model: from `build_detector`.
        data: the split.
        side: of the model's images.
        dist: the processes.
    """
    entries = gathered(list(_entries(model, data, side, dist)), dist)
    truth, found = ([entry for entry in entries if ("score" in entry) == scored] for scored in (False, True))
    return coco_eval.average_precision(data.classes, len(data), truth, found, masks=data.has_masks)


def _entries(model: nn.Module, data: DetectionSet, side: int, dist: Dist) -> Iterator[coco_eval.Entry]:
    """Truth and detections of this rank's part of a split, one of `world` contiguous parts."""
    start, stop = (len(data) * rank // dist.world for rank in (dist.rank, dist.rank + 1))
    for first in range(start, stop, SCORED_AT_ONCE):
        part = range(first, min(first + SCORED_AT_ONCE, stop))
        for i, found in zip(part, detect(model, [data.image(i) for i in part], side), strict=True):
            yield from coco_eval.truth_entries(i, data.objects(i))
            yield from coco_eval.detection_entries(i, found)


def gathered(entries: list[coco_eval.Entry], dist: Dist) -> list[coco_eval.Entry]:
    """The entries of all ranks in rank order, on every rank."""
    text = torch.frombuffer(bytearray(json.dumps(entries).encode("ascii")), dtype=torch.uint8).to(dist.device)
    lengths = dist.all_gather(torch.tensor([len(text)], device=dist.device)).tolist()
    padded = torch.zeros(max(lengths), dtype=torch.uint8, device=dist.device)
    padded[: len(text)] = text
    parts = dist.all_gather(padded).cpu().reshape(dist.world, -1)
    texts = (part[:length].numpy().tobytes() for part, length in zip(parts, lengths, strict=True))
    return [entry for text in texts for entry in json.loads(text)]


if __name__ == "__main__":
    run_stage("evaluate@detection", PARAMS, main)
