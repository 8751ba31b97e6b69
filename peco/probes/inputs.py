"""What the evaluations on frozen features share: features of the backbone and of its random initialisation."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from peco.core import artifacts, device
from peco.data.loader import eval_batches
from peco.data.samples import CenterView
from peco.data.shards import ShardSet
from peco.probes.features import extract
from peco.runtime import paths

SCAN_BATCH = 128

Features = tuple[dict[str, Tensor], Tensor]  # by block (N, D); labels (N,)


def backbones(seed: int) -> Iterator[tuple[str, nn.Module]]:
    """The pre-trained backbone and the same at random initialisation, with the prefix of their metrics."""
    where = device.choose()
    yield "", artifacts.load_timm(paths.BACKBONE).to(where)
    yield "random_", artifacts.random_like(paths.BACKBONE, seed=seed).to(where)


def features(model: nn.Module, split: ShardSet, workers: int) -> Features:
    """Features of every block of `model` for the evaluation views of a split."""
    where = next(model.parameters()).device
    batches = eval_batches(
        split, CenterView(artifacts.input_size(paths.BACKBONE)), batch_size=SCAN_BATCH, workers=workers, device=where
    )
    return extract(model, batches)
