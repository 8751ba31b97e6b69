"""Reader of images and masks of class indices. `files.py` describes the layouts.

Each pixel of a mask holds the index of a class; a mask is a grey or palette image of 8 bits, a grey image of 16 bits, or an RGB
image whose channels are equal.

Names of the classes, if any, come from `classes.txt` (line n, from 0, names index n) or from ADE20K's `objectInfo150.txt`, in the
root folder or with the same content in the folder of each split. Without names, the classes are the indices that occur in the
training masks, called by their numbers: masks of 0 and 255 have two classes.

Images with only ignored pixels are left out and counted. All other irregularities are errors.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from peco.annotations.photos import Photo, annotated_photo, rotation_notes, unwrapped
from peco.annotations.sets import IGNORE
from peco.core.errors import PecoError
from peco.core.parsing import reason
from peco.data.images import DAMAGE, check_size, image_reason
from peco.masks.files import SplitFiles, find_files

CLASSES_FILE, ADE20K_FILE = "classes.txt", "objectInfo150.txt"
ALL_IGNORED = "every pixel ignored"
MAX_INDEX = 65535
_FORMATS = ("PNG", "BMP", "TIFF", "GIF")
_SHOWN = 12  # indices in a message
_MANY = 40  # classes without a list of names, beyond which they may be shades of grey


class MaskFolder:
    """A `SegmentationSet` over files, opened by `open_folder`."""

    def __init__(
        self,
        pairs: list[tuple[Photo, Path]],
        names: dict[int, str],
        ignore: int | None,
        skipped: Counter[str],
        notes: Iterable[str],
    ) -> None:
        self._pairs, self.skipped, self.notes = pairs, skipped, tuple(notes)
        kept = [index for index in sorted(names) if index != ignore]
        self.classes = tuple(names[index] for index in kept)
        self._class_of = np.full(MAX_INDEX + 1, IGNORE, dtype=np.int32)
        self._class_of[kept] = np.arange(len(kept))

    def __len__(self) -> int:
        return len(self._pairs)

    def image(self, i: int) -> Image.Image:
        return self._pairs[i][0].read()

    def mask(self, i: int) -> NDArray[np.int32]:
        return self._class_of[read_mask(self._pairs[i][1])]


def open_folder(root: Path, ignore: int | None) -> tuple[MaskFolder, MaskFolder]:
    """Open the training and validation split of a folder. Every mask is read once as a check.

    Args:
        root: folder in one of the layouts of `files.py`.
        ignore: index in the masks that is neither trained on nor scored; all other indices must be classes.

    Raises:
        PecoError: the layout is unknown; a split is empty; an image lacks its mask or a mask its image; they differ in size; a
            mask can't be read, isn't an index mask, or holds an index without a class; the splits differ in their classes.
    """
    if not root.is_dir():
        raise PecoError(f"{root}: no such folder; evaluate.segmentation.path must name one with images and masks")
    root = unwrapped(root)
    *files, given = find_files(root)
    splits = [_Split(split) for split in files]
    names = _read_names(root, [folder for split in files for folder in _places(split)])
    if names is None:
        used = [index for split in (splits if not given else splits[:1]) for index in split.indices if index != ignore]
        names = {index: str(index) for index in sorted(set(used))}
        unknown = f"the training masks have classes {_ranges(names)} only, so the splits differ in their classes"
        notes = _gaps(names, ignore)
    else:
        unknown, notes = f"the list of classes has {min(names)} to {max(names)}", []
    for split in splits:
        split.require_known(names, ignore, unknown)
    if not set(names) - {ignore}:
        raise PecoError(
            f"{root}: no class is left besides the ignored index {ignore}; fix evaluate.segmentation.ignore"
        )
    train, val = (split.kept(names, ignore, notes if number == 0 else []) for number, split in enumerate(splits))
    return train, val


class _Split:
    """A split whose masks have been read: `used` has the indices that occur in each."""

    def __init__(self, files: SplitFiles) -> None:
        self.files = files
        self.photos: list[Photo] = []
        self.used: list[list[int]] = []
        for image, mask in files.pairs:
            labels = read_mask(mask)
            self.photos.append(annotated_photo(image, (labels.shape[1], labels.shape[0]), str(mask)))
            self.used.append(_occurring(labels))

    @property
    def indices(self) -> set[int]:
        """All indices that occur."""
        return {index for found in self.used for index in found}

    def require_known(self, names: dict[int, str], ignore: int | None, unknown: str) -> None:
        """Check that all indices are classes or ignored.

        Raises:
            PecoError: naming the first mask with another one.
        """
        for (_, mask), found in zip(self.files.pairs, self.used, strict=True):
            wrong = next((index for index in found if index not in names and index != ignore), None)
            if wrong is not None:
                raise PecoError(
                    f"{mask}: class index {wrong} is out of range, {unknown}; fix the mask or the list, or set "
                    "evaluate.segmentation.ignore to an index that means no class"
                )

    def kept(self, names: dict[int, str], ignore: int | None, notes: list[str]) -> MaskFolder:
        """The set without images whose pixels are all ignored.

        Raises:
            PecoError: none is left.
        """
        pairs = [
            (photo, mask)
            for photo, (_, mask), found in zip(self.photos, self.files.pairs, self.used, strict=True)
            if found != [ignore]
        ]
        if not pairs:
            raise PecoError(
                f"{self.files.masks}: every pixel is to be ignored (evaluate.segmentation.ignore {ignore}); nothing is left"
            )
        skipped = Counter({ALL_IGNORED: len(self.used) - len(pairs)} if len(self.used) > len(pairs) else {})
        notes = [*self.files.notes, *notes, *rotation_notes(photo for photo, _ in pairs)]
        return MaskFolder(pairs, names, ignore, skipped, notes)


def _places(split: SplitFiles) -> tuple[Path, Path]:
    return split.masks, split.masks.parent


def _gaps(names: Iterable[int], ignore: int | None) -> list[str]:
    """Sentences on indices that may be shades of grey, and on numbers up to the highest index that occur in no training mask."""
    found = sorted(names)
    missing = sorted(set(range(max(found, default=0))) - {*found, ignore})
    notes = []
    if len(found) > _MANY and 255 in found:
        notes.append(
            f"warning: {len(found)} indices up to 255 occur, as in masks that were resized with smoothing: use the originals"
        )
    if not missing:
        return notes
    notes += [
        f"the classes are the {len(found)} indices that occur in the training masks, {_ranges(found)}; {_ranges(missing)} are none"
    ]
    if found[-1] == 255 and len(found) > 2:
        notes.append("if 255 means no class, set evaluate.segmentation.ignore=255")
    return notes


def _ranges(indices: Iterable[int]) -> str:
    """Indices for a message: `0 to 18, 255`."""
    parts: list[list[int]] = []
    for index in sorted(indices):
        if parts and index == parts[-1][-1] + 1:
            parts[-1][1:] = [index]
        else:
            parts.append([index])
    texts = [" to ".join(map(str, part)) for part in parts]
    return ", ".join(texts[:_SHOWN]) + (" …" if len(texts) > _SHOWN else "") if texts else "none"


def read_mask(path: Path) -> NDArray[np.int32]:
    """Raw indices (H, W) of a mask.

    Raises:
        PecoError: it can't be read, has colours, or an index is out of range.
    """
    try:
        with Image.open(io.BytesIO(path.read_bytes()), formats=_FORMATS) as image:
            check_size(image)
            mode, values = image.mode, np.asarray(image)
    except (PecoError, *DAMAGE) as error:
        raise PecoError(
            f"{path}: can't be read as a mask ({image_reason(error)}); fix or remove it and its image"
        ) from None
    if mode in ("RGB", "RGBA", "LA") and _is_grey(values[..., : 3 if mode != "LA" else 1]):
        mode, values = "L", values[..., 0]
    if values.ndim != 2 or mode not in ("1", "L", "P", "I", "I;16", "I;16B"):
        raise PecoError(
            f"{path}: an image of mode {mode}; expected one channel with the index of a class in each pixel; "
            "convert colours to indices first"
        )
    indices = values.astype(np.int32)
    for index in (int(indices.min()), int(indices.max())):
        if not 0 <= index <= MAX_INDEX:
            raise PecoError(f"{path}: class index {index} is out of range; expected 0 to {MAX_INDEX}")
    return indices


def _is_grey(channels: NDArray[np.uint8]) -> bool:
    """True if the channels (H, W, C) are equal."""
    return bool((channels == channels[..., :1]).all())


def _occurring(labels: NDArray[np.int32]) -> list[int]:
    """The indices that occur, sorted."""
    found = np.zeros(MAX_INDEX + 1, dtype=np.bool_)
    found[labels] = True
    return [int(index) for index in np.flatnonzero(found)]


def _read_names(root: Path, folders: list[Path]) -> dict[int, str] | None:
    """Names of the classes by index, from one list or several equal ones; None if there is no list."""
    places = dict.fromkeys([root, *(parent for folder in folders for parent in (folder, folder.parent))])
    lists = {
        place / file: _read_list(place / file)
        for place in places
        for file in (CLASSES_FILE, ADE20K_FILE)
        if (place / file).is_file()
    }
    if not lists:
        return None
    first, names = next(iter(lists.items()))
    for path, others in lists.items():
        if differing := [i for i in sorted(names.keys() | others.keys()) if names.get(i) != others.get(i)]:
            i = differing[0]
            raise PecoError(
                f"{path}: class {i} is {others.get(i)!r}, but {names.get(i)!r} in {first}; the lists must be equal"
            )
    return names


def _read_list(path: Path) -> dict[int, str]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise PecoError(f"{path}: can't be read ({reason(error)}); expected a text of class names") from None
    names: dict[int, str] = {}
    if path.name == ADE20K_FILE:
        rows = [line.split("\t") for line in lines[1:] if line.strip()]
        if not all(row[0].strip().isdecimal() for row in rows):
            raise PecoError(f"{path}: not a table with the index first and the name last; fetch it again")
        names = {int(row[0]): row[-1].strip() for row in rows}
    else:
        while lines and not lines[-1].strip():
            lines.pop()
        names = {index: line.strip() for index, line in enumerate(lines)}
    twice = [name for name, count in Counter(names.values()).items() if count > 1]
    if not names or "" in names.values() or twice or max(names) > MAX_INDEX:
        what = f"the name {twice[0]!r} twice" if twice else "no names, or a line without one"
        raise PecoError(f"{path}: {what}; expected one name per line, each once")
    return names
