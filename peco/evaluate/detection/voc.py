"""Reader of Pascal VOC's format: one XML file per image, boxes only.

Layout:

    ImageSets/Main/train.txt, val.txt    names of the images, one per line
    Annotations/NAME.xml                 `size`, and for each object an `object` with `name`, `bndbox`, optionally `difficult`
    JPEGImages/NAME.jpg                  or another image format

Boxes count pixels from 1 and include the last one: xmin ymin xmax ymax becomes x0 = xmin - 1, y0 = ymin - 1, x1 = xmax, y1 =
ymax. A difficult object is a crowd: as in VOC's own score, it is neither trained on nor counted as missed. Classes are the
sorted names in train; val may lack some but must have no others.
"""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from peco.core.errors import PecoError
from peco.evaluate.detection.records import Annotation, RecordedSet, image_size, images_in, make_record, require_size


@dataclass(frozen=True)
class _Object:
    name: str
    box: tuple[float, float, float, float]
    difficult: bool
    origin: str


@dataclass(frozen=True)
class _Image:
    path: Path
    size: tuple[int, int]
    objects: tuple[_Object, ...]


def open_voc(root: Path) -> tuple[RecordedSet, RecordedSet]:
    """Open train and val of a folder in Pascal VOC's layout.

    Raises:
        PecoError: the data is wrong; the message names the first problem with its file and value.
    """
    files = {path.stem: path for path in images_in(root / "JPEGImages")}
    lists = {split: root / "ImageSets" / "Main" / f"{split}.txt" for split in ("train", "val")}
    train, val = ([_read_image(root, name, files, path) for name in _read_list(path)] for path in lists.values())
    classes = tuple(sorted({o.name for image in train for o in image.objects}))
    for o in (o for image in val for o in image.objects):
        if o.name not in classes:
            raise PecoError(f"{o.origin}: no object of train is a {o.name}; the splits must have the same classes")
    return _as_set(str(lists["train"]), train, classes), _as_set(str(lists["val"]), val, classes)


def _read_list(path: Path) -> list[str]:
    try:
        return [line.split()[0] for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise PecoError(f"{path}: can't be read ({error}); expected the names of the split's images") from None


def _read_image(root: Path, name: str, files: dict[str, Path], listed: Path) -> _Image:
    if name not in files:
        raise PecoError(f"{listed}: the image {name} is missing in JPEGImages; fetch it or remove the line")
    path = root / "Annotations" / f"{name}.xml"
    try:
        tree = ElementTree.parse(path).getroot()
    except (OSError, ElementTree.ParseError) as error:
        raise PecoError(f"{path}: can't be read ({error}); expected the annotation of {files[name].name}") from None
    size = image_size(files[name], str(path))
    if tree.find("size") is not None:
        width, height = (round(_number(tree, f"size/{side}", str(path))) for side in ("width", "height"))
        require_size(files[name], size, (width, height), str(path))
    return _Image(files[name], size, tuple(_read_object(entry, path) for entry in tree.iter("object")))


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
        return float(text or "")
    except ValueError:
        raise PecoError(f"{origin}: {tag} is {text!r}; expected a number") from None


def _as_set(origin: str, images: list[_Image], classes: tuple[str, ...]) -> RecordedSet:
    skipped: Counter[str] = Counter()
    records = []
    for image in images:
        objects = [Annotation(o.box, classes.index(o.name), o.difficult, None, o.origin) for o in image.objects]
        records.append(make_record(image.path, image.size, objects, False, skipped))
    return RecordedSet(origin, classes, False, records, skipped)
