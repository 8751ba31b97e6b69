"""Tables of images in parquet, as Hugging Face stores data sets: a column of image files, perhaps one of labels."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from peco.core import config
from peco.core.errors import PecoError
from peco.core.parsing import JSON_ERRORS
from peco.files.links import walk_linked
from peco.files.names import is_hidden, is_image_name
from peco.files.words import named_split
from peco.sources.base import SPLITS, RawSample
from peco.sources.imagefolder import settle
from peco.sources.layouts.listing import Placed, Reading

_IMAGES = ("image", "img", "images", "picture", "photo", "jpg", "png", "webp", "bytes", "pixel_values")
_LABELS = ("label", "labels", "fine_label", "class", "category", "target", "cls")
_NEEDS = "needs the extra `parquet`; `pip install pyarrow`, or export the images as files"


@dataclass(frozen=True)
class _File:
    path: Path
    name: str  # relative to the source
    image: str
    label: str | None
    classes: tuple[str, ...]  # of a ClassLabel; empty: the values are the names


class ParquetImages:
    """A `Source` over parquet files. Groups of rows are read in shuffled order, and the rows of each are shuffled.

    Splits are found by a word in the name of the file, else of its folder.

    Raises:
        PecoError: pyarrow is not installed, a file is damaged, or no column holds images.
    """

    def __init__(self, dataset: config.Dataset) -> None:
        try:
            import pyarrow.parquet
        except ImportError:
            raise PecoError(f"{dataset.path}: parquet {_NEEDS}") from None
        self._parquet = pyarrow.parquet
        self._errors = (pyarrow.ArrowException, OSError, ValueError, KeyError)
        self._seed = dataset.seed
        root = Path(dataset.path)
        self._files = {
            name: self._open(root / name if root.is_dir() else root, name, dataset) for name in parquet_files(root)
        }
        reading = Reading(
            [image for file in self._files.values() for image in self._rows(file, dataset.labels != "none")]
        )
        reading.notes.append(f"read as: parquet, {_described(next(iter(self._files.values())))}")
        try:
            layout = settle(reading, dataset.val_fraction, dataset.seed)
        except PecoError as error:
            raise PecoError(f"{dataset.path}: {error}") from None
        self.classes, self.ignored, self.notes = layout.classes, layout.ignored, layout.notes
        self.total: int | None = layout.total
        numbers = {name: i for i, name in enumerate(layout.classes)}
        self._placed = {
            name: (split, numbers[category] if category is not None else -1)
            for split, images in layout.splits.items()
            for name, category in images
        }

    def samples(self) -> Iterator[RawSample]:
        groups = [(file, group) for file in self._files.values() for group in range(self._handle(file).num_row_groups)]
        starts: dict[tuple[str, int], int] = {}
        for file in self._files.values():
            start = 0
            for group in range(self._handle(file).num_row_groups):
                starts[file.name, group] = start
                start += self._handle(file).metadata.row_group(group).num_rows
        random = np.random.default_rng([self._seed, len(SPLITS)])
        for i in random.permutation(len(groups)):
            file, group = groups[i]
            values = self._column(file, group, file.image)
            for row in random.permutation(len(values)):
                name = f"{file.name}/{starts[file.name, group] + row}"
                if name not in self._placed:
                    continue
                split, label = self._placed[name]
                encoded = values[row]["bytes"] if isinstance(values[row], dict) else values[row]
                if encoded is None and isinstance(values[row], dict) and values[row].get("path"):
                    raise PecoError(f"{file.path}: holds paths of images, not the images; export them as files")
                yield RawSample(split, name, encoded or b"", label)

    def _open(self, path: Path, name: str, dataset: config.Dataset) -> _File:
        file = _File(path, name, "", None, ())
        schema = self._handle(file).schema_arrow
        image = next((f.name for f in schema if hasattr(f.type, "num_fields") and _is_image(f)), None)
        if image is None:
            raise PecoError(
                f"{path}: no column of images; there are {', '.join(schema.names)}; export the images as files"
            )
        label = dataset.label_field or next((n for n in _LABELS if n in schema.names), None)
        if label is not None and label not in schema.names:
            raise PecoError(f"dataset.label_field: {path} has no column {label}; there are {', '.join(schema.names)}")
        return _File(path, name, image, label, _class_names(schema.metadata or {}, label))

    def _rows(self, file: _File, labeled: bool) -> Iterator[Placed]:
        named = named_split(Path(file.name).stem) or named_split(Path(file.name).parent.name)
        split = named[0] if named else None
        row = 0
        for group in range(self._handle(file).num_row_groups):
            count = self._handle(file).metadata.row_group(group).num_rows
            values = self._column(file, group, file.label) if file.label and labeled else [None] * count
            for value in values:
                yield Placed(f"{file.name}/{row}", split, _category(file, value))
                row += 1

    def _handle(self, file: _File) -> Any:
        try:
            return self._parquet.ParquetFile(file.path)
        except self._errors as error:
            raise PecoError(f"{file.path}: can't be read as parquet ({error}); fetch it again") from None

    def _column(self, file: _File, group: int, column: str) -> list[Any]:
        try:
            table = self._handle(file).read_row_group(group, columns=[column])
            values: list[Any] = table.column(column).to_pylist()
            return values
        except self._errors as error:
            raise PecoError(f"{file.path}: can't be read ({error}); fetch it again") from None


def parquet_files(root: Path) -> list[str]:
    """Names of the parquet files in a folder, or of the file itself.

    Raises:
        PecoError: as `walk_linked`.
    """
    if not root.is_dir():
        return [root.name] if root.suffix == ".parquet" else []
    found = []
    for place, folders, files in walk_linked(root):
        folders[:] = [name for name in folders if not is_hidden(name)]
        found += [Path(place, name) for name in files if name.endswith(".parquet") and not is_hidden(name)]
    return sorted(path.relative_to(root).as_posix() for path in found)


def is_parquet(root: Path) -> bool:
    """True for a parquet file, or a folder that has some and no images."""
    if root.is_dir() and any(is_image_name(name) for _, _, files in os.walk(root) for name in files):
        return False
    return bool(parquet_files(root))


def _is_image(field: Any) -> bool:
    """True for a struct with `bytes`, as Hugging Face stores images, or a binary column with a usual name."""
    if field.type.num_fields:
        return any(field.type.field(i).name == "bytes" for i in range(field.type.num_fields))
    return str(field.type) in ("binary", "large_binary") and field.name.lower() in _IMAGES


def _class_names(metadata: dict[bytes, bytes], label: str | None) -> tuple[str, ...]:
    """Names of a ClassLabel from Hugging Face's metadata."""
    try:
        names = json.loads(metadata[b"huggingface"])["info"]["features"][label]["names"]
    except (LookupError, TypeError, *JSON_ERRORS):
        return ()
    if isinstance(names, dict):
        names = [names[key] for key in sorted(names, key=lambda key: int(key) if key.isdecimal() else 0)]
    return tuple(map(str, names)) if isinstance(names, list) else ()


def _category(file: _File, value: object) -> str | None:
    if value is None or value == -1:
        return None
    if isinstance(value, int) and not isinstance(value, bool) and file.classes:
        if not 0 <= value < len(file.classes):
            raise PecoError(f"{file.path}: label {value} is not among its {len(file.classes)} classes; fetch it again")
        return file.classes[value]
    if not isinstance(value, int | str):
        raise PecoError(
            f"{file.path}: {file.label} holds no class ({value!r:.40}); set dataset.label_field or dataset.labels=none"
        )
    return str(value)


def _described(file: _File) -> str:
    return f"images from {file.image}, {f'labels from {file.label}' if file.label else 'no column of labels'}"
