"""Training of a `UperNet`."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from peco.annotations.sets import IGNORE
from peco.core import config
from peco.evaluate.segmentation.model import UperNet
from peco.training.loop import Task
from peco.training.optim import param_groups


class SegmentationTask(Task):
    """Train a `UperNet` with cross entropy."""

    def __init__(self, model: UperNet) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: dict[str, Tensor], step: int, total: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross entropy (nats) of a batch with "image" (B, C, H, W) in [0, 1] and "mask" int (B, H, W), class or `IGNORE`.

        It is the mean over all pixels with 0 for ignored ones, so that the loss of a batch is the mean over its parts.
        """
        logits_BKHW = self.model(batch["image"])
        losses_BHW = F.cross_entropy(logits_BKHW, batch["mask"].long(), ignore_index=IGNORE, reduction="none")
        return losses_BHW.mean(), {}

    def param_groups(self, optim: config.Optim) -> list[dict[str, Any]]:
        """Parameter groups as in the base class, with the last block as the layer below the decoder."""
        return param_groups(self, optim, below=self.model.backbone)
