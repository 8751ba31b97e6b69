"""Masks and results in COCO's formats, without pycocotools."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


def encode(mask_HW: NDArray[np.bool_]) -> dict[str, Any]:
    """A mask as COCO's compressed run lengths: `size` (height, width) and `counts`, a string.

    Runs are counted column by column, in turn of pixels outside and inside, beginning outside. From the third on a run is stored as
    the difference from the run two before it, in groups of five bits, the lowest first, each plus 48 as a character.
    """
    height, width = mask_HW.shape
    flat = np.asarray(mask_HW, dtype=np.bool_).ravel(order="F")
    changes = np.flatnonzero(np.diff(flat, prepend=False))
    runs = np.diff(changes, prepend=0, append=len(flat)).tolist()
    text = []
    for n, run in enumerate(runs):
        value = run - runs[n - 2] if n > 2 else run
        while True:
            group = value & 31
            value >>= 5
            more = value != (-1 if group & 16 else 0)
            text.append(chr(group + (32 if more else 0) + 48))
            if not more:
                break
    return {"size": [height, width], "counts": "".join(text)}


def results(lines: Iterable[str], classes: Sequence[str]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The lines of a detector's results as COCO's files.

    Args:
        lines: JSON, one for each image.
        classes: names; the first one has the id 1.

    Returns:
        The results, and the images and categories that their ids name. Images are numbered from 1 in the order of the lines.
    """
    ids = {name: number for number, name in enumerate(classes, start=1)}
    found: list[dict[str, Any]] = []
    images: list[dict[str, Any]] = []
    for number, line in enumerate(lines, start=1):
        record = json.loads(line)
        images.append(
            {"id": number, "file_name": record["image"], "width": record["width"], "height": record["height"]}
        )
        for entry in record["objects"]:
            result = {
                "image_id": number,
                "category_id": ids[entry["class"]],
                "bbox": entry["box"],
                "score": entry["score"],
            }
            found.append(result | ({"segmentation": entry["mask"]} if "mask" in entry else {}))
    return found, {"images": images, "categories": [{"id": n, "name": name} for name, n in ids.items()]}
