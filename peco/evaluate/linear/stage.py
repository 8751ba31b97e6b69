"""Stage `evaluate@linear`: linear probe of the frozen backbone, of its random initialisation, and of plain image statistics."""

from __future__ import annotations

from typing import Any

import torch

from peco.core import artifacts, device
from peco.core.publishing import staging
from peco.data.loader import eval_batches
from peco.data.samples import CenterView
from peco.data.shards import ShardSet
from peco.probes import linear
from peco.probes.inputs import SCAN_BATCH, Features, backbones, features
from peco.probes.labeled import labeled_splits
from peco.runtime import paths
from peco.runtime.evaluation import require_task, write_details
from peco.runtime.stage import StageRun, run_stage

PARAMS = ("seed", "evaluate.holdout", "evaluate.tasks.linear", "evaluate.linear")
PICTURES = paths.PICTURES / "linear"


def main(run: StageRun) -> None:
    require_task(run, "linear")
    train, val = labeled_splits()
    cfg, holdout, where = run.config.evaluate.linear, run.config.evaluate.holdout, device.choose()
    metrics: dict[str, Any] = {}
    details: dict[str, Any] = {}  # what the choice was made by: accuracy on the holdout by block and strength
    for prefix, model in backbones(run.config.seed):
        result = linear.evaluate(
            features(model, train, run.workers), features(model, val, run.workers), cfg, holdout, where
        )
        details |= {f"{prefix}holdout_accuracy": result.tried, f"{prefix}converged": result.converged}
        metrics |= {f"{prefix}accuracy": result.accuracy, f"{prefix}block": result.block, f"{prefix}l2": result.l2}
    simple = [image_statistics(split, run.workers) for split in (train, val)]
    for name in ("pixels", "histogram"):
        ours, theirs = (({name: found[name]}, labels) for found, labels in simple)
        result = linear.evaluate(ours, theirs, cfg, holdout, where)
        metrics[f"{name}_accuracy"] = result.accuracy
        details[f"{name}_converged"] = result.converged
    with staging(PICTURES) as folder:
        write_details(folder, details)
    run.metrics(metrics)


def image_statistics(split: ShardSet, workers: int) -> Features:
    """Raw pixels and colour histogram of the evaluation views: what a representation has to beat."""
    found: dict[str, list[torch.Tensor]] = {"pixels": [], "histogram": []}
    labels = []
    for batch in eval_batches(
        split, CenterView(artifacts.input_size(paths.BACKBONE)), batch_size=SCAN_BATCH, workers=workers
    ):
        pixels = batch["image"].mul(255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
        found["pixels"].append(torch.as_tensor(linear.raw_pixels(pixels)))
        found["histogram"].append(torch.as_tensor(linear.color_histogram(pixels)))
        labels.append(batch["label"])
    return {name: torch.cat(parts) for name, parts in found.items()}, torch.cat(labels)


if __name__ == "__main__":
    run_stage("evaluate@linear", PARAMS, main)
