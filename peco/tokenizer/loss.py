"""Training objectives of the tokenizer.

PeCo's (arXiv 2111.12710, equations 2 and 3), and VQ-KD, that of BEiT v2 (arXiv 2208.06366, section 2.2): codes trained to predict a
teacher's features. VQ-KD is the baseline with a feature-distilled codebook: encoder and quantizer are PeCo's, the target differs.

Legend: B batch, C channels of the teacher, H W pixels, D code width, h w token grid.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peco.core import config
from peco.perceptual.features import FeatureNet
from peco.tokenizer.autoencoder import Attention, ResBlock
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


class FeatureDecoder(nn.Sequential):
    """Codes (B, D, h, w) to features (B, C, h, w), with the layers of the autoencoder's lowest resolution.

    BEiT v2 has a transformer of one to three blocks here.
    """

    def __init__(self, cfg: config.Autoencoder, dim: int, features: int) -> None:
        width = cfg.channels[-1]
        layers: list[nn.Module] = [nn.Conv2d(dim, width, 1)]
        if cfg.attention:
            layers.append(Attention(width))
        layers += [ResBlock(width, width) for _ in range(cfg.res_blocks)]
        super().__init__(*layers, nn.Conv2d(width, features, 1))


class Distillation(nn.Module):
    """1 - cosine similarity of predicted and teacher features, averaged over positions and images: 0 to 2.

    The teacher's features are those of the last block that `net` returns, resized (bilinear, antialiased) to the token grid if
    theirs differs, and standardised over channels at each position, as by the norm after the last block of a ViT.
    """

    def __init__(self, net: FeatureNet) -> None:
        super().__init__()
        self.net = net

    def forward(self, predicted_BChw: Tensor, x_BCHW: Tensor) -> Tensor:
        """Scalar loss; `x_BCHW` are the images in [0, 1] of the codes."""
        with torch.no_grad():
            target_BChw = self.net(x_BCHW)[-1].float()
            grid = predicted_BChw.shape[-2:]
            if target_BChw.shape[-2:] != grid:
                target_BChw = F.interpolate(target_BChw, grid, mode="bilinear", antialias=True)
            target_BhwC = target_BChw.movedim(1, -1)
            target_BhwC = F.layer_norm(target_BhwC, target_BhwC.shape[-1:])
        return 1 - F.cosine_similarity(predicted_BChw.float().movedim(1, -1), target_BhwC, dim=-1).mean()
