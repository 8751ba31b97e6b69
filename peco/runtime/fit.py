"""What the trained stages share: a task, a split and a recipe become a trained task."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from peco.core.config import Optim
from peco.data.loader import Make, TrainLoader
from peco.data.shards import ShardSet
from peco.runtime.paths import METRICS, PLOTS
from peco.runtime.stage import StageRun
from peco.training.distributed import Dist
from peco.training.loop import Task, train
from peco.training.metrics import MetricLog


def seed_everything(seed: int) -> None:
    """Seed what a model's initial weights are drawn from; every rank draws the same."""
    torch.manual_seed(seed)


def fit(
    run: StageRun,
    task: Task,
    shards: ShardSet,
    make: Make,
    optim: Optim,
    *,
    dist: Dist,
    work: Path,
    name: str | None = None,
) -> tuple[dict[str, Tensor] | None, MetricLog]:
    """Train `task` in place, going on from a working checkpoint of the same run if there is one.

    Args:
        run: the stage, with `seed` and `loader` among its parameters.
        task: on the device of `dist`.
        shards: split to train on.
        make: sample and epoch to fields (see `TrainLoader`).
        optim: recipe.
        dist: the processes.
        work: folder of the run's working files.
        name: where a stage trains several tasks, which this is.

    Returns:
        the averaged weights of the task if the recipe asks for them; the log, to be published and closed.
    """
    loader = TrainLoader(
        shards,
        make,
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
            f"{name or run.name}: {loader.workers} loader processes a rank instead of {run.workers}: they divide its "
            f"{run.config.loader.lanes // dist.world} lanes (loader.lanes {run.config.loader.lanes})",
            flush=True,
        )
    folder = work / name if name else work
    folder.mkdir(parents=True, exist_ok=True)
    logs = MetricLog(name or run.name, folder / "metrics", dist)
    averaged = train(
        task,
        loader.batches,
        name=name or run.name,
        samples=len(shards),
        optim=optim,
        seed=run.config.seed,
        dist=dist,
        work=folder,
        logs=logs,
    )
    return averaged, logs


def publish_metrics(run: StageRun, logs: MetricLog, summary: dict[str, float]) -> None:
    """Write the stage's metrics file and its plots, and close the log."""
    logs.publish(METRICS / f"{run.name}.json", PLOTS / run.name, summary)
    logs.close()
