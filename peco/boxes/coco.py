"""Reader of COCO's JSON: boxes, polygons, run lengths, crowds, and the panoptic form (PNG of segment numbers).

`coco_files.py` describes the layouts. Classes are the JSON's categories in the order of their ids (in a panoptic JSON, the things),
the same in both splits. An object with `iscrowd` is a crowd. The category that Roboflow adds as the parent of all others is no
class.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Set
from pathlib import Path
from typing import Any

from peco.annotations.photos import Photo, annotated_photo
from peco.annotations.splits import divide
from peco.boxes.coco_files import AnnotationFile, ImageFinder, annotation_files
from peco.boxes.records import Annotation, Record, RecordedSet, have_masks, make_record
from peco.boxes.regions import Polygons, Region, Rle, Segment, is_number, parse_outlines, run_lengths
from peco.core.errors import PecoError
from peco.core.parsing import reason


def open_coco(root: Path) -> tuple[RecordedSet, RecordedSet]:
    """Open train and val of a folder in COCO's layout.

    Raises:
        PecoError: the data is wrong; the message names the first problem with its file and value.
    """
    splits = [_Split(root, file) for file in annotation_files(root)]
    for number in splits[0].parents():
        if all(number in split.parents() for split in splits):
            for split in splits:
                split.remove_category(number)
    if len(splits) == 1:
        return _divided(splits[0], root)
    train, val = (split.read(photos, photos.keys()) for split, photos in ((split, split.photos()) for split in splits))
    if train.classes != val.classes:
        first = min(set(train.classes) ^ set(val.classes), default="their order")
        raise PecoError(f"{val.origin}: categories differ from those of {train.origin} ({first}); expected the same")
    return train, val


def _divided(split: _Split, root: Path) -> tuple[RecordedSet, RecordedSet]:
    """Train and val of a JSON for both."""
    photos = split.photos()
    names = {number: photo.path.relative_to(root).as_posix() for number, photo in photos.items()}
    chosen, note = divide(names.values(), str(split.path))
    of_val = {number for number, name in names.items() if name in chosen}
    return split.read(photos, photos.keys() - of_val).noted(note), split.read(photos, of_val)


class _Split:
    """One annotation file, parsed."""

    def __init__(self, root: Path, file: AnnotationFile) -> None:
        self.path, self.folder = file.path, file.path.with_suffix("")
        self._finder = ImageFinder(root, file)
        try:
            content = json.loads(self.path.read_text(encoding="utf-8-sig"))
        except (OSError, ValueError, RecursionError) as error:
            raise PecoError(f"{self.path}: can't be read ({reason(error)}); expected COCO's JSON") from None
        if not isinstance(content, dict):
            raise PecoError(f"{self.path}: is not a JSON object; expected COCO's JSON")
        self.images: list[Any] = _get(content, "images", list, str(self.path))
        self.annotations: list[Any] = _get(content, "annotations", list, str(self.path))
        self.categories: dict[int, Any] = {}
        for entry in _get(content, "categories", list, str(self.path)):
            number = _get(entry, "id", int, f"{self.path}: a category")
            _get(entry, "name", str, f"{self.path}: a category")
            self.categories[number] = entry
        self.notes: list[str] = []

    @property
    def labels(self) -> dict[int, int]:
        """Class index by the id of a category that has objects."""
        things = [number for number in sorted(self.categories) if self.categories[number].get("isthing", 1)]
        return {number: index for index, number in enumerate(things)}

    def parents(self) -> list[int]:
        """Categories without an annotation that others name as their supercategory, and that have none themselves."""
        used = {str(entry.get("category_id")) for entry in self.annotations if isinstance(entry, dict)}
        entries = self.categories.items()
        named = {str(entry.get("supercategory")) for _, entry in entries}
        return [
            number
            for number, entry in entries
            if entry.get("supercategory") == "none" and entry["name"] in named and str(number) not in used
        ]

    def remove_category(self, number: int) -> None:
        """Remove a category that is the parent of the others."""
        name = self.categories.pop(number)["name"]
        self.notes.append(
            f"the category {name} ({number}) has no annotation and is the parent of the others: it is no class"
        )

    def read(self, photos: Mapping[int, Photo], chosen: Set[int]) -> RecordedSet:
        """The set of the chosen images.

        Args:
            photos: all images of the file by id (see `photos`).
            chosen: ids of the images to take.
        """
        labels = self.labels
        by_image: defaultdict[int, list[Annotation]] = defaultdict(list)
        for image_id, annotation in self._objects(photos, labels):
            by_image[image_id].append(annotation)
        has_masks = have_masks(a for objects in by_image.values() for a in objects)
        skipped: Counter[str] = Counter()
        records: list[Record] = [
            make_record(photo, by_image[image_id], has_masks, skipped)
            for image_id, photo in photos.items()
            if image_id in chosen
        ]
        classes = tuple(self.categories[number]["name"] for number in labels)
        return RecordedSet(str(self.path), classes, has_masks, records, skipped, (*self.notes, *self._finder.notes))

    def photos(self) -> dict[int, Photo]:
        """Each image by its id, in the order of the ids."""
        found: dict[int, Photo] = {}
        ids: dict[Path, int] = {}
        for entry in self.images:
            image_id = _get(entry, "id", int, f"{self.path}: an image")
            origin = f"{self.path}: image {image_id}"
            if image_id in found:
                raise PecoError(f"{origin}: listed twice; remove one")
            if entry.get("file_name") is None and isinstance(entry.get("coco_url"), str):  # LVIS has addresses only
                name = entry["coco_url"].partition("://")[2].partition("/")[2]
            else:
                name = _get(entry, "file_name", str, origin)
            path = self._finder.path(name, origin)
            if (other := ids.setdefault(path, image_id)) != image_id:
                raise PecoError(f"{origin}: {path.name} is image {other} too; merge the two, with their annotations")
            found[image_id] = annotated_photo(path, _size(entry, origin), origin)
        return dict(sorted(found.items()))

    def _objects(self, photos: Mapping[int, Photo], labels: Mapping[int, int]) -> Iterator[tuple[int, Annotation]]:
        for number, entry in enumerate(self.annotations):
            image_id = _get(entry, "image_id", int, f"{self.path}: annotation {number}")
            if image_id not in photos:
                raise PecoError(
                    f"{self.path}: annotation {entry.get('id', number)}: there is no image {image_id}; add it or remove "
                    "the annotation"
                )
            size = photos[image_id].size
            if "segments_info" in entry:
                yield from ((image_id, o) for o in self._segments(entry, image_id, size, labels))
            else:
                origin = f"{self.path}: annotation {entry.get('id', number)}"
                yield image_id, self._annotation(entry, _region(entry, size, origin), origin, labels)

    def _segments(
        self, entry: Mapping[str, Any], image_id: int, size: tuple[int, int], labels: Mapping[int, int]
    ) -> Iterator[Annotation]:
        """Read the things of a panoptic annotation."""
        origin = f"{self.path}: image {image_id}"
        png = self.folder / _get(entry, "file_name", str, origin)
        annotated_photo(png, size, origin)
        for segment in _get(entry, "segments_info", list, origin):
            number = _get(segment, "id", int, f"{self.path}: a segment of image {image_id}")
            of_segment = f"{self.path}: segment {number} of image {image_id}"
            self._require_category(segment, of_segment)
            if segment["category_id"] in labels:
                yield self._annotation(segment, Segment(png, number), of_segment, labels)

    def _annotation(
        self, entry: Mapping[str, Any], region: Region | None, origin: str, labels: Mapping[int, int]
    ) -> Annotation:
        self._require_category(entry, origin)
        category = entry["category_id"]
        if category not in labels:
            raise PecoError(
                f"{origin}: category_id {category} has isthing 0, so it has no objects; make it a thing or remove the "
                "annotation"
            )
        box = _get(entry, "bbox", list, origin)
        if len(box) != 4 or not all(map(is_number, box)):
            raise PecoError(f"{origin}: bbox {box!r} is not allowed; expected x, y, width, height in pixels")
        x, y, width, height = map(float, box)
        crowd = bool(entry.get("iscrowd", 0))
        return Annotation((x, y, x + width, y + height), labels[category], crowd, region, origin)

    def _require_category(self, entry: Mapping[str, Any], origin: str) -> None:
        category = _get(entry, "category_id", int, origin)
        if category not in self.categories:
            raise PecoError(f"{origin}: category_id {category} is not among the categories; add it there or fix it")


def _size(entry: Mapping[str, Any], origin: str) -> tuple[int, int] | None:
    """Width and height of an image as annotated; None where they are missing or 0, as some programs write them."""
    if not entry.get("width") and not entry.get("height"):
        return None
    return _get(entry, "width", int, origin), _get(entry, "height", int, origin)


def _region(entry: Mapping[str, Any], size: tuple[int, int], origin: str) -> Region | None:
    """The mask of an object on an image of this width and height, if it has one."""
    segmentation = entry.get("segmentation")
    if not segmentation:
        return None
    try:
        if isinstance(segmentation, list):
            return Polygons(parse_outlines(segmentation))
    except ValueError:
        pass
    if isinstance(segmentation, dict) and isinstance(segmentation.get("counts"), list | str):
        declared = segmentation.get("size")
        if declared != [size[1], size[0]]:
            raise PecoError(
                f"{origin}: a mask of size {declared} (height, width) on an image of {[size[1], size[0]]}; "
                "expected the same"
            )
        return Rle(_counts(segmentation["counts"], size[0] * size[1], origin))
    raise PecoError(f"{origin}: segmentation is neither polygons nor run lengths; fix it")


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
    if isinstance(value, float) and kind is int and value.is_integer():
        value = int(value)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise PecoError(f"{origin}: {key} is {value!r}; expected {kind.__name__}, as COCO's JSON has it")
    return value
