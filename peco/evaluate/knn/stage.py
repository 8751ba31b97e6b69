"""Stage `evaluate@knn`: nearest-neighbour accuracy of the frozen backbone, its random initialisation and the reference."""

from __future__ import annotations

from typing import Any

from peco.core import device
from peco.core.publishing import staging
from peco.evaluate.common import require_task, starts, write_details
from peco.probes.inputs import backbone_features
from peco.probes.knn import probe_knn
from peco.probes.labeled import labeled_splits
from peco.runtime import paths
from peco.runtime.stage import StageRun, run_stage

PARAMS = ("seed", "evaluate.holdout", "evaluate.reference", "evaluate.tasks.knn", "evaluate.knn")
PICTURES = paths.PICTURES / "knn"


def main(run: StageRun) -> None:
    require_task(run, "knn")
    train, val = labeled_splits()
    metrics: dict[str, Any] = {}
    tried: dict[str, Any] = {}  # holdout accuracy by block and number of neighbours
    for start in starts(run.config.evaluate.reference, run.config.seed):
        prefix, model = start.prefix, start.make(num_classes=0).to(device.select_device())
        result = probe_knn(
            backbone_features(model, train, run.workers),
            backbone_features(model, val, run.workers),
            run.config.evaluate.knn,
            run.config.evaluate.holdout,
            device.select_device(),
        )
        tried[f"{prefix}holdout_accuracy"] = result.tried
        metrics |= {
            f"{prefix}accuracy": result.accuracy,
            f"{prefix}block": result.block,
            f"{prefix}neighbors": result.neighbors,
        }
    with staging(PICTURES) as folder:
        write_details(folder, tried)
    run.metrics(metrics)


if __name__ == "__main__":
    run_stage("evaluate@knn", PARAMS, main)
