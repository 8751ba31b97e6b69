"""The files of a set for segmentation: images with a mask each, by split.

Layouts, in any capitals, where SPLIT is a word for a split, such as `training`, `valid` or `train2017`:

| images | masks | known from |
|---|---|---|
| `IMAGES/SPLIT` | `MASKS/SPLIT` | ADE20K, mmsegmentation, Cityscapes |
| `SPLIT/IMAGES` | `SPLIT/MASKS` | |
| `SPLIT`, `SPLIT_images` | `SPLITannot`, `SPLIT_labels`, `SPLIT_masks` | CamVid, Carvana |
| `SPLIT` | next to the images, with a suffix | Roboflow |
| `JPEGImages` | `SegmentationClass`, with `ImageSets/Segmentation/SPLIT.txt` | Pascal VOC |
| `IMAGES`, or the top | `MASKS`, or next to the images with a suffix | a set without splits: divided by hash |

IMAGES is `images`, `img_dir`, `leftImg8bit` and the like, MASKS `annotations`, `ann_dir`, `masks`, `labels`, `gtFine` and the like.
A mask has the same path below its folder as its image, apart from the extension and a suffix (`_mask`, `_L`,
`_gtFine_labelTrainIds`, or any other that all masks have).
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from peco.annotations.photos import by_stem, files_below, find_folder
from peco.annotations.splits import divide, split_folder, split_list, split_of
from peco.core.errors import PecoError
from peco.core.parsing import reason
from peco.files.names import IMAGE_EXTENSIONS, extension
from peco.files.words import image_rest, mask_rest, masked_image, plain_split

IMAGES = ("images", "img_dir", "leftImg8bit", "JPEGImages", "image", "imgs", "img")
MASKS = (
    *("annotations", "ann_dir", "masks", "labels", "gtFine", "SegmentationClass"),
    *("annotation", "mask", "label", "gt", "segmentations", "mask_dir"),
)
MASK_EXTENSIONS = ("png", "bmp", "tif", "tiff", "gif")  # lossless ones
LOSSY = ("jpg", "jpeg")
# Of masks, the first that occurs in a folder: other files there are pictures of them, or other annotations. Any other suffix is
# allowed if all masks have it.
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
        listed = [split_list(lists, split) for split in ("train", "val")]
        if any(listed):
            if None in listed:
                raise PecoError(
                    f"{lists}: no list of {'val' if listed[0] else 'train'}; add it, or remove the other one"
                )
            train_files, val_files = (_listed(root, path) for path in listed if path is not None)
            return train_files, val_files, True
    hint: list[str] = []
    found = {split: _find_split(root, split, hint) for split in ("train", "val")}
    train, val = found["train"], found["val"]
    if train and val:
        return SplitFiles(train[1], _pairs(*train)), SplitFiles(val[1], _pairs(*val), _unused(val[0])), True
    images, masks = find_folder(root, *IMAGES), find_folder(root, *MASKS)
    if not images and not masks and _holds_both(root):
        images = masks = root
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
        hint.append(f"{masks[0].relative_to(root)} has masks, but there is no images/{masks[0].name}; ")
    folder = split_folder(root, split)
    if folder is None:
        return None
    inner = find_folder(folder, *IMAGES), find_folder(folder, *MASKS)
    if inner[0] and inner[1]:
        return inner[0], inner[1]
    found = sorted(e.name for e in os.scandir(root) if e.is_dir() and mask_rest(e.name) == image_rest(folder.name))
    if len(found) > 1:
        raise PecoError(f"{root}: {found[0]} and {found[1]} both may have the masks of {folder.name}; move one away")
    if found:
        return folder, root / found[0]
    return (folder, folder) if _holds_both(folder) else None


def _holds_both(folder: Path) -> bool:
    """True for a folder with masks next to their images (`1.jpg`, `1_mask.png`)."""
    stems = {path.stem for path in _files(folder, IMAGE_EXTENSIONS)}
    return any(masked_image(stem) in stems for stem in stems)


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
        raise PecoError(f"{path}: can't be read ({reason(error)}); expected the names of the split's images") from None
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
    files = by_stem(_files(images, IMAGE_EXTENSIONS), images)
    if images == masks:
        files = {key: path for key, path in files.items() if masked_image(key) not in files}
    found = {key.removesuffix(IMAGE_SUFFIX): path for key, path in files.items()}
    if not found:
        raise PecoError(f"{images}: no image; the split is empty")
    of_masks = set(_files(masks, MASK_EXTENSIONS)) - (set(files.values()) if images == masks else set())
    mask_of = _masks(by_stem(sorted(of_masks), masks), set(found))
    for key, image in found.items():
        if key not in mask_of:
            lossy = next(
                (f for f in files_below(masks) if f.stem.startswith(Path(key).name) and extension(f.name) in LOSSY),
                None,
            )
            if lossy is not None and lossy != image:
                raise PecoError(
                    f"{lossy}: a mask as JPEG, which changes the indices of classes; make PNG of the original masks"
                )
            raise PecoError(f"{image}: no mask {masks / key}.png; add it or remove the image")
    for key, mask in mask_of.items():
        if key not in found:
            raise PecoError(f"{mask}: a mask for a missing image {images / key}; add the image or remove the mask")
    return [(image, mask_of[key]) for key, image in found.items()]


def _masks(files: dict[str, Path], keys: set[str]) -> dict[str, Path]:
    """Masks by the name of their image. Where all images have one with the same suffix, files without it are not masks."""
    common = _common_suffix(keys, files) if not keys <= files.keys() else None
    for suffix in (*SUFFIXES, *([common] if common else [])):
        with_suffix = {key.removesuffix(suffix): path for key, path in files.items() if key.endswith(suffix)}
        if keys <= with_suffix.keys():
            return with_suffix
    for suffix in SUFFIXES:
        for key in [key for key in files if key not in keys and key.endswith(suffix)]:
            if (other := files.setdefault(key.removesuffix(suffix), files[key])) != files[key]:
                raise PecoError(f"{files[key]}: {other.name} is a mask of the same image; keep one of them")
            del files[key]
    return files


def _common_suffix(keys: set[str], files: Iterable[str]) -> str | None:
    """The suffix that all masks have after the name of their image, such as `-mask`; None if they differ."""
    found = set[str]()
    for file in files:
        key = next((file[:end] for end in range(len(file), 0, -1) if file[:end] in keys), None)
        found.add("" if key is None else file[len(key) :])
    suffix = found.pop() if len(found) == 1 else ""
    return suffix if suffix[:1] in ("-", "_", ".", " ") else None


def _files(folder: Path, extensions: tuple[str, ...]) -> list[Path]:
    return [path for path in files_below(folder) if extension(path.name) in extensions]
