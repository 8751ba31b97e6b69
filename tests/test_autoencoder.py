"""Encoder, decoder, and the tokenizer built from them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from peco.core import config
from peco.core.errors import PecoError
from peco.tokenizer.autoencoder import Attention, Decoder, Encoder, group_norm
from peco.tokenizer.loss import TokenizerLoss
from peco.tokenizer.model import IMAGES_AT_ONCE, PerceptualTokenizer
from peco.tokenizer.quantizer import QuantizerOutput

CODES = config.Quantizer(codes=8, dim=4, l2_normalize=True, decay=0.9, restart_after=0, kmeans_iters=2)


def autoencoder(*channels: int, stem: int, attention: bool = True) -> config.Autoencoder:
    return config.Autoencoder(channels, stem, 1, attention)  # type: ignore[arg-type]


def tokenizer(*channels: int, stem: int = 2) -> PerceptualTokenizer:
    torch.manual_seed(0)
    return PerceptualTokenizer(autoencoder(*channels, stem=stem), CODES)


@pytest.mark.parametrize(
    ("channels", "stem", "size", "grid"),
    [
        ((8, 16), 4, 64, 8),  # tiny
        ((8, 16), 2, 32, 8),  # cifar
        ((8, 8, 8, 8, 8), 1, 32, 2),  # the paper's 16x
        ((6, 7), 8, 32, 2),
        ((8,), 1, 8, 8),
    ],
)
def test_grid_is_the_image_over_the_factor(channels: tuple[int, ...], stem: int, size: int, grid: int) -> None:
    cfg = autoencoder(*channels, stem=stem)
    x_BCHW = torch.rand(2, 3, size, size)
    z_BDhw = Encoder(cfg, 5)(x_BCHW)
    assert z_BDhw.shape == (2, 5, grid, grid)
    assert Decoder(cfg, 5)(z_BDhw).shape == x_BCHW.shape
    assert PerceptualTokenizer(cfg, CODES).factor == size // grid


def test_the_papers_tokenizer_maps_224_pixels_to_14_by_14() -> None:
    cfg = config.Autoencoder((128, 128, 256, 256, 512), 1, 2, True)
    with torch.device("meta"):
        model = PerceptualTokenizer(cfg, config.Quantizer(8192, 256, False, 0.99, 500, 10))
        z_BDhw = model.encoder(torch.empty(1, 3, 224, 224))
        assert model.decoder(z_BDhw).shape == (1, 3, 224, 224)
    assert z_BDhw.shape == (1, 256, 14, 14) and model.factor == 16


def test_images_need_not_be_square() -> None:
    model = tokenizer(8, 8)
    tokens = model.tokenize(torch.rand(1, 3, 16, 24))
    assert tokens.shape == (1, 4, 6)
    assert model.decode(tokens).shape == (1, 3, 16, 24)


@given(st.integers(1, 600))
def test_groups_divide_the_channels(channels: int) -> None:
    norm = group_norm(channels)
    assert channels % norm.num_groups == 0
    assert norm.num_groups == 1 or channels // norm.num_groups >= 4


def test_attention_is_single_head_softmax_attention() -> None:
    block, x_BCHW = Attention(8), torch.randn(2, 8, 3, 3)
    q, k, v = (t.transpose(1, 2) for t in block.qkv(block.norm(x_BCHW)).flatten(2).chunk(3, dim=1))
    mixed = torch.softmax(q @ k.transpose(1, 2) / 8**0.5, dim=2) @ v
    expected = x_BCHW + block.proj(mixed.transpose(1, 2).reshape(2, 8, 3, 3))
    torch.testing.assert_close(block(x_BCHW), expected)


def test_attention_is_optional() -> None:
    for attention in (True, False):
        layers = Encoder(autoencoder(8, 8, stem=1, attention=attention), 4).modules()
        assert any(isinstance(layer, Attention) for layer in layers) == attention


def test_encoder_and_decoder_start_linear() -> None:
    """So the first steps find the patches' principal components, which include colour and contrast of the image."""
    model = tokenizer(8, 16)
    for net, shape in ((model.encoder, (1, 3, 16, 16)), (model.decoder, model.encoder(torch.rand(1, 3, 16, 16)).shape)):
        a, b, zero = torch.rand(shape), torch.rand(shape), torch.zeros(shape)
        torch.testing.assert_close(net(a + 2 * b) - net(zero), net(a) - net(zero) + 2 * (net(b) - net(zero)))


