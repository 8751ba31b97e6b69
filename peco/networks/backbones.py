"""The backbones that an evaluation compares, each as a function that makes it: given weights, random ones, any timm network.

Legend: B batch, C channels, H W pixels.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from timm.layers import freeze_batch_norm_2d
from torch import nn

from peco.core import artifacts, config
from peco.core.errors import PecoError
from peco.networks import timm_nets

Backbone = Callable[..., nn.Module]
"""Makes a timm model, with arguments of `timm.create_model` such as `num_classes`, `img_size` and `drop_path_rate`."""
KEY = "evaluate.reference"


def pretrained(directory: str | Path, seed: int = 0) -> Backbone:
    """The model of a folder with its weights; `seed` is that of a new head."""
    return functools.partial(artifacts.load_timm, directory, seed=seed)


def at_random(directory: str | Path, seed: int = 0) -> Backbone:
    """The model of a folder at random initialisation."""
    return functools.partial(artifacts.random_like, directory, seed=seed)


def reference(cfg: config.Reference, image_size: int, seed: int = 0) -> Backbone:
    """The network that the parameters name, for images of `image_size` pixels a side unless `img_size` is given.

    Its batch normalisation is frozen: statistics of its own batches would differ from process to process.

    Raises, when it is made:
        PecoError: there is no such network, or it doesn't take such images or arguments.
    """
    return functools.partial(_reference, cfg, image_size, seed)


def check_reference(cfg: config.Evaluate, image_size: int) -> None:
    """Make the reference for each evaluation that uses it, as they will, but without weights of the hub.

    Raises:
        PecoError: as in `reference`; the network has no feature maps of the sizes that segmentation or detection needs.
    """
    make = functools.partial(_reference, cfg.reference, image_size, 0, from_hub=False)
    if cfg.tasks.knn or cfg.tasks.linear:
        make()
    if cfg.tasks.finetune:
        make(num_classes=2, global_pool="avg", drop_path_rate=cfg.finetune.drop_path)
    if cfg.tasks.segmentation:
        side = cfg.segmentation.image_size
        model = make(img_size=side, drop_path_rate=cfg.segmentation.drop_path)
        levels(require_maps(model, side, "evaluate.segmentation.image_size"), KEY)
    if cfg.tasks.detection:
        side = cfg.detection.image_size
        model = make(img_size=side, drop_path_rate=cfg.detection.drop_path)
        octaves(require_maps(model, side, "evaluate.detection.image_size"), KEY)


def require_maps(model: nn.Module, side: int, key: str) -> nn.Module:
    """Check that the model, which is returned, takes images of exactly `side` pixels, the value of the parameter `key`.

    Raises:
        PecoError: its patches don't divide them.
    """
    if timm_nets.whole_patches(model, side) != side:
        patch = timm_nets.patch_size(model)
        raise PecoError(
            f"{key}: {side} is not allowed for {KEY}, whose patches have {patch} pixels; set a multiple of it"
        )
    return model


def block_count(model: nn.Module) -> int:
    """Number of blocks of a vision transformer; 0 for any other network, even one with an attribute `blocks`."""
    return len(cast(Any, model).blocks) if hasattr(model, "blocks") and hasattr(model, "num_prefix_tokens") else 0


def levels(model: nn.Module, origin: object = "pretrain.vit") -> list[tuple[int, int]]:
    """Channels and stride in pixels of each feature map that `forward_intermediates` gives, from the input on.

    Args:
        model: timm model.
        origin: of it, for messages.

    Raises:
        PecoError: timm knows no feature maps of this network.
    """
    known = getattr(model, "feature_info", None)
    if not known or not hasattr(model, "forward_intermediates") or not hasattr(model, "prune_intermediate_layers"):
        raise PecoError(f"{origin}: timm has no feature maps of a {type(model).__name__}; give another network")
    return [(int(level["num_chs"]), int(level["reduction"])) for level in getattr(known, "info", known)]


def octaves(model: nn.Module, origin: object = "pretrain.vit") -> list[tuple[int, int]]:
    """As `levels`, for a pyramid whose strides are powers of two.

    Raises:
        PecoError: as in `levels`; another stride.
    """
    found = levels(model, origin)
    odd = next((stride for _, stride in found if stride & (stride - 1)), None)
    if odd is not None:
        raise PecoError(
            f"{origin}: patches of {odd} pixels are not allowed for detection; expected a power of two, such as 16"
        )
    return found


def chosen_levels(model: nn.Module, wanted: int) -> list[int]:
    """Indices of `wanted` levels: evenly spaced ones of equal resolution, else the last ones; of fewer, some occur again."""
    found = levels(model)
    if len({stride for _, stride in found}) > 1 and len(found) >= wanted:
        return list(range(len(found) - wanted, len(found)))
    return [math.ceil(len(found) * (i + 1) / wanted) - 1 for i in range(wanted)]


def keep_levels(model: nn.Module, indices: Sequence[int], *, norm: bool) -> None:
    """Remove the layers after the last of these levels, heads included: the training loop requires a gradient of every parameter.

    Args:
        model: timm model.
        indices: levels that are used.
        norm: keep the final norm.
    """
    cast(Any, model).prune_intermediate_layers(list(indices), prune_norm=not norm, prune_head=True)


def _reference(
    cfg: config.Reference, image_size: int, seed: int, *, from_hub: bool = True, **options: Any
) -> nn.Module:
    size = options.pop("img_size", image_size)
    classes, pool = options.pop("num_classes", 0), options.pop("global_pool", None)
    if not options.get("drop_path_rate"):
        options.pop("drop_path_rate", None)  # some networks don't know it
    if cfg.source == "timm":
        net = config.TimmNet(cast(str, cfg.model), from_hub, cfg.revision)
        model = timm_nets.by_name(net, size, KEY, **options)
    else:
        model = timm_nets.by_path(Path(cfg.path), cfg.model or "", size, KEY, KEY, **options)
    model = cast(nn.Module, freeze_batch_norm_2d(model))
    origin = f"{KEY}: {cfg.model if cfg.source == 'timm' else cfg.path}"
    side = timm_nets.whole_patches(model, size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if classes:
            try:
                cast(Any, model).reset_classifier(classes, pool)
            except (RuntimeError, AssertionError, TypeError, ValueError, AttributeError, NotImplementedError) as error:
                reason = " ".join(str(error).split())[:200] or type(error).__name__
                raise PecoError(f"{origin}: takes no head of {classes} classes ({reason}); give another one") from error
            timm_nets.require_images(model, side, origin)
    return model.train()
