"""Writes shards; `peco/data/shards.py` describes and reads them."""

from __future__ import annotations

import hashlib
import json
import os
import re
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import asdict
from pathlib import Path, PurePosixPath
from typing import IO, Any, TypeVar

import numpy as np

from peco.core import config
from peco.core.errors import PecoError
from peco.data.shards import BLOCK, VERSION, ShardInfo
from peco.sources.base import FIRST_NAMES, SPLITS, Ignored, RawSample, Source, check_ignored
from peco.sources.image_check import CheckedImage, check_image

Progress = Callable[[int, int | None], None]  # (samples done, samples in all or None)

_AHEAD = 8  # samples in the queue for each thread

T = TypeVar("T")
R = TypeVar("R")


def write_shards(
    source: Source,
    root: Path,
    dataset: config.Dataset,
    *,
    work: Path,
    progress: Progress | None = None,
    workers: int | None = None,
) -> dict[str, Any]:
    """Pack a source into shards. The same input and parameters give the same bytes, for any number of workers.

    Every image is decoded once as a check. Those that `decode` refuses are left out and listed in `rejected.tsv` (split, name,
    reason), what the source ignores in `ignored.tsv` (reason, name). The bytes of the others stay unchanged unless `dataset.resize`
    is less than their short side (then they are shrunk and written as PNG if they were PNG, else as JPEG), the format is one that
    webdataset doesn't read (HEIC, AVIF, JPEG 2000 become JPEG, TGA becomes PNG), or they have 16 bits and `dataset.range_16bit` is
    not the whole range (8-bit PNG).

    Args:
        source: the images.
        root: folder to write to; empty or missing.
        dataset: parameters.
        work: folder for the lists of rejected and ignored images if there are too many of them.
        progress: called after each sample.
        workers: decoding threads (Pillow releases Python's global lock), by default one per core.

    Returns:
        The content of `index.json`.

    Raises:
        PecoError: more than `dataset.max_rejected` of the images are unreadable, more than `dataset.max_ignored` are ignored, or
            no image is left to train on, or the source can't be read.
    """
    workers = workers or os.cpu_count() or 1
    root.mkdir(parents=True, exist_ok=True)
    rejected: list[tuple[str, str, str]] = []
    values: list[tuple[int, int]] = []
    upper: list[tuple[int, int]] = []
    done = 0
    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")  # Pillow's, about unusual images: they are accepted or rejected
        pool = stack.enter_context(ThreadPoolExecutor(workers))
        writers = {split: stack.enter_context(_SplitWriter(root, split, dataset.samples_per_shard)) for split in SPLITS}
        checked = _in_order(pool, lambda raw: check_image(raw, dataset), source.samples(), workers * _AHEAD)
        for raw, result in checked:
            done += 1
            if result.reason:
                rejected.append((raw.split, raw.name, result.reason))
            else:
                writers[raw.split].add(raw, result)
                values += [result.values] if result.values else []
                upper += [result.upper] if result.upper else []
            if progress:
                progress(done, source.total)
    too_many = len(rejected) > dataset.max_rejected * done
    usable = len(writers["train"]) > 0 and not too_many
    listed = _write_list("rejected.tsv", ("split", "name", "reason"), rejected, root if usable else work)
    if not usable:
        allowed = f"more than dataset.max_rejected allows ({dataset.max_rejected:g})"
        first = ", ".join(f"{_escape(name)} ({reason})" for _, name, reason in rejected[:3])
        raise PecoError(
            f"{dataset.path}: {len(rejected)} of {done} images can't be used, "
            f"{allowed if too_many else 'and no image is left to train on'}; all are listed in {listed}, the first: {first}"
        )
    if any(source.ignored):
        rows = [(found.reason, name) for found in source.ignored for name in found.names]
        excess = source.ignored.counted > dataset.max_ignored * (done + source.ignored.counted)
        listed = _write_list("ignored.tsv", ("reason", "name"), rows, work if excess else root)
        check_ignored(dataset.path, source.ignored, done, dataset.max_ignored, listed)
    index = {
        "version": VERSION,
        "source": dataset.source,
        "classes": list(source.classes),
        "splits": {split: writer.index_entry(source.classes) for split, writer in writers.items() if len(writer)},
        "rejected": len(rejected),
        "ignored": _ignored_entry(source.ignored),
        "rejected_reasons": _rejected_entry(rejected),
        "notes": [*source.notes, *_range_notes(values, dataset.range_16bit), *_upper_notes(upper)],
        "max_pixels": dataset.max_pixels,
    }
    (root / "index.json").write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
    return index


def _ignored_entry(ignored: Ignored) -> dict[str, dict[str, Any]]:
    entry: dict[str, dict[str, Any]] = {}
    for found in ignored:
        first = [_escape(name) for name in found.names[:FIRST_NAMES]]
        entry[found.reason] = {"count": len(found.names), "by_rule": found.by_rule, "first": first}
    return entry


def _rejected_entry(rejected: list[tuple[str, str, str]]) -> dict[str, dict[str, Any]]:
    entry: dict[str, dict[str, Any]] = {}
    for reason in sorted({reason for _, _, reason in rejected}):
        names = [name for _, name, found in rejected if found == reason]
        entry[reason] = {"count": len(names), "first": [_escape(name) for name in names[:FIRST_NAMES]]}
    return entry


