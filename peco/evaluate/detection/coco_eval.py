"""COCO's average precision with pycocotools: mean over IoU 0.5 to 0.95, 101 recalls, at most 100 detections per image."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from peco.annotations.sets import Objects
from peco.evaluate.detection.model import MAX_DETECTIONS, Detections

Entry = dict[str, Any]
KINDS = {"box": "bbox", "mask": "segm"}
IOU_THRESHOLDS = {"ap50": 0.5, "ap75": 0.75}


def detection_entries(image: int, detections: Detections) -> list[Entry]:
    """Convert the detections of an image to entries of COCO's result files, which JSON can hold."""
    return [
        {"score": float(score), **_region(image, box, label, None if detections.masks is None else detections.masks[n])}
        for n, (box, label, score) in enumerate(
            zip(detections.boxes, detections.labels, detections.scores, strict=True)
        )
    ]


def truth_entries(image: int, objects: Objects) -> list[Entry]:
    """Convert the objects of an image to entries of COCO's annotation files."""
    return [
        {"iscrowd": int(crowd), **_region(image, box, label, None if objects.masks is None else objects.masks[n])}
        for n, (box, label, crowd) in enumerate(zip(objects.boxes, objects.labels, objects.crowd, strict=True))
    ]


def average_precision(
    classes: Sequence[str], images: int, truth: Iterable[Entry], found: Iterable[Entry], *, masks: bool
) -> dict[str, Any]:
    """Compute the scores of detections, 0 to 1.

    Args:
        classes: names.
        images: number of images; their numbers in entries are 0 to `images` - 1.
        truth: from `truth_entries`.
        found: from `detection_entries`.
        masks: True if both have masks.

    Returns:
        `box_ap`, `box_ap50`, `box_ap75` and `box_ap_per_class` (AP by name), with masks also the same with `mask_`. A class
        without objects is left out; without any object, so are the other scores.
    """
    truth, found = list(truth), list(found)
    scores: dict[str, Any] = {}
    for name in ("box", "mask") if masks else ("box",):
        precision_TRK, thresholds_T = _precision(len(classes), images, truth, found, KINDS[name])
        overall = {"ap": precision_TRK} | {
            key: precision_TRK[np.isclose(thresholds_T, iou)] for key, iou in IOU_THRESHOLDS.items()
        }
        scores |= {f"{name}_{key}": value for key, part in overall.items() if (value := _mean(part)) is not None}
        scores[f"{name}_ap_per_class"] = {
            label: value for k, label in enumerate(classes) if (value := _mean(precision_TRK[:, :, k])) is not None
        }
    return scores


def _region(image: int, box: NDArray[np.float32], label: np.int64, mask: NDArray[np.bool_] | None) -> Entry:
    x0, y0, x1, y1 = map(float, box)
    entry: Entry = {"image_id": image, "category_id": int(label), "bbox": [x0, y0, x1 - x0, y1 - y0]}
    if mask is not None:
        runs = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
        entry["segmentation"] = {"size": list(runs["size"]), "counts": runs["counts"].decode("ascii")}
    return entry


def _precision(
    classes: int, images: int, truth: list[Entry], found: list[Entry], kind: str
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Precision by IoU threshold, recall and class (T, R, K), -1 for a class without objects; and the thresholds (T,)."""
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        evaluation = COCOeval(_index(classes, images, truth), _index(classes, images, found), kind)
        evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, 1e10]], ["all"]
        evaluation.params.maxDets = [MAX_DETECTIONS]
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation.eval["precision"][:, :, :, 0, 0], evaluation.params.iouThrs


def _index(classes: int, images: int, entries: list[Entry]) -> COCO:
    coco = COCO()
    coco.dataset = {
        # pycocotools requires image sizes but uses those of the masks.
        "images": [{"id": image, "height": 0, "width": 0} for image in range(images)],
        "categories": [{"id": label} for label in range(classes)],
        # Copies, since COCOeval writes into them. The area doesn't matter for scores over all sizes. Ids start at 1, since 0
        # means no object.
        "annotations": [{"iscrowd": 0, **e, "id": n, "area": 1.0} for n, e in enumerate(entries, start=1)],
    }
    coco.createIndex()
    return coco


def _mean(precision: NDArray[np.float64]) -> float | None:
    known = precision[precision > -1]
    return float(known.mean()) if known.size else None
