"""Semantic segmentation with UPerNet (arXiv 1807.10221), for plain vision transformers, with BEiT's recipe (arXiv 2106.08254).

Differences from BEiT's code: group normalisation instead of synchronised batch normalisation, so that results depend neither on the
number of processes nor on the batch size; no auxiliary head; no photometric distortion.

Legend: B batch, C channels, H W pixels, D width of the backbone, h w its grid, K classes.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from segmentation_models_pytorch.decoders.upernet.decoder import UPerNetDecoder
from torch import Tensor, nn

from peco.annotations.sets import IGNORE, SegmentationSet
from peco.core import artifacts, config
from peco.core.collectives import Collective, identity
from peco.core.errors import PecoError
from peco.core.progress import tracked
from peco.evaluate.segmentation.crop import resized
from peco.networks.backbones import Backbone, chosen_levels, keep_levels, levels

STRIDES = (4, 8, 16, 32)  # of the pyramid, in pixels
DROPOUT = 0.1  # probability, of whole channels before the last layer
GROUP = 16  # channels in a group of the group normalisation (Wu and He, arXiv 1803.08494)
STEP = 2 / 3  # between neighbouring windows at test time, as a share of a window; BEiT's 341 of 512 pixels
EVAL_BATCH = 8  # images, and windows
CLASSES_AT_ONCE = 16  # whose logits have the size of the image


class UperNet(nn.Module):
    """UPerNet over four blocks of a vision transformer, or four levels of another network.

    All blocks of a vision transformer have features of the same resolution. Transposed convolutions and max pooling turn them into
    a pyramid of strides 4, 8, 16 and 32, as closely as the patch size allows with factors of two.

    Args:
        backbone: timm model for images of `size`; its layers after the last of the blocks are removed.
        size: side in pixels of the crops.
        blocks: block numbers from 1, one for each level from the finest; levels may share a block.
        classes: outputs K.
        channels: channels of the decoder.
    """

    mean_C11: Tensor
    std_C11: Tensor

    def __init__(self, backbone: nn.Module, size: int, blocks: Sequence[int], classes: int, channels: int) -> None:
        super().__init__()
        self.size = size
        maps = [levels(backbone)[block - 1] for block in blocks]
        self.block_indices = [block - 1 for block in sorted(set(blocks))]
        self.levels = [self.block_indices.index(block - 1) for block in blocks]
        keep_levels(backbone, self.block_indices, norm=False)
        self.backbone = backbone
        self.pyramid = nn.ModuleList(
            _rescale(width, round(math.log2(own / stride))) for (width, own), stride in zip(maps, STRIDES, strict=True)
        )
        widths = [width for width, _ in maps]
        # The decoder ignores its first two inputs, which a convolutional encoder has at strides 1 and 2.
        self.decoder = _group_normalized(UPerNetDecoder([0, 0, *widths], decoder_channels=channels))
        self.head = nn.Sequential(nn.Dropout2d(DROPOUT), nn.Conv2d(channels, classes, 1))
        mean_C11, std_C11 = artifacts.normalization(backbone)
        self.register_buffer("mean_C11", mean_C11, persistent=False)
        self.register_buffer("std_C11", std_C11, persistent=False)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Logits (B, K, H, W) of images in [0, 1] of the backbone's size."""
        features = cast(Any, self.backbone).forward_intermediates(
            (x_BCHW - self.mean_C11) / self.std_C11, indices=self.block_indices, intermediates_only=True
        )
        maps = [level(features[i]) for level, i in zip(self.pyramid, self.levels, strict=True)]
        logits_BKhw = self.head(self.decoder([None, None, *maps]))
        return F.interpolate(logits_BKhw.float(), size=x_BCHW.shape[2:], mode="bilinear")


