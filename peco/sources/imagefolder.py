"""Images in ImageFolder layout: a folder, a tar or a zip with `train/<class>/…` and `val/<class>/…`.

Rules, in the order in which they apply:

- Hidden files and `__MACOSX` are skipped. Files without an image's extension are ignored and counted.
- If the top level is a single folder that holds only folders (archives often have one), its content is the top level.
- `train` or `training` at the top means that the input has splits. The val split is `val` or `validation`, else `test`. Files in
  other folders are ignored and counted. Upper and lower case are equal.
- The class is the first folder below the split; deeper folders belong to it. A split without folders has no labels. Images next to
  class folders are ignored and counted. Classes are the sorted union over the splits.
- An input without a val split gets one: of each class (or of all images if there are no classes) the share `val_fraction`, at least
  one image, those with the lowest hashes of their names. A class with one image keeps it in train. An added image moves at most one
  other image.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from peco.core.errors import PecoError
from peco.sources.archives import is_hidden, open_archive
from peco.sources.base import IMAGE_EXTENSIONS, RawSample, extension, hashed, shuffled

_NAMES = {"train": ("train", "training"), "val": ("val", "validation"), "test": ("test",)}
_EXPECTED = "expected images in train/<class>/ and val/<class>/, in <class>/, or side by side"


@dataclass(frozen=True)
class Layout:
    """Splits and classes by file names: for each split the name and class (None: no label) of each image, sorted by name."""

    splits: dict[str, list[tuple[str, str | None]]]
    classes: tuple[str, ...]
    ignored: Counter[str]


class ImageFolder:
    """A `Source` over a folder, tar, tar.gz or zip of images, each split in shuffled order.

    Raises:
        PecoError: the path is missing, unreadable or damaged, or holds no image.
    """

    def __init__(self, path: Path, *, val_fraction: float, seed: int, work: Path) -> None:
        self._archive = open_archive(path, work)
        self._seed = seed
        try:
            self._layout = read_layout(self._archive.names(), val_fraction, seed)
        except PecoError as error:
            raise PecoError(f"{path}: {error}") from None
        self.classes = self._layout.classes
        self.ignored = self._layout.ignored
        self.total: int | None = sum(map(len, self._layout.splits.values()))

    def samples(self) -> Iterator[RawSample]:
        labels: dict[str | None, int] = {name: i for i, name in enumerate(self.classes)}
        for split, images in self._layout.splits.items():
            for name, category in shuffled(images, split, self._seed):
                yield RawSample(split, name, self._archive.read(name), labels.get(category, -1))


def read_layout(names: Iterable[str], val_fraction: float, seed: int) -> Layout:
    """Splits and classes of files by their names, by the rules above.

    Raises:
        PecoError: there is no image, or the splits are ambiguous. The message doesn't name the path, which is unknown here.
    """
    ignored: Counter[str] = Counter()
    images = []
    for name in sorted(names):
        parts = name.split("/")
        if any(map(is_hidden, parts)):
            continue
        if extension(name) in IMAGE_EXTENSIONS:
            images.append(parts)
        else:
            ignored["not an image by its name"] += 1
    if not images:
        raise PecoError(f"no image found; {_EXPECTED}")
    depth = _wrapping(images)
    folders = _split_folders({parts[depth] for parts in images if len(parts) > depth + 1})
    splits: dict[str, list[tuple[str, str | None]]] = {}
    for split, folder in folders.items():
        below = depth if folder is None else depth + 1
        inside = [parts for parts in images if folder is None or (parts[depth] == folder and len(parts) > below)]
        has_classes = any(len(parts) > below + 1 for parts in inside)
        kept = [parts for parts in inside if not has_classes or len(parts) > below + 1]
        if len(inside) > len(kept):
            ignored["beside the class folders"] += len(inside) - len(kept)
        splits[split] = [("/".join(parts), parts[below] if has_classes else None) for parts in kept]
        images = [parts for parts in images if parts[depth] != folder] if folder is not None else []
    if images:
        ignored["outside the splits"] += len(images)
    if "val" not in splits:
        splits = _divide(splits["train"], val_fraction, seed)
    classes = {category for split in splits.values() for _, category in split if category is not None}
    return Layout(splits, tuple(sorted(classes)), ignored)


def _wrapping(images: list[list[str]]) -> int:
    """Number of nested folders at the top that are alone in their folder and hold only folders."""
    depth = 0
    known = {name for names in _NAMES.values() for name in names}
    while len({parts[depth] for parts in images}) == 1 and min(map(len, images)) > depth + 2:
        if images[0][depth].lower() in known:
            break
        depth += 1
    return depth


def _split_folders(tops: set[str]) -> dict[str, str | None]:
    """The folder of each split; if the input has no splits, {"train": None}."""
    found = {split: [top for top in sorted(tops) if top.lower() in names] for split, names in _NAMES.items()}
    for split, folders in found.items():
        if len(folders) > 1 and found["train"]:
            raise PecoError(f"the folders {' and '.join(folders)} both name the split {split}; keep one of them")
    if not found["train"]:
        if tops and len(tops) == sum(map(len, found.values())):
            raise PecoError(f"there is {', '.join(sorted(tops))}, but no train; {_EXPECTED}")
        return {"train": None}
    val = found["val"] or found["test"]
    return {"train": found["train"][0], **({"val": val[0]} if val else {})}


def _divide(
    images: list[tuple[str, str | None]], val_fraction: float, seed: int
) -> dict[str, list[tuple[str, str | None]]]:
    by_class: defaultdict[str | None, list[str]] = defaultdict(list)
    for name, category in images:
        by_class[category].append(name)
    val: set[str] = set()
    for names in by_class.values():
        count = min(max(1, round(val_fraction * len(names))), len(names) - 1) if val_fraction else 0
        val.update(sorted(names, key=lambda name: hashed(name, seed))[:count])
    splits = {
        "train": [image for image in images if image[0] not in val],
        "val": [image for image in images if image[0] in val],
    }
    return {split: members for split, members in splits.items() if members}
