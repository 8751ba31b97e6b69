"""What trainings on annotated sets share: `stages.fit.fit` over samples by index instead of shards."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from peco.core.config import Optim
from peco.evaluate.annotated.loader import IndexLoader, MakeIndexed
from peco.runtime.stage import StageRun
from peco.training.distributed import Dist
from peco.training.loop import Task, train
from peco.training.metrics import MetricLog


def fit_indexed(
    run: StageRun,
    task: Task,
    count: int,
    make: MakeIndexed,
    optim: Optim,
    *,
    dist: Dist,
    work: Path,
    name: str,
) -> tuple[dict[str, Tensor] | None, MetricLog]:
    """Train `task` in place, going on from a working checkpoint of the same run if there is one.

    Args:
        run: the stage, with `seed` among its parameters.
        task: what is trained.
        count: samples in an epoch.
        make: index and epoch to fields (see `IndexLoader`).
        optim: recipe.
        dist: the processes.
        work: folder of the run's working files.
        name: which of the stage's trainings this is.

    Returns:
        the averaged weights of the task if the recipe asks for them; the log, to be closed.
    """
    loader = IndexLoader(
        count,
        make,
        batch_size=optim.batch_size,
        seed=run.config.seed,
        rank=dist.rank,
        world=dist.world,
        workers=run.workers,
        device=dist.device,
    )
    folder = work / name
    folder.mkdir(parents=True, exist_ok=True)
    logs = MetricLog(name, folder / "metrics", dist)
    averaged = train(
        task,
        loader.batches,
        name=name,
        samples=count,
        optim=optim,
        seed=run.config.seed,
        dist=dist,
        work=folder,
        logs=logs,
    )
    return averaged, logs
