"""Stage `evaluate@detection`: Mask R-CNN on the backbone, from pre-trained and from random weights, and on the reference.

The model trained from pre-trained weights is a result, `artifacts/detector`.

The scores are those of the last step on val: nothing is chosen, so no third split is needed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn

from peco.annotations.sets import DetectionSet
from peco.annotations.stages import annotated_data, count_images, index_loader, save_pictures, shown_indices
from peco.boxes.open import open_splits
from peco.core import workfiles
from peco.core.progress import tracked, waiting
from peco.core.publishing import staging
from peco.evaluate.common import reference_inputs, require_task, starts, write_details
from peco.evaluate.detection import coco_eval, storage
from peco.evaluate.detection.letterbox import DetectionView
from peco.evaluate.detection.model import build_detector, detect
from peco.evaluate.detection.pictures import draw
from peco.evaluate.detection.task import DetectionTask
from peco.runtime import model_card, paths
from peco.runtime.stage import StageRun, run_stage
from peco.training.distributed import Dist
from peco.training.loop import train

PARAMS = ("seed", "evaluate.reference", "evaluate.tasks.detection", "evaluate.detection")
PICTURES = paths.PICTURES / "detection"
JITTER = (0.8, 1.25)  # range of the scale in training
EVAL_BATCH = 8


def main(run: StageRun) -> None:
    require_task(run, "detection")
    cfg, seed = run.config.evaluate.detection, run.config.seed
    dist = Dist.init()
    train_split, val = open_splits(cfg)
    metrics = count_images(train_split, val) | {"masks": val.has_masks}
    shown = shown_indices(val)
    pictures = {"truth": [draw(val.image(i), val.objects(i), val.classes) for i in shown]}
    details: dict[str, Any] = {}
    reference = run.config.evaluate.reference
    work = run.work([Path(cfg.path), paths.BACKBONE, *reference_inputs(reference)], dist.share)
    transform = DetectionView(train_split, seed, cfg.image_size, JITTER)
    loader = index_loader(run, train_split, transform, cfg.optim, dist)
    for start in starts(reference, seed):
        model = build_detector(start.make, len(train_split.classes), cfg, masks=train_split.has_masks, seed=seed)
        task = DetectionTask(model)
        name = f"detection_{start.name}"
        logs = train(task, loader, name=name, optim=cfg.optim, seed=seed, dist=dist, work=work / name)
        scores = evaluate_detector(model, val, cfg.image_size, dist)
        for score, value in scores.items():
            (details if score.endswith("_per_class") else metrics)[f"{start.prefix}{score}"] = value
        if dist.rank == 0:
            pictures[start.name] = [_draw_detections(model, val, i, cfg.image_size) for i in shown]
            if start.is_result:
                masks, extra = train_split.has_masks, model_card.lineage_of(paths.BACKBONE)
                storage.save(paths.DETECTOR, model, paths.BACKBONE, train_split.classes, cfg, masks=masks, extra=extra)
        logs.close()
    if dist.rank == 0:
        data = annotated_data(cfg.source, Path(cfg.path), train_split, val)
        facts = model_card.Facts(data, metrics, model_card.Training(cfg.optim, len(train_split), "the backbone"), seed)
        model_card.write(paths.DETECTOR, facts)
        with staging(PICTURES) as folder:
            save_pictures(folder, pictures)
            write_details(folder, details)
        run.metrics(metrics)
        workfiles.mark_finished(work)


def _draw_detections(model: nn.Module, data: DetectionSet, i: int, side: int) -> Image.Image:
    """Draw the detections of image i with the highest scores, as many as it has objects."""
    image = data.image(i)
    (found,) = detect(model, [image], side)
    return draw(image, found, data.classes, limit=len(data.objects(i).labels))


def evaluate_detector(model: nn.Module, data: DetectionSet, side: int, dist: Dist) -> dict[str, Any]:
    """Score a detector on a split (see `coco_eval.average_precision`); each rank processes a part of it, all get the scores.

    Args:
        model: from `build_detector`.
        data: the split.
        side: side of the model's images.
        dist: the processes.
    """
    entries = gather_entries(list(_entries(model, data, side, dist)), dist)
    truth, found = ([entry for entry in entries if ("score" in entry) == scored] for scored in (False, True))
    with waiting("detection: average precision"):
        return coco_eval.average_precision(data.classes, len(data), truth, found, masks=data.has_masks)


def _entries(model: nn.Module, data: DetectionSet, side: int, dist: Dist) -> Iterator[coco_eval.Entry]:
    """Truth and detections of this rank's part of a split, one of `world` contiguous parts."""
    start, stop = (len(data) * rank // dist.world for rank in (dist.rank, dist.rank + 1))
    starts = range(start, stop, EVAL_BATCH)
    for first in tracked(starts, "detection: scoring", stop - start, size=lambda _: EVAL_BATCH):
        part = range(first, min(first + EVAL_BATCH, stop))
        for i, found in zip(part, detect(model, [data.image(i) for i in part], side), strict=True):
            yield from coco_eval.truth_entries(i, data.objects(i))
            yield from coco_eval.detection_entries(i, found)


def gather_entries(entries: list[coco_eval.Entry], dist: Dist) -> list[coco_eval.Entry]:
    """Gather the entries of all ranks in rank order, on every rank."""
    text = torch.frombuffer(bytearray(json.dumps(entries).encode("ascii")), dtype=torch.uint8).to(dist.device)
    lengths = dist.all_gather(torch.tensor([len(text)], device=dist.device)).tolist()
    padded = torch.zeros(max(lengths), dtype=torch.uint8, device=dist.device)
    padded[: len(text)] = text
    parts = dist.all_gather(padded).cpu().reshape(dist.world, -1)
    texts = (part[:length].numpy().tobytes() for part, length in zip(parts, lengths, strict=True))
    return [entry for text in texts for entry in json.loads(text)]


if __name__ == "__main__":
    run_stage("evaluate@detection", PARAMS, main)
