"""Objects annotated in COCO's JSON: boxes, polygons, run lengths, crowds, and its panoptic form (PNG of segment numbers).

Layout, where SPLIT is a name that starts with `train` or `val`, such as `train2017`:

    annotations/instances_SPLIT.json    or SPLIT.json, or panoptic_SPLIT.json with annotations/panoptic_SPLIT/*.png
    SPLIT/…                             the images; or images/SPLIT/…, or images/…

Classes are the JSON's categories in the order of their ids (of a panoptic JSON the things), the same in both splits. An object with
`iscrowd` is a crowd. The first of the forms above that is there counts.
"""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from peco.core.errors import PecoError
from peco.evaluate.detection.records import (
    Annotation,
    Part,
    Polygons,
    Record,
    RecordedSet,
    Region,
    Rle,
    all_or_none,
    image_size,
    make_record,
    require_size,
    run_lengths,
)

_EXPECTED = "expected annotations/instances_train*.json and annotations/instances_val*.json"
_PREFIXES = ("instances_", "", "panoptic_")


def open_coco(root: Path) -> tuple[RecordedSet, RecordedSet]:
    """Train and val of a folder in COCO's layout.

    Raises:
        PecoError: naming the first offence with its file and value.
    """
    splits = {}
    for split in ("train", "val"):
        path, name = _annotation_file(root, split)
        splits[split] = _Split(root, path, name).read()
    train, val = splits["train"], splits["val"]
    if train.classes != val.classes:
        first = min(set(train.classes) ^ set(val.classes), default="their order")
        raise PecoError(f"{val.origin}: categories differ from those of {train.origin} ({first}); expected the same")
    return train, val


def _annotation_file(root: Path, split: str) -> tuple[Path, str]:
    """The JSON of a split, and the split's full name."""
    files = sorted((root / "annotations").glob("*.json"))
    for prefix in _PREFIXES:
        found = [f for f in files if f.stem.startswith(prefix + split)]
        if len(found) > 1:
            raise PecoError(f"{found[1]}: a second annotation file of {split} beside {found[0].name}; remove one")
        if found:
            return found[0], found[0].stem.removeprefix(prefix)
    raise PecoError(f"{root}: no annotations of the split {split}; {_EXPECTED}")


