"""Masks among images: pictures of annotations, which are no training images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from peco.files.names import folder_of, stem
from peco.files.words import is_images_folder, is_mask_folder, mask_rest, masked_image, split_folders, words


def masks_in_folders(names: Iterable[str]) -> set[str]:
    """The images below folders of masks.

    Such a folder is named so (`masks`, `annotations`, `gtFine`, `trainannot`) and has a folder of images beside it: one that is
    named so (`images`, `leftImg8bit`), one with the same name but for that word (`train` beside `train_masks`), or splits. A class
    called `mask` among other classes is none.
    """
    folders: dict[tuple[str, ...], set[str]] = {}  # folders below each folder
    names = list(names)
    for path in {tuple(folder.split("/")) for folder in set(map(folder_of, names)) if folder}:
        for depth, part in enumerate(path):
            folders.setdefault(path[:depth], set()).add(part)
    found = {
        "/".join((*above, name)) + "/"
        for above, below in folders.items()
        for name in below
        if _holds_masks(name, below - {name})
    }
    return {name for name in names if name.startswith(tuple(found))} if found else set()


def masks_beside_images(names: Iterable[str]) -> set[str]:
    """Masks in the folder of their images (`1_mask.png` beside `1.jpg`), if at least half of the images have one."""
    by_folder: dict[str, list[str]] = {}
    for name in names:
        by_folder.setdefault(folder_of(name), []).append(name)
    found = set[str]()
    for files in by_folder.values():
        stems = set(map(stem, files))
        masks = {name: image for name in files if (image := masked_image(stem(name))) in stems}
        images = Counter(masks.values())
        if masks and 2 * len(images) >= len(files) - len(masks):
            found |= masks.keys()
    return found


def _holds_masks(name: str, beside: set[str]) -> bool:
    rest = mask_rest(name)
    if rest is None:
        return False
    if is_mask_folder(name) and (split_folders(beside) or any(map(is_images_folder, beside))):
        return True
    return bool(rest) and any(words(other) == rest for other in beside)
