"""Images in a folder, a tar or a zip, in any of the layouts of `peco/sources/layouts/table.py`.

After the layout has given splits and labels:

- `val` is the val split, else `test` if it has labels or train has none. Another `test` and parts without any use are reported.
- An input without a val split gets one: of each class (or of all images if there are no classes) the share `val_fraction`, at least
  one image, those with the lowest hashes of their names. A class with one image keeps it in train. An added image moves at most one
  other image.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peco.core import config
from peco.core.errors import PecoError
from peco.data.images import READS_HEIF, MissingExtra
from peco.files.archives import Archive, open_archive
from peco.files.names import UNREADABLE_EXTENSIONS, capital_twins, extension, hashed, is_image_name
from peco.files.words import TEST, TRAIN, UNUSED, VAL
from peco.sources.base import FIRST_NAMES, Ignored, RawSample, check_ignored, shuffled
from peco.sources.image_check import check_header
from peco.sources.layouts.listing import Placed, Reading
from peco.sources.layouts.table import read_listing

HEIF_EXTENSIONS = ("heic", "heif", "hif")


@dataclass(frozen=True)
class Layout:
    """Splits and classes: for each split the name and class (None: no label) of each image, sorted by name."""

    splits: dict[str, list[tuple[str, str | None]]]
    classes: tuple[str, ...]
    ignored: Ignored
    notes: list[str]

    @property
    def total(self) -> int:
        return sum(map(len, self.splits.values()))


class ImageFolder:
    """A `Source` over a folder, tar, tar.gz or zip of images, each split in shuffled order.

    Raises:
        PecoError: the path is missing, unreadable or damaged, holds no image, is ambiguous, or holds images that need an extra that
            is not installed; or more images than allowed have no place in its layout.
    """

    def __init__(self, dataset: config.Dataset, work: Path) -> None:
        path = Path(dataset.path)
        self._archive = open_archive(path, work)
        self._seed = dataset.seed
        self._layout = layout_of(self._archive, path, dataset)
        self.classes = self._layout.classes
        self.ignored = self._layout.ignored
        self.notes = self._layout.notes
        self.total: int | None = self._layout.total
        self.counts = {split: len(images) for split, images in self._layout.splits.items()}

    def samples(self) -> Iterator[RawSample]:
        labels: dict[str | None, int] = {name: i for i, name in enumerate(self.classes)}
        for split, images in self._layout.splits.items():
            for name, category in shuffled(images, split, self._seed):
                yield RawSample(split, name, self._archive.read(name), labels.get(category, -1))


def layout_of(archive: Archive, path: Path, dataset: config.Dataset) -> Layout:
    """Splits and classes of an archive, by the names of its files alone.

    Raises:
        PecoError: as `ImageFolder`.
    """
    options = {"labels": dataset.labels, "label_field": dataset.label_field, "max_ignored": dataset.max_ignored}
    try:
        layout = read_layout(archive.names(), dataset.val_fraction, dataset.seed, read=archive.read, **options)
    except PecoError as error:
        raise PecoError(f"{path}: {str(error).removeprefix(f'{path}: ')}") from None
    layout.notes.extend(archive.notes)
    for lost in archive.lost:
        image = is_image_name(lost.name)
        layout.ignored.add(lost.reason if image else f"{lost.reason}, no image", lost.name, by_rule=not image)
    check_ignored(path, layout.ignored, layout.total, dataset.max_ignored)
    phone = [name for images in layout.splits.values() for name, _ in images if extension(name) in HEIF_EXTENSIONS]
    if phone and not READS_HEIF:
        raise PecoError(
            f"{path}: {len(phone)} HEIC images ({phone[0]}{', …' if len(phone) > 1 else ''}) need the extra `heif`: "
            "`pip install pillow-heif`, or convert them to JPEG"
        )
    unreadable = [
        name for images in layout.splits.values() for name, _ in images if extension(name) in UNREADABLE_EXTENSIONS
    ]
    if len(unreadable) > dataset.max_rejected * layout.total:
        raise PecoError(
            f"{path}: {len(unreadable)} of {layout.total} images have formats that are not read ({unreadable[0]}), more than "
            f"dataset.max_rejected allows ({dataset.max_rejected:g}); export them as JPEG or PNG, or raise it"
        )
    return layout


def check_headers(archive: Archive, layout: Layout, path: Path, dataset: config.Dataset, most: int) -> None:
    """Check the headers of all images, if there are at most `most`: more take too long before a run.

    Raises:
        PecoError: more of them than allowed would be rejected.
    """
    names = sorted(name for images in layout.splits.values() for name, _ in images)
    if len(names) > most:
        return
    bad = []
    for name in names:
        encoded = archive.read(name)
        try:
            check_header(name, encoded, dataset.max_pixels)
        except MissingExtra as error:
            raise PecoError(f"{path}: {name}: {error}, or convert it to JPEG") from None
        except PecoError as error:
            bad.append(f"{name} ({error})")
    if len(bad) > dataset.max_rejected * len(names):
        raise PecoError(
            f"{path}: {len(bad)} of {len(names)} images can't be used, more than dataset.max_rejected allows "
            f"({dataset.max_rejected:g}), the first: {', '.join(bad[:FIRST_NAMES])}; fix or remove them, or raise it"
        )


def read_layout(
    names: Iterable[str],
    val_fraction: float,
    seed: int,
    *,
    read: Callable[[str], bytes] = lambda name: b"",
    **options: Any,
) -> Layout:
    """Splits and classes of files by their names.

    Args:
        names: tidy names of all files.
        val_fraction: share of train for val if there is no val split.
        seed: of the choice of these images.
        read: returns the content of a file (tables and lists).
        options: `labels`, `label_field` and `max_ignored` (see `config.Dataset`).

    Raises:
        PecoError: there is no image, or the splits are ambiguous. The message doesn't name the path, which is unknown here.
    """
    name, reading = read_listing(names, read, **options)
    if options.get("labels") == "none":
        reading.images = [Placed(image.name, image.split, None) for image in reading.images]
    reading.notes.insert(0, f"read as: {name}")
    return settle(reading, val_fraction, seed)


def settle(reading: Reading, val_fraction: float, seed: int) -> Layout:
    """Choose the val split of a reading, or make one of train.

    Raises:
        PecoError: there is no image of train.
    """
    splits = _known_splits(reading)
    notes = reading.notes
    if VAL not in splits:
        splits = _divide(splits[TRAIN], val_fraction, seed)
        count = len(splits.get(VAL, ()))
        notes.append(
            f"val is {count} images of train (dataset.val_fraction {val_fraction:g})" if count else "no val split"
        )
    found = {split: {category for _, category in images if category is not None} for split, images in splits.items()}
    classes = set[str]().union(*found.values())
    notes += _odd_classes(classes, classes - found.get(TRAIN, set()))
    return Layout(splits, tuple(sorted(classes)), reading.ignored, notes)


def _odd_classes(classes: set[str], of_val: set[str]) -> list[str]:
    """Sentences on classes that may be spelled wrong: those without images of train, and those that differ in capitals only."""
    notes = []
    if of_val:
        names = ", ".join(sorted(of_val)[:FIRST_NAMES])
        notes.append(f"warning: {len(of_val)} of {len(classes)} classes have no image of train: {names}")
    if twins := capital_twins(classes):
        notes.append(f"warning: classes that differ in capitals only: {', '.join(twins[: 2 * FIRST_NAMES])}")
    return notes


def _known_splits(reading: Reading) -> dict[str, list[tuple[str, str | None]]]:
    """Train and val of a reading. What is neither is recorded as ignored."""
    parts: defaultdict[str, list[tuple[str, str | None]]] = defaultdict(list)
    for image in reading.images:
        parts[image.split or TRAIN].append((image.name, image.category))
    if TRAIN not in parts:
        raise PecoError("no image of train is left; add a train split, or rename the folders")
    test, unused = parts.pop(TEST, []), parts.pop(UNUSED, [])
    reading.ignored.extend("an unused part without labels", (name for name, _ in unused), by_rule=True)
    known = {category for _, category in parts[TRAIN] if category is not None}
    if VAL in parts and not {category for _, category in parts[VAL]} - {None} and known & {c for _, c in test}:
        reading.notes.append("val has no labels and is not used; val is the split test")
        reading.ignored.extend("an unused val split without labels", (name for name, _ in parts.pop(VAL)), by_rule=True)
        parts[VAL], test = test, []
    if test and VAL not in parts:
        found = {category for _, category in test if category is not None}
        if known and not found:
            reading.notes.append("test is not used, since it has no labels and train has")
        elif known and not found & known:
            reading.notes.append(
                f"warning: test is not used, since none of its classes ({', '.join(sorted(found)[:FIRST_NAMES])}) is one of train"
            )
        else:
            parts[VAL], test = test, []
            reading.notes.append("val is the split test")
    reading.ignored.extend("an unused test split", (name for name, _ in test), by_rule=True)
    if VAL in parts and any(c is not None for _, c in parts[TRAIN]) and all(c is None for _, c in parts[VAL]):
        reading.notes.append("val has no labels, though train has")
    return {split: sorted(parts[split], key=lambda image: image[0]) for split in (TRAIN, VAL) if split in parts}


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
        TRAIN: [image for image in images if image[0] not in val],
        VAL: [image for image in images if image[0] in val],
    }
    return {split: members for split, members in splits.items() if members}
