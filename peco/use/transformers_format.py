"""Models as folders that `transformers` loads.

A backbone becomes its `BeitModel`, which is the same network (relative position bias per block, no absolute position) and needs no
timm. Its `last_hidden_state` is the backbone's tokens after the final norm; the backbone's pooled feature is the mean of those of
the patches. A classifier can't become a `BeitForImageClassification`, which classifies the class token or normalises after the
mean; it and other timm networks are wrapped by `transformers`' `TimmWrapper`, which needs timm.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from peco.core import artifacts
from peco.core.errors import PecoError
from peco.core.publishing import staging, write_json
from peco.use.sized import load_sized


def export(folder: str, target: Path, size: int | None, check: Callable[[float], None]) -> float:
    """Write the folder and return the largest difference of an output from the original's, on normalised random images.

    Args:
        folder: of a backbone, a perceptual network or a classifier.
        target: folder to write; replaced if there is one.
        size: side of the images in pixels; None for that of the training.
        check: raises a PecoError for a difference that is too large.

    Raises:
        PecoError: the model has no counterpart in `transformers`, or the package is missing, or as `check`.
    """
    kind = artifacts.kind_of(folder)
    if kind not in ("backbone", "perceptual_net", "classifier"):
        raise PecoError(f"--to transformers: it has no counterpart of a {kind}; use --to onnx or --to torch-export")
    artifacts.section(folder, kind)  # an evaluation may have been skipped
    if kind != "backbone" and size not in (None, artifacts.input_size(folder)):
        raise PecoError("--size: a wrapped timm model has that of its folder; leave it out")
    artifacts.require_replaceable(target, "export for transformers", lambda config: "transformers_version" in config)
    try:
        import transformers
    except ModuleNotFoundError:
        raise PecoError("--to transformers: needs the package transformers; pip install 'peco[export]'") from None
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    loaded, side = load_sized(folder, size)
    model: Any = loaded
    mean, std = (t.flatten().tolist() for t in artifacts.normalization(model))
    with staging(target) as tmp:
        x_BCHW = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))
        if kind == "backbone":
            _beit(transformers, model, side).save_pretrained(tmp)
            write_json(tmp / "preprocessor_config.json", _processor(side, mean, std))
        else:
            original = _auto(transformers, kind).from_pretrained(folder)
            original.save_pretrained(tmp)
        with torch.no_grad():
            found = _auto(transformers, kind).from_pretrained(tmp).eval()(x_BCHW)
            if kind == "classifier":
                difference = float((found.logits - model(x_BCHW)).abs().max())
            else:
                difference = float((found.last_hidden_state - model.forward_features(x_BCHW)).abs().max())
        check(difference)
    return difference


def _auto(transformers: Any, kind: str) -> Any:
    return transformers.AutoModelForImageClassification if kind == "classifier" else transformers.AutoModel


def _processor(side: int, mean: list[float], std: list[float]) -> dict[str, Any]:
    """The preprocessing: the short side resized, the centre square, normalised. It is that of CLIP's processor."""
    return {
        "image_processor_type": "CLIPImageProcessor",
        "size": {"shortest_edge": side},
        "crop_size": {"height": side, "width": side},
        "resample": 3,  # bicubic
        "image_mean": mean,
        "image_std": std,
    }


def _beit(transformers: Any, model: Any, side: int) -> Any:
    first = model.blocks[0]
    layer_scale = first.gamma_1 is not None
    config = transformers.BeitConfig(
        hidden_size=model.embed_dim,
        num_hidden_layers=len(model.blocks),
        num_attention_heads=first.attn.num_heads,
        intermediate_size=first.mlp.fc1.out_features,
        layer_norm_eps=model.norm.eps,
        image_size=side,
        patch_size=model.patch_embed.patch_size[0],
        use_relative_position_bias=True,
        use_absolute_position_embeddings=model.pos_embed is not None,
        layer_scale_init_value=0.1 if layer_scale else 0.0,
        use_mean_pooling=False,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        drop_path_rate=0.0,
    )
    beit = transformers.BeitModel(config, add_pooling_layer=False)
    beit.load_state_dict(_beit_weights(model.state_dict(), len(model.blocks), layer_scale))
    return beit.eval()


def _beit_weights(weights: Mapping[str, Tensor], depth: int, layer_scale: bool) -> dict[str, Tensor]:
    """The weights of a timm BEiT under the names of `BeitModel`."""
    renamed = {
        "embeddings.cls_token": "cls_token",
        "embeddings.patch_embeddings.projection.weight": "patch_embed.proj.weight",
        "embeddings.patch_embeddings.projection.bias": "patch_embed.proj.bias",
        "layernorm.weight": "norm.weight",
        "layernorm.bias": "norm.bias",
    }
    inner = {
        "attention.o_proj": "attn.proj",
        "layernorm_before": "norm1",
        "layernorm_after": "norm2",
        "mlp.fc1": "mlp.fc1",
        "mlp.fc2": "mlp.fc2",
    }
    if "pos_embed" in weights:
        renamed["embeddings.position_embeddings"] = "pos_embed"
    found = {new: weights[old] for new, old in renamed.items()}
    for n in range(depth):
        new, old = f"layers.{n}", f"blocks.{n}"
        for a, b in inner.items():
            found |= {f"{new}.{a}.{end}": weights[f"{old}.{b}.{end}"] for end in ("weight", "bias")}
        query, key, value = weights[f"{old}.attn.qkv.weight"].chunk(3)
        found |= {
            f"{new}.attention.q_proj.weight": query,
            f"{new}.attention.k_proj.weight": key,
            f"{new}.attention.v_proj.weight": value,
            f"{new}.attention.q_proj.bias": weights[f"{old}.attn.q_bias"],
            f"{new}.attention.v_proj.bias": weights[f"{old}.attn.v_bias"],
            f"{new}.relative_position_bias.relative_position_bias_table": weights[
                f"{old}.attn.relative_position_bias_table"
            ],
        }
        if layer_scale:
            found |= {f"{new}.lambda_{i}": weights[f"{old}.gamma_{i}"] for i in (1, 2)}
    return found
