"""Features of the evaluated backbones, for the evaluations on frozen features."""

from __future__ import annotations

from torch import Tensor, nn

from peco.core import artifacts
from peco.data.loader import eval_batches
from peco.data.samples import CenterView
from peco.data.shards import ShardSet
from peco.networks import timm_nets
from peco.probes.features import extract
from peco.runtime import paths

EVAL_BATCH = 128

Features = tuple[dict[str, Tensor], Tensor]  # (N, D) by block; labels (N,)


def backbone_features(model: nn.Module, split: ShardSet, workers: int) -> Features:
    """Compute the features of every block of `model` for the evaluation views of a split."""
    batches = eval_batches(
        split,
        CenterView(timm_nets.whole_patches(model, artifacts.input_size(paths.BACKBONE))),
        batch_size=EVAL_BATCH,
        workers=workers,
        device=next(model.parameters()).device,
        label=f"features of {split.split}",
    )
    return extract(model, batches)
