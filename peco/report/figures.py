"""Pictures of images, of their codes, and of the predictions of tokenizer and backbone.

Legend: B images, C = 3 channels, H W pixels, h w token grid, L = h w patches, M masked patches of all images, K codes. Pixels are
uint8 (H, W, 3).
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from peco.core import artifacts, config
from peco.core.errors import PecoError
from peco.core.numbers import evenly_spaced
from peco.data.loader import eval_batches
from peco.data.samples import CenterView
from peco.data.shards import ShardSet
from peco.mim import storage as mim_storage
from peco.mim.masking import block_mask
from peco.mim.model import MaskedImageModel, patchify, unpatchify
from peco.tokenizer import storage as tokenizer_storage
from peco.tokenizer.model import PerceptualTokenizer
from peco.tokenizer.quantizer import usage_and_perplexity

EVAL_BATCH = 64
MASK_GRAY = 0.5


@dataclass(frozen=True)
class Codes:
    """The codes of some images: number of occurrences by code, and image patches of a few codes."""

    images: int
    histogram_K: np.ndarray  # int64
    gallery: tuple[CodePatches, ...]

    @property
    def usage(self) -> float:
        """Share of the codes that occur."""
        return usage_and_perplexity(self.histogram_K)[0]

    @property
    def perplexity(self) -> float:
        """exp(entropy) of the codes' distribution."""
        return usage_and_perplexity(self.histogram_K)[1]


@dataclass(frozen=True)
class CodePatches:
    """Some patches of a code; `rank` starts at 1 for the most frequent code."""

    code: int
    rank: int
    count: int
    patches: tuple[np.ndarray, ...]


@dataclass(frozen=True)
class MaskedPrediction:
    """Masked prediction of one image in pictures: the image, the model's input, and its prediction.

    For tokens, the prediction is the decoder's picture of the true tokens with the masked ones replaced, and the last picture that
    of the true tokens.
    """

    pictures: tuple[np.ndarray, ...]  # original, masked, predicted and, for tokens, true
    count: int  # masked patches
    correct: int | None  # predicted tokens that equal the true ones; None for pixels


@dataclass(frozen=True)
class Models:
    """A tokenizer and the backbone pre-trained on it, in eval mode; sizes are the sides in pixels of their images."""

    tokenizer: PerceptualTokenizer
    backbone: MaskedImageModel
    target: str  # predicted by the backbone: tokens or pixels
    masking: config.Masking
    tokenizer_size: int
    backbone_size: int


