"""The files of a set in YOLO's format: `data.yaml` with the names of the classes, and the images of each split with their labels.

Layout:

    data.yaml (or another name)   names: a list, or numbers to names (gaps allowed); train, val: see below; kpt_shape: key points
    images/SPLIT/NAME.jpg         also in folders below
    labels/SPLIT/NAME.txt         the same path with the last `images` replaced by `labels`; or NAME.txt next to the image

`train` and `val` (or `valid`, `validation`, else `test`) are a folder, a text file that lists images, or a list of these. They are
relative to `path`, to the folder of data.yaml or, as Roboflow writes them (`../train/images`), to a folder beside it that doesn't
exist; those of another machine are found by their last folders. Nothing outside the folder of data.yaml is read.

Without data.yaml: `classes.txt` or `obj.names` (line n, from 0, names number n) and images at any depth. Splits are those of the
lists `train.txt` and `valid.txt` at the top, else the folders' words or, if there are none, a division by hash.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from peco.annotations.photos import files_below, images_below
from peco.annotations.splits import divide, split_list, split_of
from peco.core.errors import PecoError
from peco.core.parsing import YAML_ERRORS, reason
from peco.files.names import IMAGE_EXTENSIONS, extension

_FILES = ("data.yaml", "data.yml", "config.yaml", "config.yml", "dataset.yaml", "dataset.yml")
_NAMES = ("classes.txt", "obj.names")
_VAL = ("val", "valid", "validation", "test")
# Texts next to images that are no labels.
_OTHER_TEXTS = ("classes.txt", "notes.txt", "train.txt", "val.txt", "valid.txt", "test.txt", "labels.txt")


@dataclass(frozen=True)
class Names:
    """Names of the classes, and the class index by number in label files."""

    classes: tuple[str, ...]
    index: dict[int, int]
    path: Path


@dataclass(frozen=True)
class SplitFiles:
    """The images of a split with the paths of their labels, which may be missing.

    Attributes:
        origin: folder of the labels, for messages.
        labels: by image.
        notes: sentences on how they were found.
    """

    origin: Path
    labels: dict[Path, Path]
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class YoloFiles:
    """A set in YOLO's format; `key_points` is the number of values of the key points in a line, None without them."""

    names: Names
    key_points: int | None
    train: SplitFiles
    val: SplitFiles


def find_files(root: Path) -> YoloFiles:
    """Find the files of a set.

    Raises:
        PecoError: data.yaml or the files that it names are missing or wrong.
    """
    path = next((root / name for name in _FILES if (root / name).is_file()), None)
    others = sorted(file for file in root.iterdir() if file.suffix.lower() in (".yaml", ".yml"))
    if path is None and len(others) == 1:
        path = others[0]
    if path is None:
        return _without_yaml(root)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except (OSError, *YAML_ERRORS) as error:
        raise PecoError(f"{path}: can't be read ({reason(error)}); expected YAML") from None
    if not isinstance(content, dict):
        raise PecoError(f"{path}: holds no keys; expected `names`, `train` and `val`")
    names, key_points = _names(content, path), _key_points(content, path)
    train, val = (_split_files(content, path, split) for split in ("train", "val"))
    return YoloFiles(names, key_points, train, val)


def _names(content: Mapping[str, Any], path: Path) -> Names:
    found = content.get("names")
    if isinstance(found, list):
        found = dict(enumerate(found))
    if not isinstance(found, dict) or not found or not all(type(number) is int for number in found):
        raise PecoError(f"{path}: names is {_short(found)}; expected a list of names, or numbers to names")
    if wrong := next((name for name in found.values() if not isinstance(name, str | int | float)), None):
        raise PecoError(f"{path}: names has {_short(wrong)}; expected a name for each number")
    count = content.get("nc", len(found))
    if count != len(found):
        raise PecoError(f"{path}: nc is {_short(count)}, but there are {len(found)} names; fix one")
    numbers = sorted(found)
    return Names(tuple(str(found[n]) for n in numbers), {n: i for i, n in enumerate(numbers)}, path)


def _key_points(content: Mapping[str, Any], path: Path) -> int | None:
    """Number of values of the key points in a line; None if the set has none."""
    shape = content.get("kpt_shape")
    if shape is None:
        return None
    if not (isinstance(shape, list) and len(shape) == 2 and all(type(n) is int and 0 < n < 1000 for n in shape)):
        raise PecoError(
            f"{path}: kpt_shape is {_short(shape)}; expected the number of key points and of values for each, [17, 3]"
        )
    return int(shape[0] * shape[1])


def _short(value: object) -> str:
    return repr(value)[:100]


def _split_files(content: Mapping[str, Any], path: Path, split: str) -> SplitFiles:
    key = next((key for key in (_VAL if split == "val" else (split,)) if content.get(key) is not None), split)
    entries = content.get(key)
    entries = entries if isinstance(entries, list) else [entries]
    if not entries or not all(isinstance(entry, str) and entry for entry in entries):
        raise PecoError(f"{path}: {key} is {_short(content.get(key))}; expected a folder of images below {path.parent}")
    base = str(content.get("path") or ".")
    labels: dict[Path, Path] = {}
    places = [_find(path, base, entry, key) for entry in entries]
    for place in places:
        if place.is_dir():
            labels |= _labels(path.parent, place, images_below(place))
        else:
            labels |= _labels_of_list(path.parent, _listed(path, base, place))
    notes = [f"{path.name} names no val: test is used as val"] if key == "test" else []
    return SplitFiles(_label_folder(path.parent, places[0]) or places[0], labels, notes)


