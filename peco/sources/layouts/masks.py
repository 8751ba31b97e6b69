"""Masks among images: pictures of annotations, which are no training images."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from peco.files.names import extension, folder_of, stem
from peco.files.words import (
    ends_in_mask,
    is_images_folder,
    is_mask_folder,
    mask_rest,
    masked_image,
    named_split,
    names_images,
    names_masks,
    plain_split,
    split_folders,
    words,
)

_JPEG = ("jpg", "jpeg", "jpe", "jfif")  # masks are stored without loss


@dataclass(frozen=True)
class MaskFolders:
    """The images below folders of masks, and those in other folders beside both images and masks, whose content is unknown."""

    masks: set[str]
    unknown: set[str]


def masks_in_folders(names: Iterable[str], *, forced: bool = False) -> MaskFolders:
    """Find folders of masks.

    Such a folder is named so (`masks`, `annotations`, `gtFine`, `trainannot`), or holds nothing but folders that are, and has a
    folder of images beside it: one that is named so (`images`, `leftImg8bit`), one with the same name but for that word (`train`
    beside `train_masks`), or splits. A class called `mask` among other classes is none, nor are the photos of a class `face_mask`
    beside `face`, which are JPEG or have other names than those of `face`.

    Args:
        names: of all images.
        forced: the user wants folders to be classes: those with pictures in them (not in folders below) are none of masks.
    """
    names = list(names)
    by_place: dict[str, list[str]] = {}
    for name in names:
        by_place.setdefault(folder_of(name), []).append(name)
    places = {tuple(folder.split("/")) for folder in by_place if folder}
    folders: dict[tuple[str, ...], set[str]] = {}  # folders below each folder
    for path in places:
        for depth, part in enumerate(path):
            folders.setdefault(path[:depth], set()).add(part)
    masks, unknown = set[str](), set[str]()
    for above, below in folders.items():
        images_in = {name: by_place.get("/".join((*above, name)), []) for name in below}
        found = {name for name in below if _holds_masks(name, images_in)}
        if forced:
            found = {name for name in found if not images_in[name] or named_split(name)}
        images = {name for name in below - found if is_images_folder(name)}
        if images:
            bare = {name for name in below - found - images if (*above, name) not in places}
            found |= {name for name in bare if all(map(is_mask_folder, folders[*above, name]))}
        other = {name for name in below - found - images if not plain_split(name)} if found and images else set()
        masks |= {"/".join((*above, name)) for name in found}
        unknown |= {"/".join((*above, name)) for name in other}
    of_masks = _below(names, masks)
    return MaskFolders(of_masks, _below(names, unknown) - of_masks)


def _below(names: list[str], folders: set[str]) -> set[str]:
    """The names below these folders."""
    inside = {
        place
        for place in (set(map(folder_of, names)) if folders else ())
        if any(place[:end] in folders for end in (*(m.start() for m in re.finditer("/", place)), len(place)))
    }
    return {name for name in names if folder_of(name) in inside}


def masks_beside_images(names: Iterable[str]) -> set[str]:
    """Masks in the folder of their images (`1_mask.png` beside `1.jpg`), if at least half of the images have one.

    Folders with the names of these images (`1/`) then hold parts of their masks, as in ADE20K.
    """
    names = list(names)
    by_folder: dict[str, list[str]] = {}
    for name in names:
        by_folder.setdefault(folder_of(name), []).append(name)
    found, parts = set[str](), set[str]()
    for folder, files in by_folder.items():
        stems = set(map(stem, files))
        masks = {name: image for name in files if (image := _image_of(name)) in stems}
        images = Counter(masks.values())
        if masks and 2 * len(images) >= len(files) - len(masks):
            found |= masks.keys()
            parts |= {f"{folder}/{image}".lstrip("/") for image in images}
    return found | {name for name in names if folder_of(name) in parts}


def _image_of(name: str) -> str | None:
    """Stem of the image that a file is the mask of. A JPEG with an ending such as `_color` may be a photo."""
    image = masked_image(stem(name))
    return image if extension(name) not in _JPEG or ends_in_mask(stem(name)) else None


def _holds_masks(name: str, folders: Mapping[str, list[str]]) -> bool:
    """True if the name of a folder, among those of all folders there with the pictures in each, says that it holds masks."""
    rest = mask_rest(name)
    if rest is None:
        return False
    beside = folders.keys() - {name}
    if is_mask_folder(name) and (split_folders(beside) or any(map(is_images_folder, beside))):
        return True
    if names_masks(name) and any(map(names_images, beside)):
        return True
    partners = [other for other in beside if rest and words(other) == rest]
    return any(plain_split(other) or _are_masks_of(folders[name], folders[other]) for other in partners)


def _are_masks_of(files: list[str], images: list[str]) -> bool:
    """True if at least half of the files are no JPEG and have the name of an image, but for an ending such as `_mask`."""
    stems = set(map(stem, images))
    paired = [name for name in files if stem(name) in stems or masked_image(stem(name)) in stems]
    return 2 * sum(extension(name) not in _JPEG for name in paired) >= max(1, len(files))
