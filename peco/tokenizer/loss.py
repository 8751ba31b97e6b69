"""Training objective of the tokenizer (PeCo, arXiv 2111.12710, equations 2 and 3)."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from peco.tokenizer.quantizer import QuantizerOutput


class TokenizerLoss(nn.Module):
    """pixel + weight * perceptual + commitment * (encoder output - code)^2.

    Args:
        pixel: mean absolute (l1) or squared (l2) difference of pixels on [0, 1], or none.
        perceptual: scalar distance of (reconstruction, image), such as `PerceptualDistance`; not evaluated if None or if `weight`
            is 0.
        weight: the paper's lambda.
        commitment: the paper's beta.
    """

    def __init__(
        self, pixel: Literal["l1", "l2", "none"], perceptual: nn.Module | None, weight: float, commitment: float
    ) -> None:
        super().__init__()
        self.pixel = pixel
        self.perceptual = perceptual if weight > 0 else None
        self.weight, self.commitment = weight, commitment

    def forward(
        self, reconstruction_BCHW: Tensor, x_BCHW: Tensor, quantized: QuantizerOutput
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss, and the terms in use before weighting (`pixel`, `perceptual`, `commitment`; detached scalars)."""
        parts = {"commitment": quantized.commitment}
        total = self.commitment * quantized.commitment
        reconstruction_BCHW = reconstruction_BCHW.float()
        if self.pixel != "none":
            difference = F.l1_loss if self.pixel == "l1" else F.mse_loss
            parts["pixel"] = difference(reconstruction_BCHW, x_BCHW)
            total = total + parts["pixel"]
        if self.perceptual is not None:
            parts["perceptual"] = self.perceptual(reconstruction_BCHW, x_BCHW)
            total = total + self.weight * parts["perceptual"]
        return total, {name: value.detach() for name, value in parts.items()}
