"""Words in the names of folders and files: splits, images, masks."""

from __future__ import annotations

import re
from collections.abc import Iterable

# Besides train and val: `test`, which may become val, and `unused`, parts without labels that no one trains or tests on.
TRAIN, VAL, TEST, UNUSED = "train", "val", "test", "unused"

_SPLITS = {
    TRAIN: ("train", "training", "trn", "trainval"),
    VAL: ("val", "valid", "validation", "dev", "eval", "evaluation"),
    TEST: ("test", "testing", "tst"),
    UNUSED: ("unlabeled", "unlabelled", "pred", "predict", "prediction", "inference", "submission"),
}
_SPLIT_OF = {word: split for split, words in _SPLITS.items() for word in words}
_IMAGES = {
    "image",
    "images",
    "img",
    "imgs",
    "photo",
    "photos",
    "picture",
    "pictures",
    "pics",
    "frames",
    "input",
    "inputs",
}
_FORMATS = ("jpg", "jpeg", "png", "tif", "tiff", "rgb")  # that names of folders have
_IMAGE_FOLDERS = {*_IMAGES, *_FORMATS, "jpegimages", "leftimg8bit", "data", "x"}
# What exports add to the name of a split.
_EXTRA = {
    *_IMAGE_FOLDERS,
    *("set", "sets", "data", "dataset", "split", "splits", "seg", "cls", "class", "classes", "classification", "files"),
    *("folder", "dir", "new", "final", "clean", "raw", "small", "full", "orig", "original", "resized", "cropped"),
    *("aug", "augmented", "stage", "part", "all", "the", "my", "v", "list", "det", "mini", "public", "private"),
}
_MASKS = {
    *("mask", "masks", "annotation", "annotations", "ann", "anns", "anno", "annot", "annots", "label", "labels"),
    *("gt", "gts", "groundtruth", "truth", "segmentation", "segmentations", "trimap", "trimaps", "stuffthingmaps"),
    *("semantic", "instance", "instances", "panoptic", "depth", "disparity", "manual"),
}
# What stands next to those words in the names of folders that hold nothing but masks.
_MASK_EXTRA = {
    *_MASKS,
    *_FORMATS,
    *("ground", "class", "object", "aug", "dir", "maps", "map", "images", "fine", "coarse", "raw", "st", "nd"),
    *("color", "colors", "colored", "visualization", "visualizations", "vis"),
}
_GLUED = re.compile(
    f"({'|'.join(sorted(_SPLIT_OF, key=len, reverse=True))})(set|data|images|imgs|img|annot|masks?|labels?)"
)
_MASK_NAME = re.compile(
    r"(.+?)[-_ .](mask|masks|seg|gt|label|labels|annotation|labelids|labeltrainids|instanceids|color|parts_\d+|mask_\d+)$",
    re.I,
)


def words(name: str) -> tuple[str, ...]:
    """The words and numbers of a name in lower case: `seg_train`, `trainSet2017` and `train.X1` have several.

    `train_val`, which means both, is the one word `trainval`.
    """
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower()
    spaced = re.sub(r"(?<![a-z])train[-_ .]?val(?![a-z])", "trainval", spaced)
    found: list[str] = []
    for word in re.findall(r"[^\W\d_]+|\d+", spaced):
        glued = _GLUED.fullmatch(word)
        found += glued.groups() if glued else [word]
    return tuple(found)


def is_images_folder(name: str) -> bool:
    """True for folders such as `images`, `JPEGImages`, `img_dir`, `leftImg8bit`."""
    if name.lower() in _IMAGE_FOLDERS:
        return True
    found = [word for word in words(name) if not word.isdecimal()]
    return bool(found) and found[0] in _IMAGES and set(found) <= {*_IMAGE_FOLDERS, "dir", "folder", "files", "set"}


def mask_rest(name: str) -> tuple[str, ...] | None:
    """Words of a folder's name without those that mean masks or annotations; None if there are none of these."""
    found = words(name)
    return tuple(word for word in found if word not in _MASKS) if set(found) & _MASKS else None


def image_rest(name: str) -> tuple[str, ...]:
    """Words of a folder's name without those that mean images (`train` of `train_images`)."""
    return tuple(word for word in words(name) if word not in _IMAGES)


def is_mask_folder(name: str) -> bool:
    """True if all words of a name mean masks or annotations (`ground_truth`, `SegmentationClass`)."""
    found = {word for word in words(name) if not word.isdecimal()}
    return bool(found & _MASKS) and found <= _MASK_EXTRA


def names_images(name: str) -> bool:
    """True for the folder of images beside one of masks: its last word means images, and none means masks (`CelebA-HQ-img`)."""
    found = words(name)
    return bool(found) and found[-1] in _IMAGES and not set(found) & _MASKS


def names_masks(name: str) -> bool:
    """True if the last word of a name means masks (`CelebAMask-HQ-mask-anno`)."""
    found = words(name)
    return bool(found) and found[-1] in _MASKS


def masked_image(stem: str) -> str | None:
    """Stem of the image that a file is the mask of, by its ending (`_mask`, `_seg`, `_parts_1`)."""
    match = _MASK_NAME.fullmatch(stem)
    return match[1] if match else None


def ends_in_mask(stem: str) -> bool:
    """True if the ending of a stem means nothing but a mask (`_mask`, `_parts_1`, `_labelIds`); `_color` and `_label` may not."""
    return (
        re.search(r"[-_ .](masks?|mask_\d+|parts_\d+|seg|labelids|labeltrainids|instanceids)$", stem, re.I) is not None
    )


def split_words(name: str) -> set[str]:
    """The splits among `train`, `val` and `test` that a name contains."""
    return {_SPLIT_OF[word] for word in words(name) if word in _SPLIT_OF} - {UNUSED}


def named_split(name: str) -> tuple[str, tuple[str, ...]] | None:
    """The split that a name contains, and its other words; None if there is no split or more than one."""
    found = words(name)
    splits = {_SPLIT_OF[word] for word in found if word in _SPLIT_OF}
    if len(splits) != 1:
        return None
    return splits.pop(), tuple(word for word in found if word not in _SPLIT_OF)


def plain_split(name: str) -> str | None:
    """The split that a name means if its other words are only those that exports add."""
    named = named_split(name)
    return named[0] if named and all(word.isdecimal() or word in _EXTRA for word in named[1]) else None


def split_folders(names: Iterable[str]) -> dict[str, str]:
    """The split of each folder that is one; empty if none of them is `train`.

    Besides words of exports (`seg_train`, `train2017`), two splits may share any other words (`mnist_train`, `mnist_test`),
    and all names may be those of splits (`train_a`, `val_b`).
    """
    names = list(names)
    named = {name: found for name in names if (found := named_split(name))}
    all_named = len(named) == len(names) and len({split for split, _ in named.values()}) > 1
    shared: dict[tuple[str, ...], set[str]] = {}
    for split, rest in named.values():
        shared.setdefault(tuple(word for word in rest if not word.isdecimal()), set()).add(split)
    chosen = {}
    for name, (split, rest) in named.items():
        key = tuple(word for word in rest if not word.isdecimal())
        if all_named or plain_split(name) or (TRAIN in shared[key] and len(shared[key]) > 1):
            chosen[name] = split
    return chosen if TRAIN in chosen.values() else {}


def are_parts(names: Iterable[str]) -> bool:
    """True for numbered parts of one folder (`train.X1`, `train.X2`), but not for years (`train2014`, `train2017`)."""
    forms = {re.sub(r"(?<!\d)\d{1,2}(?!\d)", "#", name) for name in names}
    return len(forms) == 1 and "#" in forms.pop()
