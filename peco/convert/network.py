"""The timm model that weights belong to, recognised by their names and shapes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import timm
import torch
from torch import Tensor, nn

from peco.convert.read import PATCHES, Found
from peco.core import artifacts
from peco.core.errors import PecoError
from peco.networks import timm_nets

# Width of a vision transformer, timm's architecture and heads of this width.
_VITS = {192: ("tiny", 3), 384: ("small", 6), 768: ("base", 12), 1024: ("large", 16), 1280: ("huge", 16)}
_MOCO_SMALL_HEADS = 12  # MoCo v3's ViT-S has twice the usual number
STATISTICS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}


@dataclass(frozen=True)
class Network:
    """A network with its weights.

    Attributes:
        model: the timm model, without classifier head.
        arch: registered architecture.
        model_args: further arguments that rebuild it.
        mean, std: normalisation of its images, by channel.
        left_out: weights that are no part of it, such as heads.
    """

    model: nn.Module
    arch: str
    model_args: dict[str, Any]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    left_out: tuple[str, ...]


def build(
    found: Found,
    origin: str,
    *,
    name: str | None = None,
    heads: int | None = None,
    statistics: str | None = None,
    by_order: bool = False,
) -> Network:
    """Build the timm model of weights.

    Args:
        found: the weights.
        origin: the file, for messages.
        name: timm's name of the model; None for a plain ViT or a BEiT, recognised by shapes.
        heads: of a recognised ViT; None for the usual number of its width.
        statistics: a key of `STATISTICS`; None for those of the named model, ImageNet's for a recognised ViT, 0.5 for a BEiT.
        by_order: the weights have other names than those of the named model, but the same order and shapes.

    Raises:
        PecoError: the network isn't recognised, lacks weights, has others than timm's model, or holds NaN.
    """
    tensors = dict(found.tensors)
    artifacts.require_finite(tensors, origin)
    arch, model_args = (name, {}) if name is not None else _recognized(found, origin, heads)
    try:
        if name is not None and not by_order:
            model_args = _named_args(name, tensors)
        model = timm.create_model(arch, num_classes=0, **model_args)
    except (RuntimeError, TypeError, ValueError, KeyError, AssertionError, OSError) as error:  # OSError: of the hub
        reason = " ".join(str(error).split())[:200]
        raise PecoError(
            f"--model: {arch}: timm can't build it ({reason}); check the name (timm.list_models())"
        ) from None
    if by_order:
        tensors = _renamed(tensors, origin, arch)
    left_out = _load(model, tensors, origin, arch)
    mean, std = (tuple(t.flatten().tolist()) for t in artifacts.normalization(model))
    if statistics is not None or (name is None and not arch.startswith("beit")):
        mean, std = STATISTICS[statistics or "imagenet"]
    arch = cast(Any, model).pretrained_cfg["architecture"]
    return Network(model.eval(), arch, model_args, mean, std, left_out)


def stem(name: str | None) -> str:
    """Name of the first weight of the model that timm calls so; None for that of a vision transformer."""
    known = timm.get_pretrained_cfg(name) if name is not None and timm.is_model(name) else None
    return f"{known.first_conv}.weight" if known is not None and isinstance(known.first_conv, str) else PATCHES


def _load(model: nn.Module, tensors: Mapping[str, Tensor], origin: str, arch: str) -> tuple[str, ...]:
    """Load all weights of the model; returns the names of the others."""
    own = model.state_dict()
    fitted = timm_nets.by_names_of(model, tensors, origin)
    missing = [key for key in own if key not in fitted and not key.endswith("num_batches_tracked")]
    if missing:
        raise PecoError(
            f"{origin}: lacks {len(missing)} weights of {arch}, such as {missing[0]}; it has {', '.join(list(tensors)[:3])}, …; "
            "name timm's model (--model) or the state dict (--entry)"
        )
    for key in own.keys() & fitted.keys():
        if fitted[key].shape != own[key].shape:
            raise PecoError(
                f"{origin}: {key} is {timm_nets.shape_of(fitted[key])}, "
                f"that of {arch} is {timm_nets.shape_of(own[key])}; name another --model"
            )
    unknown = sorted(fitted.keys() - own.keys())
    if (inside := timm_nets.first_inside(unknown)) is not None:
        raise PecoError(f"{origin}: {inside} is unknown to {arch}; name the model that has it (--model)")
    model.load_state_dict({key: tensor for key, tensor in fitted.items() if key in own}, strict=False)
    return tuple(unknown)


def _renamed(tensors: Mapping[str, Tensor], origin: str, arch: str) -> dict[str, Tensor]:
    """The weights by the names of timm's model with its head, whose weights have the same order and shapes."""
    with torch.device("meta"):
        wanted = timm.create_model(arch).state_dict()
    if len(tensors) != len(wanted):
        raise PecoError(
            f"--by-order: {origin} has {len(tensors)} tensors, {arch} has {len(wanted)}; name another --model"
        )
    for (name, tensor), (own_name, own) in zip(tensors.items(), wanted.items(), strict=True):
        if tensor.shape != own.shape:
            raise PecoError(
                f"--by-order: {origin}: {name} is {timm_nets.shape_of(tensor)}, {own_name} of {arch} at its place is "
                f"{timm_nets.shape_of(own)}; name another --model"
            )
    return dict(zip(wanted, tensors.values(), strict=True))


