"""Training of a detector.

Legend: B batch, N objects, H W pixels, w bytes of a row of packed bits.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from peco.core import config
from peco.training.loop import Task
from peco.training.optim import param_groups


class DetectionTask(Task):
    """Train a detector with the sum of its losses. torchvision samples regions with torch's generator, which the loop seeds.

    Args:
        model: from `build_detector`.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: dict[str, Tensor], step: int, total: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of a batch of `DetectionView`s, and its terms."""
        images_BCHW = batch["image"]
        targets = []
        for i, count in enumerate((batch["labels"] >= 0).sum(dim=1).tolist()):
            target = {"boxes": batch["boxes"][i, :count], "labels": batch["labels"][i, :count] + 1}
            if "masks" in batch:
                target["masks"] = unpack_bits(batch["masks"][i, :count], images_BCHW.shape[-1])
            targets.append(target)
        losses = self.model(list(images_BCHW), targets)
        return torch.stack(list(losses.values())).sum(), {name: loss.detach() for name, loss in losses.items()}

    def param_groups(self, optim: config.Optim) -> list[dict[str, Any]]:
        """Parameter groups as in the base class, with the last block as the layer below the pyramid (ViTDet, arXiv 2203.16527)."""
        return param_groups(self, optim, below=cast(Any, self.model).backbone.backbone)


def unpack_bits(bits_NHw: Tensor, width: int) -> Tensor:
    """Unpack masks to uint8 (N, H, W), 0 or 1; a byte holds eight pixels of a row, the first in its highest bit."""
    shifts_8 = torch.arange(7, -1, -1, device=bits_NHw.device, dtype=torch.uint8)
    return ((bits_NHw[..., None] >> shifts_8) & 1).flatten(-2)[..., :width]