def build_segmenter(
    make: Backbone, classes: int, cfg: config.Segmentation, *, seed: int, any_network: bool = False
) -> UperNet:
    """Build UPerNet on a backbone, its position bias (or embedding) resampled to `cfg.image_size`.

    Args:
        make: makes the backbone.
        classes: outputs K.
        cfg: crop size, blocks, channels, drop path rate.
        seed: seed of the decoder and the head, which start with the same weights on pre-trained and random weights.
        any_network: the blocks of `cfg` aren't meant for it; four others are chosen.

    Raises:
        PecoError: as `make`, or the backbone has too few blocks.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="timm.layers.interpolate")  # about the speed of resampling
        backbone = make(num_classes=0, img_size=cfg.image_size, drop_path_rate=cfg.drop_path)
    depth = len(levels(backbone))
    blocks = [i + 1 for i in chosen_levels(backbone, len(STRIDES))] if any_network else cfg.blocks
    if max(blocks) > depth:
        raise PecoError(
            f"evaluate.segmentation.blocks: {max(cfg.blocks)} is not allowed; the backbone has blocks 1 to {depth}"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return UperNet(backbone, cfg.image_size, blocks, classes, cfg.channels)


@torch.no_grad()
def predict(model: UperNet, images: Sequence[Image.Image]) -> list[NDArray[np.int32]]:
    """Predict the class of each pixel (H, W) of RGB images of any size.

    The short side of an image is resized to the model's size and windows of that size slide over it. Logits are averaged where
    windows overlap, and resized to the image's own size before the best class is taken.

    Args:
        model: in eval mode.
        images: the logits of all of them must fit into memory.
    """
    size, device = model.size, model.mean_C11.device
    views_CHW = [_resize_short_side(image, size).to(device) for image in images]
    windows = [
        (n, y, x)
        for n, view_CHW in enumerate(views_CHW)
        for y in _starts(view_CHW.shape[1], size)
        for x in _starts(view_CHW.shape[2], size)
    ]
    sums_KHW: list[Tensor] = []
    seen_HW = [torch.zeros(view_CHW.shape[1:], device=device) for view_CHW in views_CHW]
    for first in range(0, len(windows), EVAL_BATCH):
        some = windows[first : first + EVAL_BATCH]
        logits_BKHW = model(torch.stack([views_CHW[n][:, y : y + size, x : x + size] for n, y, x in some]))
        sums_KHW = sums_KHW or [logits_BKHW.new_zeros(logits_BKHW.shape[1], *seen.shape) for seen in seen_HW]
        for (n, y, x), logits_KHW in zip(some, logits_BKHW, strict=True):
            sums_KHW[n][:, y : y + size, x : x + size] += logits_KHW
            seen_HW[n][y : y + size, x : x + size] += 1
    return [
        _best(sum_KHW / seen, image.height, image.width)
        for image, sum_KHW, seen in zip(images, sums_KHW, seen_HW, strict=True)
    ]


def _resize_short_side(image: Image.Image, size: int) -> Tensor:
    """Resize the short side to `size`: (C, H, W) in [0, 1]."""
    pixels = image.resize(resized(image.width, image.height, size), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(pixels)).permute(2, 0, 1).float().div_(255)


def _best(logits_KHW: Tensor, height: int, width: int) -> NDArray[np.int32]:
    """Class of each pixel, the logits resized to the image's size, a part of the classes at a time: photos are large."""
    best_HW, class_HW = logits_KHW.new_full((height, width), -math.inf), torch.zeros(0)
    for first in range(0, len(logits_KHW), CLASSES_AT_ONCE):
        part_kHW = logits_KHW[first : first + CLASSES_AT_ONCE]
        if part_kHW.shape[1:] != (height, width):
            part_kHW = F.interpolate(part_kHW[None], size=(height, width), mode="bilinear")[0]
        index_HW = part_kHW.argmax(0)
        value_HW = part_kHW.gather(0, index_HW[None])[0]
        better_HW = value_HW > best_HW
        class_HW = torch.where(better_HW, index_HW + first, class_HW) if first else index_HW
        best_HW = torch.where(better_HW, value_HW, best_HW)
    return cast(NDArray[np.int32], class_HW.int().cpu().numpy())


def _starts(length: int, size: int) -> list[int]:
    """Starts of the windows of `size` that cover `length` >= `size`: a step apart, the last one flush with the end."""
    step = int(size * STEP)
    return [*range(0, length - size, step), length - size]