def test_every_parameter_gets_a_gradient() -> None:
    """Branches start at zero: the layers before their last one get gradients from the second step."""
    model, x_BCHW = tokenizer(8, 16), torch.rand(2, 3, 16, 16)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        reconstruction, quantized = model(x_BCHW)
        loss, _ = TokenizerLoss("l1", None, 0.0, 0.25)(reconstruction, x_BCHW, quantized)
        loss.backward()
        optimizer.step()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_tokenize_then_decode_is_the_clamped_reconstruction() -> None:
    model, x_BCHW = tokenizer(8, 16), torch.rand(2, 3, 16, 16)
    model(x_BCHW)  # starts the codebook
    model.eval()
    reconstruction, quantized = model(x_BCHW)
    assert torch.equal(model.tokenize(x_BCHW), quantized.tokens_Bhw)
    torch.testing.assert_close(model.reconstruct(x_BCHW), reconstruction.clamp(0, 1))
    out = model.decode(torch.randint(8, (3, 4, 4)))
    assert out.min() >= 0 and out.max() <= 1


def test_many_images_are_tokenized_in_the_memory_of_a_few() -> None:
    model, x_BCHW = tokenizer(8, 16).eval(), torch.rand(IMAGES_AT_ONCE + 3, 3, 8, 8)
    seen: list[int] = []
    model.encoder.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    tokens = model.tokenize(x_BCHW)
    assert seen == [IMAGES_AT_ONCE, 3]
    assert torch.equal(tokens, torch.cat([model.tokenize(x_BCHW[:5]), model.tokenize(x_BCHW[5:])]))


@pytest.mark.parametrize(
    "images",
    [
        torch.zeros(1, 3, 16, 16, dtype=torch.uint8),
        torch.zeros(1, 1, 16, 16),
        torch.zeros(3, 16, 16),
        np.zeros((1, 3, 16, 16)),
    ],
)
def test_inputs_that_are_not_images_are_refused(images: Any) -> None:
    with pytest.raises(PecoError, match=r"^tokenizer: expected images as float32 \(B, 3, H, W\) in \[0, 1\], got "):
        tokenizer(8, 16).tokenize(images)


def test_a_size_that_does_not_divide_is_refused() -> None:
    with pytest.raises(PecoError, match="18x16"):
        tokenizer(8, 16).tokenize(torch.rand(1, 3, 18, 16))


def test_the_tokenizer_learns_to_reconstruct_a_batch() -> None:
    model = tokenizer(16, 16)
    x_BCHW = F.interpolate(torch.rand(8, 3, 2, 2), 16)
    criterion, optimizer = TokenizerLoss("l2", None, 0.0, 0.25), torch.optim.Adam(model.parameters(), 3e-3)
    losses = []
    for _ in range(60):
        reconstruction, quantized = model(x_BCHW)
        loss, parts = criterion(reconstruction, x_BCHW, quantized)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        model.quantizer.update()
        losses.append(float(parts["pixel"]))
    assert losses[-1] < losses[0] / 4


def output(commitment: float) -> QuantizerOutput:
    return QuantizerOutput(torch.zeros(1), torch.zeros(1), torch.tensor(commitment))


class Constant(torch.nn.Module):
    def forward(self, x_BCHW: Tensor, target_BCHW: Tensor) -> Tensor:
        return torch.tensor(3.0)


@settings(max_examples=10)
@given(weight=st.floats(0.1, 4), beta=st.floats(0, 4), pixel=st.sampled_from(["l1", "l2", "none"]))
def test_loss_is_the_weighted_sum_of_its_terms(weight: float, beta: float, pixel: str) -> None:
    x_BCHW, y_BCHW = torch.zeros(2, 3, 4, 4), torch.full((2, 3, 4, 4), 0.5)
    total, parts = TokenizerLoss(pixel, Constant(), weight, beta)(x_BCHW, y_BCHW, output(2.0))  # type: ignore[arg-type]
    expected = {"l1": 0.5, "l2": 0.25, "none": 0.0}[pixel]
    assert float(total) == pytest.approx(expected + 3 * weight + 2 * beta, rel=1e-5)
    assert set(parts) == {"commitment", "perceptual"} | ({"pixel"} if pixel != "none" else set())


def test_without_weight_the_perceptual_network_is_not_run() -> None:
    criterion = TokenizerLoss("l1", Constant(), 0.0, 1.0)
    assert criterion.perceptual is None
    assert set(criterion(torch.zeros(1), torch.zeros(1), output(0.0))[1]) == {"commitment", "pixel"}
