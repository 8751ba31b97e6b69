"""The global order: a function of seed, epoch and position, for any number of ranks and workers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peco.core.errors import PecoError
from peco.data.loader import TrainLoader, eval_batches
from peco.data.order import GlobalOrder
from peco.data.shards import Sample

sizes = st.lists(st.integers(1, 23), min_size=1, max_size=6)
lanes = st.sampled_from([1, 2, 3, 4, 8, 12])


@dataclass
class Info:
    samples: int


class MemoryShards:
    """Shards without images: a sample is only its index."""

    root = Path("memory")

    def __init__(self, shard_sizes: list[int]) -> None:
        self.shards = tuple(Info(n) for n in shard_sizes)
        self.reads: list[tuple[int, int]] = []

    def __len__(self) -> int:
        return sum(s.samples for s in self.shards)

    def read(self, start: int, stop: int) -> Iterator[Sample]:
        assert 0 <= start <= stop <= len(self)
        self.reads.append((start, stop))
        return (Sample(i, f"{i:06d}", b"", -1) for i in range(start, stop))


def transform(sample: Sample, epoch: int) -> dict[str, int]:
    return {"index": sample.index, "epoch": epoch}


def stream(shards: MemoryShards, start: int, stop: int, **options: int) -> list[list[tuple[int, int]]]:
    loader = TrainLoader(shards, transform, **options)  # type: ignore[arg-type]
    return [
        list(zip(batch["index"].tolist(), batch["epoch"].tolist(), strict=True))
        for batch in loader.batches(start, stop)
    ]


@settings(max_examples=60, deadline=None)
@given(sizes, lanes, st.integers(1, 9), st.integers(0, 3), st.integers(0, 5))
def test_an_epoch_holds_every_sample_once(
    shard_sizes: list[int], n_lanes: int, buffer: int, seed: int, epoch: int
) -> None:
    order = GlobalOrder(tuple(shard_sizes), n_lanes, buffer, seed)
    assert sorted(order.epoch(epoch).samples()) == list(range(sum(shard_sizes)))


@settings(max_examples=60, deadline=None)
@given(sizes, lanes, st.integers(1, 9), st.integers(1, 3))
def test_the_stream_runs_through_whole_epochs(shard_sizes: list[int], n_lanes: int, buffer: int, rounds: int) -> None:
    """Nothing is lost or repeated within an epoch, also where batches straddle two epochs."""
    total, batch = sum(shard_sizes), n_lanes * rounds
    steps = -(-3 * total // batch)
    batches = stream(MemoryShards(shard_sizes), 0, steps, batch_size=batch, seed=1, lanes=n_lanes, buffer=buffer)
    assert all(len(b) == batch for b in batches)
    seen = Counter(pair for b in batches for pair in b)
    epochs = [sorted(epoch for _, epoch in b) for b in batches]
    assert epochs == [[i // total for i in range(t * batch, (t + 1) * batch)] for t in range(steps)]
    assert all(seen[(sample, epoch)] == 1 for epoch in range(3) for sample in range(total))


@settings(max_examples=60, deadline=None)
@given(sizes, st.sampled_from([4, 8, 12]), st.integers(1, 9), st.sampled_from([2, 4]), st.integers(0, 12))
def test_ranks_together_read_the_batches_of_one_process(
    shard_sizes: list[int], n_lanes: int, buffer: int, world: int, start: int
) -> None:
    options = {"batch_size": n_lanes * 2, "seed": 3, "lanes": n_lanes, "buffer": buffer}
    single = stream(MemoryShards(shard_sizes), start, start + 5, **options)
    ranks = [stream(MemoryShards(shard_sizes), start, start + 5, rank=r, world=world, **options) for r in range(world)]
    for step, whole in enumerate(single):
        parts = [r[step] for r in ranks]
        assert len({len(p) for p in parts}) == 1
        assert [pair for p in parts for pair in p] == whole


@settings(max_examples=40, deadline=None)
@given(sizes, lanes, st.integers(1, 9), st.integers(0, 20))
def test_resuming_at_any_step_continues_with_the_same_batches(
    shard_sizes: list[int], n_lanes: int, buffer: int, start: int
) -> None:
    options = {"batch_size": n_lanes, "seed": 5, "lanes": n_lanes, "buffer": buffer}
    whole = stream(MemoryShards(shard_sizes), 0, start + 4, **options)
    assert stream(MemoryShards(shard_sizes), start, start + 4, **options) == whole[start:]


@pytest.mark.parametrize("workers", [1, 2, 3, 4])
def test_loader_processes_do_not_change_the_batches(workers: int) -> None:
    options = {"batch_size": 16, "seed": 0, "lanes": 8, "buffer": 4}
    single = stream(MemoryShards([10, 3, 17]), 2, 8, **options)
    assert stream(MemoryShards([10, 3, 17]), 2, 8, workers=workers, **options) == single


def test_resuming_reads_at_most_a_window_of_each_lane_again() -> None:
    shards = MemoryShards([5000, 5000])
    stream(shards, 150, 151, batch_size=40, seed=0, lanes=4, buffer=50)
    assert sum(stop - start for start, stop in shards.reads) <= 4 * 50


def test_epochs_and_seeds_differ_in_order() -> None:
    order = GlobalOrder((30, 30), 4, 8, 0)
    first = order.epoch(0).samples()
    assert not np.array_equal(first, order.epoch(1).samples())
    assert not np.array_equal(first, GlobalOrder((30, 30), 4, 8, 1).epoch(0).samples())


def test_lanes_that_do_not_divide_evenly_are_refused_with_the_key() -> None:
    with pytest.raises(PecoError, match=r"loader\.lanes"):
        TrainLoader(MemoryShards([9]), transform, batch_size=8, seed=0, lanes=8, buffer=2, world=3)  # type: ignore[arg-type]
    with pytest.raises(PecoError, match="batch_size"):
        TrainLoader(MemoryShards([9]), transform, batch_size=9, seed=0, lanes=8, buffer=2)  # type: ignore[arg-type]


@settings(max_examples=30, deadline=None)
@given(sizes, st.integers(1, 10), st.integers(1, 4))
def test_eval_batches_give_every_sample_once_in_order(shard_sizes: list[int], batch: int, world: int) -> None:
    found = [
        index
        for rank in range(world)
        for part in eval_batches(MemoryShards(shard_sizes), transform, batch_size=batch, rank=rank, world=world)  # type: ignore[arg-type]
        for index in part["index"].tolist()
    ]
    assert found == list(range(sum(shard_sizes)))


def test_eval_batches_keep_the_order_with_loader_processes() -> None:
    batches = eval_batches(MemoryShards([7, 20, 4]), transform, batch_size=4, workers=2)  # type: ignore[arg-type]
    assert [i for b in batches for i in b["index"].tolist()] == list(range(31))
