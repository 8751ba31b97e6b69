"""Fine-tuning of a whole backbone for classification with BEiT's recipe (arXiv 2106.08254).

One path for pre-trained and for random weights.

Legend: B batch, C channels, H W pixels, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from timm.data.mixup import Mixup, mixup_target
from torch import Tensor, nn

from peco import artifacts, config
from peco.errors import PecoError
from peco.training.loop import Task


def build_classifier(
    directory: str | Path, classes: int, cfg: config.Finetune, *, pretrained: bool, seed: int
) -> nn.Module:
    """A backbone with a new linear head on the mean of its patch tokens.

    Args:
        directory: folder of a backbone.
        classes: outputs K.
        cfg: for its drop path rate.
        pretrained: weights of the folder; otherwise all are random, the baseline.
        seed: of what is random. The head starts equal in both cases.

    Raises:
        PecoError: the folder is missing or damaged.
    """
    build = artifacts.load_timm if pretrained else artifacts.random_like
    return build(directory, seed=seed, num_classes=classes, drop_path_rate=cfg.drop_path, global_pool="avg")


class FinetuneTask(Task):
    """Train a timm classifier with mixup, CutMix and label smoothing.

    The parameter groups are those of the base class, which knows timm's layers: `optim.layer_decay` applies. Mixing draws
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

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # compiled, numpy's random numbers would be others
    def _mixed(self, x_BCHW: Tensor, label_B: Tensor) -> tuple[Tensor, Tensor]:
        if self.mixup is None:
            return x_BCHW, mixup_target(label_B, self.classes, smoothing=self.smoothing)
        if len(x_BCHW) % 2:
            raise PecoError(
                f"evaluate.finetune.optim.batch_size: {len(x_BCHW)} images at a time can't be mixed in pairs; "
                "expected an even number a process"
            )
        mixed: tuple[Tensor, Tensor] = self.mixup(x_BCHW.clone(), label_B)  # timm mixes in place
        return mixed


@torch.no_grad()
def evaluate(
    model: nn.Module,
    batches: Iterable[Mapping[str, Tensor]],
    all_reduce: Callable[[Tensor], Tensor] = lambda tensor: tensor,
) -> float:
    """Top-1 accuracy, 0 to 1.

    Args:
        model: timm classifier; it is put into eval mode. Batches go to its device.
        batches: this process's share of the split, with "image" and "label".
        all_reduce: sum over processes; with one process the identity.

    Raises:
        PecoError: there is no image.
    """
    model.eval()
    device = next(model.parameters()).device
    mean_C11, std_C11 = (t.to(device) for t in artifacts.normalization(model))
    counts = torch.zeros(2, dtype=torch.float64, device=device)  # right, all
    for batch in batches:
        predicted_B = model((batch["image"].to(device) - mean_C11) / std_C11).argmax(dim=1)
        counts += torch.stack([(predicted_B == batch["label"].to(device)).sum(), counts.new_tensor(len(predicted_B))])
    right, seen = map(float, all_reduce(counts).tolist())
    if not seen:
        raise PecoError("no image to classify: the split is empty")
    return right / seen
