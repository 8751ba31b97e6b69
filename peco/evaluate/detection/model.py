"""Object detection and instance segmentation, made for a plain vision transformer.

torchvision's Mask R-CNN (He et al., arXiv 1703.06870), or Faster R-CNN if the data has no masks, on the simple feature pyramid of
ViTDet (Li et al., arXiv 2203.16527).

Unlike in ViTDet, each level comes from a different block, and attention is global in every block. Widths of the heads and numbers
of regions are those of torchvision for 256 channels and images of 1024 pixels, and shrink in proportion to channels and pixels.

Legend: B batch, C channels of the pyramid, D width of the backbone, H W pixels, h w its grid, N objects, m pixels along a side of a
predicted mask.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from timm.layers import LayerNorm2d
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN, MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import MultiScaleRoIAlign

from peco.core import config
from peco.evaluate.detection.letterbox import letterbox_image, whole_view
from peco.networks.backbones import Backbone, block_count, chosen_levels, keep_levels, octaves

STRIDES = (4, 8, 16, 32)  # of the pyramid, in pixels
RATIOS = (0.5, 1.0, 2.0)  # height to width of anchors
MIN_ANCHOR = 8  # pixels
REGIONS_AT_1024 = 512  # regions per image for training the heads, at images of 1024 pixels
MIN_REGIONS = 32
MAX_DETECTIONS = 100  # per image, as in COCO's evaluation
MIN_SCORE = 0.01


class SimplePyramid(nn.Module):
    """Maps of strides 4, 8, 16 and 32 from the feature maps of four blocks of a vision transformer, or levels of another network.

    The blocks are evenly spaced up to the last one, the finest map comes from the earliest, and the final norm is applied to all
    four. ViTDet takes all maps from the last block; after a pre-training that predicts tokens, earlier blocks hold more spatial
    information (docs/results.md). Transposed convolutions enlarge a map, max pooling reduces it; then follow a 1x1 and a 3x3
    convolution, each with a layer norm over channels.

    Args:
        backbone: timm model; its layers after the last of the blocks are removed.
        channels: C of each map.

    Raises:
        PecoError: the side of its patches is no power of two.
    """

    def __init__(self, backbone: nn.Module, channels: int) -> None:
        super().__init__()
        maps = octaves(backbone)
        self.blocks = chosen_levels(backbone, len(STRIDES))
        self.block_indices = sorted(set(self.blocks))  # fewer than four in a backbone of fewer blocks
        self.norm = block_count(backbone) > 0
        keep_levels(backbone, self.block_indices, norm=self.norm)
        self.backbone = backbone
        self.out_channels = channels  # torchvision reads it
        self.levels = nn.ModuleList(
            _level(*maps[block], stride, channels) for block, stride in zip(self.blocks, STRIDES, strict=True)
        )

    def forward(self, x_BCHW: Tensor) -> OrderedDict[str, Tensor]:
        """Maps (B, C, H / stride, W / stride) of normalised images, named "0" to "3", as torchvision expects."""
        features = cast(Any, self.backbone).forward_intermediates(
            x_BCHW, indices=self.block_indices, norm=self.norm, intermediates_only=True
        )
        maps = dict(zip(self.block_indices, features, strict=True))
        return OrderedDict((str(i), level(maps[self.blocks[i]])) for i, level in enumerate(self.levels))


def _level(width: int, patch: int, stride: int, channels: int) -> nn.Sequential:
    """Layers from a map of `width` channels at stride `patch` to one of `channels` at `stride`."""
    layers: list[nn.Module] = []
    doublings = max(0, int(math.log2(patch / stride)))
    for number in range(doublings):
        if number:
            layers += [LayerNorm2d(width), nn.GELU()]
        layers.append(nn.ConvTranspose2d(width, width // 2, kernel_size=2, stride=2))
        width //= 2
    if stride > patch:
        layers.append(nn.MaxPool2d(stride // patch))
    layers += [nn.Conv2d(width, channels, 1, bias=False), LayerNorm2d(channels)]
    layers += [nn.Conv2d(channels, channels, 3, padding=1, bias=False), LayerNorm2d(channels)]
    return nn.Sequential(*layers)


def anchor_sizes(side: int) -> tuple[tuple[float, float], ...]:
    """Sides of the square anchors, two for each level, in pixels: a geometric sequence of eight up to 3/4 of the image.

    Args:
        side: side of the image. The smallest anchor is 1/32 of it, as in COCO's recipes, and at least `MIN_ANCHOR`.
    """
    smallest = max(MIN_ANCHOR, side / 32)
    sizes = np.geomspace(smallest, max(smallest, 0.75 * side), 2 * len(STRIDES)).round(2).tolist()
    return tuple((sizes[i], sizes[i + 1]) for i in range(0, len(sizes), 2))


class _Transform(GeneralizedRCNNTransform):  # type: ignore[misc]
    """torchvision's normalisation without its resizing: images already have the model's size, detections stay in its pixels."""

    def __init__(self, side: int, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__(side, side, list(mean), list(std), size_divisible=side)

    def resize(self, image: Tensor, target: Any = None) -> tuple[Tensor, Any]:
        return image, target

    def postprocess(self, result: Any, image_shapes: Any, original_image_sizes: Any) -> Any:
        return result


def build_detector(make: Backbone, classes: int, cfg: config.Detection, *, masks: bool, seed: int) -> nn.Module:
    """Build a detector on a backbone.

    Args:
        make: makes the backbone.
        classes: number of classes without the background.
        cfg: size of images, width of the pyramid, drop path rate.
        masks: True to predict masks too.
        seed: seed of pyramid and heads, which start with the same weights on pre-trained and random weights.

    Returns:
        torchvision's `MaskRCNN` or `FasterRCNN`; label 0 is the background, class c has label c + 1.

    Raises:
        PecoError: as `make`, or the backbone's patches don't fit the pyramid.
    """
    side = cfg.image_size
    backbone = make(num_classes=0, drop_path_rate=cfg.drop_path, img_size=side)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return assemble_detector(backbone, classes, side, cfg.channels, masks=masks)


def assemble_detector(backbone: nn.Module, classes: int, side: int, channels: int, *, masks: bool) -> nn.Module:
    """Put pyramid and heads, at random initialisation, on a backbone; see `build_detector`."""
    regions = min(REGIONS_AT_1024, max(MIN_REGIONS, side * REGIONS_AT_1024 // 1024))
    parts: dict[str, Any] = {
        "rpn_anchor_generator": AnchorGenerator(anchor_sizes(side), (RATIOS,) * len(STRIDES)),
        "rpn_pre_nms_top_n_train": 4 * regions,
        "rpn_post_nms_top_n_train": 4 * regions,
        "rpn_pre_nms_top_n_test": 2 * regions,
        "rpn_post_nms_top_n_test": 2 * regions,
        "box_roi_pool": _pool(7),
        "box_head": TwoMLPHead(channels * 7 * 7, 4 * channels),
        "box_predictor": FastRCNNPredictor(4 * channels, classes + 1),
        "box_batch_size_per_image": regions,
        "box_score_thresh": MIN_SCORE,
        "box_detections_per_img": min(MAX_DETECTIONS, regions),
    }
    pyramid = SimplePyramid(backbone, channels)
    if masks:
        parts["mask_roi_pool"] = _pool(14)
        parts["mask_head"] = MaskRCNNHeads(channels, (channels,) * 4, 1)
        parts["mask_predictor"] = MaskRCNNPredictor(channels, channels, classes + 1)
    model: nn.Module = (MaskRCNN if masks else FasterRCNN)(pyramid, **parts)
    model.transform = _Transform(
        side, cast(Any, backbone).pretrained_cfg["mean"], cast(Any, backbone).pretrained_cfg["std"]
    )
    return model


def _pool(side: int) -> MultiScaleRoIAlign:
    """Crops of `side` x `side` from the pyramid. As in ViTDet, each of their cells is sampled as densely as its map."""
    return MultiScaleRoIAlign([str(i) for i in range(len(STRIDES))], output_size=side, sampling_ratio=0)


@dataclass(frozen=True)
class Detections:
    """Detections of an image, in descending order of score."""

    boxes: NDArray[np.float32]  # (N, 4) x0, y0, x1, y1 in pixels of the image, inside it
    labels: NDArray[np.int64]  # (N,) class index from 0
    scores: NDArray[np.float32]  # (N,) 0 to 1
    masks: NDArray[np.bool_] | None  # (N, H, W)


@torch.no_grad()
def detect(model: nn.Module, images: Sequence[Image.Image], side: int) -> Iterator[Detections]:
    """Detect the objects of some images, which are processed as one batch.

    Args:
        model: from `build_detector`; it is put into eval mode. Images go to its device.
        images: upright, RGB, of any size.
        side: side of the model's images.
    """
    model.eval()
    device = next(model.parameters()).device
    views = [whole_view(image.size, side) for image in images]
    inputs_CHW = [
        torch.from_numpy(letterbox_image(image, view, side)).permute(2, 0, 1).float() / 255
        for image, view in zip(images, views, strict=True)
    ]
    for image, view, found in zip(images, views, model([x_CHW.to(device) for x_CHW in inputs_CHW]), strict=True):
        scale_4 = torch.from_numpy(view.scale(image.size)).to(device)
        boxes_N4 = found["boxes"].float() / scale_4
        limits_4 = boxes_N4.new_tensor(image.size * 2)
        inside_N4 = boxes_N4.clamp(min=0).minimum(limits_4)
        keep_N = (inside_N4[:, 2:] > inside_N4[:, :2]).all(dim=1)
        masks = None
        if "masks" in found:
            masks = paste(found["masks"][keep_N, 0].float(), boxes_N4[keep_N], image.height, image.width).cpu().numpy()
        yield Detections(
            inside_N4[keep_N].cpu().numpy(),
            (found["labels"][keep_N] - 1).cpu().numpy(),
            found["scores"][keep_N].float().cpu().numpy(),
            masks,
        )


def paste(masks_Nmm: Tensor, boxes_N4: Tensor, height: int, width: int) -> Tensor:
    """Paste the mask probabilities predicted inside boxes into masks of the whole image, bool (N, H, W).

    torchvision's own pasting rounds boxes to whole pixels, which costs small objects much of their overlap. A pixel is inside a box
    if its centre is, but it is sampled half a pixel before the centre, as the training targets are (`roi_align` with
    `aligned=False`).
    """
    pasted = torch.zeros(len(masks_Nmm), height, width, dtype=torch.bool, device=masks_Nmm.device)
    columns_W, rows_H = (torch.arange(side, device=masks_Nmm.device) for side in (width, height))
    for n, (mask_mm, (x0, y0, x1, y1)) in enumerate(zip(masks_Nmm, boxes_N4, strict=True)):
        at_W, at_H = 2 * (columns_W - x0) / (x1 - x0) - 1, 2 * (rows_H - y0) / (y1 - y0) - 1
        grid_HW2 = torch.stack(torch.meshgrid(at_W, at_H, indexing="xy"), dim=-1)
        values_HW = F.grid_sample(mask_mm[None, None], grid_HW2[None], align_corners=False, padding_mode="border")[0, 0]
        inside_W, inside_H = (
            (columns_W + 0.5 - x0) * (x1 - columns_W - 0.5) > 0,
            (rows_H + 0.5 - y0) * (y1 - rows_H - 0.5) > 0,
        )
        pasted[n] = (values_HW >= 0.5) & inside_W & inside_H[:, None]
    return pasted