def load_models(tokenizer: Path, backbone: Path, device: torch.device | None = None) -> Models:
    """Load both model folders.

    Raises:
        PecoError: one is missing or damaged, or they don't belong together.
    """
    notes = artifacts.section(backbone, mim_storage.KIND)
    masking = notes.get("masking")
    if not isinstance(masking, dict):
        raise PecoError(
            f"{backbone}: config.json lacks the masking of its pre-training; `dvc repro pretrain` makes it again"
        )
    models = Models(
        tokenizer_storage.load(tokenizer).to(device),
        mim_storage.load(backbone).to(device),
        str(notes["target"]),
        config.Masking(**masking),
        tokenizer_storage.image_size(tokenizer),
        artifacts.input_size(backbone),
    )
    grid = (models.tokenizer_size // models.tokenizer.factor,) * 2
    codes, predicted_codes = models.tokenizer.quantizer.codes, models.backbone.head.out_features
    patches = tuple(cast(Any, models.backbone.backbone).patch_embed.grid_size)
    if models.target == "tokens" and (grid, codes) != (patches, predicted_codes):
        raise PecoError(
            f"{backbone}: predicts {predicted_codes} codes on {patches[0]}x{patches[1]} patches, but {tokenizer} has {codes} on "
            f"{grid[0]}x{grid[1]}; `dvc repro pretrain` makes it again"
        )
    return models


def read_images(shards: ShardSet, size: int, count: int) -> tuple[Tensor, list[int]]:
    """Read the first images of a split, at most `count`, in the evaluation view, BCHW in [0, 1], and their labels."""
    batches = list(eval_batches(shards, CenterView(size), batch_size=EVAL_BATCH, stop=min(count, len(shards))))
    return torch.cat([batch["image"] for batch in batches]), torch.cat([batch["label"] for batch in batches]).tolist()


def to_pixels(x_BCHW: Tensor) -> np.ndarray:
    """Convert images in [0, 1] to uint8 (B, H, W, 3)."""
    x_BHWC = x_BCHW.detach().cpu().clamp(0, 1).mul(255).round().to(torch.uint8).permute(0, 2, 3, 1)
    return np.ascontiguousarray(x_BHWC.numpy())


def study_codes(tokenizer: PerceptualTokenizer, x_BCHW: Tensor, *, gallery: int, patches: int) -> Codes:
    """Count the codes of some images and pick patches of `gallery` codes from the most to the least frequent.

    Args:
        tokenizer: in eval mode.
        x_BCHW: float in [0, 1].
        gallery: number of codes to show, evenly spread over the ranks of codes with enough patches.
        patches: number of patches of each.
    """
    tokens_Bhw = torch.cat([tokenizer.tokenize(part).cpu() for part in torch.split(x_BCHW, EVAL_BATCH)]).numpy()
    histogram_K = np.bincount(tokens_Bhw.ravel(), minlength=tokenizer.quantizer.codes)
    ranked = np.argsort(-histogram_K, kind="stable")
    shown = max(int((histogram_K >= patches).sum()), min(gallery, int((histogram_K > 0).sum())))
    factor, chosen = tokenizer.factor, []
    for rank in evenly_spaced(shown, gallery):
        code = int(ranked[rank])
        places = np.argwhere(tokens_Bhw == code)
        some = places[evenly_spaced(len(places), patches)]
        crops = tuple(
            to_pixels(x_BCHW[b : b + 1, :, i * factor : (i + 1) * factor, j * factor : (j + 1) * factor])[0]
            for b, i, j in some.tolist()
        )
        chosen.append(CodePatches(code, rank + 1, len(places), crops))
    return Codes(len(x_BCHW), histogram_K, tuple(chosen))


def draw_predictions(models: Models, tokenizer_x_BCHW: Tensor, backbone_x_BCHW: Tensor) -> list[MaskedPrediction]:
    """Mask some images, predict the masked patches, and make pictures of the predictions.

    Args:
        models: on the images' device; the mask of image i is drawn by `models.masking` from the random stream (0, i).
        tokenizer_x_BCHW, backbone_x_BCHW: the same images at the sizes of the two models, float in [0, 1].
    """
    h, w = cast(Any, models.backbone.backbone).patch_embed.grid_size
    masks = [block_mask(np.random.default_rng([0, i]), h, w, models.masking) for i in range(len(backbone_x_BCHW))]
    mask_Bhw = torch.from_numpy(np.stack(masks)).to(backbone_x_BCHW.device)
    if models.target == "pixels":
        return draw_pixel_predictions(models, backbone_x_BCHW, mask_Bhw)
    return draw_token_predictions(models, tokenizer_x_BCHW, backbone_x_BCHW, mask_Bhw)


@torch.no_grad()
def draw_token_predictions(
    models: Models, tokenizer_x_BCHW: Tensor, backbone_x_BCHW: Tensor, mask_Bhw: Tensor
) -> list[MaskedPrediction]:
    """Decode the predicted and the true tokens."""
    tokenizer = models.tokenizer
    true_Bhw = tokenizer.tokenize(tokenizer_x_BCHW)
    predicted_Bhw = true_Bhw.clone()
    predicted_Bhw[mask_Bhw] = models.backbone.predict(backbone_x_BCHW, masked_patches(mask_Bhw)).flatten()
    wrong_B = (predicted_Bhw != true_Bhw).sum(dim=(1, 2)).tolist()
    columns = (
        to_pixels(tokenizer_x_BCHW),
        to_pixels(hide(tokenizer_x_BCHW, mask_Bhw)),
        to_pixels(tokenizer.decode(predicted_Bhw)),
        to_pixels(tokenizer.decode(true_Bhw)),
    )
    count = models.masking.count
    return [
        MaskedPrediction(row, count, correct=count - wrong)
        for row, wrong in zip(zip(*columns, strict=True), wrong_B, strict=True)
    ]


@torch.no_grad()
def draw_pixel_predictions(models: Models, x_BCHW: Tensor, mask_Bhw: Tensor) -> list[MaskedPrediction]:
    """Fill masked patches with predicted pixels, at the true mean and contrast of each patch: the model predicts neither."""
    mask_BL, patch = mask_Bhw.flatten(1), x_BCHW.shape[-1] // mask_Bhw.shape[-1]
    patches_BLP = patchify(x_BCHW, patch)
    variance_BL1, mean_BL1 = torch.var_mean(patches_BLP, dim=2, keepdim=True)
    predicted_MP = models.backbone(x_BCHW, masked_patches(mask_Bhw)).flatten(0, 1)
    patches_BLP[mask_BL] = predicted_MP * variance_BL1[mask_BL].sqrt() + mean_BL1[mask_BL]
    columns = (to_pixels(x_BCHW), to_pixels(hide(x_BCHW, mask_Bhw)), to_pixels(unpatchify(patches_BLP, patch)))
    return [MaskedPrediction(row, models.masking.count, correct=None) for row in zip(*columns, strict=True)]


def masked_patches(mask_Bhw: Tensor) -> Tensor:
    """Numbers of the masked patches, int64 (B, M), row by row; M is the same for each image."""
    return mask_Bhw.flatten(1).nonzero()[:, 1].view(len(mask_Bhw), -1)


def hide(x_BCHW: Tensor, mask_Bhw: Tensor) -> Tensor:
    """Replace masked patches by grey."""
    side = x_BCHW.shape[-1] // mask_Bhw.shape[-1]
    return x_BCHW.masked_fill(mask_Bhw[:, None].repeat_interleave(side, 2).repeat_interleave(side, 3), MASK_GRAY)


def strip(pictures: Sequence[np.ndarray]) -> Image.Image:
    """Put pictures of equal size side by side, RGBA, with transparent gaps."""
    height, width = pictures[0].shape[:2]
    gap = max(1, width // 16)
    sheet = Image.new("RGBA", (len(pictures) * (width + gap) - gap, height))
    for number, pixels in enumerate(pictures):
        sheet.paste(Image.fromarray(pixels), (number * (width + gap), 0))
    return sheet


def data_uri(picture: Image.Image) -> str:
    """Encode a picture as a data URI of a PNG."""
    out = io.BytesIO()
    picture.save(out, "PNG", compress_level=9)
    return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode("ascii")
