"""Stored token targets: one array file per image shard, in the shard's order, memory-mapped when read.

An entry holds the numbers of a view and the tokenizer's token grid for exactly that view. Files are plain `.npy` of shape
(samples, views) with the dtype of `entry_dtype`; `index.json` describes them.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from peco.core.errors import PecoError
from peco.core.parsing import JSON_ERRORS, NPY_ERRORS
from peco.data.shards import ShardSet
from peco.data.views import VIEW_DTYPE, View, from_record

INDEX = "index.json"
_MOST_TOKENS = 1 << 12  # along one side


def entry_dtype(tokens: int) -> np.dtype:
    """One stored view: its numbers and the indices of its `tokens` tokens, row by row, as uint16."""
    return np.dtype([("view", VIEW_DTYPE), ("tokens", "<u2", (tokens,))])


def shard_file(shard_name: str) -> str:
    """Name of the array file of an image shard."""
    return Path(shard_name).with_suffix(".npy").name


def write_index(folder: Path, shards: ShardSet, *, views: int, grid: int, codes: int) -> None:
    """Write the index of a finished folder of token files."""
    files = [folder / shard_file(s.name) for s in shards.shards] if views else []
    index = {
        "version": 1,
        "views": views,
        "grid": [grid, grid],
        "codes": codes,
        "samples": len(shards),
        "shards": [{"name": f.name, "sha256": hashlib.sha256(f.read_bytes()).hexdigest()} for f in files],
    }
    (folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")


@dataclass
class TokenStore:
    """Reader of a folder of token targets. Each process maps a file into memory when it first uses it.

    Args:
        folder: written by the `tokens` stage.
        shards: the split that the tokens belong to.

    Attributes:
        views: stored views of each sample; 0: tokens are computed online.
        codes: size of the codebook that the tokens index.
        grid: tokens along one side.

    Raises:
        PecoError: the folder is missing, damaged or belongs to other shards.
    """

    folder: Path
    shards: ShardSet
    views: int = field(init=False)
    codes: int = field(init=False)
    grid: int = field(init=False)
    _maps: dict[int, np.ndarray] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        try:
            index = json.loads((self.folder / INDEX).read_text(encoding="utf-8"))
            self.views, self.codes, samples = (index[key] for key in ("views", "codes", "samples"))
            self.grid = index["grid"][0]
            if not all(type(n) is int and 0 <= n < 2**32 for n in (self.views, self.codes, self.grid, samples)):
                raise ValueError
            if not 0 < self.grid <= _MOST_TOKENS:
                raise ValueError
        except (OSError, LookupError, TypeError, *JSON_ERRORS):
            raise PecoError(
                f"{self.folder / INDEX}: no readable token targets; `dvc repro tokens` makes them"
            ) from None
        if samples != len(self.shards):
            raise PecoError(
                f"{self.folder}: tokens of {samples} samples, but the shards hold {len(self.shards)}; "
                "`dvc repro tokens` makes them again"
            )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_maps": {}}

    def get(self, sample: int, view: int) -> tuple[View, np.ndarray]:
        """A stored view of a sample and its tokens, int64 (grid * grid,).

        Raises:
            PecoError: the file is missing or damaged, or doesn't fit the index.
        """
        shard = int(np.searchsorted(self.shards.starts, sample, side="right")) - 1
        entry = self._map(shard)[sample - int(self.shards.starts[shard]), view]
        tokens = entry["tokens"].astype(np.int64)
        if tokens.max() >= self.codes:
            raise PecoError(
                f"{self.folder}: token {tokens.max()} of sample {sample}, but there are {self.codes} codes; `dvc repro tokens` "
                "makes them again"
            )
        return from_record(entry["view"]), tokens

    def _map(self, shard: int) -> np.ndarray:
        if shard not in self._maps:
            path = self.folder / shard_file(self.shards.shards[shard].name)
            try:
                entries = np.lib.format.open_memmap(path, mode="r")
            except NPY_ERRORS:
                raise PecoError(
                    f"{path}: not readable (missing or damaged); `dvc repro tokens` makes it again"
                ) from None
            expected = (self.shards.shards[shard].samples, self.views)
            if entries.shape != expected or entries.dtype != entry_dtype(self.grid**2):
                raise PecoError(
                    f"{path}: {entries.itemsize} bytes x {entries.shape}, expected {entry_dtype(self.grid**2).itemsize} bytes x "
                    f"{expected}; `dvc repro tokens` makes it again"
                )
            self._maps[shard] = entries
        return self._maps[shard]
