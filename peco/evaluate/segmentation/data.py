"""Reader of folders of images and index masks, and the random crops for training.

Layouts, where `SPLIT` is `train` or `training`, and `val`, `validation` or else `test`:

| images | masks | known from |
|---|---|---|
| `images/SPLIT` | `annotations/SPLIT` | ADE20K |
| `SPLIT/images` | `SPLIT/masks` | |
| `SPLIT` | `SPLITannot` | CamVid |
| `SPLIT` | `SPLIT_labels` | CamVid |

A mask has the same path below its folder as its image, apart from the extension (and an `_L` before it). Each pixel holds the index
of a class; a mask is a grey or palette image of 8 bits or a grey image of 16 bits.

Names of the classes, if any, come from `classes.txt` (line n, from 0, names index n) or from ADE20K's `objectInfo150.txt`, in the
root folder or with the same content in the folder of each split. Without names, the classes are the indices 0 to the highest in the
training masks.

Images with only ignored pixels are left out and counted. All other irregularities are errors.
"""

from __future__ import annotations

import io
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from peco.core.errors import PecoError
from peco.data.images import decode, upright_size
from peco.evaluate.annotated.sets import IGNORE
from peco.sources.archives import is_hidden
from peco.sources.base import IMAGE_EXTENSIONS, extension

LAYOUTS = (
    ("images/{}", "annotations/{}"),
    ("{}/images", "{}/masks"),
    ("{}", "{}annot"),
    ("{}", "{}_labels"),
)
SPLITS = {"train": ("train", "training"), "val": ("val", "validation", "test")}
MASK_EXTENSIONS = ("png", "bmp", "tif", "tiff", "gif")  # lossless ones
MASK_SUFFIX = "_L"
CLASSES_FILE, ADE20K_FILE = "classes.txt", "objectInfo150.txt"
ALL_IGNORED = "every pixel ignored"
MAX_INDEX = 65535
FILL = 128  # grey level beyond the border of an image: the mean that the backbone normalises by
_EXPECTED = (
    "expected images/training and annotations/training, or train and trainannot (or train_labels), "
    "or train/images and train/masks"
)


class MaskFolder:
    """A `SegmentationSet` over files, opened by `open_folder`."""

    def __init__(
        self, pairs: list[tuple[Path, Path]], names: dict[int, str], ignore: int | None, skipped: Counter[str]
    ) -> None:
        self._pairs, self.skipped = pairs, skipped
        kept = [index for index in sorted(names) if index != ignore]
        self.classes = tuple(names[index] for index in kept)
        self._class_of = np.full(MAX_INDEX + 1, IGNORE, dtype=np.int32)
        self._class_of[kept] = np.arange(len(kept))

    def __len__(self) -> int:
        return len(self._pairs)

    def image(self, i: int) -> Image.Image:
        path = self._pairs[i][0]
        try:
            return decode(path.read_bytes())
        except OSError as error:
            raise PecoError(f"{path}: can't be read ({error.strerror}); fix that and run again") from None
        except PecoError as error:
            raise PecoError(f"{path}: {error}; fix or remove it and its mask") from None

    def mask(self, i: int) -> NDArray[np.int32]:
        return self._class_of[_read_mask(self._pairs[i][1])]


def open_folder(root: Path, ignore: int | None) -> tuple[MaskFolder, MaskFolder]:
    """Open the training and validation split of a folder. Every mask is read once as a check.

    Args:
        root: folder in one of the layouts above.
        ignore: index in the masks that is neither trained on nor scored; all other indices must be classes.

    Raises:
        PecoError: the layout is unknown; a split is empty; an image lacks its mask or a mask its image; they differ in size; a
            mask can't be read, isn't an index mask, or holds an index without a class; the splits differ in their classes.
    """
    if not root.is_dir():
        raise PecoError(f"{root}: no such folder; {_EXPECTED}")
    folders = {split: _find_split(root, split) for split in SPLITS}
    pairs = {split: _pair(*found) for split, found in folders.items()}
    used = {split: [_check(image, mask) for image, mask in members] for split, members in pairs.items()}
    names = _read_names(root, [folder for found in folders.values() for folder in found])
    if names is None:
        highest = max((int(i) for found in used["train"] for i in found if i != ignore), default=-1)
        names = {index: str(index) for index in range(highest + 1)}
        unknown = f"the training masks have classes 0 to {highest} only, so the splits differ in their classes"
    else:
        unknown = f"the list of classes has {min(names)} to {max(names)}"
    for split, members in pairs.items():
        for (_, mask), found in zip(members, used[split], strict=True):
            wrong = next((int(i) for i in found if int(i) not in names and i != ignore), None)
            if wrong is not None:
                raise PecoError(
                    f"{mask}: class index {wrong} is out of range, {unknown}; fix the mask or the list, or set "
                    "evaluate.segmentation.ignore to an index that means no class"
                )
    if not set(names) - {ignore}:
        raise PecoError(
            f"{root}: no class is left besides the ignored index {ignore}; fix evaluate.segmentation.ignore"
        )
    train, val = (_keep(pairs[split], used[split], names, ignore, folders[split][1]) for split in SPLITS)
    return train, val


@dataclass(frozen=True)
class Crop:
    """Parameters of a training view: resize to `width` x `height` pixels, crop from (left, top), mirror if `flip`."""

    width: int
    height: int
    left: int
    top: int
    flip: bool


def draw(rng: np.random.Generator, scale: tuple[float, float], width: int, height: int, size: int) -> Crop:
    """Draw scale, position and flip of a training view.

    Args:
        rng: generator of the sample and epoch.
        scale: range of the short side after resizing, in units of `size`.
        width, height: size of the image in pixels.
        size: side of the view in pixels.
    """
    factor, x, y, flip = rng.uniform(*scale), *rng.random(3)
    width, height = resized(width, height, factor * size)
    left, top = int(x * (max(width - size, 0) + 1)), int(y * (max(height - size, 0) + 1))
    return Crop(width, height, left, top, bool(flip < 0.5))


