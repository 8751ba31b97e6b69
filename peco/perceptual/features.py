"""Intermediate features of any timm model, for the perceptual term of the tokenizer's loss.

Legend: B batch, C channels, H W pixels, h w feature positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self, cast

import torch.nn.functional as F
from torch import Tensor, nn

from peco.core.artifacts import normalization
from peco.core.errors import PecoError
from peco.networks.timm_nets import strict_embed


class FeatureNet(nn.Module):
    """A frozen network that returns the features of selected blocks; gradients flow to the input.

    Blocks are the entries of the model's `feature_info`: the transformer blocks of a ViT, the stages of a ConvNet (ResNet: stem and
    four stages; VGG: the convolutions before each pooling). Blocks after the last selected one are cut off.

    Images are resized (bilinear, antialiased) for a network with a fixed input size (ViT), and for any other if a size is given.

    Args:
        model: the network; it is frozen and pruned in place. Mean and std are those of its `pretrained_cfg`.
        blocks: numbers of blocks, from 1.
        size: side in pixels of the images that a network without a fixed size sees; None for that of the images.

    Raises:
        PecoError: there is no such block, or the model has no intermediate features.
    """

    mean_C11: Tensor
    std_C11: Tensor

    def __init__(self, model: nn.Module, blocks: Sequence[int], size: int | None = None) -> None:
        super().__init__()
        if not hasattr(model, "forward_intermediates"):
            raise PecoError(
                f"perceptual_net.timm.model: {type(model).__name__} has no intermediate features; choose another model"
            )
        self.model = cast(Any, model)
        depth = len(self.model.feature_info)
        for block in blocks:
            if not 1 <= block <= depth:
                raise PecoError(f"perceptual_net.blocks: {block} is not allowed; expected from 1 to {depth}")
        self.indices = sorted({block - 1 for block in blocks})
        self.model.prune_intermediate_layers(self.indices, prune_norm=True)
        mean_C11, std_C11 = normalization(model)
        self.register_buffer("mean_C11", mean_C11, persistent=False)
        self.register_buffer("std_C11", std_C11, persistent=False)
        embed = strict_embed(model)
        self.size = tuple(embed.img_size) if embed is not None else None if size is None else (size, size)
        self.requires_grad_(False)
        self.eval()

    @property
    def channels(self) -> list[int]:
        """Channels of each feature map that `forward` returns."""
        return [int(self.model.feature_info[index]["num_chs"]) for index in self.indices]

    def train(self, mode: bool = True) -> Self:
        """Stay in eval mode: with dropout or batch statistics the distance of equal images would not be zero."""
        return super().train(False)

    def forward(self, x_BCHW: Tensor) -> list[Tensor]:
        """Features (BChw) of images in [0, 1], in ascending order of blocks, without class or register tokens."""
        if self.size is not None and x_BCHW.shape[-2:] != self.size:
            x_BCHW = F.interpolate(x_BCHW, self.size, mode="bilinear", antialias=True)
        x_BCHW = (x_BCHW - self.mean_C11) / self.std_C11
        features: list[Tensor] = self.model.forward_intermediates(
            x_BCHW, indices=self.indices, stop_early=True, intermediates_only=True, output_fmt="NCHW"
        )
        return features
