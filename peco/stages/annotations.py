"""Stage `annotations`: open and check all annotated sets before any training.

Every annotated image is decoded once and every mask is made, so that a set that can't be read ends a run here, and not after the
pre-training. Sets of evaluations that are switched off are not read. Each evaluation depends on the counts of its own set only: new
boxes do not repeat the segmentation.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from peco.annotations.sets import AnnotatedSet, DetectionSet, SegmentationSet, left_out_words
from peco.boxes import open as detection
from peco.core import workfiles
from peco.core.progress import tracked, waiting
from peco.core.publishing import write_json
from peco.evaluate.agreement.triplets import TwoAfc
from peco.masks import open as segmentation
from peco.runtime import paths
from peco.runtime.stage import StageRun, run_stage

PARAMS = (
    "evaluate.tasks.segmentation",
    "evaluate.tasks.detection",
    "evaluate.tasks.agreement",
    "evaluate.segmentation.source",
    "evaluate.segmentation.path",
    "evaluate.segmentation.scenes",
    "evaluate.segmentation.ignore",
    "evaluate.detection.source",
    "evaluate.detection.path",
    "evaluate.detection.scenes",
    "evaluate.agreement.source",
    "evaluate.agreement.path",
)
JUDGED_SIZE = 32  # pixels a side, at which judged images are read here

OBJECTS, EMPTY = "objects", "masks that cover no pixel"

DataT = TypeVar("DataT", bound=AnnotatedSet)


def main(run: StageRun) -> None:
    found = {"segmentation": _segmentation(run), "detection": _detection(run), "agreement": _agreement(run)}
    for task in ("segmentation", "detection"):
        write_json(paths.METRICS / "annotations" / f"{task}.json", found[task])
    run.metrics(
        {
            task: {key: value for key, value in values.items() if isinstance(value, int)}
            for task, values in found.items()
            if "skipped" not in values
        }
    )


def _segmentation(run: StageRun) -> dict[str, Any]:
    """Counts of the images with masks."""
    if not run.config.evaluate.tasks.segmentation:
        return _off("segmentation")

    def read(data: SegmentationSet, i: int) -> Counter[str]:
        data.image(i)
        data.mask(i)
        return Counter()

    train, val, _ = _read_splits(run, "segmentation", "masks", segmentation.open_splits, read)
    return _report("segmentation", train, val)


def _detection(run: StageRun) -> dict[str, Any]:
    """Counts of the images and their objects."""
    if not run.config.evaluate.tasks.detection:
        return _off("detection")

    def read(data: DetectionSet, i: int) -> Counter[str]:
        objects = data.objects(i)
        data.image(i)
        empty = 0 if objects.masks is None else int((~objects.masks.any(axis=(1, 2))).sum())
        return Counter({OBJECTS: len(objects.labels), EMPTY: empty})

    train, val, counts = _read_splits(run, "detection", "boxes", detection.open_splits, read)
    notes = [f"{EMPTY}, and are not learned: {counts[EMPTY]}"] if counts[EMPTY] else []
    values = {OBJECTS: counts[OBJECTS]} if counts else {}
    return _report("detection", train, val, notes) | {"masks": train.has_masks} | values


def _agreement(run: StageRun) -> dict[str, Any]:
    """Count of the judged triplets."""
    cfg = run.config.evaluate.agreement
    if not run.config.evaluate.tasks.agreement or cfg.source != "bapps":
        return {"skipped": "no judged triplets"}
    work = run.work([])
    with waiting(f"{run.name}: listing the triplets"):
        items = TwoAfc(Path(cfg.path), work)

    def read(i: int) -> Counter[str]:
        items.images(i, JUDGED_SIZE)
        return Counter()

    _read_all(run, "agreement", len(items), read, threads=1)  # an archive is read by one thread at a time
    workfiles.mark_finished(work)
    print(f"agreement: {len(items)} judged triplets")
    return {"triplets": len(items)}


def _off(task: str) -> dict[str, Any]:
    print(f"{task}: switched off (evaluate.tasks.{task}), not read")
    return {"skipped": f"switched off (evaluate.tasks.{task})"}


def _read_splits(
    run: StageRun,
    task: str,
    listed: str,
    open_splits: Callable[[Any], tuple[DataT, DataT]],
    read: Callable[[DataT, int], Counter[str]],
) -> tuple[DataT, DataT, Counter[str]]:
    """Open both splits of a task, and read their images, unless they are drawn.

    Returns:
        Train, val, and the sum of what `read` returns.
    """
    cfg = getattr(run.config.evaluate, task)
    with waiting(f"{run.name}: listing the {listed}"):
        train, val = open_splits(cfg)
    counts: Counter[str] = Counter()
    if cfg.source != "scenes":
        for data in (train, val):
            counts += _read_all(run, task, len(data), partial(read, data))
    return train, val, counts


def _report(task: str, train: AnnotatedSet, val: AnnotatedSet, more: Iterable[str] = ()) -> dict[str, Any]:
    """Print the counts of a set and the notes on it, and return them."""
    skipped = train.skipped + val.skipped
    notes = list(dict.fromkeys([*train.notes, *val.notes, *more]))
    print(f"{task}: {len(train)} images to train on, {len(val)} for val, {len(train.classes)} classes")
    if skipped:
        print(f"{task}: left out: {left_out_words(skipped)}")
    for note in notes:
        print(f"{task}: {note}")
    values: dict[str, Any] = {"train": len(train), "val": len(val), "classes": len(train.classes)}
    return values | {"left_out": sum(skipped.values()), "left_out_by_reason": dict(skipped), "notes": notes}


def _read_all(
    run: StageRun, name: str, count: int, read: Callable[[int], Counter[str]], threads: int | None = None
) -> Counter[str]:
    """Read the images 0 to count - 1 in threads (Pillow releases Python's global lock), with a progress line now and then.

    Returns:
        The sum of what `read` returns.
    """
    found: Counter[str] = Counter()
    pool = ThreadPoolExecutor(threads or os.cpu_count())
    try:
        for counts in tracked(pool.map(read, range(count)), f"{run.name}: {name}", count):
            found += counts
    finally:
        pool.shutdown(cancel_futures=True)
    return found


if __name__ == "__main__":
    run_stage(Path(__file__).stem, PARAMS, main)
