"""Labels in tables beside the images: CSV, TSV and JSON lines, as competitions and Hugging Face's `imagefolder` have them."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace

from peco.core.errors import PecoError
from peco.files.names import extension, stem
from peco.files.words import TEST, TRAIN, VAL, named_split, plain_split, words
from peco.sources.layouts.folders import class_folders, folder_splits
from peco.sources.layouts.listing import Listing, NameIndex, Placed, Reading
from peco.sources.layouts.lists import split_lists

# Names of columns as `_plain` writes them.
_LABELS = (
    *("label_name", "class_name", "classname", "class_label", "label", "labels", "class", "classes", "category"),
    *("target", "breed", "species", "diagnosis", "dx", "y", "label_id", "class_id", "category_id"),
)
_LAST_WORDS = {"label", "labels", "class", "category"}  # of other names of columns with labels ("Finding Labels")
_SPLITS = ("split", "set", "subset", "partition", "data_set", "dataset", "usage", "fold")
_NUMBERED = {"0": TRAIN, "1": VAL, "2": TEST}  # as CelebA numbers its partitions
_FLAGS = {"is_valid": VAL, "is_val": VAL, "is_test": TEST}  # columns that are true or false
_KINDS = ("csv", "tsv", "jsonl")
_BOXES = {"xmin", "x_min", "x1", "x_1", "bbox", "bbox_x", "bbox_x1"}
_RESOLVED = 0.5  # share of rows that must name an image
_ONE, _TRUE, _FALSE = ("1", "1.0"), ("true", "1"), ("false", "0")
_SEVERAL = "|"  # between several labels of one image
_TEXTS = {"text", "caption", "captions", "prompt", "url", "md5", "sha256", "size", "width", "height"}  # never labels
_MOST_TABLES = 100  # more are annotations of single images
_SAMPLE = 2000  # rows that are looked at to find the column of names


@dataclass(frozen=True)
class _Table:
    """A table whose rows name images. Columns are positions; None: there is none. `splits` are those of the values in `split`."""

    file: str
    header: list[str]
    rows: list[tuple[str, list[str]]]  # image and cells
    missing: list[str]  # names of images that don't exist
    names: int
    label: int | None
    split: int | None
    splits: dict[str, str]
    one_hot: tuple[int, ...]

    @property
    def has_labels(self) -> bool:
        return self.label is not None or bool(self.one_hot)

    @property
    def has_boxes(self) -> bool:
        found = {_plain(name) for name in self.header}
        return bool(found & _BOXES) or any("bbox" in name.split("_") for name in found)

    @property
    def named_split(self) -> str | None:
        """The split that the name of the file contains, as in train_labels.csv."""
        found = named_split(stem(self.file))
        return found[0] if found else None

    @property
    def content(self) -> str:
        """The columns that are read from the table, for the summary."""
        parts = ["labels (one column each)"] if self.one_hot else []
        if self.label is not None:
            parts = [f"labels (column {self.header[self.label]})"]
        if self.split is not None:
            meaning = ", ".join(f"{value} is {split}" for value, split in sorted(self.splits.items()) if value != split)
            parts.append(f"splits (column {self.header[self.split]}{': ' if meaning else ''}{meaning})")
        return " and ".join(parts) or "splits"

    def category(self, cells: list[str]) -> str | None:
        """The label in a row; None where there is none, or several."""
        if self.one_hot:
            return next((self.header[i] for i in self.one_hot if cells[i] in _ONE), None)
        text = cells[self.label] if self.label is not None else ""
        return None if _SEVERAL in text else text or None


def label_table(listing: Listing) -> Reading | None:
    """A CSV, TSV or .jsonl with a name and a label in each row, perhaps with a split; the names may lack their extension.

    Raises:
        PecoError: a table can't be read, two tables disagree, or there is no column `dataset.label_field`.
    """
    files = [name for name in listing.others if extension(name) in _KINDS and "submission" not in name.lower()]
    if len(files) > _MOST_TABLES:
        listing.notes.append(
            f"{len(files)} tables ({files[0]}, …) are not read; labels must be in {_MOST_TABLES} or fewer"
        )
        files = []
    index = NameIndex(listing.images if files else ())
    tables = [table for file in files if (table := _read(listing, file, index))]
    unlabeled = {tuple(t.header) for t in tables if not t.has_labels}
    # Columns of 0 and 1 are labels only if each row of all such tables has one.
    tables = [replace(t, one_hot=()) if tuple(t.header) in unlabeled else t for t in tables]
    if listing.label_field and not any(table.label is not None for table in tables):
        columns = sorted({name for table in tables for name in table.header if name})
        raise PecoError(
            f"dataset.label_field: no table has the column {listing.label_field}; there are {', '.join(columns) or 'none'}; "
            "for labels in members of WebDataset tars set dataset=webdataset as well"
        )
    useful = [t for t in tables if not t.has_boxes and (t.has_labels or t.split is not None or t.named_split)]
    if listing.forced:
        return None
    if not any(t.has_labels or t.split is not None for t in useful):
        listing.notes.extend(note for table in tables if (note := _without_labels(table)))
        return None
    bare = replace(listing, labels="none")
    folders = {image.name: image.split for image in (folder_splits(bare) or Reading([])).images}
    lists = {} if folders else {image.name: image.split for image in (split_lists(bare) or Reading([])).images}
    labels: dict[str, tuple[str | None, str]] = {}
    splits: dict[str, str] = {}
    by_name = any(table.named_split == TRAIN for table in useful)  # else test.csv is no split
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
            split = table.splits.get(cells[table.split]) if table.split is not None else table.named_split
            split = split if table.split is not None or by_name else None
            if split and not (table.split is None and (name in folders or name in lists)):
                splits[name] = split
    by_folder = folder_splits(listing)
    if not any(table.has_labels for table in useful):
        by_folder = by_folder or class_folders(listing)
        labels = dict.fromkeys(labels, (None, ""))
    classes = {image.name: image.category for image in (by_folder or Reading([])).images}
    reading = Reading([])
    for entry in listing.images:
        if entry.name in labels or folders.get(entry.name) is not None:
            split = splits.get(entry.name) or folders.get(entry.name) or lists.get(entry.name)
            category, _ = labels.get(entry.name, (None, ""))
            reading.images.append(Placed(entry.name, split, category or classes.get(entry.name)))
        else:
            reading.ignored.add("in no row of the table of labels", entry.name)
    for table in useful:
        reading.notes.append(f"{table.content} are read from {table.file}")
        if several := sum(_SEVERAL in cells[table.label] for _, cells in table.rows if table.label is not None):
            reading.notes.append(f"{several} rows of {table.file} have several labels: their images get none")
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
    width, places = len(rows[0]), index.places(file)
    rows = [[*row, *[""] * (width - len(row))][:width] for row in rows]
    sample = rows[1 : _SAMPLE + 1] or rows
    hits = [[name for row in sample if (name := index.find(row[i], places))] for i in range(width)]
    # Labels may be names of images too: 0 to 9 beside 0.jpg, 1.jpg, …
    column = max(range(width), key=lambda i: (len(set(hits[i])), len(hits[i]), -i))
    if len(hits[column]) < _RESOLVED * len(sample) or _plain(rows[0][column]) in _LABELS:
        if {*map(_plain, rows[0])} & {*_LABELS} and 2 * len(rows) >= len(listing.images):
            listing.notes.append(f"{file} is not read, since its rows name no images, or several each")
        return None
    headed = index.find(rows[0][column], places) is None
    header, body = (rows[0], rows[1:]) if headed else ([f"column {i + 1}" for i in range(width)], rows)
    found, missing = [], []
    exact = index.keeps_folders((row[column] for row in body), places)
    for row in body:
        if name := index.find(row[column], places, in_folder=exact):
            found.append((name, row))
        else:
            missing.append(row[column])
    split, splits = _split_column(file, header, body, column)
    rest = [i for i in range(width) if i not in (column, split) and _plain(header[i]) not in (*_SPLITS, *_FLAGS)]
    label, one_hot = _label_column(listing, header, body, rest)
    return _Table(file, header, found, missing, column, label, split, splits, one_hot)


def _plain(name: str) -> str:
    """The name of a column as in `_LABELS`: `ClassId` and `class id` are `class_id`."""
    return "_".join(words(name))


def _without_labels(table: _Table) -> str:
    """A sentence on a table in which no column was recognised as labels, "" if none can be."""
    columns = [
        name for i, name in enumerate(table.header) if i != table.names and _plain(name) not in (*_TEXTS, *_SPLITS)
    ]
    if table.has_boxes or not any(columns):
        return ""
    return (
        f"{table.file} names images, but no column is known to be their labels ({', '.join(columns[:6])}"
        f"{', …' if len(columns) > 6 else ''}): dataset.label_field names one"
    )


def _json_rows(listing: Listing, file: str) -> list[list[str]]:
    """The objects of a .jsonl as a table."""
    try:
        objects = [json.loads(line) for line in listing.text(file).splitlines() if line.strip()]
    except (ValueError, RecursionError):
        return []
    if not objects or not all(isinstance(entry, dict) for entry in objects):
        return []
    header = list(objects[0])
    return [header, *([_as_cell(entry.get(key)) for key in header] for entry in objects)]


def _as_cell(value: object) -> str:
    return "" if value is None or isinstance(value, list | dict) else str(value)


def _split_column(file: str, header: list[str], rows: list[list[str]], names: int) -> tuple[int | None, dict[str, str]]:
    """The column of splits, and the split of each of its values.

    Raises:
        PecoError: some of the values are splits, others are not.
    """
    for i, name in enumerate(header):
        plain, flag = _plain(name), _FLAGS.get(_plain(name))
        if i == names or not rows or not (flag or plain in _SPLITS or name.startswith("column ")):
            continue
        values = {row[i] for row in rows}
        if flag:
            if {value.lower() for value in values} <= {*_TRUE, *_FALSE}:
                return i, {value: flag if value.lower() in _TRUE else TRAIN for value in values}
            continue
        found = {value: split for value in values if (split := plain_split(value))}
        if plain in _SPLITS[:-1] and "0" in values and values <= _NUMBERED.keys():
            found = {value: _NUMBERED[value] for value in values}
        if len(found) == len(values):
            return i, found
        if TRAIN in found.values() and plain in _SPLITS:
            odd = next(value for value in sorted(values) if value not in found)
            raise PecoError(
                f"{file}: {odd!r} in the column {name} is no split; expected train, val or test in each row"
            )
    return None, {}


def _is_varied(values: list[str]) -> bool:
    """True for more than 20 values, most of them different."""
    return len(values) > 20 and 2 * len(set(values)) > len(values)


def _is_no_class(values: list[str]) -> bool:
    """True for measurements and free text: varied values that are fractions or of four words."""
    values = [value for value in values if value]
    odd = sum(
        re.fullmatch(r"-?\d*\.\d*[1-9]\d*(e-?\d+)?", value) is not None or len(value.split()) > 3 for value in values
    )
    return _is_varied(values) and 2 * odd > len(values)


def _label_column(
    listing: Listing, header: list[str], rows: list[list[str]], rest: list[int]
) -> tuple[int | None, tuple[int, ...]]:
    """The column of labels, or those of a one-hot table."""
    plain = [_plain(name) for name in header]
    if listing.label_field is not None:
        return (header.index(listing.label_field) if listing.label_field in header else None), ()
    named = [plain.index(name) for name in _LABELS if name in plain and plain.index(name) in rest]
    last = [i for i in rest if plain[i].split("_")[-1] in _LAST_WORDS]
    for i in (*named, *(last if len(last) == 1 else ())):
        if not _is_no_class([row[i] for row in rows]):
            return i, ()
    if named or len(last) == 1:
        return None, ()
    if len(rest) == 1:
        varied = _is_varied([row[rest[0]] for row in rows])
        return (None if varied or plain[rest[0]] in _TEXTS else rest[0]), ()
    ones = [[row[i] for i in rest] for row in rows[:_SAMPLE]]
    if len(rest) > 1 and all(
        set(row) <= {"0", "0.0", *_ONE} and sum(cell in _ONE for cell in row) == 1 for row in ones
    ):
        return None, tuple(rest)
    return None, ()
