"""MoCo v3 (Chen, Xie, He, arXiv 2104.02057): self-supervised training of the perceptual network.

Legend: B batch of this rank, C channels, H W pixels, D embedding width, M keys of all ranks.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peco.core import config
from peco.core.artifacts import normalization
from peco.core.collectives import Collective, identity


class GlobalBatchNorm(nn.Module):
    """Batch normalisation of (B, D) by the statistics of all ranks' batches, so that results do not depend on the number of ranks.

    It has no running statistics, which only use after training would need: MoCo drops its heads then.

    Args:
        width: D.
        affine: learn scale and shift.
        mean_over_ranks: differentiable mean of a tensor over ranks, whose batches have the same size.
    """

    def __init__(
        self, width: int, *, affine: bool = True, mean_over_ranks: Collective = identity, eps: float = 1e-5
    ) -> None:
        super().__init__()
        self.weight_D = nn.Parameter(torch.ones(width)) if affine else None
        self.bias_D = nn.Parameter(torch.zeros(width)) if affine else None
        self.mean_over_ranks = mean_over_ranks
        self.eps = eps

    def forward(self, x_BD: Tensor) -> Tensor:
        x_BD = x_BD.float()
        centered_BD = x_BD - self.mean_over_ranks(x_BD.mean(0))
        variance_D = self.mean_over_ranks(centered_BD.square().mean(0))
        out_BD = centered_BD * torch.rsqrt(variance_D + self.eps)
        return out_BD if self.weight_D is None or self.bias_D is None else out_BD * self.weight_D + self.bias_D


def mlp(layers: int, inputs: int, hidden: int, outputs: int, mean_over_ranks: Collective) -> nn.Sequential:
    """Head of MoCo v3: linear layers without bias, batch norm after each (not affine after the last), ReLU between them."""
    modules: list[nn.Module] = []
    for layer in range(layers):
        last = layer == layers - 1
        width = outputs if last else hidden
        modules.append(nn.Linear(inputs, width, bias=False))
        modules.append(GlobalBatchNorm(width, affine=not last, mean_over_ranks=mean_over_ranks))
        if not last:
            modules.append(nn.ReLU())
        inputs = width
    return nn.Sequential(*modules)


class MoCo(nn.Module):
    """Online encoder with projector and predictor, and their momentum copies.

    The trained network is `encoder`; views are normalised by the mean and std of its `pretrained_cfg`.

    Args:
        encoder: builds a timm vision transformer with `num_classes=0`; called twice.
        cfg: widths, temperature, momentum, and `freeze_patch_embed`: a random patch embedding stabilises the training of ViTs.
        gather: keys of all ranks, concatenated in rank order (no gradient).
        mean_over_ranks: differentiable mean over ranks.
        rank: position of this process in the order of `gather`.
    """

    mean_C11: Tensor
    std_C11: Tensor

    def __init__(
        self,
        encoder: Callable[[], nn.Module],
        cfg: config.MoCo,
        *,
        gather: Collective = identity,
        mean_over_ranks: Collective = identity,
        rank: int = 0,
    ) -> None:
        super().__init__()
        self.temperature, self.momentum = cfg.temperature, cfg.momentum
        self.gather, self.rank = gather, rank
        self.encoder = encoder()
        mean_C11, std_C11 = normalization(self.encoder)
        self.register_buffer("mean_C11", mean_C11, persistent=False)
        self.register_buffer("std_C11", std_C11, persistent=False)
        width: Any = self.encoder.num_features
        self.projector = mlp(3, width, cfg.hidden_dim, cfg.out_dim, mean_over_ranks)
        self.predictor = mlp(2, cfg.out_dim, cfg.hidden_dim, cfg.out_dim, mean_over_ranks)
        if cfg.freeze_patch_embed:
            _freeze_patch_embed(self.encoder)
        self.momentum_encoder = encoder()
        self.momentum_projector = mlp(3, width, cfg.hidden_dim, cfg.out_dim, mean_over_ranks)
        self.momentum_encoder.load_state_dict(self.encoder.state_dict())
        self.momentum_projector.load_state_dict(self.projector.state_dict())
        self.momentum_encoder.requires_grad_(False)
        self.momentum_projector.requires_grad_(False)

    def forward(self, x1_BCHW: Tensor, x2_BCHW: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Symmetric contrastive loss of two views, each in [0, 1].

        Returns:
            Loss (mean over this rank's queries), and `accuracy`: share of queries that are nearest to their own key among all
            ranks' keys.
        """
        x1_BCHW, x2_BCHW = ((x_BCHW - self.mean_C11) / self.std_C11 for x_BCHW in (x1_BCHW, x2_BCHW))
        q1_BD, q2_BD = (self.predictor(self.projector(self.encoder(x_BCHW))) for x_BCHW in (x1_BCHW, x2_BCHW))
        with torch.no_grad():
            k1_BD, k2_BD = (self.momentum_projector(self.momentum_encoder(x_BCHW)) for x_BCHW in (x1_BCHW, x2_BCHW))
        loss1, accuracy1 = self._contrast(q1_BD, k2_BD)
        loss2, accuracy2 = self._contrast(q2_BD, k1_BD)
        return loss1 + loss2, {"accuracy": (accuracy1 + accuracy2) / 2}

    @torch.no_grad()
    def update_momentum(self, step: int, total: int) -> None:
        """Update the momentum copies after step `step` of `total`; the momentum rises to 1 along a half cosine."""
        momentum = 1 - (1 - self.momentum) * (1 + math.cos(math.pi * step / total)) / 2
        for online, copy in (
            (self.encoder, self.momentum_encoder),
            (self.projector, self.momentum_projector),
        ):
            for source, target in zip(online.parameters(), copy.parameters(), strict=True):
                target.lerp_(source, 1 - momentum)

    def _contrast(self, q_BD: Tensor, k_BD: Tensor) -> tuple[Tensor, Tensor]:
        """InfoNCE times 2 * temperature, which makes the size of the gradient independent of the temperature."""
        with torch.autocast(q_BD.device.type, enabled=False):
            k_MD = self.gather(F.normalize(k_BD.float(), dim=1))
            logits_BM = F.normalize(q_BD.float(), dim=1) @ k_MD.T / self.temperature
            labels_B = torch.arange(len(q_BD), device=q_BD.device) + self.rank * len(q_BD)
            loss = 2 * self.temperature * F.cross_entropy(logits_BM, labels_B)
        return loss, (logits_BM.detach().argmax(1) == labels_B).float().mean()


def _freeze_patch_embed(encoder: nn.Module) -> None:
    """Freeze the patch embedding at random weights: Xavier-uniform over the patch as in the paper's code, zero bias."""
    proj: Any = encoder.patch_embed.proj  # type: ignore[union-attr]
    bound = math.sqrt(6 / (proj.weight[0].numel() + proj.out_channels))
    nn.init.uniform_(proj.weight, -bound, bound)
    if proj.bias is not None:
        nn.init.zeros_(proj.bias)
    proj.requires_grad_(False)
