"""Reader of YOLO's format: one text file per image, one line per object.

Layout:

    data.yaml (or config.yaml)    names: a list, or numbers to names (gaps allowed); train, val: folders of images
    images/SPLIT/NAME.jpg         the folders that `train` and `val` name, relative to the file's folder and its `path`
    labels/SPLIT/NAME.txt         the same with the last `images` replaced by `labels`

A line is `class cx cy w h` or `class x y x y x y …` (a polygon), numbers as shares of the image's width and height; a split
has only one kind of lines. An image without a label file, or with an empty one, has no object. But the folder of label files must
exist: otherwise a folder with a wrong name would look like a split without objects. The format has no crowds.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from peco.core.errors import PecoError
from peco.evaluate.detection.records import (
    Annotation,
    Polygons,
    RecordedSet,
    have_masks,
    image_size,
    images_in,
    make_record,
)

_FILES = ("data.yaml", "data.yml", "config.yaml", "config.yml")


def open_yolo(root: Path) -> tuple[RecordedSet, RecordedSet]:
    """Open train and val of a folder in YOLO's layout.

    Raises:
        PecoError: the data is wrong; the message names the first problem with its file and value.
    """
    path = next((root / name for name in _FILES if (root / name).is_file()), None)
    if path is None:
        raise PecoError(f"{root}: no data.yaml or config.yaml; expected one with `names`, `train` and `val`")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise PecoError(f"{path}: can't be read ({' '.join(str(error).split())}); expected YAML") from None
    if not isinstance(content, dict):
        raise PecoError(f"{path}: holds no keys; expected `names`, `train` and `val`")
    names = _names(content, path)
    train, val = (_read_split(_image_folder(content, path, split), names) for split in ("train", "val"))
    return train, val


@dataclass(frozen=True)
class _Names:
    """Names of the classes, and the class index by number in label files."""

    classes: tuple[str, ...]
    index: dict[int, int]
    path: Path


def _names(content: dict[str, Any], path: Path) -> _Names:
    found = content.get("names")
    if isinstance(found, list):
        found = dict(enumerate(found))
    if not isinstance(found, dict) or not found or not all(type(number) is int for number in found):
        raise PecoError(f"{path}: names is {found!r}; expected a list of names, or numbers to names")
    count = content.get("nc", len(found))
    if count != len(found):
        raise PecoError(f"{path}: nc is {count}, but there are {len(found)} names; fix one")
    numbers = sorted(found)
    return _Names(tuple(str(found[n]) for n in numbers), {n: i for i, n in enumerate(numbers)}, path)


def _image_folder(content: dict[str, Any], path: Path, split: str) -> Path:
    entry = content.get(split)
    if not isinstance(entry, str):
        raise PecoError(f"{path}: {split} is {entry!r}; expected a folder of images below {path.parent}")
    base = content.get("path") or "."
    for start in (str(base), "."):  # `path` may be a path from the machine where the set was created
        below = PurePosixPath(start) / entry
        inside = not below.is_absolute() and ".." not in below.parts
        if inside and (path.parent / below).is_dir():
            return path.parent / below
    raise PecoError(f"{path}: {split}: {entry}: no such folder of images below {path.parent}")


def _label_folder(images: Path) -> Path:
    parts = list(images.parts)
    last = max((i for i, part in enumerate(parts) if part == "images"), default=None)
    if last is None:
        raise PecoError(f"{images}: no folder `images` in this path; expected images/… next to labels/…")
    parts[last] = "labels"
    return Path(*parts)


def _read_split(folder: Path, names: _Names) -> RecordedSet:
    images, labels = images_in(folder), _label_folder(folder)
    if not labels.is_dir():
        raise PecoError(f"{labels}: no such folder; expected the label files of the images in {folder}")
    stems = {image.stem: image for image in images}
    if len(stems) < len(images):
        twice = next(image for image in images if stems[image.stem] != image)
        raise PecoError(f"{twice}: two images share the label file {twice.stem}.txt; rename one")
    for file in sorted(labels.glob("*.txt")):
        if file.stem not in stems and file.name != "classes.txt":
            raise PecoError(f"{file}: there is no image {file.stem} in {folder}; add it or remove the labels")
    sizes = {image: image_size(image, str(image)) for image in images}
    objects = {image: _read_labels(labels / f"{image.stem}.txt", size, names) for image, size in sizes.items()}
    has_masks = have_masks(a for found in objects.values() for a in found)
    skipped: Counter[str] = Counter()
    records = [make_record(image, sizes[image], objects[image], has_masks, skipped) for image in images]
    return RecordedSet(str(labels), names.classes, has_masks, records, skipped)


def _read_labels(file: Path, size: tuple[int, int], names: _Names) -> list[Annotation]:
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        raise PecoError(f"{file}: can't be read ({error}); expected lines of numbers") from None
    return [_parse(line, f"{file}: line {n}", size, names) for n, line in enumerate(lines, start=1) if line.strip()]


def _parse(line: str, origin: str, size: tuple[int, int], names: _Names) -> Annotation:
    try:
        number, *values = map(float, line.split())
        finite = all(map(math.isfinite, values))
    except ValueError:
        finite = False
    if not finite:
        raise PecoError(f"{origin}: {line.strip()!r} is not a line of numbers; fix it")
    if number not in names.index:
        raise PecoError(f"{origin}: class {number:g} is not among the names of {names.path}; add it there or fix it")
    label, (width, height) = names.index[int(number)], size
    if len(values) == 4:
        cx, cy, w, h = values
        box = ((cx - w / 2) * width, (cy - h / 2) * height, (cx + w / 2) * width, (cy + h / 2) * height)
        return Annotation(box, label, False, None, origin)
    if len(values) < 6 or len(values) % 2:
        raise PecoError(f"{origin}: {len(values)} numbers after the class; expected 4, or x y of 3 points and more")
    xs, ys = [x * width for x in values[0::2]], [y * height for y in values[1::2]]
    outline = tuple(value for point in zip(xs, ys, strict=True) for value in point)
    return Annotation((min(xs), min(ys), max(xs), max(ys)), label, False, Polygons((outline,)), origin)