def confusion(truth_HW: NDArray[np.int32], predicted_HW: NDArray[np.int32], classes: int) -> NDArray[np.int64]:
    """Confusion matrix int64 (K, K): pixels by true class (rows) and predicted class (columns), without ignored ones."""
    known = truth_HW != IGNORE
    cells = truth_HW[known].astype(np.int64) * classes + predicted_HW[known]
    return np.bincount(cells, minlength=classes**2).reshape(classes, classes)


def evaluate_segmenter(
    model: UperNet, data: SegmentationSet, rank: int = 0, world: int = 1, all_reduce: Collective = identity
) -> NDArray[np.int64]:
    """Compute the confusion matrix (K, K) of a whole split; each process predicts a part of it.

    Args:
        model: it is put into eval mode.
        data: the split.
        rank, world: this process and the number of processes.
        all_reduce: sum over processes.
    """
    model.eval()
    classes = len(data.classes)
    matrix_KK = np.zeros((classes, classes), dtype=np.int64)
    mine = range(rank, len(data), world)
    starts = range(0, len(mine), EVAL_BATCH)
    for first in tracked(starts, "segmentation: scoring", len(mine), size=lambda _: EVAL_BATCH):
        some = mine[first : first + EVAL_BATCH]
        for i, predicted_HW in zip(some, predict(model, [data.image(i) for i in some]), strict=True):
            matrix_KK += confusion(data.mask(i), predicted_HW, classes)
    total_KK = all_reduce(torch.from_numpy(matrix_KK).to(model.mean_C11.device))
    return cast(NDArray[np.int64], total_KK.cpu().numpy())


def scores(matrix_KK: NDArray[np.int64], classes: Sequence[str]) -> dict[str, Any]:
    """Compute the scores of a confusion matrix, all from 0 to 1.

    Returns:
        `miou`, the mean of the classes' intersections over unions; `pixel_accuracy`; `iou` by class. A class that occurs neither in
        the truth nor in the prediction is left out; one that is only predicted has 0.
    """
    right_K = np.diag(matrix_KK)
    union_K = matrix_KK.sum(0) + matrix_KK.sum(1) - right_K
    iou = {name: float(right_K[i] / union_K[i]) for i, name in enumerate(classes) if union_K[i]}
    return {
        "miou": math.fsum(iou.values()) / len(iou),
        "pixel_accuracy": float(right_K.sum() / matrix_KK.sum()),
        "iou": iou,
    }


def _rescale(width: int, octaves: int) -> nn.Module:
    """Layer from (B, D, h, w) to (B, D, h * 2**octaves, w * 2**octaves), rounded up."""
    if octaves <= 0:
        return nn.MaxPool2d(2**-octaves, ceil_mode=True) if octaves else nn.Identity()
    layers: list[nn.Module] = []
    for octave in range(octaves):
        layers += [_group_norm(width), nn.GELU()] if octave else []
        layers.append(nn.ConvTranspose2d(width, width, 2, stride=2))
    return nn.Sequential(*layers)


def _group_norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(math.gcd(channels, max(1, channels // GROUP)), channels)


def _group_normalized(module: nn.Module) -> nn.Module:
    """Replace batch by group normalisation in a module."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(module, name, _group_norm(child.num_features))
        else:
            _group_normalized(child)
    return module


def colorize(classes_HW: NDArray[np.int32]) -> NDArray[np.uint8]:
    """Draw a mask as a picture (H, W, 3) with a fixed colour map: class 0 is black, ignored pixels are white.

    As in PASCAL VOC, the bits of the class number go to red, green and blue in turn, the lowest one to the highest bit.
    """
    numbers = np.arange(256)
    table = np.zeros((257, 3), dtype=np.uint8)
    for bit in range(8):
        table[:256, bit % 3] |= ((numbers >> bit & 1) << (7 - bit // 3)).astype(np.uint8)
    table[256] = 255
    return table[np.where(classes_HW == IGNORE, 256, classes_HW % 256)]
