"""Training of a classifier with mixup, CutMix and label smoothing.

Legend: B batch, C channels, H W pixels, K classes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from timm.data.mixup import Mixup, mixup_target
from torch import Tensor, nn

from peco.core import artifacts, config
from peco.core.errors import PecoError
from peco.training.loop import Task


class FinetuneTask(Task):
    """Train a timm classifier with mixup, CutMix and label smoothing.

    The parameter groups are those of the base class, which knows timm's layers, so `optim.layer_decay` applies. Mixing draws
    from numpy's global generator, which the loop seeds in each step.

    Args:
        model: from `build_classifier`.
        classes: outputs K.
        cfg: strengths of mixup, CutMix and label smoothing.
    """

    def __init__(self, model: nn.Module, classes: int, cfg: config.Finetune) -> None:
        super().__init__()
        self.model = model
        self.classes = classes
        self.smoothing = cfg.label_smoothing
        self.mixup = (
            Mixup(cfg.mixup, cfg.cutmix, label_smoothing=cfg.label_smoothing, num_classes=classes)
            if cfg.mixup or cfg.cutmix
            else None
        )
        mean_C11, std_C11 = artifacts.normalization(model)
        self.register_buffer("mean_C11", mean_C11, persistent=False)
        self.register_buffer("std_C11", std_C11, persistent=False)

    def forward(self, batch: dict[str, Tensor], step: int, total: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Soft-target cross entropy (nats) of a batch with "image" (B, C, H, W) in [0, 1] and "label" int64 (B,).

        Raises:
            PecoError: an odd number of images is to be mixed.
        """
        x_BCHW, target_BK = self._mixed(batch["image"], batch["label"])
        logits_BK = self.model((x_BCHW - self.mean_C11) / self.std_C11)
        loss = F.cross_entropy(logits_BK.float(), target_BK)
        return loss, {}

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # compilation would change numpy's random numbers
    def _mixed(self, x_BCHW: Tensor, label_B: Tensor) -> tuple[Tensor, Tensor]:
        if self.mixup is None:
            return x_BCHW, mixup_target(label_B, self.classes, smoothing=self.smoothing)
        if len(x_BCHW) % 2:
            raise PecoError(
                f"evaluate.finetune.optim.batch_size: {len(x_BCHW)} images at a time can't be mixed in pairs; "
                "expected an even number per process"
            )
        mixed: tuple[Tensor, Tensor] = self.mixup(x_BCHW.clone(), label_B)  # timm mixes in place
        return mixed
