"""`peco predict`: classes, masks or boxes of many images, by a model that an evaluation has trained."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

from peco.core.errors import PecoError
from peco.core.publishing import replacing, write_file, write_json
from peco.use.images import Found, Loaded, Unreadable, find, load, printable
from peco.use.models import Options, Prediction, Predictor, open_model
from peco.use.output import OutputFolder, fingerprint
from peco.use.progress import Progress

RECORDS = "predictions.jsonl"
TABLE = "predictions.csv"
MASKS, PICTURES = "masks", "pictures"
NAME_BYTES = 200  # file systems allow 255, with all endings
CLASSES, COCO_RESULTS, COCO_IMAGES = "classes.json", "coco_results.json", "coco_images.json"


def predict(
    model: str,
    arguments: Sequence[str],
    output: str,
    *,
    options: Options,
    batch_size: int | None = None,
    table: bool = False,
) -> None:
    """Predict all images and write the results to a folder; an earlier run with the same model and options resumes.

    Args:
        model: folder of a classifier, segmenter or detector.
        arguments: images (see `images.find`).
        output: folder of the results.
        options: what the results depend on.
        batch_size: images at a time; by default a number for the kind of model.
        table: write `predictions.csv` too.

    Raises:
        PecoError: a wrong argument, a model that can't be used, or, when all others are done, images that can't be read.
    """
    predictor = open_model(model, options)
    found, unreadable = find(arguments, Path(output))
    if predictor.kind == "segmenter" or options.pictures:
        _require_distinct_files(found)
    settings = {"kind": predictor.kind, "model": fingerprint(model), "pictures": options.pictures}
    folder = OutputFolder(output, {**settings, **_relevant(options, predictor.kind)}, RECORDS)
    left = [item for item in found if item.name not in folder.done]
    progress = Progress("predict", len(found), len(found) - len(left))
    for batch in load(left, predictor.prepare, batch_size or predictor.batch_size):
        unreadable += [entry for entry in batch if isinstance(entry, Unreadable)]
        loaded = [entry for entry in batch if isinstance(entry, Loaded)]
        if loaded:
            predictions = predictor.predict([entry.value for entry in loaded])
            lines = [
                {"image": entry.name, **_files(folder.path, entry.name, prediction), **prediction.record}
                for entry, prediction in zip(loaded, predictions, strict=True)
            ]
            folder.append(lines)
        progress.add(len(batch))
    progress.close()
    write_json(folder.path / CLASSES, list(predictor.classes))
    if predictor.kind == "detector":
        _write_coco(folder, predictor)
    if table or (folder.path / TABLE).exists():  # one of an earlier run must not stay behind
        write_file(folder.path / TABLE, _table(folder, predictor.kind))
    print(f"{len(folder.done)} images: {folder.records}")
    folder.close(unreadable)


def _relevant(options: Options, kind: str) -> dict[str, Any]:
    """The options that the results of this kind of model depend on."""
    if kind == "classifier":
        return {"top_k": options.top_k}
    return {"min_score": options.min_score} if kind == "detector" else {}


def _files(folder: Path, name: str, prediction: Prediction) -> dict[str, str]:
    """Write mask and picture of an image; returns the mask's path within the folder."""
    if prediction.picture is not None:
        _save(prediction.picture, folder / PICTURES / _file_name(name))
    if prediction.mask is None:
        return {}
    path = f"{MASKS}/{_file_name(name)}"
    large = prediction.mask.max() > 255
    _save(Image.fromarray(prediction.mask.astype(np.uint16 if large else np.uint8)), folder / path)
    return {"mask": path}


def _save(picture: Image.Image, path: Path) -> None:
    with replacing(path) as part:
        picture.save(part, "PNG")


def _file_name(name: str) -> str:
    """Path of the PNG of an image below a folder of results: its own path, from no matter where, with `.png` added.

    Very long names are cut and get a hash.
    """
    parts = ["__" if part == ".." else _shortened(part) for part in name.split("/") if part not in ("", ".")]
    return f"{'/'.join(parts)}.png"


def _shortened(part: str) -> str:
    encoded = os.fsencode(part)
    if len(encoded) <= NAME_BYTES:
        return part
    return f"{os.fsdecode(encoded[: NAME_BYTES - 17])}-{hashlib.sha256(encoded).hexdigest()[:16]}"


def _require_distinct_files(found: Sequence[Found]) -> None:
    seen: dict[str, str] = {}
    for item in found:
        other = seen.setdefault(_file_name(item.name), item.name)
        if other != item.name:
            raise PecoError(f"{item.name}: its results would have the same file as those of {other}; give them apart")
    for file, name in seen.items():  # an image `x` beside a folder `x.png`
        inside = next((seen[str(above)] for above in PurePosixPath(file).parents if str(above) in seen), None)
        if inside is not None:
            raise PecoError(f"{inside}: its results would be where {name} needs a folder; give them apart")


def _write_coco(folder: OutputFolder, predictor: Predictor) -> None:
    from peco.use import coco

    results, images = coco.results(_lines(folder), predictor.classes)
    write_file(folder.path / COCO_RESULTS, json.dumps(results))
    write_file(folder.path / COCO_IMAGES, json.dumps(images))


def _table(folder: OutputFolder, kind: str) -> str:
    """The results as CSV: for a classifier a row for each image and class, likewise for a segmenter, for a detector each object."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    header = {
        "classifier": ["image", "rank", "class", "score"],
        "segmenter": ["image", "class", "share", "mask"],
        "detector": ["image", "class", "score", "x", "y", "width", "height"],
    }
    rows.writerow(header[kind])
    for line in _lines(folder):
        rows.writerows(_rows(json.loads(line)))
    return printable(text.getvalue())


def _rows(record: Mapping[str, Any]) -> Iterator[list[Any]]:
    image = record["image"]
    for rank, entry in enumerate(record.get("classes", ()), start=1):
        yield [image, rank, entry["class"], entry["score"]]
    for name, share in record.get("shares", {}).items():
        yield [image, name, share, record["mask"]]
    for entry in record.get("objects", ()):
        yield [image, entry["class"], entry["score"], *entry["box"]]


def _lines(folder: OutputFolder) -> Iterator[str]:
    if folder.records.exists():
        with folder.records.open(encoding="utf-8") as file:
            yield from file
