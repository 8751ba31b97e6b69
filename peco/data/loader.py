"""Batches: in the global order for training, in the order of the split for evaluation.

The global order is defined in `peco/data/order.py`. Here each lane reads runs of samples from the shards and holds one shuffle
window of them; worker processes decode, transform and collate the samples of a step for the rank that owns them.

An image has four types on its way: encoded bytes (`Sample.encoded`), an upright `Picture` (`Sample.open`), uint8 pixels (H, W, 3)
in the fields of a transform, and float32 (B, 3, H, W) in [0, 1] in a batch on its device.
"""

from __future__ import annotations

import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from peco.core.device import CPU, uses_cuda
from peco.core.errors import PecoError
from peco.core.progress import tracked
from peco.data.order import EpochOrder, GlobalOrder, reader_lanes
from peco.data.shards import Sample, ShardSet

Fields = dict[str, Any]
Batch = dict[str, Tensor]
Transform = Callable[[Sample, int], Fields]  # (sample, epoch) -> arrays, numbers, or functions that make them, by name


class TrainLoader:
    """This rank's part of the global batches.

    Batch t has the same samples for any `world` and `workers`: it is the parts of the ranks in their order. `transform` runs in the
    workers; it must be picklable and a pure function of its arguments. Fields whose name starts with `image` must be uint8 pixels
    (H, W, 3) and become float32 (B, 3, H, W) in [0, 1]; all others are stacked unchanged.

    Args:
        shards: the split.
        transform: from sample and epoch to named fields.
        batch_size: global batch size; a multiple of `lanes`.
        seed: of the order.
        lanes: number of lanes of the global order; a multiple of `world`.
        buffer: samples in a shuffle window.
        rank: this process.
        world: number of processes.
        workers: largest number of loader processes; lowered to one that divides the rank's lanes.
        device: device of the batches.

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
        """Batches of the steps [start_step, stop_step). Before the first, each lane reads at most one window."""
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
    label: str = "",
) -> Iterator[Batch]:
    """The samples [start, stop) of a split, once and in order, as epoch 0; rank r gets the r-th of `world` contiguous parts.

    Fields and batches are as in `TrainLoader`. `label` begins the progress lines; without it there are none.
    """
    count = (len(shards) if stop is None else stop) - start
    start, stop = start + count * rank // world, start + count * (rank + 1) // world
    batches = (to_device([b], device) for b in load(_Range(shards, transform, start, stop, batch_size), workers))
    yield from tracked(batches, label, stop - start, size=lambda batch: len(next(iter(batch.values()))))


class _Lanes:
    """Reads lanes of the global order, from any position of the stream."""

    def __init__(
        self, shards: ShardSet, transform: Transform, order: GlobalOrder, batch_size: int, rank: int, world: int
    ) -> None:
        self.shards, self.transform, self.order, self.batch_size = shards, transform, order, batch_size
        self.rank, self.world = rank, world

    def read(self, lane: int, start: int) -> Iterator[tuple[Sample, int]]:
        """Samples of a lane, each with its epoch, from the stream position `start` on, without end."""
        total, lanes = len(self.order), self.order.lanes
        epoch = start // total
        while True:
            segment = (lane - epoch * total) % lanes
            first = max(0, start - epoch * total)  # position in this epoch
            number = -(-(first - segment) // lanes) if first > segment else 0
            yield from ((sample, epoch) for sample in self._read_segment(self.order.epoch(epoch), segment, number))
            epoch += 1

    def _read_segment(self, epoch_order: EpochOrder, segment: int, number: int) -> Iterator[Sample]:
        size, buffer = epoch_order.segment_size(segment), self.order.buffer
        while number < size:
            window = number // buffer
            held = [s for run in epoch_order.window_runs(segment, window) for s in self.shards.read(*run)]
            for index in epoch_order.window_shuffle(segment, window)[number - window * buffer :]:
                yield held[index]
            number = (window + 1) * buffer


class Batches(IterableDataset[Batch | PecoError]):
    """Batches that one worker reads.

    A PecoError is passed to the parent process as an item; raised, it would arrive there wrapped in its traceback.
    """

    def __iter__(self) -> Iterator[Batch | PecoError]:
        try:
            yield from self.batches()
        except PecoError as error:
            yield error

    def batches(self) -> Iterator[Batch]:
        raise NotImplementedError


class _Steps(Batches):
    """A worker's parts of consecutive training batches: one item per step."""

    def __init__(self, lanes: _Lanes, start: int, stop: int) -> None:
        self._lanes, self._start, self._stop = lanes, start, stop

    def batches(self) -> Iterator[Batch]:
        lanes, worker = self._lanes, get_worker_info()
        workers, number = (worker.num_workers, worker.id) if worker else (1, 0)
        mine = reader_lanes(lanes.order.lanes, lanes.rank * workers + number, lanes.world * workers)
        streams = [lanes.read(lane, self._start * lanes.batch_size) for lane in mine]
        rounds = lanes.batch_size // lanes.order.lanes
        for _ in range(self._start, self._stop):
            yield collate(lanes.transform(*next(stream)) for stream in streams for _ in range(rounds))


class _Range(Batches):
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
            yield collate(self._transform(sample, 0) for sample in samples)


def load(dataset: Batches, workers: int) -> Iterator[Batch]:
    """Batches from `workers` loader processes in turn, or from this process if there are 0."""
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
    # A stop signal goes to the whole process group. The current step still needs its batch, and the parent ends its workers.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def collate(samples: Iterable[Fields]) -> Batch:
    """Stack the fields of samples by name, unchanged.

    A field may be a function of no arguments that makes it. All samples are drawn first and their pixels are made after that: in
    turn, pixels would drive the code that opens files and draws numbers out of the processor's caches, an eighth of the time.
    """
    waiting, made = deque(samples), []
    while waiting:  # lets go of each decoded image once its fields are made
        fields = waiting.popleft()
        made.append({name: np.asarray(field() if callable(field) else field) for name, field in fields.items()})
    return {name: torch.from_numpy(np.stack([fields[name] for fields in made])) for name in made[0]}


def to_device(parts: list[Batch], device: torch.device) -> Batch:
    """Concatenate the workers' parts, move them to the device, convert pixels to float."""
    batch = {}
    for name in parts[0]:
        # Pixels are moved as uint8, a quarter of the traffic, from pinned memory, and concatenated on the device.
        moved = [part[name].to(device, non_blocking=True) for part in parts]
        if name.startswith("image"):
            batch[name] = _to_float(moved)
        else:
            batch[name] = moved[0] if len(moved) == 1 else torch.cat(moved)
    return batch


def _to_float(parts_BHWC: list[Tensor]) -> Tensor:
    """From uint8 pixels to one float32 (B, 3, H, W) in [0, 1]."""
    (height, width, channels), device = parts_BHWC[0].shape[1:], parts_BHWC[0].device
    shape = (sum(len(part) for part in parts_BHWC), channels, height, width)
    # NumPy asks for huge pages, torch doesn't: the first use of pages of 4 KiB takes longer than the conversion.
    on_cpu = device.type == "cpu"
    x_BCHW = torch.from_numpy(np.empty(shape, np.float32)) if on_cpu else torch.empty(shape, device=device)
    start = 0
    for part in parts_BHWC:
        x_BCHW[start : start + len(part)].copy_(part.permute(0, 3, 1, 2))
        start += len(part)
    return x_BCHW.div_(255)
