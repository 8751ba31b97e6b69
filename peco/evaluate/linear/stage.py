"""Stage `evaluate@linear`: linear probe of the frozen backbone, its random initialisation, the reference, and image features."""

from __future__ import annotations

from typing import Any

import torch

from peco.core import artifacts, device
from peco.core.publishing import staging
from peco.data.loader import eval_batches
from peco.data.samples import CenterView
from peco.data.shards import ShardSet
from peco.evaluate.common import require_task, starts, write_details
from peco.probes.inputs import EVAL_BATCH, Features, backbone_features
from peco.probes.labeled import labeled_splits
from peco.probes.linear import color_histogram, probe_linear, raw_pixels
from peco.runtime import paths
from peco.runtime.stage import StageRun, run_stage

PARAMS = ("seed", "evaluate.holdout", "evaluate.reference", "evaluate.tasks.linear", "evaluate.linear")
PICTURES = paths.PICTURES / "linear"


def main(run: StageRun) -> None:
    require_task(run, "linear")
    train, val = labeled_splits()
    cfg, holdout = run.config.evaluate.linear, run.config.evaluate.holdout
    metrics: dict[str, Any] = {}
    details: dict[str, Any] = {}  # holdout accuracy by block and strength; convergence
    for start in starts(run.config.evaluate.reference, run.config.seed):
        prefix, model = start.prefix, start.make(num_classes=0).to(device.select_device())
        result = probe_linear(
            backbone_features(model, train, run.workers),
            backbone_features(model, val, run.workers),
            cfg,
            holdout,
            device.select_device(),
        )
        details |= {f"{prefix}holdout_accuracy": result.tried, f"{prefix}converged": result.converged}
        metrics |= {f"{prefix}accuracy": result.accuracy, f"{prefix}block": result.block, f"{prefix}l2": result.l2}
    baselines = [baseline_features(split, run.workers) for split in (train, val)]
    for name in ("pixels", "histogram"):
        named_train, named_val = (({name: features[name]}, labels) for features, labels in baselines)
        result = probe_linear(named_train, named_val, cfg, holdout, device.select_device())
        metrics[f"{name}_accuracy"] = result.accuracy
        details[f"{name}_converged"] = result.converged
    with staging(PICTURES) as folder:
        write_details(folder, details)
    run.metrics(metrics)


def baseline_features(split: ShardSet, workers: int) -> Features:
    """Compute raw pixels and colour histograms of the evaluation views: baselines for a representation."""
    features: dict[str, list[torch.Tensor]] = {"pixels": [], "histogram": []}
    labels = []
    for batch in eval_batches(
        split,
        CenterView(artifacts.input_size(paths.BACKBONE)),
        batch_size=EVAL_BATCH,
        workers=workers,
        label=f"baselines: {split.split}",
    ):
        pixels = batch["image"].mul(255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
        features["pixels"].append(raw_pixels(pixels))
        features["histogram"].append(color_histogram(pixels))
        labels.append(batch["label"])
    return {name: torch.cat(parts) for name, parts in features.items()}, torch.cat(labels)


if __name__ == "__main__":
    run_stage("evaluate@linear", PARAMS, main)
