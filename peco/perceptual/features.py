"""Intermediate features of any timm model, for the perceptual term of the tokenizer's loss.

Legend: B batch, C channels, H W pixels, h w feature positions.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self, cast

import safetensors
import timm
import torch
import torch.nn.functional as F
from huggingface_hub import try_to_load_from_cache
from torch import Tensor, nn

from peco.core import config
from peco.core.artifacts import normalization
from peco.core.errors import PecoError

_LOCAL = "put its weights on this machine and set perceptual_net.timm.checkpoint"


class FeatureNet(nn.Module):
    """A frozen network that returns the features of selected blocks; gradients flow to the input.

    Blocks are the entries of the model's `feature_info`: the transformer blocks of a ViT, the stages of a ConvNet (ResNet: stem and
    four stages; VGG: the convolutions before each pooling). Blocks after the last selected one are cut off.

    Images are resized (bilinear, antialiased) for a network with a fixed input size (ViT), and are not resized for any other.

    Args:
        model: the network; it is frozen and pruned in place. Mean and std are those of its `pretrained_cfg`.
        blocks: numbers of blocks, from 1.

    Raises:
        PecoError: there is no such block, or the model has no intermediate features.
    """

    mean_C11: Tensor
    std_C11: Tensor

    def __init__(self, model: nn.Module, blocks: Sequence[int]) -> None:
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
        embed = _strict_embed(model)
        self.size: tuple[int, int] | None = None if embed is None else tuple(embed.img_size)
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


def build_timm(cfg: config.TimmNet, image_size: int) -> nn.Module:
    """Create a timm model without classifier head: weights of `checkpoint`, else from the hub if `pretrained`, else random.

    A network with a fixed input size is built for `image_size`, rounded up to whole patches, and its position embedding is
    resampled. Weights are safetensors; those of the hub are of commit `revision`. Weights converted from MoCo v3
    (`peco.convert_moco`) need a model with ImageNet's mean and std, such as `vit_base_patch16_224.dino`.

    Raises:
        PecoError: timm has no such model; no network or no such revision; the file is missing, damaged or of another shape.
    """
    name = cfg.model
    if cfg.revision and name.startswith("hf-hub:"):
        name = f"{name}@{cfg.revision}"
    with torch.device("meta"):
        skeleton = _create(
            name, "perceptual_net.timm.model", "check the name (timm.list_models()) and, for hf-hub:, the network"
        )
    options: dict[str, Any] = {}
    embed = _strict_embed(skeleton)
    if embed is not None:
        patch = max(embed.patch_size)
        options["img_size"] = -(-image_size // patch) * patch
    if cfg.checkpoint:
        key = "perceptual_net.timm.checkpoint"
        _require_weights(Path(cfg.checkpoint), skeleton, key, cfg.model)
        overlay = {"file": cfg.checkpoint, "custom_load": False, "source": None}
        hint = f"give the weights of {cfg.model}"
        model = _create(name, key, hint, pretrained=True, pretrained_cfg_overlay=overlay, **options)
        used: Any = model.pretrained_cfg
        used["file"] = None  # an artifact must not hold a path
        return model
    if cfg.pretrained:
        options["pretrained_cfg_overlay"] = _hub_source(skeleton, cfg)
    return _create(name, "perceptual_net.timm", _LOCAL, pretrained=cfg.pretrained, **options)


def _hub_source(skeleton: nn.Module, cfg: config.TimmNet) -> dict[str, Any]:
    """`pretrained_cfg` entries for safetensors at the pinned commit; timm splits the revision off at the `@`."""
    known: Any = skeleton.pretrained_cfg
    repository = known.get("hf_hub_id")
    if not repository:
        raise PecoError(
            f"perceptual_net.timm.model: {cfg.model} has no weights on the hub; {_LOCAL} or pretrained: false"
        )
    name = repository.partition("@")[0]
    return {
        "hf_hub_id": f"{name}@{cfg.revision}" if cfg.revision else repository,
        "hf_hub_filename": known.get("hf_hub_filename") or "model.safetensors",
        "custom_load": known.get("custom_load", False),
    }


def hub_commit(model: nn.Module) -> str | None:
    """Hub commit of a pretrained model's weights; None if the hub's client has no record of it."""
    known: Any = cast(Any, model).pretrained_cfg
    repository, _, revision = (known.get("hf_hub_id") or "").partition("@")
    found = try_to_load_from_cache(repository, known.get("hf_hub_filename") or "", revision=revision or None)
    # <cache>/models--<repository>/snapshots/<commit>/<file>
    return Path(found).parent.name if isinstance(found, str) else None


def _require_weights(path: Path, skeleton: nn.Module, key: str, name: str) -> None:
    """Check that the file has every weight of the model: timm would silently leave missing ones random."""
    if not path.is_file():
        raise PecoError(f"{key}: {path}: no such file; give a .safetensors file or null")
    if path.suffix != ".safetensors":
        raise PecoError(
            f"{key}: {path}: not a .safetensors file; `python -m peco.convert_moco` converts MoCo v3 checkpoints"
        )
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            found = set(file.keys())
    except (safetensors.SafetensorError, OSError) as error:
        raise PecoError(f"{key}: {path}: damaged or unreadable ({error}); fetch or convert it again") from None
    missing = [k for k in skeleton.state_dict() if k not in found and not k.endswith("num_batches_tracked")]
    if missing:
        raise PecoError(
            f"{key}: {path} lacks {len(missing)} weights of {name}, such as {missing[0]}; give one that has them"
        )


def _strict_embed(model: nn.Module) -> Any:
    """The patch embedding that requires its `img_size`; None for networks that take any size."""
    embeds = (m for m in model.modules() if isinstance(m, timm.layers.PatchEmbed))
    return next((m for m in embeds if m.img_size and m.strict_img_size), None)


def _create(name: str, key: str, hint: str, **options: Any) -> nn.Module:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # timm's deprecations are of no use to the user
            model: nn.Module = timm.create_model(name, num_classes=0, **options)
    except Exception as error:  # timm, the hub's client and safetensors share no base class
        reason = " ".join(str(error).split()) or type(error).__name__
        raise PecoError(f"{key}: {name}: {reason[:300]}; {hint}") from error
    return model
