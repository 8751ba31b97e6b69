"""Frozen features of a backbone, computed once for a probe of all its blocks.

Legend: B batch, C channels, H W pixels, L patches, D width, N samples.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from peco.core import artifacts
from peco.core.errors import PecoError
from peco.networks.backbones import block_count

NORM = "norm"
"""Name of the features after the final norm; those of block i are named by the number, `"1"` for the first."""
POOLED = "pooled"
"""Name of the only features of any network that isn't a vision transformer."""


@torch.no_grad()
def extract(
    model: nn.Module, batches: Iterable[Mapping[str, Tensor]], blocks: Sequence[int] | None = None
) -> tuple[dict[str, Tensor], Tensor]:
    """Compute the mean patch token of some blocks and of the output after the final norm; without blocks, the pooled output.

    Args:
        model: timm model, with `num_classes` 0 unless it is a vision transformer; it is put into eval mode. Batches go to its
            device.
        batches: with "image", float BCHW in [0, 1], and "label", int64 (B,).
        blocks: numbers of blocks of a vision transformer, counted from 1; None for all.

    Returns:
        features by block (`"1"`, `"2"`, …, then `NORM`; or only `POOLED`), each float32 (N, D), and labels int64 (N,), in the
        order of the batches, on the CPU.

    Raises:
        PecoError: the model lacks one of the blocks, or there is no batch.
    """
    depth = block_count(model)
    ordered = sorted(set(range(1, depth + 1) if blocks is None else blocks))
    for block in ordered:
        if not 1 <= block <= depth:
            raise PecoError(f"block {block}: the model has blocks 1 to {depth}; choose among these")
    model.eval()
    device = next(model.parameters()).device
    mean_C11, std_C11 = (t.to(device) for t in artifacts.normalization(model))
    found: dict[str, list[Tensor]] = {name: [] for name in ([*map(str, ordered), NORM] if depth else [POOLED])}
    labels: list[Tensor] = []
    for batch in batches:
        x_BCHW = (batch["image"].to(device) - mean_C11) / std_C11
        pooled = [t_BLD.mean(dim=1) for t_BLD in patch_tokens(model, x_BCHW, ordered)] if depth else [model(x_BCHW)]
        for name, f_BD in zip(found, pooled, strict=True):
            found[name].append(f_BD.float().cpu())
        labels.append(batch["label"].cpu())
    if not labels:
        raise PecoError("no image to compute features of: the split is empty")
    # One block at a time, so that little is held twice: all features of ImageNet are tens of GB.
    return {name: torch.cat(found.pop(name)) for name in list(found)}, torch.cat(labels)


def patch_tokens(model: nn.Module, x_BCHW: Tensor, blocks: Sequence[int]) -> list[Tensor]:
    """Patch tokens (B, L, D) of some blocks of a vision transformer, then those after the final norm.

    Args:
        model: timm vision transformer.
        x_BCHW: normalised images.
        blocks: numbers of blocks, rising, counted from 1.
    """
    x_BLD, intermediates = cast(Any, model).forward_intermediates(
        x_BCHW, indices=[block - 1 for block in blocks], output_fmt="NLC"
    )
    # The intermediates come without the prefix tokens, the final ones with them.
    return [*intermediates, x_BLD[:, cast(int, model.num_prefix_tokens) :]]