class _Split:
    """One annotation file."""

    def __init__(self, root: Path, path: Path, name: str) -> None:
        self.path, self.folder = path, path.with_suffix("")
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise PecoError(f"{path}: can't be read ({error}); expected COCO's JSON") from None
        if not isinstance(content, dict):
            raise PecoError(f"{path}: holds no object; expected COCO's JSON")
        self.images: list[Any] = _get(content, "images", list, str(path))
        self.annotations: list[Any] = _get(content, "annotations", list, str(path))
        categories: list[Any] = _get(content, "categories", list, str(path))
        names = {
            _get(c, "id", int, f"{path}: a category"): (
                _get(c, "name", str, f"{path}: a category"),
                bool(c.get("isthing", 1)),
            )
            for c in categories
        }
        self.known = set(names)
        things = [number for number in sorted(names) if names[number][1]]
        self.label = {number: i for i, number in enumerate(things)}
        self.classes = tuple(names[number][0] for number in things)
        self.root, self.name = root, name

    def read(self) -> RecordedSet:
        sizes = self._sizes()
        by_image: defaultdict[int, list[Annotation]] = defaultdict(list)
        for image_id, annotation in self._objects(sizes):
            by_image[image_id].append(annotation)
        has_masks = all_or_none(a for objects in by_image.values() for a in objects)
        skipped: Counter[str] = Counter()
        records: list[Record] = [
            make_record(path, size, by_image[image_id], has_masks, skipped) for image_id, (path, size) in sizes.items()
        ]
        return RecordedSet(str(self.path), self.classes, has_masks, records, skipped)

    def _sizes(self) -> dict[int, tuple[Path, tuple[int, int]]]:
        """File, width and height of each image by its id, in the order of the ids."""
        found: dict[int, tuple[Path, tuple[int, int]]] = {}
        folder: Path | None = None
        for entry in self.images:
            image_id = _get(entry, "id", int, f"{self.path}: an image")
            where = f"{self.path}: image {image_id}"
            if image_id in found:
                raise PecoError(f"{where}: listed twice; remove one")
            name = _get(entry, "file_name", str, where)
            if folder is None:
                folder = self._image_folder(name)
            path = folder / name
            size = image_size(path, where)
            declared = (_get(entry, "width", int, where), _get(entry, "height", int, where))
            require_size(path, size, declared, where)
            found[image_id] = path, size
        return dict(sorted(found.items()))

    def _image_folder(self, name: str) -> Path:
        """Where the images are, told by the first."""
        folders = (self.root / self.name, self.root / "images" / self.name, self.root / "images")
        return next((folder for folder in folders if (folder / name).is_file()), folders[0])

    def _objects(self, sizes: Mapping[int, tuple[Path, tuple[int, int]]]) -> Iterator[tuple[int, Annotation]]:
        for number, entry in enumerate(self.annotations):
            image_id = _get(entry, "image_id", int, f"{self.path}: annotation {number}")
            if image_id not in sizes:
                raise PecoError(
                    f"{self.path}: annotation {entry.get('id', number)}: there is no image {image_id}; add it or remove "
                    "the annotation"
                )
            if "segments_info" in entry:
                yield from ((image_id, o) for o in self._segments(entry, image_id, sizes[image_id][1]))
            else:
                where = f"{self.path}: annotation {entry.get('id', number)}"
                region = self._region(entry, sizes[image_id][1], where)
                yield image_id, self._annotation(entry, region, where)

    def _segments(self, entry: Mapping[str, Any], image_id: int, size: tuple[int, int]) -> Iterator[Annotation]:
        """The things of a panoptic annotation."""
        png = self.folder / _get(entry, "file_name", str, f"{self.path}: image {image_id}")
        require_size(png, image_size(png, f"{self.path}: image {image_id}"), size, f"{self.path}: image {image_id}")
        for segment in _get(entry, "segments_info", list, f"{self.path}: image {image_id}"):
            number = _get(segment, "id", int, f"{self.path}: a segment of image {image_id}")
            where = f"{self.path}: segment {number} of image {image_id}"
            self._require_category(segment, where)
            if segment["category_id"] in self.label:
                yield self._annotation(segment, Part(png, number), where)

    def _annotation(self, entry: Mapping[str, Any], region: Region | None, where: str) -> Annotation:
        self._require_category(entry, where)
        category = entry["category_id"]
        if category not in self.label:
            raise PecoError(
                f"{where}: category_id {category} has isthing 0, so it has no objects; make it a thing or remove the "
                "annotation"
            )
        box = _get(entry, "bbox", list, where)
        if len(box) != 4 or not all(map(_is_number, box)):
            raise PecoError(f"{where}: bbox {box!r} is not allowed; expected x, y, width, height in pixels")
        x, y, width, height = map(float, box)
        crowd = bool(entry.get("iscrowd", 0))
        return Annotation((x, y, x + width, y + height), self.label[category], crowd, region, where)

    def _require_category(self, entry: Mapping[str, Any], where: str) -> None:
        category = _get(entry, "category_id", int, where)
        if category not in self.known:
            raise PecoError(f"{where}: category_id {category} is not among the categories; add it there or fix it")

    def _region(self, entry: Mapping[str, Any], size: tuple[int, int], where: str) -> Region | None:
        segmentation = entry.get("segmentation")
        if not segmentation:
            return None
        if isinstance(segmentation, list):
            if all(isinstance(p, list) and len(p) % 2 == 0 and all(map(_is_number, p)) for p in segmentation):
                return Polygons(tuple(tuple(map(float, p)) for p in segmentation))
        elif isinstance(segmentation, dict) and isinstance(segmentation.get("counts"), list | str):
            declared = segmentation.get("size")
            if declared != [size[1], size[0]]:
                raise PecoError(
                    f"{where}: a mask of size {declared} (height, width) on an image of {[size[1], size[0]]}; "
                    "expected the same"
                )
            return Rle(_counts(segmentation["counts"], size[0] * size[1], where))
        raise PecoError(f"{where}: segmentation is neither polygons nor run lengths; fix it")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _counts(found: list[Any] | str, pixels: int, where: str) -> tuple[int, ...]:
    """Run lengths, packed or not, that cover an image of so many pixels."""
    try:
        counts = run_lengths(found.encode("ascii")) if isinstance(found, str) else tuple(found)
    except ValueError:
        counts = ()
    if not all(type(count) is int and count >= 0 for count in counts) or sum(counts) != pixels:
        raise PecoError(f"{where}: the run lengths of its mask don't make up the image's {pixels} pixels; fix them")
    return counts


def _get(entry: Any, key: str, kind: type, where: str) -> Any:
    """A field of a JSON object.

    Raises:
        PecoError: it is missing or of another type.
    """
    value = entry.get(key) if isinstance(entry, dict) else None
    if not isinstance(value, kind) or isinstance(value, bool):
        raise PecoError(f"{where}: {key} is {value!r}; expected {kind.__name__}, as COCO's JSON has it")
    return value
