"""The adversarial term: a discriminator that judges patches (PatchGAN, arXiv 1611.07004) with hinge losses, as in VQGAN.

Legend: B batch, C = 3 channels, H W pixels, h w patches judged.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from peco.core import config
from peco.tokenizer.autoencoder import group_norm


class PatchDiscriminator(nn.Module):
    """Images (B, 3, H, W) in [0, 1] to scores (B, 1, h, w), high for real patches; h = H / 2^layers.

    Group norm, since the statistics of a batch norm would differ from rank to rank.
    """

    def __init__(self, cfg: config.Adversarial) -> None:
        super().__init__()
        width = cfg.channels
        layers: list[nn.Module] = [nn.Conv2d(3, width, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for _ in range(cfg.layers - 1):
            layers += [nn.Conv2d(width, 2 * width, 4, stride=2, padding=1), group_norm(2 * width), nn.LeakyReLU(0.2)]
            width *= 2
        self.layers = nn.Sequential(*layers, nn.Conv2d(width, 1, 3, padding=1))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        score_B1hw: Tensor = self.layers(2 * x_BCHW - 1)
        return score_B1hw


def adversarial_losses(
    discriminator: PatchDiscriminator, reconstruction_BCHW: Tensor, x_BCHW: Tensor
) -> tuple[Tensor, Tensor]:
    """Losses of the generator and of the discriminator, both scalars, for one backward pass over their sum.

    The first has a gradient for the reconstruction only, the second for the discriminator only.
    """
    fixed = {name: parameter.detach() for name, parameter in discriminator.named_parameters()}
    generator: Tensor = -functional_call(discriminator, fixed, (reconstruction_BCHW,)).float().mean()
    real_B1hw, fake_B1hw = discriminator(x_BCHW).float(), discriminator(reconstruction_BCHW.detach()).float()
    return generator, 0.5 * (F.relu(1 - real_B1hw).mean() + F.relu(1 + fake_B1hw).mean())
