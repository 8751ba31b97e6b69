"""Masked image modelling as in BEiT (arXiv 2106.08254): predict the code of each masked patch, or its pixels.

Legend: B batch, C channels, H W pixels, L patches of an image (in the backbone with the class token), M masked patches of an image,
D width, h heads, d width of a head, K codes, P = 3 p^2 values of a patch of p pixels a side, O outputs a patch: K or P.
"""

from __future__ import annotations

from typing import Any, cast

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peco.core import config
from peco.core.errors import PecoError

# Normalisation of the inputs, as in BEiT.
MEAN = (0.5, 0.5, 0.5)
STD = (0.5, 0.5, 0.5)
INIT_STD = 0.02


def build_backbone(
    vit: config.Vit,
    image_size: int,
    layer_scale: float | None,
    drop_path: float,
    num_classes: int = 0,
    *,
    position_embedding: bool = False,
) -> tuple[nn.Module, str, dict[str, Any]]:
    """Build a BEiT backbone through timm.

    Relative position bias per block; the final norm acts on all tokens (`use_fc_norm` false), so that the
    same weights serve for features and for classification. Initialised as in BEiT: normal of std 0.02, residual branches scaled
    down with depth.

    Args:
        vit: architecture (one of timm's `beit_*`) and its size.
        image_size: side in pixels.
        layer_scale: initial scale of the residual branches; None for a model without scales.
        drop_path: rate of the last block, rising from 0 at the first.
        num_classes: outputs of a classification head; 0 for none.
        position_embedding: have an absolute position embedding too, as weights to start from may.

    Returns:
        model, registered architecture, and the arguments that rebuild it (without those that only training needs).

    Raises:
        PecoError: timm has no such architecture, or it is not a BEiT.
    """
    if not timm.models.is_model_in_modules(vit.arch, ("beit",)):
        raise PecoError(
            f"pretrain.vit.arch: {vit.arch!r} is not allowed; expected one of timm's BEiT models, such as beit_base_patch16_224"
        )
    model_args: dict[str, Any] = {
        "img_size": image_size,
        "patch_size": vit.patch_size,
        "embed_dim": vit.embed_dim,
        "depth": vit.depth,
        "num_heads": vit.num_heads,
        "mlp_ratio": vit.mlp_ratio,
        "init_values": layer_scale or 0.0,  # timm takes None for "as registered"
        "use_abs_pos_emb": position_embedding,
        "use_rel_pos_bias": True,
        "use_fc_norm": False,
        "global_pool": "avg",
    }
    model = timm.create_model(vit.arch, num_classes=num_classes, drop_path_rate=drop_path, **model_args)
    return model, vit.arch, model_args


class MaskedImageModel(nn.Module):
    """A BEiT backbone with a mask token and a linear head over the codes or the pixels of a patch.

    Args:
        backbone: from `build_backbone`, without classification head.
        outputs: K, the size of the codebook, or P.
    """

    def __init__(self, backbone: nn.Module, outputs: int) -> None:
        super().__init__()
        width = cast(int, backbone.embed_dim)
        self.backbone = backbone
        self.mask_token = nn.Parameter(torch.empty(1, 1, width))
        self.head = nn.Linear(width, outputs)
        nn.init.trunc_normal_(self.mask_token, std=INIT_STD)
        nn.init.trunc_normal_(self.head.weight, std=INIT_STD)
        nn.init.zeros_(self.head.bias)

    def forward(self, x_BCHW: Tensor, masked_BM: Tensor) -> Tensor:
        """Scores of the codes, or pixels, at the masked patches.

        Args:
            x_BCHW: float in [0, 1].
            masked_BM: int64, the patches that are hidden from the model: numbers from 0 to L - 1, row by row.

        Returns:
            out_BMO, in the order of `masked_BM`.
        """
        beit = cast(Any, self.backbone)
        x_BLD = beit.patch_embed(2 * x_BCHW - 1)  # MEAN and STD
        mask_BL = torch.zeros(x_BLD.shape[:2], dtype=torch.bool, device=x_BLD.device).scatter_(1, masked_BM, True)
        x_BLD = torch.where(mask_BL[..., None], self.mask_token.to(x_BLD.dtype), x_BLD)
        x_BLD = torch.cat([beit.cls_token.expand(len(x_BLD), -1, -1).to(x_BLD.dtype), x_BLD], dim=1)
        if beit.pos_embed is not None:
            x_BLD = x_BLD + beit.pos_embed
        for block in beit.blocks[:-1]:
            x_BLD = block(x_BLD)
        x_BMD = _block_at(beit.blocks[-1], x_BLD, masked_BM + beit.num_prefix_tokens)
        return cast(Tensor, self.head(beit.norm(x_BMD)))

    @torch.no_grad()
    def predict(self, x_BCHW: Tensor, masked_BM: Tensor) -> Tensor:
        """The most probable code of each masked patch: int64 (B, M), in the order of `masked_BM`."""
        return self.forward(x_BCHW, masked_BM).argmax(dim=2)