def apply(
    image: Image.Image, mask: NDArray[np.int32], crop: Crop, size: int
) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
    """Apply a crop to an image and its mask (H, W): uint8 (size, size, 3) and int32 (size, size).

    Pixels beyond the right and the lower border are grey and ignored.
    """
    seen = (min(size, crop.width - crop.left), min(size, crop.height - crop.top))
    per_x, per_y = image.width / crop.width, image.height / crop.height
    box = (
        crop.left * per_x,
        crop.top * per_y,
        min((crop.left + seen[0]) * per_x, image.width),
        min((crop.top + seen[1]) * per_y, image.height),
    )
    pixels, labels = Image.new("RGB", (size, size), (FILL,) * 3), Image.new("I", (size, size), IGNORE)
    pixels.paste(image.resize(seen, Image.Resampling.BICUBIC, box=box))
    labels.paste(Image.fromarray(mask).resize(seen, Image.Resampling.NEAREST, box=box))
    if crop.flip:
        pixels, labels = ImageOps.mirror(pixels), ImageOps.mirror(labels)
    return np.asarray(pixels), np.asarray(labels)


def resized(width: int, height: int, short: float) -> tuple[int, int]:
    """Width and height in pixels of an image after resizing its short side to `short`, aspect kept."""
    factor = short / min(width, height)
    return max(1, round(width * factor)), max(1, round(height * factor))


def _find_split(root: Path, split: str) -> tuple[Path, Path]:
    hint = ""
    for name in SPLITS[split]:
        for images, masks in LAYOUTS:
            pair = root / images.format(name), root / masks.format(name)
            if all(folder.is_dir() for folder in pair):
                return pair
            if pair[1].is_dir() and not hint:
                hint = f"{pair[1]} has masks, but there is no {pair[0]}; "
    raise PecoError(f"{root}: no split {split}; {hint}{_EXPECTED}, and the same for val")


def _pair(images: Path, masks: Path) -> list[tuple[Path, Path]]:
    """Images and their masks, sorted by name."""
    found = _files(images, IMAGE_EXTENSIONS)
    mask_of = _files(masks, MASK_EXTENSIONS)
    for key in [key for key in mask_of if key not in found and key.endswith(MASK_SUFFIX)]:
        mask_of.setdefault(key.removesuffix(MASK_SUFFIX), mask_of.pop(key))
    if not found:
        raise PecoError(f"{images}: no image; the split is empty")
    for key, image in found.items():
        if key not in mask_of:
            raise PecoError(f"{image}: no mask {masks / key}.png; add it or remove the image")
    for key, mask in mask_of.items():
        if key not in found:
            raise PecoError(f"{mask}: a mask for a missing image {images / key}; add the image or remove the mask")
    return [(image, mask_of[key]) for key, image in found.items()]


def _files(folder: Path, extensions: tuple[str, ...]) -> dict[str, Path]:
    """Files below a folder by their path without extension, sorted."""
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        below = path.relative_to(folder)
        if extension(path.name) not in extensions or any(map(is_hidden, below.parts)):
            continue
        key = below.with_suffix("").as_posix()
        if key in found:
            raise PecoError(f"{path}: {found[key].name} has the same name; keep one of them")
        found[key] = path
    return found


def _check(image: Path, mask: Path) -> NDArray[np.int64]:
    """Indices that occur in a mask; its size is compared with that of the image."""
    size, labels = upright_size(image), _read_mask(mask)
    if size != labels.shape[::-1]:
        raise PecoError(
            f"{mask}: {labels.shape[1]}x{labels.shape[0]} pixels, but {image.name} has {size[0]}x{size[1]}; "
            "image and mask must be of one size"
        )
    return np.flatnonzero(np.bincount(labels.ravel()))


def _read_mask(path: Path) -> NDArray[np.int64]:
    """Raw indices (H, W)."""
    try:
        with Image.open(io.BytesIO(path.read_bytes()), formats=("PNG", "BMP", "TIFF", "GIF")) as image:
            mode, values = image.mode, np.asarray(image)
    except (Image.DecompressionBombError, OSError, SyntaxError, ValueError) as error:
        raise PecoError(f"{path}: can't be read as a mask ({error}); fix or remove it and its image") from None
    if values.ndim != 2 or mode not in ("1", "L", "P", "I", "I;16", "I;16B"):
        raise PecoError(
            f"{path}: an image of mode {mode}; expected one channel with the index of a class in each pixel"
        )
    indices = values.astype(np.int64)
    for index in (int(indices.min()), int(indices.max())):
        if not 0 <= index <= MAX_INDEX:
            raise PecoError(f"{path}: class index {index} is out of range; expected 0 to {MAX_INDEX}")
    return indices


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
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise PecoError(f"{path}: can't be read ({error}); expected a text of class names") from None
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


def _keep(
    pairs: list[tuple[Path, Path]],
    used: list[NDArray[np.int64]],
    names: dict[int, str],
    ignore: int | None,
    folder: Path,
) -> MaskFolder:
    kept = [pair for pair, found in zip(pairs, used, strict=True) if found.tolist() != [ignore]]
    if not kept:
        raise PecoError(
            f"{folder}: every pixel is to be ignored (evaluate.segmentation.ignore {ignore}); nothing is left"
        )
    skipped = Counter({ALL_IGNORED: len(pairs) - len(kept)} if len(pairs) > len(kept) else {})
    return MaskFolder(kept, names, ignore, skipped)
