"""Reader of YOLO's format: one text file per image, one line per object. `yolo_files.py` describes the layout.

A line is `class cx cy w h` or `class x y x y …` (a polygon), numbers as shares of the image's width and height; a split has only
one kind of lines. Where data.yaml has `kpt_shape`, key points follow the four numbers of the box; they are not used. An image
without a label file, or with an empty one, has no object. But the folder of label files must exist: otherwise a folder with a wrong
name would look like a split without objects. The format has no crowds.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from peco.annotations.photos import Photo, annotated_photo
from peco.boxes.records import Annotation, RecordedSet, have_masks, make_record
from peco.boxes.regions import Polygons
from peco.boxes.yolo_files import Names, SplitFiles, YoloFiles, find_files
from peco.core.errors import PecoError
from peco.core.parsing import reason


def open_yolo(root: Path) -> tuple[RecordedSet, RecordedSet]:
    """Open train and val of a folder in YOLO's layout.

    Raises:
        PecoError: the data is wrong; the message names the first problem with its file and value.
    """
    files = find_files(root)
    return _read_split(files.train, files), _read_split(files.val, files)


def _read_split(split: SplitFiles, files: YoloFiles) -> RecordedSet:
    photos = {image: annotated_photo(image, None, str(image)) for image in split.labels}
    objects = {
        image: _read_labels(label, photos[image].size, files.names, files.key_points)
        for image, label in split.labels.items()
    }
    has_masks = have_masks(a for found in objects.values() for a in found)
    skipped: Counter[str] = Counter()
    records = [make_record(photos[image], objects[image], has_masks, skipped) for image in split.labels]
    if _are_tracks(objects, photos):
        raise PecoError(
            f"{split.origin}: all lines have 6 numbers after the class, the last 0 or 1, as a tracker writes a box with confidence "
            "and number; remove the last two"
        )
    notes = list(split.notes)
    if files.key_points is not None:
        notes.append("kpt_shape: the boxes are used, the key points are not")
    if has_masks and all(len(outline) == 8 for region in _polygons(objects.values()) for outline in region.outlines):
        notes.append("each outline has four points, as in sets of rotated boxes: they are read as masks")
    if missing := sum(not label.exists() for label in split.labels.values()):
        notes.append(f"{split.origin}: images without a label file, read as images without an object: {missing}")
    return RecordedSet(str(split.origin), files.names.classes, has_masks, records, skipped, notes)


def _polygons(objects: Iterable[list[Annotation]]) -> Iterator[Polygons]:
    return (a.region for found in objects for a in found if isinstance(a.region, Polygons))


def _are_tracks(objects: Mapping[Path, list[Annotation]], photos: Mapping[Path, Photo]) -> bool:
    """True if all polygons have three points, the last of them at the upper or lower edge: in no set do all outlines."""
    ends = [
        len(outline) == 6 and outline[5] in (0, photos[image].size[1])
        for image, found in objects.items()
        for annotation in found
        if isinstance(annotation.region, Polygons)
        for outline in annotation.region.outlines
    ]
    return bool(ends) and all(ends)


def _read_labels(file: Path, size: tuple[int, int], names: Names, key_points: int | None) -> list[Annotation]:
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        raise PecoError(f"{file}: can't be read ({reason(error)}); expected lines of numbers") from None
    return [
        _parse(line, f"{file}: line {number}", size, names, key_points)
        for number, line in enumerate(lines, start=1)
        if line.strip()
    ]


def _parse(line: str, origin: str, size: tuple[int, int], names: Names, key_points: int | None) -> Annotation:
    try:
        number, *values = map(float, line.split())
        finite = all(map(math.isfinite, values))
    except ValueError:
        finite = False
    if not finite:
        raise PecoError(f"{origin}: {line.strip()[:100]!r} is not a line of numbers; fix it")
    if number not in names.index:
        raise PecoError(f"{origin}: class {number:g} is not among the names of {names.path}; add it there or fix it")
    if key_points is not None:
        if len(values) != 4 + key_points:
            raise PecoError(
                f"{origin}: {len(values)} numbers after the class; expected 4 of the box and {key_points} of the key points, as "
                f"kpt_shape in {names.path} says"
            )
        values = values[:4]
    label, (width, height) = names.index[int(number)], size
    if len(values) == 4:
        cx, cy, w, h = values
        box = ((cx - w / 2) * width, (cy - h / 2) * height, (cx + w / 2) * width, (cy + h / 2) * height)
        return Annotation(box, label, False, None, origin)
    if len(values) < 6 or len(values) % 2:
        hint = (
            "; the last one looks like the confidence of a prediction: remove it"
            if len(values) % 2 and len(values) > 4
            else ""
        )
        raise PecoError(
            f"{origin}: {len(values)} numbers after the class; expected 4, or x y of 3 points and more{hint}"
        )
    xs, ys = [x * width for x in values[0::2]], [y * height for y in values[1::2]]
    outline = tuple(value for point in zip(xs, ys, strict=True) for value in point)
    return Annotation((min(xs), min(ys), max(xs), max(ys)), label, False, Polygons((outline,)), origin)
