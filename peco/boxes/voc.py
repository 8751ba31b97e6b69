"""Reader of Pascal VOC's format: one XML file per image, boxes only. `voc_files.py` describes the layouts.

An XML has `size` (0 x 0, as some programs write it, means the size of the image), and for each object an `object` with `name`,
`bndbox`, optionally `difficult`. Boxes count pixels from 1 and include the last one: xmin ymin xmax ymax becomes x0 = xmin - 1, y0
= ymin - 1, x1 = xmax, y1 = ymax. A difficult object is a crowd: as in VOC's own score, it is neither trained on nor counted as
missed. Classes are the sorted names in train; val may lack some but must have no others, unless the splits were divided here.
"""

from __future__ import annotations

import math
import xml.etree.ElementTree as ElementTree
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from peco.annotations.photos import Photo, annotated_photo
from peco.boxes.records import Annotation, RecordedSet, make_record
from peco.boxes.voc_files import SplitFiles, find_files
from peco.core.errors import PecoError
from peco.core.parsing import reason


@dataclass(frozen=True)
class _Object:
    name: str
    box: tuple[float, float, float, float]
    difficult: bool
    origin: str


@dataclass(frozen=True)
class _Image:
    photo: Photo
    objects: tuple[_Object, ...]


def open_voc(root: Path) -> tuple[RecordedSet, RecordedSet]:
    """Open train and val of a folder in Pascal VOC's layout.

    Raises:
        PecoError: the data is wrong; the message names the first problem with its file and value.
    """
    *splits, given = find_files(root)
    train, val = ([_read_image(*pair) for pair in split.pairs] for split in splits)
    classes = tuple(sorted({o.name for image in (train if given else (*train, *val)) for o in image.objects}))
    for o in (o for image in val for o in image.objects):
        if o.name not in classes:
            raise PecoError(f"{o.origin}: no object of train is a {o.name}; the splits must have the same classes")
    return _as_set(splits[0], train, classes), _as_set(splits[1], val, classes)


def _read_image(image: Path, path: Path) -> _Image:
    try:
        tree = ElementTree.parse(path).getroot()
    # The last two: encodings that are unknown or not supported.
    except (OSError, ElementTree.ParseError, LookupError, ValueError) as error:
        raise PecoError(f"{path}: can't be read ({reason(error)}); expected the annotation of {image.name}") from None
    declared = None
    if tree.find("size") is not None:
        width, height = (round(_number(tree, f"size/{side}", str(path))) for side in ("width", "height"))
        declared = (width, height) if (width, height) != (0, 0) else None
    photo = annotated_photo(image, declared, str(path))
    return _Image(photo, tuple(_read_object(entry, path) for entry in tree.iter("object")))


def _read_object(entry: ElementTree.Element, path: Path) -> _Object:
    name = (entry.findtext("name") or "").strip()
    if not name:
        raise PecoError(f"{path}: an object without a name; add it or remove the object")
    origin = f"{path}: {name}"
    x0, y0, x1, y1 = (_number(entry, f"bndbox/{side}", origin) for side in ("xmin", "ymin", "xmax", "ymax"))
    return _Object(name, (x0 - 1, y0 - 1, x1, y1), (entry.findtext("difficult") or "0").strip() == "1", origin)


def _number(entry: ElementTree.Element, tag: str, origin: str) -> float:
    text = entry.findtext(tag)
    try:
        number = float(text or "")
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise PecoError(f"{origin}: {tag} is {text!r}; expected a number")
    return number


def _as_set(split: SplitFiles, images: list[_Image], classes: tuple[str, ...]) -> RecordedSet:
    skipped: Counter[str] = Counter(split.skipped)
    records = []
    for image in images:
        objects = [Annotation(o.box, classes.index(o.name), o.difficult, None, o.origin) for o in image.objects]
        records.append(make_record(image.photo, objects, False, skipped))
    return RecordedSet(split.origin, classes, False, records, skipped, split.notes)
