"""Shards: the images of a data set as WebDataset tars with an index. Read here, written by `peco/sources/shard_writer.py`.

A folder of shards holds, for each split,

- `train-00000.tar`, …: samples one after the other, each of members that share a key: the encoded image (`jpg`, `png`, …) and
  `cls` if there is a label. Plain `webdataset.WebDataset(...).decode("pil")` reads them.
- `train.labels.npy`: int64 (samples,), -1 for no label.
- `train.offsets.npy`: int64 (samples,), byte in its tar at which a sample begins.

and `index.json`: `version`, `source`, `classes` (all, in the order of the labels), `splits` (for each: `samples`, `labelled`,
`classes` that occur in it, `shards` with name, samples, bytes and sha256), `rejected` (count; the list is `rejected.tsv`),
`rejected_reasons` and `ignored` (by reason: count and first names; the list is `ignored.tsv`), `notes` (how the source was read)
and `max_pixels`.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from peco.core.errors import PecoError
from peco.core.parsing import JSON_ERRORS, NPY_ERRORS
from peco.data.images import MAX_PIXELS, Picture, open_picture
from peco.data.shard_index import check_index

VERSION = 1  # of the layout described above
BLOCK = 512  # bytes of a tar header; members are padded to a multiple of it

_REMEDY = "run `dvc checkout`, or `dvc repro shards` to write the shards again"


@dataclass(frozen=True)
class Sample:
    """One image of a split."""

    index: int  # position in the split, shard after shard
    key: str
    encoded: bytes  # the image file
    label: int  # -1: none
    max_pixels: int = MAX_PIXELS  # that the shards were written with
    shard: str = ""  # path of its tar, for messages

    def open(self) -> Picture:
        """The image (see `peco.data.images.open_picture`).

        Raises:
            PecoError: the image is damaged.
        """
        return open_picture(self.encoded, max_pixels=self.max_pixels, explain=self._explain)

    def _explain(self, reason: str) -> str:
        return f"{self.shard}: sample {self.key}: {reason}; {_REMEDY}"


@dataclass(frozen=True)
class ShardInfo:
    """The entry of one tar in the index."""

    name: str
    samples: int
    bytes: int
    sha256: str


@dataclass(frozen=True, eq=False)
class ShardSet:
    """The shards of one split. Has no open file, so that it can be pickled for worker processes.

    Attributes:
        labels: int64 (samples,), indices into `classes`, -1: none.
        labeled: True if every sample has a label.
        starts: int64 (shards,), index of the first sample of each shard.
        offsets: int64 (samples,), byte at which a sample begins in its tar.
        ends: int64 (samples,), byte at which it ends there.
        max_pixels: the limit with which the shards were written.
    """

    root: Path
    split: str
    shards: tuple[ShardInfo, ...]
    classes: tuple[str, ...]
    labels: np.ndarray
    labeled: bool
    starts: np.ndarray
    offsets: np.ndarray
    ends: np.ndarray
    max_pixels: int = MAX_PIXELS

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, start: int, stop: int) -> Iterator[Sample]:
        """Samples [start, stop) in order, read front to back.

        Raises:
            ValueError: the range isn't within the split.
            PecoError: a shard is missing or damaged.
        """
        if not 0 <= start <= stop <= len(self):
            raise ValueError(f"samples [{start}, {stop}) of {len(self)} in {self.split}")
        while start < stop:
            number = int(np.searchsorted(self.starts, start, side="right")) - 1
            end = int(self.starts[number]) + self.shards[number].samples
            yield from self._read_shard(number, start, min(stop, end))
            start = end

    def take(self, indices: np.ndarray) -> ShardSet:
        """Some of the samples as a split of its own: the `index` of its samples counts from 0.

        Args:
            indices: int64, rising.
        """
        numbers = np.searchsorted(self.starts, indices, side="right") - 1
        found, counts = np.unique(numbers, return_counts=True)
        return replace(
            self,
            shards=tuple(
                replace(self.shards[i], samples=n) for i, n in zip(found.tolist(), counts.tolist(), strict=True)
            ),
            labels=self.labels[indices],
            starts=np.cumsum(counts) - counts,
            offsets=self.offsets[indices],
            ends=self.ends[indices],
        )

    def _read_shard(self, number: int, start: int, stop: int) -> Iterator[Sample]:
        shard = self.shards[number]
        path = self.root / shard.name
        try:
            with open(path, "rb") as file:
                if file.seek(0, io.SEEK_END) != shard.bytes:
                    raise ValueError("its size differs from the index")
                for index in range(start, stop):
                    begin, end = int(self.offsets[index]), int(self.ends[index])
                    if not 0 <= begin < end <= shard.bytes:
                        raise ValueError("its offsets are not those of its samples")
                    file.seek(begin)
                    key, encoded = _read_sample(file.read(end - begin))
                    yield Sample(index, key, encoded, int(self.labels[index]), self.max_pixels, str(path))
        except OSError as error:
            raise PecoError(f"{path}: the shard can't be read ({error.strerror}); {_REMEDY}") from None
        except ValueError as error:
            raise PecoError(f"{path}: the shard is damaged ({error}); {_REMEDY}") from None


def load_index(root: Path) -> dict[str, Any]:
    """The content of `index.json`.

    Raises:
        PecoError: it is missing, damaged, or of another version.
    """
    path = root / "index.json"
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise PecoError(f"{path}: can't be read ({error.strerror}); {_REMEDY}") from None
    except JSON_ERRORS:
        raise PecoError(f"{path}: the index is damaged; {_REMEDY}") from None
    if not isinstance(index, dict) or index.get("version") != VERSION:
        raise PecoError(f"{path}: not an index of version {VERSION}; run `dvc repro shards` to write the shards again")
    check_index(index, path, _REMEDY)
    return index


def open_shards(root: Path, split: str) -> ShardSet:
    """The shards of one split.

    Raises:
        PecoError: there is no such split, or the folder is missing or damaged.
    """
    index = load_index(root)
    if split not in index["splits"]:
        raise PecoError(f"{root}: no split {split}; it has {', '.join(index['splits'])}")
    entry = index["splits"][split]
    shards = tuple(ShardInfo(**shard) for shard in entry["shards"])
    counts = np.array([shard.samples for shard in shards], dtype=np.int64)
    labels = _load_array(root / f"{split}.labels.npy", entry["samples"])
    offsets = _load_array(root / f"{split}.offsets.npy", entry["samples"])
    ends = np.roll(offsets, -1)
    ends[np.cumsum(counts) - 1] = [shard.bytes for shard in shards]
    if not -1 <= labels.min() <= labels.max() < len(index["classes"]) or entry["labelled"] != (labels >= 0).all():
        raise PecoError(f"{root / f'{split}.labels.npy'}: its labels are not those of index.json; {_REMEDY}")
    return ShardSet(
        root=root,
        split=split,
        shards=shards,
        classes=tuple(index["classes"]),
        labels=labels,
        labeled=entry["labelled"],
        starts=np.cumsum(counts) - counts,
        offsets=offsets,
        ends=ends,
        max_pixels=index.get("max_pixels", MAX_PIXELS),
    )


def open_evaluation_split(root: Path) -> ShardSet:
    """The shards of val, or of train where there is no val. Raises as `open_shards`."""
    return open_shards(root, "val" if "val" in load_index(root)["splits"] else "train")


def _read_sample(block: bytes) -> tuple[str, bytes]:
    """Key and encoded image of the sample in a block of tar members."""
    offset = 0
    while offset + BLOCK <= len(block):
        header = block[offset : offset + BLOCK]
        if header[257:262] != b"ustar":
            break
        name, size = header[:100].rstrip(b"\0").decode(), int(header[124:135], 8)
        if size < 0:
            break
        offset += BLOCK
        key, _, extension = name.partition(".")
        if extension != "cls":
            if offset + size > len(block):
                break
            return key, block[offset : offset + size]
        offset += -(-size // BLOCK) * BLOCK
    raise ValueError("no sample at its offset in the index")


def _load_array(path: Path, length: int) -> np.ndarray:
    try:
        with open(path, "rb") as file:
            array: np.ndarray = np.lib.format.read_array(file, allow_pickle=False)
    except NPY_ERRORS:
        raise PecoError(f"{path}: missing or damaged; {_REMEDY}") from None
    if array.shape != (length,) or array.dtype != np.int64:
        raise PecoError(
            f"{path}: holds {array.dtype} of shape {array.shape}; expected int64 for {length} samples: {_REMEDY}"
        )
    return array
