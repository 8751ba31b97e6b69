"""Existing WebDataset tars as a source. docs/data.md has the rules.

Local tars are indexed first: all headers and labels are read, so that splits, classes and wrong input are known before the first
image. Tars at addresses are copied to a temporary file one after the other; what the first one shows must hold for all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Literal

from peco.core.errors import PecoError
from peco.core.progress import tracked
from peco.files.names import hashed
from peco.files.tar_archive import is_compressed
from peco.sources.base import SPLITS, Ignored, RawSample, shuffled
from peco.sources.webdataset.classes import ClassNumbers, Named, Streamed, Unnamed, is_number
from peco.sources.webdataset.index import Entry, Found, read_entries
from peco.sources.webdataset.keys import TwoImages, choose_rule, first_rule
from peco.sources.webdataset.labels import LabelField, list_counts
from peco.sources.webdataset.members import Member, list_members, opened_tar
from peco.sources.webdataset.splits import folder_classes, folder_split, named_splits, one_tar_a_class, tar_class
from peco.sources.webdataset.tars import file_name, find_tars, is_address

Labels = Literal["auto", "folders", "paths", "tars", "none"]  # `config.Dataset` allows no `paths` for tars


class WebDatasetSource:
    """A `Source` over WebDataset tars.

    Args:
        path: a folder, tar, pattern, address, or a file that lists these.
        val_fraction: share for val if the tars name no val split.
        seed: of that split and of the order.
        work: folder for temporary copies of compressed tars and of those at addresses.
        labels: where classes are looked for; `auto`: in the members, else in the names of tars and folders.
        label_field: the member with the label (`LabelField`).
        image_field: ending of the member with the image, or `all` (`peco.sources.webdataset.keys`).
        class_numbers: meaning of labels that are numbers (`peco.sources.webdataset.classes`).

    Raises:
        PecoError: no tar found, tars that can't be read or hold no image, or ambiguous keys, splits or labels.
    """

    def __init__(
        self,
        path: str,
        *,
        val_fraction: float,
        seed: int,
        work: Path,
        labels: Labels = "auto",
        label_field: str | None = None,
        image_field: str | None = None,
        class_numbers: ClassNumbers = "auto",
    ) -> None:
        self._path, self._seed, self._val_fraction, self._work = path, seed, val_fraction, work
        self._labels, self._mode, self._field = labels, class_numbers, LabelField(label_field)
        self.ignored, self.notes = Ignored(), list[str]()
        self.total: int | None = None
        self.counts = dict[str, int]()
        self._tars = find_tars(path)
        self._splits = self._named_splits()
        self._urls = [url for url in self._tars.urls if self._splits is None or url in self._splits]
        files = Counter(map(file_name, self._tars.urls))
        self._shown = {url: name if files[name := file_name(url)] == 1 else self._tars.names[url] for url in self._urls}
        self._rule = first_rule(image_field, self._field.endings)
        self._found = Found(self.ignored)
        self._unclosed: list[str] = []
        self._index: dict[str, list[tuple[str, Entry]]] | None = None
        self._numbers: Named | Unnamed | Streamed
        if not any(map(is_address, self._urls)):
            self._index = self._build_index()
            self._note_what_was_found(sum(map(len, self._index.values())))
        else:
            self._prepare_stream()
        self.classes = self._numbers.classes

    def samples(self) -> Iterator[RawSample]:
        """As in `Source`. Uncompressed local tars are read in shuffled order, all others one after the other."""
        if self._index is None:
            yield from self._stream()
        elif any(is_compressed(Path(url)) for url in self._urls):
            by_tar: dict[str, list[tuple[str, Entry]]] = {}
            for split, entries in self._index.items():
                for url, entry in entries:
                    by_tar.setdefault(url, []).append((split, entry))
            for url in self._urls:
                with opened_tar(url, self._work) as file:
                    yield from (self._sample(split, url, entry, file) for split, entry in by_tar.get(url, []))
        else:
            for split, entries in self._index.items():
                for url, entry in shuffled(entries, split, self._seed):
                    with opened_tar(url, self._work) as file:
                        yield self._sample(split, url, entry, file)

    def _sample(self, split: str, url: str, entry: Entry, file: IO[bytes]) -> RawSample:
        label = -1 if entry.label is None else self._numbers.number(entry.label)
        return RawSample(split, f"{self._shown[url]}/{entry.name}", entry.image.read(file), label)

    def _named_splits(self) -> dict[str, str] | None:
        """Split of each tar by its name (`named_splits`), without tars of `test` where there are some of `val`."""
        splits = named_splits(self._path, self._tars.names)
        if splits is None or "val" not in splits.values():
            return splits
        unused = [url for url, split in splits.items() if split == "test"]
        self.ignored.extend("tar of the unused split test", unused, by_rule=True)
        return {url: split for url, split in splits.items() if split != "test"}

    # --- local tars

    def _build_index(self) -> dict[str, list[tuple[str, Entry]]]:
        try:
            entries = self._read_all()
        except TwoImages:
            names = ([member.name for member in self._list(url)] for url in self._each_tar())
            self._rule, note = choose_rule(self._path, names, self._field.labels_only)
            self.notes.append(note)
            # What was counted belongs to the other rule.
            self.ignored, self._unclosed = Ignored(), []
            self._splits = self._named_splits()
            self._found = Found(self.ignored)
            entries = self._read_all()
        self._name_unlabeled(entries)
        index: dict[str, list[tuple[str, Entry]]] = {split: [] for split in SPLITS}
        for split, url, entry in self._divide(entries):
            index[split].append((url, entry))
        self.counts = {split: len(part) for split, part in index.items()}
        self.total = sum(self.counts.values())
        if self.total == 0:
            raise self._no_image()
        found = {entry.label for part in index.values() for _, entry in part if entry.label is not None}
        known = self._tars.classes
        make = self._mode, self._path
        self._numbers = Named(known, found, *make) if known else Unnamed(found, *make)
        for label in sorted(found):
            self._numbers.number(label)  # refuses it before the first image is read
        return {split: part for split, part in index.items() if part}

    def _list(self, url: str) -> list[Member]:
        with opened_tar(url, self._work) as file:
            return list_members(file, url).members

    def _each_tar(self) -> Iterator[str]:
        return tracked(self._urls, f"{self._path}: indexed", len(self._urls), "tars")

    def _read_all(self) -> list[tuple[str, Entry]]:
        entries: list[tuple[str, Entry]] = []
        for url in self._each_tar():
            with opened_tar(url, self._work) as file:
                entries += ((url, entry) for entry in self._read(url, file))
        return entries

    def _read(self, url: str, file: IO[bytes]) -> list[Entry]:
        listing = list_members(file, url)
        self.ignored.extend("a link to nothing in the tar", (f"{self._shown[url]}/{name}" for name in listing.lost))
        self.ignored.extend("hidden", (f"{self._shown[url]}/{name}" for name in listing.hidden), by_rule=True)
        if not listing.closed:
            self._unclosed.append(url)
        labels = self._field if self._labels == "auto" else None
        return read_entries(file, listing.members, self._rule, labels, self._found, self._shown[url])

    def _divide(self, entries: list[tuple[str, Entry]]) -> Iterator[tuple[str, str, Entry]]:
        """Split, tar and sample. Splits are those of the tars, else of folders in the members' names, else made by the keys."""
        named: list[str | None] = [self._splits[url] if self._splits else None for url, _ in entries]
        if self._splits is None:
            folders = [folder_split(entry.image.name) for _, entry in entries]
            if {"train"} < set(folders) - {None}:
                named = folders
        kinds = set(named) - {None}
        held_out = "val" if "val" in kinds else "test"
        labels: dict[str | None, set[str]] = {"train": set(), "test": set()}
        for (_, entry), split in zip(entries, named, strict=True):
            if entry.label is not None:
                labels.setdefault(split, set()).add(entry.label)
        if held_out == "test" and "test" in kinds and labels["train"] and not labels["train"] & labels["test"]:
            why = "no class of train" if labels["test"] else "no labels"
            self.notes.append(f"test has {why}, so val is a part of train")
            held_out = ""
        for (url, entry), split in zip(entries, named, strict=True):
            name = f"{self._shown[url]}/{entry.name}"
            if not kinds or (split == "train" and held_out not in kinds):
                yield self._split_of(entry.key), url, entry
            elif split in ("train", held_out):
                yield "train" if split == "train" else "val", url, entry
            elif split is None:
                self.ignored.add("outside the splits", name)
            else:
                self.ignored.add(f"in the unused split {split}", name, by_rule=True)

    def _split_of(self, key: str) -> str:
        return "val" if hashed(key, self._seed) < self._val_fraction * 2**64 else "train"

    def _name_unlabeled(self, entries: list[tuple[str, Entry]]) -> None:
        """Label all samples by their tars or folders, if that is asked for, or if no sample has a label and the names look like it.

        Raises:
            PecoError: it is asked for, and some names give no class; or there is no label where `dataset.label_field` has it.
        """
        how = self._labels
        if how == "auto" and all(entry.label is None for _, entry in entries):
            how = self._guess(entries)
        if how == "tars":
            classes = {url: tar_class(name) for url, name in self._tars.names.items()}
            nameless = next((url for url in self._urls if not classes[url]), None)
            if nameless is not None:
                raise PecoError(
                    f"{nameless}: its name gives no class; name each tar for its class, or change dataset.labels"
                )
            for url, entry in entries:
                entry.label = classes[url]
        elif how == "folders":
            by_name = folder_classes({entry.image.name for _, entry in entries})
            for url, entry in entries:
                entry.label = by_name.get(entry.image.name)
                if entry.label is None:
                    raise PecoError(
                        f"{url}: {entry.image.name} lies in no folder that is a class; put each image into the folder of its "
                        "class, or change dataset.labels"
                    )

    def _guess(self, entries: list[tuple[str, Entry]]) -> Labels:
        """The place of the classes if no sample has a label: in the names of the tars, of folders, or nowhere."""
        if self._field.field is not None:
            raise PecoError(f"{self._path}: no labels found in {self._field} (dataset.label_field){self._hint()}")
        if 2 * self._found.lonely.total() > len(entries) > 0:
            raise PecoError(
                f"{self._path}: labels ({list_counts(self._found.lonely)}) lie in samples without an image, and no image has one; "
                "put image and label of a sample into one tar, or set dataset.labels=none"
            )
        if one_tar_a_class({url: self._tars.names[url] for url in {url for url, _ in entries}}, self._splits):
            self.notes.append("the names of the tars are the classes (dataset.labels: none leaves them out)")
            return "tars"
        by_name = folder_classes({entry.image.name for _, entry in entries})
        classes = set(by_name.values())
        if len(classes) > 1 and len(by_name) == len(entries) and not any(map(is_number, classes)):
            self.notes.append("the folders in the names are the classes (dataset.labels: none leaves them out)")
            return "folders"
        return "none"

    # --- tars at addresses

    def _prepare_stream(self) -> None:
        known = self._tars.classes
        if self._labels == "folders":
            raise PecoError(f"{self._path}: dataset.labels: folders is possible for local tars only")
        if self._labels == "tars" and known is None:
            known = tuple(sorted({tar_class(name) for name in self._tars.names.values()}))
        self._numbers = Named(known, None, self._mode, self._path) if known else Streamed(self._mode, self._path)

    def _stream(self) -> Iterator[RawSample]:
        count, held_out = 0, None
        for url in self._urls:
            with opened_tar(url, self._work) as file:
                for entry in self._read_streamed(url, file, first=count == 0):
                    count += 1
                    if self._labels == "tars":
                        entry.label = tar_class(self._tars.names[url])
                    named = self._splits[url] if self._splits else folder_split(entry.image.name)
                    if named in ("val", "test"):
                        held_out = held_out or named
                    if named in (None, "train", held_out):
                        split = self._split_of(entry.key) if named is None else "train" if named == "train" else "val"
                        yield self._sample(split, url, entry, file)
                    else:
                        name = f"{self._shown[url]}/{entry.name}"
                        self.ignored.add(f"in the unused split {named}", name, by_rule=True)
        if count == 0:
            raise self._no_image()
        if isinstance(self._numbers, Streamed):
            self._numbers.finish()
        self.classes = self._numbers.classes
        self._note_what_was_found(count)

    def _read_streamed(self, url: str, file: IO[bytes], *, first: bool) -> list[Entry]:
        try:
            return self._read(url, file)
        except TwoImages as two:
            if not first:
                raise PecoError(
                    f"{url}: {two.args[0]} and {two.args[1]} are images of one sample, unlike in the tars before; choose by "
                    "dataset.image_field: the ending of the images (such as jpg), or all"
                ) from None
        names = [[member.name for member in list_members(file, url).members]]
        self._rule, note = choose_rule(url, names, self._field.labels_only)
        self.notes.append(note)
        return self._read(url, file)

    # --- the summary

    def _note_what_was_found(self, count: int) -> None:
        found = self._found
        if found.damaged and any(ending.endswith("json") for ending in found.kinds):
            raise PecoError(
                f"{self._path}: {found.damaged} is damaged JSON, and labels are read from there; fix it or remove the sample"
            )
        if found.kinds and set(found.kinds) != {"cls"}:
            self.notes.append(f"labels are read from {list_counts(found.kinds)}")
        if found.odd:
            self.notes.append(f"samples without a label, since {list_counts(found.odd)}")
        if self._labels == "auto" and not self._numbers.classes:
            self.notes.append(f"no labels found in {self._field}{self._hint()}")
        if self._numbers.note:
            self.notes.append(self._numbers.note)
        if found.again:
            self.notes.append(f"{found.again} of {count} samples have a key that came before in their tar")
        if self._unclosed:
            self.notes.append(
                f"{len(self._unclosed)} of {len(self._urls)} tars lack the mark of the end and may be cut off, the first is "
                f"{self._unclosed[0]}"
            )

    def _hint(self) -> str:
        """The members and JSON keys in which labels could be."""
        others = Counter({ending: n for ending, n in self._found.others.items() if ending not in self._found.kinds})
        keys = f"; keys in json: {list_counts(self._found.json_keys)}" if self._found.json_keys else ""
        return f"; the samples hold {list_counts(others)}{keys}: dataset.label_field names one" if others else ""

    def _no_image(self) -> PecoError:
        endings = f"; their members end in {list_counts(self._found.others)}" if self._found.others else ""
        return PecoError(
            f"{self._path}: no image in the {len(self._urls)} tar(s){endings}; expected members such as 0001.jpg with 0001.cls, or "
            "dataset.image_field"
        )
