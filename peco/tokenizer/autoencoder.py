"""Convolutional encoder and decoder of the tokenizer: residual blocks as in VQGAN.

Two differences help a short training (docs/results.md has their effect). Every residual branch starts at zero, so that the network
starts as a linear autoencoder of patches. There is no norm at the two ends: a norm over an image removes its colour and contrast,
which are most of the information in a token.

Legend: B batch, C channels, H W pixels or feature positions, D code width, h w token grid.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from peco.core import config


def group_norm(channels: int) -> nn.GroupNorm:
    """GroupNorm with the most groups (a power of two, at most 32) that divide `channels` into four or more channels each."""
    groups = max((g for g in (1, 2, 4, 8, 16, 32) if channels % g == 0 and channels // g >= 4), default=1)
    return nn.GroupNorm(groups, channels)


def zeroed(layer: nn.Conv2d) -> nn.Conv2d:
    """The layer with all its parameters set to zero."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


class ResBlock(nn.Module):
    """(norm, SiLU, 3x3 convolution) twice, added to the input (projected by 1x1 if the width changes)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.norm1 = group_norm(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.norm2 = group_norm(outputs)
        self.conv2 = zeroed(nn.Conv2d(outputs, outputs, 3, padding=1))
        self.skip = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        y_BCHW = self.conv1(F.silu(self.norm1(x_BCHW)))
        y_BCHW = self.conv2(F.silu(self.norm2(y_BCHW)))
        out_BCHW: Tensor = self.skip(x_BCHW) + y_BCHW
        return out_BCHW


class Attention(nn.Module):
    """Single-head self-attention over all positions, added to the input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = group_norm(channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.proj = zeroed(nn.Conv2d(channels, channels, 1))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        B, C, H, W = x_BCHW.shape
        q_BLC, k_BLC, v_BLC = self.qkv(self.norm(x_BCHW)).flatten(2).transpose(1, 2).chunk(3, dim=2)
        y_BLC = F.scaled_dot_product_attention(q_BLC[:, None], k_BLC[:, None], v_BLC[:, None])[:, 0]
        out_BCHW: Tensor = x_BCHW + self.proj(y_BLC.transpose(1, 2).reshape(B, C, H, W))
        return out_BCHW


class Upsample(nn.Module):
    """Nearest-neighbour doubling, then a 3x3 convolution: without the checkerboard of a transposed convolution."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, padding=1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        out_BCHW: Tensor = self.conv(F.interpolate(x_BCHW, scale_factor=2.0, mode="nearest"))
        return out_BCHW


class Encoder(nn.Sequential):
    """Image (B, 3, H, W) to (B, D, h, w), h = H / (stem_stride * 2^(len(channels) - 1))."""

    def __init__(self, cfg: config.Autoencoder, dim: int) -> None:
        width, stride = cfg.channels[0], cfg.stem_stride
        layers: list[nn.Module] = [
            nn.Conv2d(3, width, 3, padding=1) if stride == 1 else nn.Conv2d(3, width, stride, stride=stride),
        ]
        for level, channels in enumerate(cfg.channels):
            if level > 0:
                layers.append(nn.Conv2d(width, width, 3, stride=2, padding=1))
            for _ in range(cfg.res_blocks):
                layers.append(ResBlock(width, channels))
                width = channels
        if cfg.attention:
            layers.append(Attention(width))
        super().__init__(*layers, nn.Conv2d(width, dim, 1))


class Decoder(nn.Sequential):
    """Codes (B, D, h, w) to an image (B, 3, H, W): the mirror of `Encoder`; a strided stem becomes a pixel shuffle."""

    def __init__(self, cfg: config.Autoencoder, dim: int) -> None:
        width, stride = cfg.channels[-1], cfg.stem_stride
        layers: list[nn.Module] = [nn.Conv2d(dim, width, 1)]
        if cfg.attention:
            layers.append(Attention(width))
        for level, channels in enumerate(reversed(cfg.channels)):
            if level > 0:
                layers.append(Upsample(width, channels))
                width = channels
            layers += [ResBlock(width, width) for _ in range(cfg.res_blocks)]
        layers.append(nn.Conv2d(width, 3 * stride**2, 3, padding=1))
        if stride > 1:
            layers.append(nn.PixelShuffle(stride))
        super().__init__(*layers)
