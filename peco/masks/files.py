"""The files of a set for segmentation: images with a mask each, by split.

Layouts, in any capitals, where SPLIT is a word for a split, such as `training`, `valid` or `train2017`:

| images | masks | known from |
|---|---|---|
| `IMAGES/SPLIT` | `MASKS/SPLIT` | ADE20K, mmsegmentation, Cityscapes |
| `SPLIT/IMAGES` | `SPLIT/MASKS` | |
| `SPLIT` | `SPLITannot`, `SPLIT_labels`, `SPLIT_masks` | CamVid, Carvana |
| `JPEGImages` | `SegmentationClass`, with `ImageSets/Segmentation/SPLIT.txt` | Pascal VOC |
| `IMAGES` | `MASKS` | a set without splits: divided by hash |

IMAGES is `images`, `img_dir`, `leftImg8bit` and the like, MASKS `annotations`, `ann_dir`, `masks`, `labels`, `gtFine` and the like.
A mask has the same path below its folder as its image, apart from the extension and a suffix (`_mask`, `_L`,
`_gtFine_labelTrainIds`).
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from peco.annotations.photos import by_stem, files_below, find_folder
from peco.annotations.splits import divide, split_folder, split_of
from peco.core.errors import PecoError
from peco.files.names import IMAGE_EXTENSIONS, extension
from peco.files.words import plain_split

IMAGES = ("images", "img_dir", "leftImg8bit", "JPEGImages", "image", "imgs", "img")
MASKS = (
    *("annotations", "ann_dir", "masks", "labels", "gtFine", "SegmentationClass"),
    *("annotation", "mask", "label", "gt", "segmentations", "mask_dir"),
)
BESIDE = (
    "annot",
    "_labels",
    "_masks",
    "_mask",
    "_label",
    "_annotations",
)  # what follows SPLIT in the folder of its masks
MASK_EXTENSIONS = ("png", "bmp", "tif", "tiff", "gif")  # lossless ones
# Of masks, the first that occurs in a folder: other files there are pictures of them, or other annotations.
SUFFIXES = (
    "_gtFine_labelTrainIds",
    "_gtFine_labelIds",
    "_labelTrainIds",
    "_mask",
    "_L",
    "_label",
    "_labels",
    "_seg",
    "_gt",
)
IMAGE_SUFFIX = "_leftImg8bit"
_EXPECTED = (
    "expected images/training and annotations/training (also img_dir and ann_dir, masks or labels), train/images and train/masks, "
    "or train and trainannot (train_labels, train_masks)"
)


@dataclass(frozen=True)
class SplitFiles:
    """The images of a split and their masks.

    Attributes:
        masks: folder of the masks, for messages and for lists of classes.
        pairs: image and mask, sorted by name.
        notes: sentences on how the split was found.
    """

    masks: Path
    pairs: list[tuple[Path, Path]]
    notes: list[str] = field(default_factory=list)


def find_files(root: Path) -> tuple[SplitFiles, SplitFiles, bool]:
    """Files of train and val, and True if the splits are those of the set, False if they were divided here.

    Raises:
        PecoError: no layout fits, a split is empty, an image lacks its mask or a mask its image.
    """
    if lists := find_folder(find_folder(root, "ImageSets") or root, "Segmentation"):
        train_files, val_files = (_listed(root, lists / f"{split}.txt") for split in ("train", "val"))
        return train_files, val_files, True
    hint: list[str] = []
    found = {split: _find_split(root, split, hint) for split in ("train", "val")}
    train, val = found["train"], found["val"]
    if train and val:
        return SplitFiles(train[1], _pairs(*train)), SplitFiles(val[1], _pairs(*val), _unused(val[0])), True
    images, masks = find_folder(root, *IMAGES), find_folder(root, *MASKS)
    if not train and not val and images and masks and not hint:
        pairs = {image.relative_to(images).as_posix(): (image, mask) for image, mask in _pairs(images, masks)}
        of_val, note = divide(pairs, str(root))
        of_train = [pair for name, pair in pairs.items() if name not in of_val]
        return SplitFiles(masks, of_train, [note]), SplitFiles(masks, [pairs[name] for name in sorted(of_val)]), False
    missing = "val" if train else "train"
    raise PecoError(f"{root}: no split {missing}; {''.join(hint[:1])}{_EXPECTED}, and the same for val")


def _find_split(root: Path, split: str, hint: list[str]) -> tuple[Path, Path] | None:
    """Folders of the images and masks of a split; a `hint` on masks without images is added if there is no split."""
    images, masks = (
        [folder for kind in kinds if (folder := split_folder(find_folder(root, kind), split))]
        for kinds in (IMAGES, MASKS)
    )
    if images and masks:
        return images[0], masks[0]
    if masks:
        hint.append(f"{masks[0]} has masks, but there is no {root / 'images' / masks[0].name}; ")
    folder = split_folder(root, split)
    if folder is None:
        return None
    inner = find_folder(folder, *IMAGES), find_folder(folder, *MASKS)
    if inner[0] and inner[1]:
        return inner[0], inner[1]
    beside = find_folder(root, *(folder.name + ending for ending in BESIDE))
    return (folder, beside) if beside else None


def _listed(root: Path, path: Path) -> SplitFiles:
    """A split of Pascal VOC: the images and masks that a list names."""
    images, masks = find_folder(root, *IMAGES), find_folder(root, *MASKS)
    if images is None or masks is None:
        raise PecoError(
            f"{root}: no folder JPEGImages or SegmentationClass; expected both next to {path.parent.parent.name}"
        )
    try:
        names = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise PecoError(f"{path}: can't be read ({error}); expected the names of the split's images") from None
    files = by_stem(_files(images, IMAGE_EXTENSIONS), images), by_stem(_files(masks, MASK_EXTENSIONS), masks)
    for name in names:
        for found, folder in zip(files, (images, masks), strict=True):
            if name not in found:
                raise PecoError(f"{path}: {name} is missing in {folder}; fetch it or remove the line")
    if not names:
        raise PecoError(f"{path}: no image; the split is empty")
    return SplitFiles(masks, [(files[0][name], files[1][name]) for name in names])


def _unused(val: Path) -> list[str]:
    """A sentence on `test`, if it exists beside another val."""
    place, name = (val.parent, val.name) if split_of(val.name) else (val.parent.parent, val.parent.name)
    tests = [entry.name for entry in os.scandir(place) if entry.is_dir() and plain_split(entry.name) == "test"]
    return [f"{place / tests[0]} is not used"] if tests and name not in tests else []


def _pairs(images: Path, masks: Path) -> list[tuple[Path, Path]]:
    """Images and their masks, sorted by name."""
    found = {
        key.removesuffix(IMAGE_SUFFIX): path for key, path in by_stem(_files(images, IMAGE_EXTENSIONS), images).items()
    }
    if not found:
        raise PecoError(f"{images}: no image; the split is empty")
    mask_of = _masks(masks, set(found))
    for key, image in found.items():
        if key not in mask_of:
            raise PecoError(f"{image}: no mask {masks / key}.png; add it or remove the image")
    for key, mask in mask_of.items():
        if key not in found:
            raise PecoError(f"{mask}: a mask for a missing image {images / key}; add the image or remove the mask")
    return [(image, mask_of[key]) for key, image in found.items()]


def _masks(folder: Path, keys: set[str]) -> dict[str, Path]:
    """Masks by the name of their image. Where all images have one with the same suffix, files without it are not masks."""
    files = by_stem(_files(folder, MASK_EXTENSIONS), folder)
    for suffix in SUFFIXES:
        with_suffix = {key.removesuffix(suffix): path for key, path in files.items() if key.endswith(suffix)}
        if keys <= with_suffix.keys():
            return with_suffix
    for suffix in SUFFIXES:
        for key in [key for key in files if key not in keys and key.endswith(suffix)]:
            if (other := files.setdefault(key.removesuffix(suffix), files[key])) != files[key]:
                raise PecoError(f"{files[key]}: {other.name} is a mask of the same image; keep one of them")
            del files[key]
    return files


def _files(folder: Path, extensions: tuple[str, ...]) -> list[Path]:
    return [path for path in files_below(folder) if extension(path.name) in extensions]
