"""The global order of samples, as arithmetic.

Stream. Training reads one endless stream of samples: epoch 0 in its order, then epoch 1 in its own, and so on. Step t of a training
with global batch size B takes the stream positions [t*B, (t+1)*B). So every batch is full, every rank has an equal part of it, and
each sample comes exactly once in an epoch. The sample at a position is a function of (seed, epoch, position) only.

Epoch. The shards are permuted and laid end to end, and the ring that they form is turned by a random offset. The ring is cut into L
contiguous *segments* whose sizes differ by at most one. Within a segment, samples are shuffled inside consecutive windows of S
samples. Position p of the epoch is sample p // L of segment p % L.

Lanes. The stream is dealt out to L *lanes*, each a stream of its own: position g belongs to lane g % L. In an epoch, a lane
reads one segment: its shards front to back, one window at a time, at most S samples in memory. Since the segments of a batch's
samples are far apart, the batch is well mixed. A rank, and within it a worker, owns an equal run of consecutive lanes, so any
number of readers that divides L reads the same batches. A batch is laid out lane by lane, so the parts of the ranks laid end to end
are the batch in its own order. To resume at a step, a reader computes the positions of its lanes and reads at most one window of
each again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# Purposes of random streams: random numbers about a sample come from (seed, epoch, sample, purpose).
EPOCH_ORDER, VIEW, SECOND_VIEW, MASK, AUGMENT = range(5)


def sample_rng(seed: int, epoch: int, sample: int, purpose: int) -> np.random.Generator:
    """Generator of the random numbers for one purpose about one sample in one epoch; independent of process and time."""
    return np.random.default_rng([seed, epoch, sample, purpose])


@dataclass(frozen=True)
class GlobalOrder:
    """Order of the samples of a split for every epoch.

    Args:
        shard_sizes: samples in each shard.
        lanes: number of lanes L, and of an epoch's segments.
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
    """Order of one epoch: segments, their windows, and the samples in them."""

    def __init__(self, order: GlobalOrder, epoch: int) -> None:
        rng = np.random.default_rng([order.seed, epoch, EPOCH_ORDER])
        sizes = np.array(order.shard_sizes, dtype=np.int64)
        permuted = rng.permutation(len(sizes))
        self._order, self._epoch = order, epoch
        self._first_sample = (np.cumsum(sizes) - sizes)[permuted]  # in the split, per permuted shard
        self._ring_end = np.cumsum(sizes[permuted])
        self._turn = int(rng.integers(len(order)))

    def segment_size(self, segment: int) -> int:
        """Samples in a segment: positions p of the epoch with p % L == segment."""
        return -(-(len(self._order) - segment) // self._order.lanes)

    def window_runs(self, segment: int, window: int) -> list[tuple[int, int]]:
        """Samples of a window as runs [start, stop) of indices, in reading order."""
        total, lanes = len(self._order), self._order.lanes
        segment_start = segment * (total // lanes) + min(segment, total % lanes)
        first = window * self._order.buffer
        last = min(first + self._order.buffer, self.segment_size(segment))
        runs: list[tuple[int, int]] = []
        position, left = (segment_start + first + self._turn) % total, last - first
        while left > 0:
            shard = int(np.searchsorted(self._ring_end, position, side="right"))
            length = min(left, int(self._ring_end[shard]) - position)
            shard_start = int(self._ring_end[shard - 1]) if shard else 0
            sample = int(self._first_sample[shard]) + position - shard_start
            runs.append((sample, sample + length))
            position, left = (position + length) % total, left - length
        return runs

    def window_shuffle(self, segment: int, window: int) -> np.ndarray:
        """Order in which the samples of a window are taken: a permutation, int64."""
        first = window * self._order.buffer
        count = min(self._order.buffer, self.segment_size(segment) - first)
        return np.random.default_rng([self._order.seed, self._epoch, EPOCH_ORDER, segment, window]).permutation(count)

    def samples(self) -> np.ndarray:
        """All sample indices of the epoch in order, int64 (n,). For tests and inspection; training doesn't need it."""
        result = np.empty(len(self._order), dtype=np.int64)
        for segment in range(min(self._order.lanes, len(self._order))):
            parts = []
            for window in range(-(-self.segment_size(segment) // self._order.buffer)):
                indices = np.concatenate([np.arange(*run) for run in self.window_runs(segment, window)])
                parts.append(indices[self.window_shuffle(segment, window)])
            result[segment :: self._order.lanes] = np.concatenate(parts)
        return result


def reader_lanes(lanes: int, reader: int, readers: int) -> Sequence[int]:
    """The lanes that one of several equal readers owns.

    Raises:
        ValueError: the readers do not divide the lanes.
    """
    if lanes % readers:
        raise ValueError(f"{readers} readers do not divide {lanes} lanes")
    mine = lanes // readers
    return range(reader * mine, (reader + 1) * mine)