def _find(path: Path, base: str, entry: str, key: str) -> Path:
    """The folder or list that an entry of data.yaml names, inside the set.

    `path` may be one of the machine where the set was created, and so may be the entry. Roboflow's entries begin with `..`.
    """
    root = path.parent
    places = [_parts(base) + _parts(entry), _parts(entry)]
    for parts in places:
        if ".." not in parts and os.path.exists(root.joinpath(*parts)):
            return root.joinpath(*parts)
    parts = [part for part in _parts(entry) if part != ".."]
    for start in range(len(parts)):
        if os.path.exists(root.joinpath(*parts[start:])):
            return root.joinpath(*parts[start:])
    raise PecoError(f"{path}: {key}: {entry[:200]}: no such folder of images below {root}")


def _parts(name: str) -> list[str]:
    """Parts of a path of any system, without its root."""
    parts = PurePosixPath(name.replace("\\", "/")).parts
    return [part for part in parts if part not in ("/", ".") and not part.endswith(":")]


def _listed(path: Path, base: str, file: Path) -> list[Path]:
    """The images that a text file lists, relative to it, to `path` or to the folder of data.yaml."""
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise PecoError(f"{file}: can't be read ({reason(error)}); expected a list of images") from None
    images = []
    for number, line in enumerate(lines, start=1):
        beside = file.parent.joinpath(*_parts(line))
        inside = ".." not in _parts(line) and os.path.isfile(beside)
        image = beside if inside else _find(path, base, line, f"{file.name}, line {number}")
        if not image.is_file() or extension(image.name) not in IMAGE_EXTENSIONS:
            raise PecoError(f"{file}: line {number}: {line[:200]} is not an image")
        images.append(image)
    if not images:
        raise PecoError(f"{file}: lists no image; expected one per line")
    return images


def _label_folder(root: Path, images: Path) -> Path | None:
    """The folder of the labels of a folder of images; None if its path below the root has no `images`."""
    parts = list(images.relative_to(root).parts)
    last = max((i for i, part in enumerate(parts) if part.lower() == "images"), default=None)
    if last is None:
        return None
    parts[last] = "Labels" if root.joinpath(*parts[:last], "Labels").is_dir() else "labels"
    return root.joinpath(*parts)


def _labels(root: Path, place: Path, images: list[Path]) -> dict[Path, Path]:
    """The label file of each image of a folder, which may be missing.

    Raises:
        PecoError: there is no label at all, two images have the same, or one has no image.
    """
    folder = _label_folder(root, place)
    beside = not (folder and folder.is_dir()) and any(image.with_suffix(".txt").is_file() for image in images)
    if beside:
        folder = place
    elif folder is None:
        raise PecoError(
            f"{place}: no labels next to the images, and no folder `images` in this path; expected labels in one of both"
        )
    elif not folder.is_dir():
        raise PecoError(f"{folder}: no such folder; expected the label files of the images in {place}")
    labels = {image: folder / image.relative_to(place).with_suffix(".txt") for image in images}
    of_label = {label: image for image, label in labels.items()}
    if twice := next((image for image, label in labels.items() if of_label[label] != image), None):
        raise PecoError(f"{twice}: two images share the label file {twice.stem}.txt; rename one")
    for file in files_below(folder):
        other = file.name.lower() in _OTHER_TEXTS or file.name.lower().startswith("readme")
        if file.suffix == ".txt" and file not in of_label and not other:
            raise PecoError(f"{file}: there is no image {file.stem} in {place}; add it or remove the labels")
    return labels


def _labels_of_list(root: Path, images: list[Path]) -> dict[Path, Path]:
    """The label file of each image of a list. Labels of other images in the same folders are not missed."""
    labels: dict[Path, Path] = {}
    for parent in sorted({image.parent for image in images}):
        folder = _label_folder(root, parent)
        if folder is None or not folder.is_dir():
            folder = parent
        labels |= {image: folder / f"{image.stem}.txt" for image in images if image.parent == parent}
    if not any(label.is_file() for label in labels.values()):
        raise PecoError(f"{images[0].parent}: no label file of any image in the list; expected labels/NAME.txt")
    return labels


def _without_yaml(root: Path) -> YoloFiles:
    """A set with a list of names only, as labelImg and Label Studio write it."""
    path = next((root / name for name in _NAMES if (root / name).is_file()), None)
    if path is None:
        raise PecoError(
            f"{root}: no data.yaml or config.yaml; expected one with `names`, `train` and `val`, or classes.txt"
        )
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise PecoError(f"{path}: can't be read ({reason(error)}); expected a name per line") from None
    classes = tuple(line for line in lines if line)
    images = images_below(root)
    if not classes or not images:
        raise PecoError(f"{path if images else root}: no {'name of a class' if images else 'image'}; the set is empty")
    names = Names(classes, {n: n for n in range(len(classes))}, path)
    lists = [split_list(root, split) for split in ("train", "val")]
    if None not in lists:
        train, val = (SplitFiles(file, _labels_of_list(root, _listed(path, ".", file))) for file in lists if file)
        return YoloFiles(names, None, train, val)
    labels = _labels_of_list(root, images)
    splits: dict[str, dict[Path, Path]] = {"train": {}, "val": {}, "test": {}}
    for image, label in labels.items():
        words = [split_of(part) for part in image.relative_to(root).parts[:-1]]
        splits[next((word for word in words if word), "train")][image] = label
    notes = []
    if not splits["val"] and splits["test"]:
        splits["val"] = splits["test"]
        notes.append("there is no val: test is used as val")
    if not splits["val"] or not splits["train"]:
        of_val, note = divide((image.relative_to(root).as_posix() for image in labels), str(root))
        notes = [note]
        for split in ("train", "val"):
            splits[split] = {
                i: f for i, f in labels.items() if (i.relative_to(root).as_posix() in of_val) == (split == "val")
            }
    return YoloFiles(names, None, SplitFiles(root, splits["train"], notes), SplitFiles(root, splits["val"]))
