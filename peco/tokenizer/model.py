"""The perceptual tokenizer: images to grids of tokens and back.

Legend: B batch, C = 3 channels, H W pixels, D code width, h w token grid.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from peco.core import config
from peco.core.collectives import Collective, identity
from peco.core.errors import PecoError
from peco.core.image_range import require_unit_range
from peco.tokenizer.autoencoder import Decoder, Encoder
from peco.tokenizer.quantizer import QuantizerOutput, VectorQuantizer

IMAGES_AT_ONCE = 64


class PerceptualTokenizer(nn.Module):
    """VQ-VAE of PeCo (arXiv 2111.12710, section 3.1); images are float32 BCHW in [0, 1].

    Args:
        autoencoder: parameters of encoder and decoder.
        quantizer: parameters of the codebook.
        all_reduce, broadcast, gather, seed: see `VectorQuantizer`.
    """

    def __init__(
        self,
        autoencoder: config.Autoencoder,
        quantizer: config.Quantizer,
        *,
        all_reduce: Collective = identity,
        broadcast: Collective = identity,
        gather: Collective = identity,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.factor = autoencoder.stem_stride * 2 ** (len(autoencoder.channels) - 1)
        """Pixels per token along one side."""
        self.encoder = Encoder(autoencoder, quantizer.dim)
        self.quantizer = VectorQuantizer(
            quantizer, all_reduce=all_reduce, broadcast=broadcast, gather=gather, seed=seed
        )
        self.decoder = Decoder(autoencoder, quantizer.dim)
        self._range_checked = False

    def forward(self, x_BCHW: Tensor, *, detach: bool = False) -> tuple[Tensor, QuantizerOutput]:
        """Reconstruction (scale of the input, not clamped) and the quantizer's output.

        Args:
            x_BCHW: images.
            detach: don't pass the decoder's gradient on to codes and encoder.

        Raises:
            PecoError: these are not float32 images, or height or width is not a multiple of `factor`.
        """
        self._check(x_BCHW)
        quantized = self.quantizer(self._encode(x_BCHW))
        z_q_BDhw = quantized.z_q_BDhw
        return self._decode(z_q_BDhw.detach() if detach else z_q_BDhw), quantized

    @torch.no_grad()
    def tokenize(self, x_BCHW: Tensor) -> Tensor:
        """Tokens (int64, Bhw) of images, `IMAGES_AT_ONCE` at a time, so that memory doesn't grow with their number.

        Raises:
            PecoError: these are not float32 images, or height or width is not a multiple of `factor`; at the first call also if
                their values are not in [0, 1].
        """
        self._check(x_BCHW)
        if not (self._range_checked or torch.compiler.is_compiling()):
            require_unit_range(x_BCHW)
            self._range_checked = True
        return torch.cat(
            [self.quantizer.encode(self._encode(x_bCHW)) for x_bCHW in torch.split(x_BCHW, IMAGES_AT_ONCE)]
        )

    @torch.no_grad()
    def decode(self, tokens_Bhw: Tensor) -> Tensor:
        """Images (BCHW in [0, 1]) of tokens."""
        return self._decode(self.quantizer.lookup(tokens_Bhw)).clamp(0, 1)

    def reconstruct(self, x_BCHW: Tensor) -> Tensor:
        """Tokenize and decode images; BCHW in [0, 1].

        Raises:
            PecoError: these are not float32 images, or height or width is not a multiple of `factor`.
        """
        return self.decode(self.tokenize(x_BCHW))

    def _check(self, x_BCHW: Tensor) -> None:
        if not (
            isinstance(x_BCHW, Tensor)
            and x_BCHW.dtype == torch.float32
            and x_BCHW.shape[1:2] == (3,)
            and x_BCHW.ndim == 4
        ):
            found = f"{x_BCHW.dtype} {tuple(x_BCHW.shape)}" if isinstance(x_BCHW, Tensor) else type(x_BCHW).__name__
            raise PecoError(f"tokenizer: expected images as float32 (B, 3, H, W) in [0, 1], got {found}")
        H, W = x_BCHW.shape[-2:]
        if H % self.factor or W % self.factor:
            raise PecoError(
                f"tokenizer: an image of {H}x{W} pixels does not divide into tokens of {self.factor} pixels; resize it"
            )

    def _encode(self, x_BCHW: Tensor) -> Tensor:
        z_BDhw: Tensor = self.encoder(2 * x_BCHW - 1)
        return z_BDhw

    def _decode(self, z_q_BDhw: Tensor) -> Tensor:
        x_BCHW: Tensor = (self.decoder(z_q_BDhw) + 1) / 2
        return x_BCHW
