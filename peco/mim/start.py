"""Starting a pre-training from given weights: of a peco backbone, of any BEiT, or of a plain vision transformer.

Legend: C channels of an image, D width, K codes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from peco.core import artifacts, config
from peco.core.errors import PecoError
from peco.mim import storage
from peco.mim.model import MEAN, STD, MaskedImageModel, build_backbone
from peco.networks import timm_nets

KEY = "pretrain.init"
_PATCHES = "patch_embed.proj.weight"
_BIAS = "attn.relative_position_bias_table"
_SHARED_BIAS = "rel_pos_bias.relative_position_bias_table"
# Heads of classification and of pre-training.
_HEADS = re.compile(r"(head|fc_norm|lm_head|decoder|cls_pt_layers)\b|decoder_|mask_token$")


@dataclass(frozen=True)
class Given:
    """Weights to start from.

    Attributes:
        origin: their parameter and value, for messages.
        tensors: of the backbone, by timm's names.
        mim: mask token and prediction head, as far as they have them.
        mean, std: normalisation of the images that they were trained on, by channel.
        heads: of the attention; None if the weights don't say.
    """

    origin: str
    tensors: Mapping[str, Tensor]
    mim: Mapping[str, Tensor]
    mean: Sequence[float] = MEAN
    std: Sequence[float] = STD
    heads: int | None = None

    @property
    def position_embedding(self) -> bool:
        """True if they have an absolute position embedding."""
        return "pos_embed" in self.tensors


def read(init: config.BackboneInit, image_size: int, *, from_hub: bool = True) -> Given | None:
    """The weights that `pretrain.init` names; None for a start at random.

    Args:
        init: the parameters.
        image_size: side in pixels.
        from_hub: fetch those of a timm name; else they are random, of the same names and shapes.

    Raises:
        PecoError: they are missing, damaged, not of a timm model, or hold NaN.
    """
    if init.source == "random":
        return None
    if init.source == "timm":
        net = config.TimmNet(cast(str, init.model), from_hub, init.revision)
        model = timm_nets.by_name(net, image_size, KEY)
        return _of_model(f"{KEY}.model: {init.model}", model, model.state_dict(), {})
    try:
        return _of_path(Path(init.path), f"{KEY}.path: {init.path}")
    except PecoError as error:
        raise PecoError(f"{KEY}.path: {error}") from None


def _of_path(path: Path, origin: str) -> Given:
    """The weights of a folder or file."""
    if path.is_dir():
        with torch.device("meta"):
            skeleton = artifacts.random_like(path, seed=0)
        head = path / storage.HEAD
        mim = artifacts.load_tensors(head) if head.is_file() else {}
        return _of_model(origin, skeleton, artifacts.load_tensors(path / artifacts.WEIGHTS), mim)
    if not path.exists():
        raise PecoError(f"{path}: no such folder or file")
    if path.suffix != ".safetensors":
        raise PecoError(f"{path}: not a .safetensors file; `python -m peco.convert` converts checkpoints")
    tensors = artifacts.load_tensors(path)
    return Given(origin, tensors, {name: t for name, t in tensors.items() if name == "mask_token"})


def check(cfg: config.Pretrain, image_size: int, codes: int) -> None:
    """Start a model that is thrown away from the weights that `pretrain.init` names, but fetch none from the hub.

    Raises:
        PecoError: as `read` and `load`.
    """
    given = read(cfg.init, image_size, from_hub=False)
    if given is not None:
        backbone, _, _ = build_backbone(
            cfg.vit, image_size, cfg.layer_scale, cfg.drop_path, position_embedding=given.position_embedding
        )
        model = MaskedImageModel(backbone, codes if cfg.target == "tokens" else 3 * cfg.vit.patch_size**2)
        load(model, given, cfg.vit, head=cfg.init.head)


def load(model: MaskedImageModel, given: Given, vit: config.Vit, *, head: bool) -> str:
    """Start a model from given weights.

    Position embedding and relative position bias are resampled to the model's grid, the patch embedding to its patch size. The
    statistics of the images are folded into the patch embedding, so that images normalised by `MEAN` and `STD` give the same
    features. Of a plain vision transformer the bias of the keys is left out, which changes no attention; the relative position
    bias starts at 0 and the layer scale at 1, at which they change nothing.

    Args:
        model: as built for `given` (see `build_backbone`); changed in place.
        given: the weights.
        vit: the architecture, for messages.
        head: start also the prediction head from theirs.

    Returns:
        One line: what was loaded, what is new, and what the model has no place for.

    Raises:
        PecoError: more than the head and the mask token is missing, or the weights are of another architecture.
    """
    backbone: Any = model.backbone
    _require_architecture(given, vit)
    tensors = _folded(_by_beit_names(given.tensors, vit.depth), given)
    fresh = []
    if given.position_embedding:
        fresh = _neutral(tensors, backbone)
    own = backbone.state_dict()
    fitted = timm_nets.by_names_of(backbone, tensors, given.origin)
    fresh += _load_mim(model, given, head)
    heads = {name for name in given.tensors if _HEADS.match(name) and name not in given.mim}
    unused = sorted(heads | (fitted.keys() - own.keys()))
    missing = sorted(own.keys() - fitted.keys())
    if missing:
        raise PecoError(
            f"{given.origin}: lacks {len(missing)} weights of the backbone, such as {missing[0]}; {_remedy(missing[0])}"
        )
    for name, tensor in own.items():
        if fitted[name].shape != tensor.shape:
            raise PecoError(
                f"{given.origin}: {name} is {timm_nets.shape_of(fitted[name])}, the backbone needs {timm_nets.shape_of(tensor)}; "
                "set pretrain.vit to the architecture of the weights"
            )
    if (inside := timm_nets.first_inside(unused)) is not None:
        raise PecoError(f"{given.origin}: has {inside}, which the backbone lacks; {_remedy(inside)}")
    backbone.load_state_dict({name: fitted[name] for name in own})
    return (
        f"starts from {given.origin.partition(': ')[2]}: {len(own)} tensors"
        + (f"; new: {', '.join(fresh)}" if fresh else "")
        + (f"; left out: {timm_nets.some_names(unused)}" if unused else "")
    )


def _of_model(origin: str, model: nn.Module, tensors: Mapping[str, Tensor], mim: Mapping[str, Tensor]) -> Given:
    mean, std = (t.flatten().tolist() for t in artifacts.normalization(model))
    heads = next((m.num_heads for m in model.modules() if hasattr(m, "num_heads")), None)
    return Given(origin, tensors, mim, mean, std, cast("int | None", heads))


def _require_architecture(given: Given, vit: config.Vit) -> None:
    """Refuse weights whose sizes say that they are of another architecture."""
    if not {_PATCHES, "cls_token"} <= given.tensors.keys():
        raise PecoError(f"{given.origin}: not a vision transformer with a class token; give a BEiT or a plain ViT")
    tables = [t for name, t in given.tensors.items() if name.endswith("relative_position_bias_table")]
    found = {
        "embed_dim": given.tensors[_PATCHES].shape[0],
        "depth": len({name.split(".")[1] for name in given.tensors if name.startswith("blocks.")}),
        "num_heads": tables[0].shape[1] if tables else given.heads,
    }
    for key, value in found.items():
        wanted = getattr(vit, key)
        if value not in (None, wanted):
            raise PecoError(
                f"{given.origin}: its {key} is {value}, but pretrain.vit.{key} is {wanted}; set it to {value}"
            )


def _by_beit_names(tensors: Mapping[str, Tensor], depth: int) -> dict[str, Tensor]:
    """The backbone's weights by the names of a BEiT with a bias for each block."""
    named: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if name.endswith("attn.qkv.bias"):
            # Adding one vector to all keys adds one number to all scores of a query, which the softmax takes away.
            q, _, v = tensor.chunk(3)
            prefix = name.removesuffix("qkv.bias")
            named |= {f"{prefix}q_bias": q, f"{prefix}v_bias": v}
        elif name == _SHARED_BIAS:
            named |= {f"blocks.{block}.{_BIAS}": tensor for block in range(depth)}
        elif scale := re.fullmatch(r"(blocks\.\d+\.)ls([12])\.gamma", name):
            named[f"{scale[1]}gamma_{scale[2]}"] = tensor
        elif name.startswith("fc_norm.") and "norm.weight" not in tensors:
            named[name.removeprefix("fc_")] = tensor
        elif not _HEADS.match(name) and not name.endswith("relative_position_index"):
            named[name] = tensor
    position = named.get("pos_embed")
    if position is not None and position.ndim == 3 and math.isqrt(position.shape[1]) ** 2 == position.shape[1]:
        # Of patches alone, as in DeiT III: the class token has none.
        named["pos_embed"] = torch.cat([torch.zeros_like(position[:, :1]), position], dim=1)
    return named


