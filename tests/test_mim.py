"""The masked image model: published sizes, BEiT's structure, no influence of masked pixels."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from peco.core import config
from peco.core.device import plain_attention
from peco.core.errors import PecoError
from peco.mim.model import MaskedImageModel, build_backbone, mim_loss, patchify, pixel_loss, unpatchify

TINY = config.Vit("beit_base_patch16_224", patch_size=8, embed_dim=32, depth=2, num_heads=2, mlp_ratio=4)
VIT_B = config.Vit("beit_base_patch16_224", patch_size=16, embed_dim=768, depth=12, num_heads=12, mlp_ratio=4)
VIT_L = config.Vit("beit_large_patch16_224", patch_size=16, embed_dim=1024, depth=24, num_heads=16, mlp_ratio=4)
VIT_H = config.Vit("beit_large_patch16_224", patch_size=14, embed_dim=1280, depth=32, num_heads=16, mlp_ratio=4)


def tiny(codes: int = 10, layer_scale: float | None = 0.1, drop_path: float = 0.0) -> MaskedImageModel:
    torch.manual_seed(0)
    backbone, _, _ = build_backbone(TINY, 32, layer_scale, drop_path)
    return MaskedImageModel(backbone, codes)


@pytest.mark.parametrize("arch", ["beit_gigantic", "vit_base_patch16_224", "resnet50", "", "no/such"])
def test_an_architecture_that_is_not_a_beit_is_refused(arch: str) -> None:
    with pytest.raises(PecoError, match=r"^pretrain\.vit\.arch: ") as caught:
        build_backbone(replace(TINY, arch=arch), 32, 0.1, 0.0)
    assert "\n" not in str(caught.value)


MASKED = torch.tensor([[0, 3, 5, 6, 15], [1, 2, 9, 10, 14]])  # of the 16 patches of two images


@pytest.mark.parametrize(
    ("vit", "published"),
    # BEiT-B and -L as in timm's model cards, ViT-H/14 as in MAE.
    [(VIT_B, 86.53e6), (VIT_L, 304.43e6), (VIT_H, 632.1e6)],
)
def test_sizes_with_a_head_of_1000_classes_are_the_published_ones(vit: config.Vit, published: float) -> None:
    with torch.device("meta"):
        model, _, _ = build_backbone(vit, 224, 0.1, 0.1, num_classes=1000)
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(published, rel=1e-3)


@pytest.mark.parametrize(("vit", "millions"), [(VIT_B, 85.8), (VIT_L, 303.4), (VIT_H, 631.0)])
def test_sizes_without_a_head_are_the_known_ones(vit: config.Vit, millions: float) -> None:
    with torch.device("meta"):
        model = MaskedImageModel(build_backbone(vit, 224, 1e-5, 0.0)[0], 8192)
    parameters = sum(p.numel() for p in model.backbone.parameters())
    assert parameters / 1e6 == pytest.approx(millions, abs=0.1)
    own = 8192 * vit.embed_dim + 8192 + vit.embed_dim
    assert sum(p.numel() for p in model.parameters()) == parameters + own


def test_position_is_relative_and_per_block() -> None:
    backbone = tiny().backbone
    assert backbone.pos_embed is None and backbone.rel_pos_bias is None
    assert all(block.attn.relative_position_bias_table is not None for block in backbone.blocks)
    assert isinstance(backbone.fc_norm, torch.nn.Identity) and not isinstance(backbone.norm, torch.nn.Identity)


def test_layer_scale_may_be_left_out() -> None:
    assert tiny(layer_scale=None).backbone.blocks[0].gamma_1 is None
    assert tiny(layer_scale=0.1).backbone.blocks[0].gamma_1.detach().unique().tolist() == pytest.approx([0.1])


def test_initialization_is_that_of_beit() -> None:
    torch.manual_seed(0)
    vit = config.Vit("beit_base_patch16_224", patch_size=16, embed_dim=192, depth=6, num_heads=3, mlp_ratio=4)
    model = MaskedImageModel(build_backbone(vit, 64, 0.1, 0.0)[0], 512)
    assert model.head.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert model.mask_token.std().item() == pytest.approx(0.02, rel=0.2)
    for i, block in enumerate(model.backbone.blocks, 1):
        assert block.attn.qkv.weight.std().item() == pytest.approx(0.02, rel=0.05)
        assert block.attn.proj.weight.std().item() == pytest.approx(0.02 / math.sqrt(2 * i), rel=0.05)
        assert block.mlp.fc2.weight.std().item() == pytest.approx(0.02 / math.sqrt(2 * i), rel=0.05)


def test_logits_do_not_depend_on_pixels_under_the_mask() -> None:
    model = tiny().eval()
    x = torch.rand(2, 3, 32, 32)
    mask = torch.zeros(2, 16, dtype=torch.bool).scatter_(1, MASKED, True)
    hidden = mask.reshape(2, 1, 4, 4).repeat_interleave(8, 2).repeat_interleave(8, 3)
    other = torch.where(hidden, torch.rand_like(x), x)
    torch.testing.assert_close(model(x, MASKED), model(other, MASKED), rtol=0, atol=0)
    seen = torch.where(hidden, x, torch.rand_like(x))
    assert not torch.allclose(model(x, MASKED), model(seen, MASKED))


def test_logits_come_image_by_image_in_the_order_of_the_masked_patches() -> None:
    model = tiny().eval()
    x = torch.rand(2, 3, 32, 32)
    logits = model(x, MASKED)
    assert logits.shape == (2, 5, 10)
    for i in range(2):
        torch.testing.assert_close(logits[i : i + 1], model(x[i : i + 1], MASKED[i : i + 1]))
    torch.testing.assert_close(logits.flip(1), model(x, MASKED.flip(1)))
    torch.testing.assert_close(model.predict(x, MASKED), logits.argmax(2))


@pytest.mark.parametrize("layer_scale", [None, 0.1])
@pytest.mark.parametrize("training", [False, True])
def test_logits_and_gradients_are_those_of_whole_blocks(layer_scale: float | None, training: bool) -> None:
    """The last block is computed at the masked patches alone; plain timm computes it everywhere."""
    model = tiny(layer_scale=layer_scale, drop_path=0.3 if training else 0.0).train(training)
    for p in model.parameters():  # so that biases take part too
        torch.nn.init.normal_(p, std=0.2)
    x = torch.rand(2, 3, 32, 32)

    def by_timm() -> torch.Tensor:
        beit = model.backbone
        hidden = beit.patch_embed((x - 0.5) / 0.5)
        for i in range(2):
            hidden[i, MASKED[i]] = model.mask_token[0]
        hidden = torch.cat([beit.cls_token.expand(2, -1, -1), hidden], dim=1)
        for block in beit.blocks:
            hidden = block(hidden)
        hidden = beit.norm(hidden)[:, 1:]
        return torch.stack([model.head(hidden[i, MASKED[i]]) for i in range(2)])

    found = []
    for forward in (lambda: model(x, MASKED), by_timm):
        torch.manual_seed(1)  # of drop path
        logits = forward()
        found.append([logits, *torch.autograd.grad(logits.square().sum(), list(model.parameters()))])
    for value, expected in zip(*found, strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-3, atol=1e-3 * float(expected.detach().abs().max()))


def test_plain_attention_computes_the_same() -> None:
    model, x = tiny().eval(), torch.rand(2, 3, 32, 32)
    fused = model(x, MASKED)
    plain_attention(model)
    assert not any(block.attn.fused_attn for block in model.backbone.blocks)
    torch.testing.assert_close(model(x, MASKED), fused)


def test_every_parameter_gets_a_gradient() -> None:
    """Distributed training does not search for unused parameters."""
    model = tiny(drop_path=0.1).train()
    model(torch.rand(2, 3, 32, 32), MASKED).square().sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_loss_is_the_mean_over_masked_patches() -> None:
    torch.manual_seed(0)
    tokens, logits = torch.randint(0, 10, (2, 16)), torch.randn(2, 5, 10)
    loss, accuracy = mim_loss(logits, tokens, MASKED)
    targets = [int(tokens[b, i]) for b in range(2) for i in MASKED[b]]
    rows = list(zip(logits.flatten(0, 1).tolist(), targets, strict=True))
    by_hand = [math.log(sum(math.exp(v) for v in row)) - row[t] for row, t in rows]
    assert loss.item() == pytest.approx(sum(by_hand) / 10, rel=1e-5)
    assert accuracy.item() == pytest.approx(sum(row[t] == max(row) for row, t in rows) / 10)
    assert mim_loss(torch.zeros(2, 5, 10), tokens, MASKED)[0].item() == pytest.approx(math.log(10))


def test_masked_patches_are_learned_from_visible_ones() -> None:
    """The colour of an image is the code of all its patches, so visible patches determine the masked ones."""
    model, masked = tiny(codes=4, layer_scale=None), MASKED[:1].expand(8, 5)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    levels = torch.tensor([0.1, 0.4, 0.6, 0.9])
    for _ in range(60):
        code = torch.randint(0, 4, (8,))
        x = levels[code].reshape(8, 1, 1, 1).expand(8, 3, 32, 32)
        loss, accuracy = mim_loss(model(x, masked), code[:, None].expand(8, 16), masked)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert accuracy.item() == 1.0


def test_patches_are_rows_of_pixels_row_by_row() -> None:
    x = torch.rand(2, 3, 24, 24)
    patches = patchify(x, 8)
    assert patches.shape == (2, 9, 8 * 8 * 3)
    for i, j in ((0, 0), (1, 2), (2, 1)):
        expected = x[1, :, 8 * i : 8 * i + 8, 8 * j : 8 * j + 8].permute(1, 2, 0).flatten()
        assert torch.equal(patches[1, 3 * i + j], expected)
    assert torch.equal(unpatchify(patches, 8), x)


def test_pixel_loss_is_the_squared_error_of_normalized_patches() -> None:
    torch.manual_seed(0)
    x, predicted = torch.rand(2, 3, 32, 32), torch.randn(2, 5, 192)
    targets = []
    for b in range(2):
        for patch in MASKED[b].tolist():
            i, j = divmod(patch, 4)
            pixels = x[b, :, 8 * i : 8 * i + 8, 8 * j : 8 * j + 8].permute(1, 2, 0).reshape(-1).double().numpy()
            targets.append((pixels - pixels.mean()) / np.sqrt(pixels.var(ddof=1) + 1e-6))
    expected = np.square(predicted.flatten(0, 1).double().numpy() - np.stack(targets)).mean()
    assert pixel_loss(predicted, x, MASKED, 8).item() == pytest.approx(expected, rel=1e-5)
    brighter = pixel_loss(predicted, 0.5 * x + 0.25, MASKED, 8)  # contrast and brightness of a patch are no target
    assert brighter.item() == pytest.approx(expected, rel=1e-3)