def _block_at(block: Any, x_BLD: Tensor, at_BM: Tensor) -> Tensor:
    """The output of one of timm's BEiT blocks at some positions, x_BMD.

    Nothing reads the last block's output elsewhere, so its queries and its MLP are computed there alone.
    """
    attn = block.attn
    B, M = at_BM.shape
    L, h = x_BLD.shape[1], attn.num_heads
    index_BMD = at_BM[..., None].expand(-1, -1, x_BLD.shape[2])
    y_BLD = block.norm1(x_BLD)
    weight_q, weight_kv = attn.qkv.weight.tensor_split([attn.qkv.weight.shape[0] // 3])
    q_BhMd = F.linear(y_BLD.gather(1, index_BMD), weight_q, attn.q_bias).view(B, M, h, -1).transpose(1, 2)
    kv_BLD = F.linear(y_BLD, weight_kv, torch.cat([attn.k_bias, attn.v_bias]))
    k_BhLd, v_BhLd = kv_BLD.view(B, L, 2, h, -1).permute(2, 0, 3, 1, 4)
    # As an embedding: its backward pass adds up the rows of a position fast and in a fixed order.
    bias_LhL = attn._get_rel_pos_bias()[0].transpose(0, 1)
    bias_BhML = F.embedding(at_BM, bias_LhL.reshape(L, h * L)).view(B, M, h, L).transpose(1, 2)
    y_BhMd = F.scaled_dot_product_attention(q_BhMd, k_BhLd, v_BhLd, attn_mask=bias_BhML)
    y_BMD = attn.proj(y_BhMd.transpose(1, 2).reshape(B, M, -1))
    scale_1, scale_2 = (1.0, 1.0) if block.gamma_1 is None else (block.gamma_1, block.gamma_2)
    x_BMD = x_BLD.gather(1, index_BMD) + block.drop_path1(scale_1 * y_BMD)
    y_BMD = block.mlp(block.norm2(x_BMD))
    return cast(Tensor, x_BMD + block.drop_path2(scale_2 * y_BMD))


def mim_loss(logits_BMK: Tensor, tokens_BL: Tensor, masked_BM: Tensor) -> tuple[Tensor, Tensor]:
    """Cross entropy (nats) and accuracy (0 to 1), both means over the masked patches.

    Args:
        logits_BMK: from `MaskedImageModel.forward` under the same mask.
        tokens_BL: int64, the code of every patch.
        masked_BM: int64, the masked patches.
    """
    target_BM = tokens_BL.gather(1, masked_BM)
    accuracy = (logits_BMK.detach().argmax(dim=2) == target_BM).float().mean()
    return F.cross_entropy(logits_BMK.float().flatten(0, 1), target_BM.flatten()), accuracy


def patchify(x_BCHW: Tensor, patch: int) -> Tensor:
    """Patches (B, L, P) of images: L row by row; P by row, column and channel."""
    B, C, H, W = x_BCHW.shape
    h, w = H // patch, W // patch
    x_BhpwqC = x_BCHW.reshape(B, C, h, patch, w, patch).permute(0, 2, 3, 4, 5, 1)
    return x_BhpwqC.transpose(2, 3).reshape(B, h * w, patch * patch * C)


def unpatchify(x_BLP: Tensor, patch: int) -> Tensor:
    """Square images (B, C, H, W) of patches: the inverse of `patchify`."""
    B, L, P = x_BLP.shape
    h, C = round(L**0.5), P // patch**2
    x_BhwpqC = x_BLP.reshape(B, h, h, patch, patch, C)
    return x_BhwpqC.permute(0, 5, 1, 3, 2, 4).reshape(B, C, h * patch, h * patch)


def pixel_loss(predicted_BMP: Tensor, x_BCHW: Tensor, masked_BM: Tensor, patch: int) -> Tensor:
    """Mean squared error of the masked patches' pixels, each patch normalised to mean 0 and variance 1 (MAE, arXiv 2111.06377).

    Args:
        predicted_BMP: from `MaskedImageModel.forward` under the same mask.
        x_BCHW: float in [0, 1].
        masked_BM: int64, the masked patches.
        patch: side of a patch in pixels.
    """
    patches_BLP = patchify(x_BCHW, patch)
    target_BMP = patches_BLP.gather(1, masked_BM[..., None].expand(-1, -1, patches_BLP.shape[2])).float()
    variance_BM1, mean_BM1 = torch.var_mean(target_BMP, dim=2, keepdim=True)
    return F.mse_loss(predicted_BMP.float(), (target_BMP - mean_BM1) / (variance_BM1 + 1e-6).sqrt())
