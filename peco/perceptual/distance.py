"""Distance of two images in the features of a network: PeCo's perceptual term (arXiv 2111.12710, equation 3).

Legend: B batch, C channels, H W pixels, h w feature positions.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peco.perceptual.features import FeatureNet

Normalize = Literal["channel", "token", "none"]


class PerceptualDistance(nn.Module):
    """Squared difference of normalised features, averaged over positions and images, summed over blocks.

    The paper leaves the normalisation of features open. Here, per position:

    - `channel`: the vector is divided by its Euclidean length; the squared difference is summed over channels (as in LPIPS,
      arXiv 1801.03924). 0 to 4 per block.
    - `token`: mean 0 and variance 1 over the vector's channels, as LayerNorm does; the squared difference is averaged over
      channels. 0 to 4 per block.
    - `none`: not normalised; the squared difference is averaged over channels.

    Sum and average give the first two the same scale for networks of any width, so that lambda keeps its meaning.
    """

    def __init__(self, net: FeatureNet, normalize: Normalize) -> None:
        super().__init__()
        self.net = net
        self.normalize = normalize

    def forward(self, x_BCHW: Tensor, target_BCHW: Tensor) -> Tensor:
        """Scalar distance of images in [0, 1]: symmetric in value, with a gradient for the first argument only."""
        with torch.no_grad():
            targets = self.net(target_BCHW)
        total = x_BCHW.new_zeros((), dtype=torch.float32)
        for feature_BChw, target_BChw in zip(self.net(x_BCHW), targets, strict=True):
            total = total + self._difference(feature_BChw.float(), target_BChw.float())
        return total

    def _difference(self, a_BChw: Tensor, b_BChw: Tensor) -> Tensor:
        if self.normalize == "channel":
            return (F.normalize(a_BChw, dim=1) - F.normalize(b_BChw, dim=1)).square().sum(1).mean()
        if self.normalize == "token":
            return F.mse_loss(_standardize(a_BChw), _standardize(b_BChw))
        return F.mse_loss(a_BChw, b_BChw)


def _standardize(x_BChw: Tensor) -> Tensor:
    variance_B1hw, mean_B1hw = torch.var_mean(x_BChw, dim=1, correction=0, keepdim=True)
    return (x_BChw - mean_B1hw) * torch.rsqrt(variance_B1hw + 1e-6)
