"""Features of the pre-trained backbone and of its random initialisation, for the evaluations on frozen features."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from peco.core import artifacts, device
from peco.data.loader import eval_batches
from peco.data.samples import CenterView
from peco.data.shards import ShardSet
from peco.probes.features import extract
from peco.runtime import paths

EVAL_BATCH = 128

Features = tuple[dict[str, Tensor], Tensor]  # (N, D) by block; labels (N,)


def backbones(seed: int) -> Iterator[tuple[str, nn.Module]]:
    """Yield the prefix of the metrics and the model: the pre-trained backbone, then the same architecture with random weights."""
    yield "", artifacts.load_timm(paths.BACKBONE).to(device.select_device())
    yield "random_", artifacts.random_like(paths.BACKBONE, seed=seed).to(device.select_device())


def backbone_features(model: nn.Module, split: ShardSet, workers: int) -> Features:
    """Compute the features of every block of `model` for the evaluation views of a split."""
    batches = eval_batches(
        split,
        CenterView(artifacts.input_size(paths.BACKBONE)),
        batch_size=EVAL_BATCH,
        workers=workers,
        device=next(model.parameters()).device,
        label=f"features of {split.split}",
    )
    return extract(model, batches)
