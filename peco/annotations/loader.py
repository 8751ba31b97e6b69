"""Batches of samples that are addressed by their index.

The order is that of `peco/data/order.py` with one lane whose window is the whole epoch: step t takes the positions [t*B, (t+1)*B),
every epoch is a permutation drawn from (seed, epoch), and rank r gets the r-th part of each batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache

import numpy as np
import torch
from torch.utils.data import get_worker_info

from peco.core.device import CPU
from peco.core.errors import PecoError
from peco.data.loader import Batch, Batches, Fields, collate, load, to_device
from peco.data.order import GlobalOrder

IndexTransform = Callable[[int, int], Fields]  # (index, epoch) -> named arrays and numbers


class IndexLoader:
    """This rank's part of the global batches; their samples don't depend on `world` and `workers`.

    Args:
        count: samples in an epoch.
        transform: index and epoch to named fields of the same shapes for all samples; a picklable, pure function. Arrays under a
            name that starts with `image` must be uint8 (H, W, 3) and become float32 (B, 3, H, W) in [0, 1].
        batch_size: global batch size.
        seed: seed of the order.
        rank, world: this process and the number of processes.
        workers: loader processes.
        device: device of the batches.

    Raises:
        PecoError: there is no sample, or the batch can't be divided evenly among the processes.
    """

    def __init__(
        self,
        count: int,
        transform: IndexTransform,
        *,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
        workers: int = 0,
        device: torch.device = CPU,
    ) -> None:
        if count < 1:
            raise PecoError("no samples to train on: the split is empty")
        if batch_size % world:
            raise PecoError(f"optim.batch_size: {batch_size} is not allowed; expected a multiple of {world} processes")
        self._order = GlobalOrder((count,), lanes=1, buffer=count, seed=seed)
        self.samples = count
        self._transform, self._workers, self._device = transform, workers, device
        self._batch_size, self._rank, self._world = batch_size, rank, world

    def batches(self, start_step: int, stop_step: int) -> Iterator[Batch]:
        """Batches of the steps [start_step, stop_step)."""
        for batch in load(_Parts(self, start_step, stop_step), self._workers):
            yield to_device([batch], self._device)

    def part(self, step: int) -> list[tuple[int, int]]:
        """Index and epoch of each sample of this rank's part of a batch."""
        share = self._batch_size // self._world
        first = step * self._batch_size + self._rank * share
        keys = (divmod(position, len(self._order)) for position in range(first, first + share))
        return [(int(_epoch(self._order, epoch)[position]), epoch) for epoch, position in keys]

    def read(self, step: int) -> Batch:
        """This rank's part of a batch, before its pixels become floats."""
        return collate([self._transform(index, epoch) for index, epoch in self.part(step)])


class _Parts(Batches):
    """Parts of consecutive batches; worker w of n reads every n-th from the w-th on: the DataLoader takes workers in turn."""

    def __init__(self, loader: IndexLoader, start: int, stop: int) -> None:
        self._loader, self._start, self._stop = loader, start, stop

    def batches(self) -> Iterator[Batch]:
        worker = get_worker_info()
        workers, number = (worker.num_workers, worker.id) if worker else (1, 0)
        for step in range(self._start + number, self._stop, workers):
            yield self._loader.read(step)


@lru_cache(maxsize=2)  # a batch may straddle two epochs
def _epoch(order: GlobalOrder, epoch: int) -> np.ndarray:
    return order.epoch(epoch).samples()
