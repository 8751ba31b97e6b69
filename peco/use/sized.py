"""Networks of folders for images of another size."""

from __future__ import annotations

import warnings
from pathlib import Path

from torch import nn

from peco.core import artifacts
from peco.core.errors import PecoError
from peco.networks import timm_nets


def load_sized(folder: str | Path, size: int | None) -> tuple[nn.Module, int]:
    """The timm model of a folder for images of a size, and the side of its images in pixels.

    Args:
        folder: of a model that timm loads.
        size: side in pixels; None for that of the training.

    Raises:
        PecoError: the folder is missing or damaged, or it takes no images of this size.
    """
    model = artifacts.load_timm(folder)
    if size is None:
        return model, artifacts.input_size(folder)
    embed = timm_nets.strict_embed(model)
    if embed is None:
        timm_nets.require_images(model, size, f"--size: {folder}")
        return model, size
    patch = max(embed.patch_size)
    if size % patch:
        raise PecoError(f"--size: {size} is not allowed; expected a multiple of {patch}, the side of a patch")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="timm.layers.interpolate")  # about the speed of resampling
        return artifacts.load_timm(folder, img_size=size), size
