"""Labels in tables beside the images: CSV, TSV and JSON lines, as competitions and Hugging Face's `imagefolder` have them."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace

from peco.core.errors import PecoError
from peco.files.names import extension, folder_of, stem
from peco.files.words import named_split, plain_split
from peco.sources.layouts.folders import class_folders, folder_splits
from peco.sources.layouts.listing import Listing, NameIndex, Placed, Reading

_LABELS = (
    *(
        "label_name",
        "class_name",
        "classname",
        "class_label",
        "label",
        "labels",
        "class",
        "classes",
        "category",
        "target",
    ),
    *("breed", "species", "diagnosis", "dx", "y", "label_id", "class_id", "category_id"),
)
_SPLITS = ("split", "set", "subset", "partition", "data set", "data_set", "dataset", "usage", "fold")
_KINDS = ("csv", "tsv", "jsonl")
_BOXES = {"xmin", "x_min", "x1", "bbox", "bbox_x", "bbox_x1"}
_RESOLVED = 0.5  # share of rows that must name an image
_ONE = ("1", "1.0")
_TEXTS = {"text", "caption", "captions", "prompt", "url", "md5", "sha256", "size", "width", "height"}  # never labels
_SAMPLE = 2000  # rows that are looked at to find the column of names


@dataclass(frozen=True)
class _Table:
    """A table whose rows name images. Columns are positions; None: there is none."""

    file: str
    header: list[str]
    rows: list[tuple[str, list[str]]]  # image and cells
    missing: list[str]  # names of images that don't exist
    label: int | None
    split: int | None
    one_hot: tuple[int, ...]

    @property
    def has_labels(self) -> bool:
        return self.label is not None or bool(self.one_hot)

    @property
    def has_boxes(self) -> bool:
        return bool({name.lower() for name in self.header} & _BOXES)

    @property
    def named_split(self) -> str | None:
        """The split that the name of the file contains, as in train_labels.csv."""
        found = named_split(stem(self.file))
        return found[0] if found else None

    @property
    def content(self) -> str:
        if self.label is not None:
            return f"labels (column {self.header[self.label]}) are"
        return "labels (one column each) are" if self.one_hot else "splits are"

    def category(self, cells: list[str]) -> str | None:
        if self.one_hot:
            return next((self.header[i] for i in self.one_hot if cells[i] in _ONE), None)
        return cells[self.label] or None if self.label is not None else None


def label_table(listing: Listing) -> Reading | None:
    """A CSV, TSV or .jsonl with a name and a label in each row, perhaps with a split; the names may lack their extension.

    Raises:
        PecoError: a table can't be read, two tables disagree, or there is no column `dataset.label_field`.
    """
    files = [name for name in listing.others if extension(name) in _KINDS and "submission" not in name.lower()]
    index = NameIndex(listing.images if files else ())
    tables = [table for file in files if (table := _read(listing, file, index))]
    if listing.label_field and not any(table.label is not None for table in tables):
        columns = sorted({name for table in tables for name in table.header if name})
        raise PecoError(
            f"dataset.label_field: no table has the column {listing.label_field}; there are {', '.join(columns) or 'none'}"
        )
    useful = [t for t in tables if not t.has_boxes and (t.has_labels or t.split is not None or t.named_split)]
    if listing.labels == "folders" or not any(t.has_labels or t.split is not None for t in useful):
        return None
    folders = {
        image.name: image.split for image in (folder_splits(replace(listing, labels="none")) or Reading([])).images
    }
    labels: dict[str, tuple[str | None, str]] = {}
    splits: dict[str, str] = {}
    for table in useful:
        for name, cells in table.rows:
            category = table.category(cells)
            before, file = labels.get(name, (category, table.file))
            if None not in (before, category) and before != category:
                where = f"{file} and {table.file} give" if file != table.file else f"{file} gives"
                raise PecoError(
                    f"{where} {name} the labels {before} and {category}; keep one, or set dataset.label_field"
                )
            labels[name] = (before if category is None else category), table.file
            split = plain_split(cells[table.split]) if table.split is not None else table.named_split
            if split and not (table.split is None and name in folders):
                splits[name] = split
    if not any(table.has_labels for table in useful):
        classes = {image.name: image.category for image in (class_folders(listing) or Reading([])).images}
        labels = {name: (classes.get(name), file) for name, (_, file) in labels.items()}
    reading = Reading([])
    for entry in listing.images:
        if entry.name in labels or folders.get(entry.name) is not None:
            split = splits.get(entry.name, folders.get(entry.name))
            reading.images.append(Placed(entry.name, split, labels.get(entry.name, (None, ""))[0]))
        else:
            reading.ignored.add("in no row of the table of labels", entry.name)
    for table in useful:
        reading.notes.append(f"{table.content} read from {table.file}")
        if table.missing:
            reading.notes.append(
                f"{len(table.missing)} rows of {table.file} name no image, the first {table.missing[0]}"
            )
    return reading


def _read(listing: Listing, file: str, index: NameIndex) -> _Table | None:
    """A table that names images of the listing; None for any other file."""
    if extension(file) == "jsonl":
        rows = _json_rows(listing, file)
    else:
        first = listing.text(file).partition("\n")[0]
        rows = listing.rows(file, "\t" if extension(file) == "tsv" else max(",;\t|", key=first.count))
    if not rows:
        return None
    width, folder = len(rows[0]), folder_of(file)
    rows = [[*row, *[""] * (width - len(row))][:width] for row in rows]
    sample = rows[1 : _SAMPLE + 1] or rows
    hits = [sum(index.find(row[i], folder) is not None for row in sample) for i in range(width)]
    column = max(range(width), key=lambda i: (hits[i], -i))
    if hits[column] < _RESOLVED * len(sample):
        return None
    headed = index.find(rows[0][column], folder) is None
    header, body = (rows[0], rows[1:]) if headed else ([f"column {i + 1}" for i in range(width)], rows)
    found, missing = [], []
    for row in body:
        if name := index.find(row[column], folder):
            found.append((name, row))
        else:
            missing.append(row[column])
    split = _split_column(header, body, column)
    rest = [i for i in range(width) if i not in (column, split)]
    label, one_hot = _label_column(listing, header, body, rest)
    return _Table(file, header, found, missing, label, split, one_hot)


def _json_rows(listing: Listing, file: str) -> list[list[str]]:
    """The objects of a .jsonl as a table."""
    try:
        objects = [json.loads(line) for line in listing.text(file).splitlines() if line.strip()]
    except (ValueError, RecursionError):
        return []
    if not objects or not all(isinstance(entry, dict) for entry in objects):
        return []
    header = list(objects[0])
    return [header, *([str(entry.get(key, "")) for key in header] for entry in objects)]


def _split_column(header: list[str], rows: list[list[str]], names: int) -> int | None:
    for i, name in enumerate(header):
        if i == names:
            continue
        values = {row[i] for row in rows[:_SAMPLE]}
        if (name.lower() in _SPLITS or name.startswith("column ")) and values and all(map(plain_split, values)):
            return i
    return None


def _label_column(
    listing: Listing, header: list[str], rows: list[list[str]], rest: list[int]
) -> tuple[int | None, tuple[int, ...]]:
    """The column of labels, or those of a one-hot table."""
    lower = [name.lower() for name in header]
    if listing.label_field is not None:
        return (header.index(listing.label_field) if listing.label_field in header else None), ()
    for name in _LABELS:
        if name in lower and lower.index(name) in rest:
            return lower.index(name), ()
    if len(rest) == 1:
        values = [row[rest[0]] for row in rows]
        varied = len(values) > 20 and len(set(values)) > len(values) / 2
        return (None if varied or lower[rest[0]] in _TEXTS else rest[0]), ()
    ones = [[row[i] for i in rest] for row in rows[:_SAMPLE]]
    if len(rest) > 1 and all(
        set(row) <= {"0", "0.0", *_ONE} and sum(cell in _ONE for cell in row) == 1 for row in ones
    ):
        return None, tuple(rest)
    return None, ()
