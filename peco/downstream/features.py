"""Frozen features of a backbone, computed once for all probes.

Legend: B batch, C channels, H W pixels, L patches, D width, N samples.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from peco import artifacts
from peco.errors import PecoError

NORM = "norm"
"""Name of the features after the final norm; those of block i are named by the number, `"1"` for the first."""


@torch.no_grad()
def extract(
    model: nn.Module, batches: Iterable[Mapping[str, Tensor]], blocks: Sequence[int]
) -> tuple[dict[str, Tensor], Tensor]:
    """Mean patch token of some blocks, and of the output after the final norm.

    Args:
        model: timm transformer with `forward_intermediates`; it is put into eval mode. Batches go to its device.
        batches: with "image", float BCHW in [0, 1], and "label", int64 (B,).
        blocks: numbers of blocks, counted from 1.

    Returns:
        features by block (`"1"`, `"2"`, …, then `NORM`), each float32 (N, D), and labels int64 (N,), in the order of the
        batches, on the CPU.

    Raises:
        PecoError: the model has no such block, or there is no batch.
    """
    depth = len(cast(Any, model).blocks)
    for block in blocks:
        if not 1 <= block <= depth:
            raise PecoError(f"block {block}: the backbone has blocks 1 to {depth}; choose among these")
    model.eval()
    device = next(model.parameters()).device
    mean_C11, std_C11 = (t.to(device) for t in artifacts.normalization(model))
    ordered = sorted(set(blocks))
    found: dict[str, list[Tensor]] = {name: [] for name in [*map(str, ordered), NORM]}
    labels: list[Tensor] = []
    for batch in batches:
        x_BCHW = (batch["image"].to(device) - mean_C11) / std_C11
        x_BLD, intermediates = cast(Any, model).forward_intermediates(
            x_BCHW, indices=[b - 1 for b in ordered], output_fmt="NLC"
        )
        # The intermediates come without the prefix tokens, the final ones with them.
        tokens = [*intermediates, x_BLD[:, cast(int, model.num_prefix_tokens) :]]
        for name, t_BLD in zip(found, tokens, strict=True):
            found[name].append(t_BLD.float().mean(dim=1).cpu())
        labels.append(batch["label"].cpu())
    if not labels:
        raise PecoError("no image to compute features of: the split is empty")
    return {name: torch.cat(parts) for name, parts in found.items()}, torch.cat(labels)
