"""Common parts of the trained stages around `peco.training.loop.train`: seed, loader over shards, published metrics."""

from __future__ import annotations

import torch

from peco.core.config import Optim
from peco.data.loader import TrainLoader, Transform
from peco.data.shards import ShardSet
from peco.runtime.paths import METRICS, PLOTS
from peco.runtime.scores import write_scores
from peco.runtime.stage import StageRun
from peco.training.distributed import Dist
from peco.training.metrics import MetricLog


def seed_everything(seed: int) -> None:
    """Seed the generator of a model's initial weights; every rank draws the same."""
    torch.manual_seed(seed)


def train_loader(run: StageRun, shards: ShardSet, transform: Transform, optim: Optim, dist: Dist) -> TrainLoader:
    """Loader of this process's part of the global batches of a split.

    Args:
        run: the stage, with `seed` and `loader` among its parameters.
        shards: split to train on.
        transform: sample and epoch to fields (see `TrainLoader`).
        optim: recipe with the global batch size.
        dist: this process.
    """
    loader = TrainLoader(
        shards,
        transform,
        batch_size=optim.batch_size,
        seed=run.config.seed,
        lanes=run.config.loader.lanes,
        buffer=run.config.loader.shuffle_buffer,
        rank=dist.rank,
        world=dist.world,
        workers=run.workers,
        device=dist.device,
    )
    if loader.workers < run.workers and dist.rank == 0:
        print(
            f"{run.name}: {loader.workers} loader processes per rank instead of {run.workers}: they divide its "
            f"{run.config.loader.lanes // dist.world} lanes (loader.lanes {run.config.loader.lanes})",
            flush=True,
        )
    return loader


def publish_metrics(run: StageRun, logs: MetricLog, summary: dict[str, float]) -> None:
    """Write the stage's metrics, scores and plots, and close the log."""
    logs.publish(METRICS / f"{run.name}.json", PLOTS / run.name, summary)
    write_scores(run.name, summary)
    logs.close()
