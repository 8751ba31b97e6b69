"""The global order of samples, as arithmetic.

Training reads an endless stream: epoch 0 in its order, then epoch 1 in its own, and so on. Step t of a training with global batch
size B takes the stream positions [t*B, (t+1)*B), so every batch is full, every rank has an equal part of it, and within an epoch
each sample comes exactly once. Which sample stands at a position is a function of (seed, epoch, position) alone.

How one epoch is ordered. The shards are permuted and laid end to end, and the ring they form is turned by a random offset. The
ring is cut into L contiguous *lanes* whose sizes differ by at most one. Within a lane, samples are shuffled inside consecutive
windows of S samples. Position p of the epoch is number p // L of lane p % L. A lane thus reads its shards front to back, one
window at a time, and holds at most S samples; many lanes at far-apart places make a batch well mixed.

Who reads what. Position g of the *stream* belongs to slot g % L. A rank, and within it a worker, owns an equal run of consecutive
slots, hence whole lanes, so any number of readers that divides L reads the same batches; and since a batch is laid out slot by
slot, the parts of the ranks laid end to end are the batch in its own order. To resume at a step, a reader computes where its lanes
stand and reads at most one window of each again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# Purposes of random streams: random numbers about a sample come from (seed, epoch, sample, purpose).
EPOCH_ORDER, VIEW, SECOND_VIEW, MASK, AUGMENT = range(5)


def sample_rng(seed: int, epoch: int, sample: int, purpose: int) -> np.random.Generator:
    """The random numbers for one purpose about one sample in one epoch, wherever and whenever they are drawn."""
    return np.random.default_rng([seed, epoch, sample, purpose])


@dataclass(frozen=True)
class GlobalOrder:
    """Order of the samples of a split for every epoch.

    Args:
        shard_sizes: samples in each shard.
        lanes: number of lanes L.
        buffer: samples in a shuffle window S.
        seed: of the order.
    """

    shard_sizes: tuple[int, ...]
    lanes: int
    buffer: int
    seed: int

    def __len__(self) -> int:
        return sum(self.shard_sizes)

    def epoch(self, epoch: int) -> EpochOrder:
        """The order of one epoch."""
        return EpochOrder(self, epoch)


class EpochOrder:
    """Order of one epoch: lanes, their windows, and the samples in them."""

    def __init__(self, order: GlobalOrder, epoch: int) -> None:
        rng = np.random.default_rng([order.seed, epoch, EPOCH_ORDER])
        sizes = np.array(order.shard_sizes, dtype=np.int64)
        permuted = rng.permutation(len(sizes))
        self._order, self._epoch = order, epoch
        self._first_sample = (np.cumsum(sizes) - sizes)[permuted]  # in the split, per permuted shard
        self._ring_end = np.cumsum(sizes[permuted])
        self._turn = int(rng.integers(len(order)))

    def lane_size(self, lane: int) -> int:
        """Samples in a lane: positions p of the epoch with p % L == lane."""
        return -(-(len(self._order) - lane) // self._order.lanes)

    def window_runs(self, lane: int, window: int) -> list[tuple[int, int]]:
        """What a lane reads for one window: runs [start, stop) of sample indices, in reading order."""
        total, lanes = len(self._order), self._order.lanes
        lane_start = lane * (total // lanes) + min(lane, total % lanes)
        first = window * self._order.buffer
        last = min(first + self._order.buffer, self.lane_size(lane))
        runs: list[tuple[int, int]] = []
        position, left = (lane_start + first + self._turn) % total, last - first
        while left > 0:
            shard = int(np.searchsorted(self._ring_end, position, side="right"))
            take = min(left, int(self._ring_end[shard]) - position)
            shard_start = int(self._ring_end[shard - 1]) if shard else 0
            sample = int(self._first_sample[shard]) + position - shard_start
            runs.append((sample, sample + take))
            position, left = (position + take) % total, left - take
        return runs

    def window_shuffle(self, lane: int, window: int) -> np.ndarray:
        """In which order the samples of a window leave it: a permutation, int64."""
        first = window * self._order.buffer
        count = min(self._order.buffer, self.lane_size(lane) - first)
        return np.random.default_rng([self._order.seed, self._epoch, EPOCH_ORDER, lane, window]).permutation(count)

    def samples(self) -> np.ndarray:
        """All sample indices of the epoch in order, int64 (n,). For tests and for looking at; training never needs it."""
        result = np.empty(len(self._order), dtype=np.int64)
        for lane in range(min(self._order.lanes, len(self._order))):
            parts = []
            for window in range(-(-self.lane_size(lane) // self._order.buffer)):
                indices = np.concatenate([np.arange(*run) for run in self.window_runs(lane, window)])
                parts.append(indices[self.window_shuffle(lane, window)])
            result[lane :: self._order.lanes] = np.concatenate(parts)
        return result


def slots(lanes: int, reader: int, readers: int) -> Sequence[int]:
    """The slots that one of several equal readers owns.

    Raises:
        ValueError: the readers do not divide the lanes.
    """
    if lanes % readers:
        raise ValueError(f"{readers} readers do not divide {lanes} lanes")
    mine = lanes // readers
    return range(reader * mine, (reader + 1) * mine)
