"""Reader of COCO's JSON: boxes, polygons, run lengths, crowds, and the panoptic form (PNG of segment numbers).

Layout, where SPLIT is a name that starts with `train` or `val`, such as `train2017`:

    annotations/instances_SPLIT.json    or SPLIT.json, or panoptic_SPLIT.json with annotations/panoptic_SPLIT/*.png
    SPLIT/…                             the images; or images/SPLIT/…, or images/…

If several of these forms exist, the first one is read. Classes are the JSON's categories in the order of their ids (in a panoptic
JSON, the things), the same in both splits. An object with `iscrowd` is a crowd.
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
    Polygons,
    Record,
    RecordedSet,
    Region,
    Rle,
    Segment,
    have_masks,
    image_size,
    make_record,
    require_size,
    run_lengths,
)

_EXPECTED = "expected annotations/instances_train*.json and annotations/instances_val*.json"
_PREFIXES = ("instances_", "", "panoptic_")


def open_coco(root: Path) -> tuple[RecordedSet, RecordedSet]:
    """Open train and val of a folder in COCO's layout.

    Raises:
        PecoError: the data is wrong; the message names the first problem with its file and value.
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
    """JSON file of a split, and the split's full name."""
    files = sorted((root / "annotations").glob("*.json"))
    for prefix in _PREFIXES:
        found = [f for f in files if f.stem.startswith(prefix + split)]
        if len(found) > 1:
            raise PecoError(f"{found[1]}: a second annotation file of {split} next to {found[0].name}; remove one")
        if found:
            return found[0], found[0].stem.removeprefix(prefix)
    raise PecoError(f"{root}: no annotations of the split {split}; {_EXPECTED}")


class _Split:
    """One annotation file, parsed."""

    def __init__(self, root: Path, path: Path, name: str) -> None:
        self.path, self.folder = path, path.with_suffix("")
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise PecoError(f"{path}: can't be read ({error}); expected COCO's JSON") from None
        if not isinstance(content, dict):
            raise PecoError(f"{path}: is not a JSON object; expected COCO's JSON")
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
        has_masks = have_masks(a for objects in by_image.values() for a in objects)
        skipped: Counter[str] = Counter()
        records: list[Record] = [
            make_record(path, size, by_image[image_id], has_masks, skipped) for image_id, (path, size) in sizes.items()
        ]
        return RecordedSet(str(self.path), self.classes, has_masks, records, skipped)

    def _sizes(self) -> dict[int, tuple[Path, tuple[int, int]]]:
        """File and size (width, height) of each image by its id, in the order of the ids."""
        found: dict[int, tuple[Path, tuple[int, int]]] = {}
        folder: Path | None = None
        for entry in self.images:
            image_id = _get(entry, "id", int, f"{self.path}: an image")
            origin = f"{self.path}: image {image_id}"
            if image_id in found:
                raise PecoError(f"{origin}: listed twice; remove one")
            name = _get(entry, "file_name", str, origin)
            if folder is None:
                folder = self._image_folder(name)
            path = folder / name
            size = image_size(path, origin)
            declared = (_get(entry, "width", int, origin), _get(entry, "height", int, origin))
            require_size(path, size, declared, origin)
            found[image_id] = path, size
        return dict(sorted(found.items()))

    def _image_folder(self, name: str) -> Path:
        """Folder of the images: the first candidate that holds the image `name`."""
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
                origin = f"{self.path}: annotation {entry.get('id', number)}"
                region = self._region(entry, sizes[image_id][1], origin)
                yield image_id, self._annotation(entry, region, origin)

    def _segments(self, entry: Mapping[str, Any], image_id: int, size: tuple[int, int]) -> Iterator[Annotation]:
        """Read the things of a panoptic annotation."""
        png = self.folder / _get(entry, "file_name", str, f"{self.path}: image {image_id}")
        require_size(png, image_size(png, f"{self.path}: image {image_id}"), size, f"{self.path}: image {image_id}")
        for segment in _get(entry, "segments_info", list, f"{self.path}: image {image_id}"):
            number = _get(segment, "id", int, f"{self.path}: a segment of image {image_id}")
            origin = f"{self.path}: segment {number} of image {image_id}"
            self._require_category(segment, origin)
            if segment["category_id"] in self.label:
                yield self._annotation(segment, Segment(png, number), origin)

    def _annotation(self, entry: Mapping[str, Any], region: Region | None, origin: str) -> Annotation:
        self._require_category(entry, origin)
        category = entry["category_id"]
        if category not in self.label:
            raise PecoError(
                f"{origin}: category_id {category} has isthing 0, so it has no objects; make it a thing or remove the "
                "annotation"
            )
        box = _get(entry, "bbox", list, origin)
        if len(box) != 4 or not all(map(_is_number, box)):
            raise PecoError(f"{origin}: bbox {box!r} is not allowed; expected x, y, width, height in pixels")
        x, y, width, height = map(float, box)
        crowd = bool(entry.get("iscrowd", 0))
        return Annotation((x, y, x + width, y + height), self.label[category], crowd, region, origin)

    def _require_category(self, entry: Mapping[str, Any], origin: str) -> None:
        category = _get(entry, "category_id", int, origin)
        if category not in self.known:
            raise PecoError(f"{origin}: category_id {category} is not among the categories; add it there or fix it")

    def _region(self, entry: Mapping[str, Any], size: tuple[int, int], origin: str) -> Region | None:
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
                    f"{origin}: a mask of size {declared} (height, width) on an image of {[size[1], size[0]]}; "
                    "expected the same"
                )
            return Rle(_counts(segmentation["counts"], size[0] * size[1], origin))
        raise PecoError(f"{origin}: segmentation is neither polygons nor run lengths; fix it")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _counts(encoded: list[Any] | str, pixels: int, origin: str) -> tuple[int, ...]:
    """Decode run lengths, packed or not, and check that they cover all pixels of the image."""
    try:
        counts = run_lengths(encoded.encode("ascii")) if isinstance(encoded, str) else tuple(encoded)
    except ValueError:
        counts = ()
    if not all(type(count) is int and count >= 0 for count in counts) or sum(counts) != pixels:
        raise PecoError(f"{origin}: the run lengths of its mask don't add up to the image's {pixels} pixels; fix them")
    return counts


def _get(entry: Any, key: str, kind: type, origin: str) -> Any:
    """Get a field of a JSON object.

    Raises:
        PecoError: it is missing or of another type.
    """
    value = entry.get(key) if isinstance(entry, dict) else None
    if not isinstance(value, kind) or isinstance(value, bool):
        raise PecoError(f"{origin}: {key} is {value!r}; expected {kind.__name__}, as COCO's JSON has it")
    return value
