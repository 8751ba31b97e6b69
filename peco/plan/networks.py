"""The networks of each stage as functions of a batch, on any device: on `meta` they only have shapes, which is enough for counting.

Each does the multiplications of its stage. Parts whose shapes depend on values (matching of boxes, restarts of codes) are
replaced by the same multiplications on as many positions.

Legend: B batch, C channels, H W pixels, D width, K codes or classes, L patches, R regions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from peco.core import config
from peco.evaluate.detection.model import assemble_detector
from peco.evaluate.segmentation.model import UperNet
from peco.mim.model import MaskedImageModel, build_backbone
from peco.networks import timm_nets
from peco.perceptual.distance import PerceptualDistance
from peco.perceptual.features import FeatureNet
from peco.perceptual.moco import MoCo
from peco.stages.perceptual_net import build_vit
from peco.tokenizer.model import PerceptualTokenizer

CLASSES = 10  # of heads, where their number isn't known; it hardly matters
MASK_REGIONS = 4  # one in four regions has an object, whose mask is learned


@dataclass(frozen=True)
class Network:
    """A network of a stage.

    Attributes:
        size: side in pixels of its images.
        trains: True if gradients are computed.
        precision: of its multiplications, `fp32` or `bf16`.
        build: makes a module that maps images (B, 3, H, W) to a number, which is differentiable if it trains.
    """

    size: int
    trains: bool
    precision: str
    build: Callable[[], nn.Module]


class _Step(nn.Module):
    """A function of images with the modules that it uses."""

    def __init__(self, function: Callable[[Tensor], Tensor], *modules: nn.Module) -> None:
        super().__init__()
        self.function, self.parts = function, nn.ModuleList(modules)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self.function(x_BCHW)


def networks(cfg: config.Config) -> dict[str, Network]:
    """The networks of all stages by name."""
    size, evaluate = cfg.loader.image_size, cfg.evaluate
    net, tokenizer, pretrain = cfg.perceptual_net, cfg.tokenizer, cfg.pretrain
    return {
        "moco": Network(net.moco.crop_size or size, True, net.optim.precision, lambda: _moco(cfg)),
        "tokenizer": Network(tokenizer.image_size, True, tokenizer.optim.precision, lambda: _tokenizer(cfg)),
        "tokenize": Network(tokenizer.image_size, False, "fp32", lambda: _tokenize(cfg)),
        "mim": Network(size, True, pretrain.optim.precision, lambda: _mim(cfg)),
        "features": Network(size, False, "fp32", lambda: _features(cfg)),
        "classifier": Network(size, True, evaluate.finetune.optim.precision, lambda: _classifier(cfg)),
        "segmenter": Network(
            evaluate.segmentation.image_size, True, evaluate.segmentation.optim.precision, lambda: _segmenter(cfg)
        ),
        "detector": Network(
            evaluate.detection.image_size, True, evaluate.detection.optim.precision, lambda: _detector(cfg)
        ),
    }


def _moco(cfg: config.Config) -> nn.Module:
    net = cfg.perceptual_net
    size = net.moco.crop_size or cfg.loader.image_size
    moco = MoCo(lambda: build_vit(net.vit, size, net.moco.pool), net.moco)

    def step(x_BCHW: Tensor) -> Tensor:
        loss = x_BCHW.new_zeros(())
        for view_BCHW in (x_BCHW, x_BCHW.flip(3)):
            q_BD = moco.predictor(moco.projector(moco.encoder(view_BCHW)))
            with torch.no_grad():
                k_BD = moco.momentum_projector(moco.momentum_encoder(view_BCHW))
            loss = loss + (q_BD @ k_BD.T).mean()
        return loss

    return _Step(step, moco)


def _tokenizer(cfg: config.Config) -> nn.Module:
    tokenizer = PerceptualTokenizer(cfg.tokenizer.autoencoder, cfg.tokenizer.quantizer)
    codes_KD = torch.empty(cfg.tokenizer.quantizer.codes, cfg.tokenizer.quantizer.dim)
    nn.init.normal_(codes_KD)
    uses_net = cfg.tokenizer.objective == "vqkd" or cfg.tokenizer.perceptual.weight > 0
    distance = PerceptualDistance(_perceptual(cfg), cfg.tokenizer.perceptual.normalize) if uses_net else None

    def step(x_BCHW: Tensor) -> Tensor:
        z_BDhw = tokenizer.encoder(2 * x_BCHW - 1)
        nearest_BLK = z_BDhw.detach().flatten(2).transpose(1, 2) @ codes_KD.T
        out_BCHW = (tokenizer.decoder(z_BDhw) + 1) / 2
        loss: Tensor = (out_BCHW - x_BCHW).abs().mean() + 0 * nearest_BLK.mean()
        return loss if distance is None else loss + distance(out_BCHW, x_BCHW)

    return _Step(step, tokenizer.encoder, tokenizer.decoder, *([distance] if distance else []))


def _tokenize(cfg: config.Config) -> nn.Module:
    tokenizer = PerceptualTokenizer(cfg.tokenizer.autoencoder, cfg.tokenizer.quantizer)
    codes_KD = torch.empty(cfg.tokenizer.quantizer.codes, cfg.tokenizer.quantizer.dim)
    nn.init.normal_(codes_KD)

    def step(x_BCHW: Tensor) -> Tensor:
        z_BLD = tokenizer.encoder(2 * x_BCHW - 1).flatten(2).transpose(1, 2)
        return cast(Tensor, (z_BLD @ codes_KD.T).mean())

    return _Step(step, tokenizer.encoder)


def _mim(cfg: config.Config) -> nn.Module:
    pretrain = cfg.pretrain
    outputs = cfg.tokenizer.quantizer.codes if pretrain.target == "tokens" else 3 * pretrain.vit.patch_size**2
    model = MaskedImageModel(_backbone(cfg), outputs)

    def step(x_BCHW: Tensor) -> Tensor:
        masked_BM = torch.arange(pretrain.masking.count, device=x_BCHW.device).expand(len(x_BCHW), -1)
        return cast(Tensor, model(x_BCHW, masked_BM).square().mean())

    return _Step(step, model)


def _features(cfg: config.Config) -> nn.Module:
    backbone = _backbone(cfg)
    return _Step(lambda x_BCHW: cast(Tensor, backbone.forward_features(x_BCHW).mean()), backbone)


def _classifier(cfg: config.Config) -> nn.Module:
    backbone = _backbone(cfg, num_classes=CLASSES)
    return _Step(lambda x_BCHW: cast(Tensor, backbone(x_BCHW).square().mean()), backbone)


def _segmenter(cfg: config.Config) -> nn.Module:
    dense = cfg.evaluate.segmentation
    model = UperNet(_backbone(cfg, dense.image_size), dense.image_size, dense.blocks, CLASSES, dense.channels)
    return _Step(lambda x_BCHW: cast(Tensor, model(x_BCHW).square().mean()), model)


def _detector(cfg: config.Config) -> nn.Module:
    dense = cfg.evaluate.detection
    model: Any = assemble_detector(
        _backbone(cfg, dense.image_size), CLASSES, dense.image_size, dense.channels, masks=True
    )
    heads, rpn = model.roi_heads, model.rpn

    def step(x_BCHW: Tensor) -> Tensor:
        maps = list(model.backbone(x_BCHW).values())
        scores, offsets = rpn.head(maps)
        regions = heads.fg_bg_sampler.batch_size_per_image * len(x_BCHW)
        # Features of a region are read from the maps by interpolation, which multiplies little.
        pooled_1C11 = sum(level.mean(dim=(0, 2, 3), keepdim=True) for level in maps)
        boxes_RCHW = pooled_1C11.expand(regions, -1, 7, 7).contiguous()
        masks_RCHW = pooled_1C11.expand(max(1, regions // MASK_REGIONS), -1, 14, 14).contiguous()
        classes, corners = heads.box_predictor(heads.box_head(boxes_RCHW))
        masks = heads.mask_predictor(heads.mask_head(masks_RCHW))
        return cast(Tensor, sum(t.square().mean() for t in (*scores, *offsets, classes, corners, masks)))

    return _Step(step, model)


def _backbone(cfg: config.Config, size: int | None = None, num_classes: int = 0) -> Any:
    pretrain = cfg.pretrain
    model, _, _ = build_backbone(
        pretrain.vit, size or cfg.loader.image_size, pretrain.layer_scale, 0.0, num_classes=num_classes
    )
    return model


def _perceptual(cfg: config.Config) -> FeatureNet:
    net = cfg.perceptual_net
    size = net.image_size or cfg.loader.image_size
    if net.source == "train":
        model: nn.Module = build_vit(net.vit, size, net.moco.pool)
    elif net.source == "path" and Path(net.path).is_dir():
        model = timm_nets.by_path(Path(net.path), net.timm.model, size, pretrained=False)
    else:
        model = timm_nets.by_name(dataclasses.replace(net.timm, pretrained=False), size)
    return FeatureNet(model, net.blocks, net.image_size)