def _folded(tensors: dict[str, Tensor], given: Given) -> dict[str, Tensor]:
    """The weights for images normalised by `MEAN` and `STD` instead of those of `given`."""
    if tuple(given.mean) == MEAN and tuple(given.std) == STD:
        return tensors
    own_mean_C, own_std_C, mean_C, std_C = (torch.tensor(v) for v in (MEAN, STD, tuple(given.mean), tuple(given.std)))
    weight_DCpp = tensors[_PATCHES].float()
    shift_D = (weight_DCpp * ((own_mean_C - mean_C) / std_C)[:, None, None]).sum(dim=(1, 2, 3))
    bias_D = tensors.get("patch_embed.proj.bias", torch.zeros(len(weight_DCpp))).float()
    folded = {
        _PATCHES: weight_DCpp * (own_std_C / std_C)[:, None, None],
        "patch_embed.proj.bias": bias_D + shift_D,
    }
    return {**tensors, **folded}


def _neutral(tensors: dict[str, Tensor], backbone: nn.Module) -> list[str]:
    """Add what a plain vision transformer lacks, with values that change nothing; returns it in words."""
    added = []
    for ending, value, words in (
        (_BIAS, 0.0, "relative position bias (0)"),
        ("gamma_1", 1.0, ""),
        ("gamma_2", 1.0, "layer scale (1)"),
    ):
        names = [name for name in backbone.state_dict() if name.endswith(ending) and name not in tensors]
        tensors |= {name: torch.full_like(backbone.state_dict()[name], value) for name in names}
        if names and words:
            added.append(words)
    return added


def _load_mim(model: MaskedImageModel, given: Given, head: bool) -> list[str]:
    """Start mask token and prediction head; returns those that start at random."""
    fresh = []
    token = given.mim.get("mask_token")
    if token is not None and token.shape == model.mask_token.shape:  # MAE's belongs to its decoder
        model.mask_token.data.copy_(token)
    else:
        fresh.append("mask token")
    if not head:
        return [*fresh, "prediction head"]
    weights = {name.removeprefix("head."): t for name, t in given.mim.items() if name.startswith("head.")}
    outputs, wanted = len(weights.get("bias", ())), model.head.out_features
    if outputs != wanted:
        found = f"a prediction head with {outputs} outputs, not {wanted}" if weights else "no prediction head"
        raise PecoError(f"{KEY}.head: true is not allowed, {given.origin} has {found}; set it to false")
    artifacts.fill(model.head, weights, f"{KEY}.head: {given.origin}")
    return fresh


def _remedy(name: str) -> str:
    if "gamma_" in name:
        return "set pretrain.layer_scale to null for weights without layer scale, and to a number for others"
    return "set pretrain.vit to the architecture of the weights, or give others"