def _range_notes(values: list[tuple[int, int]], used: tuple[int, int]) -> list[str]:
    """A note on the values of 16-bit images, and a warning if most of them come out nearly black, or some are clipped."""
    if not values:
        return []
    low, high, usual = _extremes(values)
    note = (
        f"{len(values)} 16-bit images have values from {low} to {high}; dataset.range_16bit is {used[0]} to {used[1]}"
    )
    if usual - used[0] < (used[1] - used[0]) / 4:
        reach = f", half of them up to {usual} only" if usual < high else ""
        return [
            f"warning: {note}{reach}, so they come out nearly black; set it to [{low}, {usual}], or to the range of the camera"
        ]
    if low < used[0] or high > used[1]:
        return [f"warning: {note}, so values outside are clipped"]
    return [note]


def _upper_notes(upper: list[tuple[int, int]]) -> list[str]:
    """A note on 16-bit colour images, and a warning if most of them come out nearly black."""
    if not upper:
        return []
    *_, usual = _extremes(upper)
    note = f"{len(upper)} 16-bit colour images are read by their upper 8 bits, without dataset.range_16bit"
    if usual < 65535 / 4:
        return [
            f"warning: {note}; half of them reach {usual} only, so they come out nearly black: stretch them to 65535 first"
        ]
    return [note]


def _extremes(values: list[tuple[int, int]]) -> tuple[int, int, int]:
    """The lowest and the highest value of all images, and the median of their highest."""
    highest = sorted(high for _, high in values)
    return min(low for low, _ in values), highest[-1], highest[len(highest) // 2]


def _write_list(name: str, columns: tuple[str, ...], rows: Sequence[tuple[str, ...]], folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["\t".join(map(_escape, row)) + "\n" for row in [columns, *rows]]
    path = folder / name
    path.write_text("".join(lines), encoding="utf-8", errors="surrogateescape")
    return path


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\t", "\\t").replace("\n", "\\n").replace("\r", "\\r")


def _in_order(
    pool: ThreadPoolExecutor, work: Callable[[T], R], items: Iterable[T], ahead: int
) -> Iterator[tuple[T, R]]:
    """Items with their results, in order. Unlike `pool.map`, reads at most `ahead` items in advance."""
    waiting: deque[tuple[T, Future[R]]] = deque()
    for item in items:
        waiting.append((item, pool.submit(work, item)))
        if len(waiting) > ahead:
            first, future = waiting.popleft()
            yield first, future.result()
    for first, future in waiting:
        yield first, future.result()


class _SplitWriter:
    """Writer of the tars of one split, one after the other."""

    def __init__(self, root: Path, split: str, samples_per_shard: int) -> None:
        self._root, self._split, self._per_shard = root, split, samples_per_shard
        self._shards: list[ShardInfo] = []
        self._labels: list[int] = []
        self._offsets: list[int] = []
        self._tar: Any = None
        self._file: _HashedFile | None = None
        self._next = 0  # byte at which the next sample begins
        self._in_shard = 0

    def __enter__(self) -> _SplitWriter:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self._close_shard()
        elif self._file:
            # A tar left open closes itself when it is garbage-collected, and would then fail on the closed file.
            with suppress(OSError):
                if self._tar is not None:
                    self._tar.close()
            self._file.close()

    def __len__(self) -> int:
        return len(self._labels)

    def add(self, raw: RawSample, checked: CheckedImage) -> None:
        """Append a sample. Its key is its position in the split and, to recognise it, the end of its name."""
        if self._in_shard == self._per_shard:
            self._close_shard()
        if self._file is None:
            self._open_shard()
        stem = re.sub(r"[^A-Za-z0-9_-]", "_", str(PurePosixPath(raw.name).with_suffix("")))[-48:]
        members = {checked.extension: checked.encoded}
        if raw.label >= 0:
            members["cls"] = str(raw.label).encode()
        self._tar.write({"__key__": f"{len(self):08d}-{stem}", **members})
        self._labels.append(raw.label)
        self._offsets.append(self._next)
        self._next += sum(BLOCK + -(-len(data) // BLOCK) * BLOCK for data in members.values())
        self._in_shard += 1

    def index_entry(self, classes: tuple[str, ...]) -> dict[str, Any]:
        """Write the arrays of the split; returns its entry in the index."""
        labels = np.array(self._labels, dtype=np.int64)
        np.save(self._root / f"{self._split}.labels.npy", labels)
        np.save(self._root / f"{self._split}.offsets.npy", np.array(self._offsets, dtype=np.int64))
        return {
            "samples": len(self),
            "labelled": bool((labels >= 0).all()),
            "classes": [classes[label] for label in np.unique(labels[labels >= 0])],
            "shards": [asdict(shard) for shard in self._shards],
        }

    def _open_shard(self) -> None:
        from webdataset.writer import TarWriter

        self._file = _HashedFile(self._root / f"{self._split}-{len(self._shards):05d}.tar")
        self._tar = TarWriter(self._file, user="peco", group="peco", mtime=0, encoder=False)
        self._next = self._in_shard = 0

    def _close_shard(self) -> None:
        if self._file is None:
            return
        self._tar.close()
        self._file.close()
        self._shards.append(
            ShardInfo(self._file.path.name, self._in_shard, self._file.bytes, self._file.sha256.hexdigest())
        )
        self._file = None


class _HashedFile:
    """A file that counts and hashes what is written to it."""

    def __init__(self, path: Path) -> None:
        self.path, self.bytes, self.sha256 = path, 0, hashlib.sha256()
        self._file: IO[bytes] = open(path, "wb")  # noqa: SIM115 (closed by `close`)

    def write(self, data: bytes) -> int:
        self.bytes += len(data)
        self.sha256.update(data)
        return self._file.write(data)

    def close(self) -> None:
        self._file.close()
