"""Fine-tuning of a whole backbone for classification with BEiT's recipe (arXiv 2106.08254).

Pre-trained and random weights share one code path. Augmentation of a training image: random resized crop, flip, RandAugment, random
erasing, all drawn from a key.

Legend: B batch, C channels, H W pixels, K classes.
"""

from __future__ import annotations

import contextlib
import functools
import math
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from timm.data.auto_augment import rand_augment_transform
from torch import Tensor, nn

from peco.core import artifacts, config
from peco.core.errors import PecoError
from peco.data import views
from peco.data.images import Picture
from peco.networks.backbones import Backbone

CROP_RATIO = (3 / 4, 4 / 3)
ERASED_AREA = (0.02, 1 / 3)  # shares of the image
ERASED_ASPECT = (0.3, 1 / 0.3)
FILL = (128, 128, 128)  # RandAugment's colour beyond the border: the mean that the backbone normalises by


def build_classifier(backbone: Backbone, classes: int, cfg: config.Finetune) -> nn.Module:
    """Build a backbone with a new linear head on the mean of its patch tokens, or on the mean of a network's last map.

    Args:
        backbone: makes it. The initial head is the same for pre-trained and random weights of one seed.
        classes: outputs K.
        cfg: its drop path rate is used.

    Raises:
        PecoError: as `backbone`.
    """
    return backbone(num_classes=classes, drop_path_rate=cfg.drop_path, global_pool="avg")


@torch.no_grad()
def evaluate_classifier(
    model: nn.Module,
    batches: Iterable[Mapping[str, Tensor]],
    all_reduce: Callable[[Tensor], Tensor] = lambda tensor: tensor,
) -> tuple[float, list[float | None]]:
    """Compute the top-1 accuracy.

    Args:
        model: timm classifier; it is put into eval mode. Batches go to its device.
        batches: this process's share of the split, with "image" and "label".
        all_reduce: sum over processes; the identity for one process.

    Returns:
        the share of correctly classified images, 0 to 1, and the same by class, None for a class without images.

    Raises:
        PecoError: there is no image.
    """
    model.eval()
    parameter = next(model.parameters())
    mean_C11, std_C11 = (t.to(parameter.device) for t in artifacts.normalization(model))
    classes = int(model.num_classes)  # type: ignore[arg-type]
    counts_2K = torch.zeros(2, classes, dtype=torch.float64, device=parameter.device)  # correct, all
    for batch in batches:
        label_B = batch["label"].to(parameter.device)
        predicted_B = model((batch["image"].to(parameter.device) - mean_C11) / std_C11).argmax(dim=1)
        right_B = (predicted_B == label_B).double()
        counts_2K.index_add_(1, label_B, torch.stack([right_B, torch.ones_like(right_B)]))
    right, seen = all_reduce(counts_2K).tolist()
    if not sum(seen):
        raise PecoError("no image to classify: the split is empty")
    return sum(right) / sum(seen), [r / n if n else None for r, n in zip(right, seen, strict=True)]


@contextlib.contextmanager
def seeded(key: Sequence[int]) -> Iterator[None]:
    """Seed the global generators of `random` and numpy, from which timm draws, with `key`; restore them afterwards.

    Args:
        key: non-negative integers, such as (seed, epoch, sample, purpose).
    """
    words = np.random.SeedSequence(key).generate_state(8)
    before = random.getstate(), np.random.get_state()
    random.seed(words.tobytes())
    np.random.seed(words)
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])


def augment(image: Picture, key: Sequence[int], size: int, cfg: config.Finetune) -> np.ndarray:
    """Draw a training view of an image.

    Args:
        image: the whole image.
        key: non-negative integers from which all random numbers follow, such as (seed, epoch, sample, purpose).
        size: side in pixels.
        cfg: `crop_scale`, `rand_augment` (timm's notation; None to disable) and `random_erase` (probability).

    Returns:
        uint8 (size, size, 3).
    """
    rng = np.random.default_rng(list(key))
    distribution = config.ViewDistribution(
        scale=cfg.crop_scale,
        ratio=CROP_RATIO,
        flip=0.5,
        jitter=(0, 0, 0, 0),
        jitter_prob=0,
        grayscale=0,
        blur=0,
        solarize=0,
    )
    pixels = views.apply(image, views.draw(rng, distribution, image.width, image.height), size)
    if cfg.rand_augment is not None:
        with seeded(key):
            pixels = np.asarray(rand_augment(cfg.rand_augment, size)(Image.fromarray(pixels)))
    return _erase(pixels, rng) if rng.random() < cfg.random_erase else pixels


@functools.lru_cache
def rand_augment(name: str, size: int) -> Any:
    """Make RandAugment (arXiv 1909.13719) from timm's notation, for images of `size` pixels a side.

    Returns:
        a function of PIL image to PIL image; it draws from the global generators.

    Raises:
        PecoError: the notation is wrong.
    """
    try:
        # Shifts of at most 45 % of the side, as in timm's own training transform.
        hparams = {"translate_const": int(size * 0.45), "img_mean": FILL}
        transform = rand_augment_transform(name, hparams)
    except (AssertionError, KeyError, ValueError):
        raise PecoError(
            f"evaluate.finetune.rand_augment: {name!r} is not allowed; expected timm's notation, such as "
            "rand-m9-mstd0.5-inc1, or null"
        ) from None
    for op in transform.ops:
        if op.name.startswith("Posterize"):
            op.aug_fn = _posterize
    return transform


def _posterize(image: Image.Image, bits: int, **_: object) -> Image.Image:
    # The strongest magnitudes give 0 bits. Pillow 13 raises an error then; earlier versions gave black.
    return ImageOps.posterize(image, bits) if bits > 0 else Image.new("RGB", image.size)


def _erase(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Fill a random rectangle with noise (Zhong et al., arXiv 1708.04896)."""
    height, width, channels = pixels.shape
    area = rng.uniform(*ERASED_AREA) * height * width
    aspect = math.exp(rng.uniform(*np.log(ERASED_ASPECT)))
    rows = min(max(round(math.sqrt(area * aspect)), 1), height)
    columns = min(max(round(math.sqrt(area / aspect)), 1), width)
    top, left = rng.integers(height - rows + 1), rng.integers(width - columns + 1)
    noise = rng.normal(0.5, 0.5, (rows, columns, channels))  # standard normal after normalisation
    erased = pixels.copy()
    erased[top : top + rows, left : left + columns] = np.rint(noise.clip(0, 1) * 255).astype(np.uint8)
    return erased
