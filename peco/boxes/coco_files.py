"""The files of a set in COCO's format: one JSON per split, and the folder of the images that it names.

Layout, where SPLIT is a word for a split, such as `train`, `val2017` or `valid`, in any capitals:

    annotations/instances_SPLIT.json    or SPLIT.json, or panoptic_SPLIT.json with annotations/panoptic_SPLIT/*.png
    SPLIT/_annotations.coco.json        next to the images, as Roboflow exports it, or another single JSON there
    instances_SPLIT.json                or SPLIT.json, at the top
    annotations/instances_default.json  or another single JSON there or at the top: a set without splits

If several of these forms exist, the first one is read. A `file_name` is looked for in SPLIT/, images/SPLIT/, other folders of the
split (`train2017`), images/, at the top, and next to the JSON; if it is nowhere there, without its first folders, which may be
those of another machine.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from peco.annotations.photos import find_folder
from peco.annotations.splits import split_folder, split_of
from peco.core.errors import PecoError
from peco.files.words import plain_split, words

PREFIXES = ("instances_", "", "panoptic_")
OTHER_KINDS = {"captions", "keypoints", "stuff", "info"}  # of COCO's own files, which hold no boxes of all classes
ROBOFLOW = "_annotations.coco.json"
_EXPECTED = (
    "expected annotations/instances_train*.json and annotations/instances_val*.json, or train/_annotations.coco.json and "
    "valid/_annotations.coco.json, or a single JSON"
)


@dataclass(frozen=True)
class AnnotationFile:
    """One JSON; `split` is its split in the words of the set, such as `train2017`, or empty if it has none."""

    path: Path
    split: str


def annotation_files(root: Path) -> list[AnnotationFile]:
    """The JSON of train and that of val, or a single one for both.

    Raises:
        PecoError: a split has no JSON, or several of one form.
    """
    found = [_file_of(root, split) for split in ("train", "val")]
    train, val = found
    if train is not None and val is not None:
        return [train, val]
    single = [path for folder in (find_folder(root, "annotations"), root) for path in _jsons(folder)]
    if val is None and len(single) == 1 and (train is None or "trainval" in words(single[0].stem)):
        name = single[0].stem
        return [AnnotationFile(single[0], "default" if name.lower().endswith("default") else "")]
    names = f" (there is {', '.join(sorted(path.name for path in single))})" if single else ""
    raise PecoError(f"{root}: no annotations of the split {'val' if train else 'train'}{names}; {_EXPECTED}")


class ImageFinder:
    """Paths of the images that a JSON names. The first name decides where all of them are.

    Args:
        root: folder of the set.
        file: the JSON.

    Attributes:
        notes: a sentence, if the first folders of the names are left out.
    """

    def __init__(self, root: Path, file: AnnotationFile) -> None:
        images = find_folder(root, "images") or root / "images"
        split = find_folder(root, file.split) if file.split else None
        word = split_of(file.split)
        places = [
            split or root / (file.split or "images"),
            find_folder(images, file.split) if file.split else None,
            *((split_folder(root, word), split_folder(images, word)) if word else ()),
            images,
        ]
        places += [root, file.path.parent, find_folder(root, "data"), find_folder(root, "JPEGImages")]
        self._places = [place for place in places if place is not None]
        self._found: tuple[Path, int] | None = None
        self.notes: list[str] = []

    def path(self, name: str, origin: str) -> Path:
        """Path of an image, which may be missing.

        Raises:
            PecoError: the name leads out of the set.
        """
        parts = [
            part for part in PurePosixPath(name.replace("\\", "/")).parts if part != "/" and not part.endswith(":")
        ]
        if self._found is None:
            self._found = next(
                (
                    (place, start)
                    for start in range(len(parts))
                    for place in self._places
                    if ".." not in parts[start:] and os.path.isfile(place.joinpath(*parts[start:]))
                ),
                (self._places[0], 0),
            )
            if start := self._found[1]:
                self.notes.append(f"file names are read without their first folders, {'/'.join(parts[:start])}")
        place, start = self._found
        rest = parts[start:]
        if not rest or ".." in rest:
            raise PecoError(f"{origin}: file_name {name!r} leads out of the folder of the set; name images inside it")
        return place.joinpath(*rest)


def _file_of(root: Path, split: str) -> AnnotationFile | None:
    if file := _named(_jsons(find_folder(root, "annotations")), split):
        return file
    if folder := split_folder(root, split):
        paths = _jsons(folder)
        path = next((path for path in paths if path.name.lower() == ROBOFLOW), paths[0] if len(paths) == 1 else None)
        if path is not None:
            return AnnotationFile(path, folder.name)
        if paths:
            raise PecoError(f"{paths[1]}: a second JSON of {split} next to {paths[0].name}; remove one")
    return _named(_jsons(root), split)


def _named(paths: list[Path], split: str) -> AnnotationFile | None:
    """The file whose name is that of the split after one of the prefixes, or else the one whose name contains it."""
    for wanted in (split, "test") if split == "val" else (split,):
        for prefix in (*PREFIXES, None):
            if prefix is None:
                found = [
                    path for path in paths if split_of(path.stem) == wanted and not set(words(path.stem)) & OTHER_KINDS
                ]
            else:
                names = {path: path.stem[len(prefix) :] for path in paths if path.stem.lower().startswith(prefix)}
                found = [path for path, name in names.items() if plain_split(name) == wanted]
            if len(found) > 1:
                raise PecoError(f"{found[1]}: a second annotation file of {wanted} next to {found[0].name}; remove one")
            if found:
                return AnnotationFile(found[0], found[0].stem[len(prefix or "") :])
    return None


def _jsons(folder: Path | None) -> list[Path]:
    """Visible JSON files in a folder, sorted."""
    if folder is None or not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.suffix.lower() == ".json" and not path.name.startswith("."))
