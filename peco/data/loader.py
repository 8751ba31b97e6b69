"""Batches for training, in the global order, and scans over a whole split.

The order itself is in `peco/data/order.py`; here it is read: lanes pull runs of samples from the shards, hold one window each, and
the samples of a step are decoded in the workers and collated on the rank that owns them.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from peco.core.device import CPU, uses_cuda
from peco.core.errors import PecoError
from peco.data.order import EpochOrder, GlobalOrder, slots
from peco.data.shards import Sample, ShardSet

Fields = dict[str, Any]
Batch = dict[str, Tensor]
Transform = Callable[[Sample, int], Fields]  # (sample, epoch) -> named arrays and numbers


class TrainLoader:
    """This rank's part of the global batches.

    Batch t is the same samples for any `world` and `workers`: the parts of the ranks, in their order, are it. `make` runs in
    the workers and must be picklable and a pure function of its arguments. Arrays under a name that starts with `image` must
    be uint8 (H, W, 3) and come out as float32 (B, 3, H, W) in [0, 1]; everything else is stacked as it is. Batches are on `device`.

    Args:
        shards: the split.
        make: sample and epoch to named fields.
        batch_size: global batch size; a multiple of `lanes`.
        seed: of the order.
        lanes: lanes of the global order; a multiple of `world`.
        buffer: samples in a shuffle window.
        rank: this process.
        world: number of processes.
        workers: loader processes wished for; reduced until they divide the rank's lanes.
        device: where batches are wanted.

    Raises:
        PecoError: lanes, batch size and world do not fit together, or the split is empty.
    """

    def __init__(
        self,
        shards: ShardSet,
        transform: Transform,
        *,
        batch_size: int,
        seed: int,
        lanes: int,
        buffer: int,
        rank: int = 0,
        world: int = 1,
        workers: int = 0,
        device: torch.device = CPU,
    ) -> None:
        if lanes % world:
            raise PecoError(
                f"loader.lanes: {lanes} is not allowed with {world} processes; expected a multiple of {world}"
            )
        if batch_size % lanes:
            raise PecoError(f"batch_size: {batch_size} is not allowed; expected a multiple of loader.lanes ({lanes})")
        if len(shards) == 0:
            raise PecoError(f"{shards.root}: no samples to train on")
        order = GlobalOrder(tuple(s.samples for s in shards.shards), lanes, buffer, seed)
        self._lanes = _Lanes(shards, transform, order, batch_size, rank, world)
        self.samples = len(shards)
        mine = lanes // world
        self.workers = next(n for n in range(min(workers, mine), -1, -1) if n == 0 or mine % n == 0)
        self._device = device

    def batches(self, start_step: int, stop_step: int) -> Iterator[Batch]:
        """Batches of the steps [start_step, stop_step), at the cost of at most one window of reads a lane before the first."""
        parts = load(_Steps(self._lanes, start_step, stop_step), self.workers)
        while part := list(islice(parts, max(1, self.workers))):  # worker w gives part w of each batch, in turn
            yield to_device(part, self._device)


def eval_batches(
    shards: ShardSet,
    transform: Transform,
    *,
    batch_size: int,
    start: int = 0,
    stop: int | None = None,
    rank: int = 0,
    world: int = 1,
    workers: int = 0,
    device: torch.device = CPU,
) -> Iterator[Batch]:
    """The samples [start, stop) of a split once, in order, with epoch 0; rank r gets the r-th of `world` contiguous parts.

    Fields and batches are as those of `TrainLoader`.
    """
    count = (len(shards) if stop is None else stop) - start
    start, stop = start + count * rank // world, start + count * (rank + 1) // world
    for batch in load(_Scan(shards, transform, start, stop, batch_size), workers):
        yield to_device([batch], device)


class _Lanes:
    """The lanes of one rank: reads samples for any part of the stream."""

    def __init__(
        self, shards: ShardSet, transform: Transform, order: GlobalOrder, batch_size: int, rank: int, world: int
    ) -> None:
        self.shards, self.transform, self.order, self.batch_size = shards, transform, order, batch_size
        self.rank, self.world = rank, world

    def read(self, slot: int, start_position: int) -> Iterator[tuple[Sample, int]]:
        """Samples (with their epoch) at the stream positions of a slot, from the first one >= start_position on, for ever."""
        total, lanes = len(self.order), self.order.lanes
        epoch = start_position // total
        while True:
            lane = (slot - epoch * total) % lanes
            first = max(0, start_position - epoch * total)  # position in this epoch
            number = -(-(first - lane) // lanes) if first > lane else 0
            yield from ((sample, epoch) for sample in self._read_lane(self.order.epoch(epoch), lane, number))
            epoch += 1

    def _read_lane(self, epoch_order: EpochOrder, lane: int, number: int) -> Iterator[Sample]:
        size, buffer = epoch_order.lane_size(lane), self.order.buffer
        while number < size:
            window = number // buffer
            held = [s for run in epoch_order.window_runs(lane, window) for s in self.shards.read(*run)]
            for place in epoch_order.window_shuffle(lane, window)[number - window * buffer :]:
                yield held[place]
            number = (window + 1) * buffer


class Batches(IterableDataset[Batch | PecoError]):
    """Batches that one worker reads. An error for the user is handed over as an item: raised, it would cross to the parent
    wrapped in its traceback."""

    def __iter__(self) -> Iterator[Batch | PecoError]:
        try:
            yield from self.batches()
        except PecoError as error:
            yield error

    def batches(self) -> Iterator[Batch]:
        raise NotImplementedError


class _Steps(Batches):
    """Parts of consecutive batches: one item a step."""

    def __init__(self, lanes: _Lanes, start: int, stop: int) -> None:
        self._lanes, self._start, self._stop = lanes, start, stop

    def batches(self) -> Iterator[Batch]:
        lanes, worker = self._lanes, get_worker_info()
        workers, number = (worker.num_workers, worker.id) if worker else (1, 0)
        mine = slots(lanes.order.lanes, lanes.rank * workers + number, lanes.world * workers)
        streams = [lanes.read(slot, self._start * lanes.batch_size) for slot in mine]
        rounds = lanes.batch_size // lanes.order.lanes
        for _ in range(self._start, self._stop):
            yield collate([lanes.transform(*next(stream)) for stream in streams for _ in range(rounds)])


class _Scan(Batches):
    """Batches of consecutive samples."""

    def __init__(self, shards: ShardSet, transform: Transform, start: int, stop: int, batch_size: int) -> None:
        self._shards, self._transform, self._range, self._batch_size = shards, transform, (start, stop), batch_size

    def batches(self) -> Iterator[Batch]:
        worker = get_worker_info()
        workers, number = (worker.num_workers, worker.id) if worker else (1, 0)
        start, stop = self._range
        # Worker w reads batches w, w + workers, ...: the DataLoader takes them in turn, which restores the order.
        for first in range(start + number * self._batch_size, stop, workers * self._batch_size):
            samples = self._shards.read(first, min(first + self._batch_size, stop))
            yield collate([self._transform(sample, 0) for sample in samples])


def load(dataset: Batches, workers: int) -> Iterator[Batch]:
    """What `workers` loader processes read, in turn; none: this process reads."""
    loader = DataLoader(
        dataset,
        batch_size=None,
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        worker_init_fn=_leave_signals_to_parent,
        pin_memory=uses_cuda(),
    )
    for item in loader:
        if isinstance(item, PecoError):
            raise item
        yield item


def _leave_signals_to_parent(worker: int) -> None:
    # A stop is sent to the whole process group; the step under way still needs its batch, and the parent ends its workers.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def collate(samples: list[Fields]) -> Batch:
    """Fields of samples stacked by name, as they are."""
    return {name: torch.from_numpy(np.stack([np.asarray(s[name]) for s in samples])) for name in samples[0]}


def to_device(parts: list[Batch], device: torch.device) -> Batch:
    """Parts of a batch, one behind the other, as a batch on the device, its pixels as floats."""
    batch = {}
    for name in parts[0]:
        # Pixels travel as bytes as far as the device: a quarter of the traffic. The parts are in pinned memory, and joined there.
        moved = [part[name].to(device, non_blocking=True) for part in parts]
        values = moved[0] if len(moved) == 1 else torch.cat(moved)
        batch[name] = values.permute(0, 3, 1, 2).contiguous().float().div_(255) if name.startswith("image") else values
    return batch