def _named_args(name: str, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The image size of a named vision transformer with a position embedding, from its length."""
    if "pos_embed" not in tensors or PATCHES not in tensors or tensors["pos_embed"].ndim != 3:
        return {}
    with torch.device("meta"):
        embed = getattr(timm.create_model(name), "patch_embed", None)
    if not isinstance(embed, timm.layers.PatchEmbed) or embed.patch_size != tuple(tensors[PATCHES].shape[-2:]):
        return {}
    return {"img_size": math.isqrt(tensors["pos_embed"].shape[1]) * tensors[PATCHES].shape[-1]}


def _recognized(found: Found, origin: str, heads: int | None) -> tuple[str, dict[str, Any]]:
    """Architecture and arguments of a plain ViT or a BEiT."""
    tensors = found.tensors
    if not {PATCHES, "cls_token", "blocks.0.mlp.fc1.weight"} <= tensors.keys():
        raise PecoError(
            f"{origin}: not a plain vision transformer or BEiT (its first weights are {', '.join(list(tensors)[:3])}); "
            "name timm's model of these weights (--model)"
        )
    width, _, patch, _ = tensors[PATCHES].shape
    depth = len({name.split(".")[1] for name in tensors if name.startswith("blocks.")})
    beit = "blocks.0.attn.q_bias" in tensors
    tables = [t for name, t in tensors.items() if name.endswith("relative_position_bias_table")]
    if tables:
        heads = tables[0].shape[1]
    elif heads is None and width in _VITS:
        moco = any(part in found.prefix for part in ("base_encoder", "momentum_encoder"))
        heads = _MOCO_SMALL_HEADS if moco and width == 384 else _VITS[width][1]
    if heads is None or width % heads:
        raise PecoError(f"{origin}: a ViT of width {width}, whose weights don't tell the number of heads; give --heads")
    args: dict[str, Any] = {
        "img_size": _grid(tensors, tables) * patch,
        "patch_size": patch,
        "embed_dim": width,
        "depth": depth,
        "num_heads": heads,
        "mlp_ratio": tensors["blocks.0.mlp.fc1.weight"].shape[0] / width,
    }
    size = _VITS.get(width, _VITS[768])[0]
    if beit:
        args |= {
            "init_values": 0.1 if "blocks.0.gamma_1" in tensors else 0.0,
            "use_abs_pos_emb": "pos_embed" in tensors,
            "use_rel_pos_bias": "blocks.0.attn.relative_position_bias_table" in tensors,
            "use_shared_rel_pos_bias": "rel_pos_bias.relative_position_bias_table" in tensors,
            "use_fc_norm": "norm.weight" not in tensors,
            "global_pool": "avg",
        }
        return f"beit_{'large' if size in ('large', 'huge') else 'base'}_patch16_224", args
    pooled = "norm.weight" not in tensors and "fc_norm.weight" in tensors
    args |= {"qkv_bias": "blocks.0.attn.qkv.bias" in tensors, "global_pool": "avg" if pooled else "token"}
    if "blocks.0.ls1.gamma" in tensors:
        args["init_values"] = 1e-5
    return f"vit_{size}_patch{14 if size == 'huge' else 16}_224", args


def _grid(tensors: Mapping[str, Tensor], tables: Sequence[Tensor]) -> int:
    """Patches along one side: from the position embedding, or from the (2 g - 1)^2 + 3 relative positions of a BEiT."""
    if "pos_embed" in tensors:
        return math.isqrt(tensors["pos_embed"].shape[1])
    return (math.isqrt(tables[0].shape[0] - 3) + 1) // 2 if tables else 14
