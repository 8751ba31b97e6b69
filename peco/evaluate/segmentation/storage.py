"""Folders of segmenters: all weights of a `UperNet`, and how to build it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peco.core import artifacts, config
from peco.core.errors import PecoError
from peco.core.schema import Count
from peco.evaluate.segmentation.model import STRIDES, UperNet
from peco.networks.backbones import levels

KIND = "segmenter"


@dataclass(frozen=True)
class Parameters:
    """The parameters by which a segmenter is built on its backbone; see `UperNet`."""

    classes: tuple[str, ...]
    blocks: tuple[Count, ...]
    channels: Count


def save(
    directory: str | Path,
    model: UperNet,
    backbone: str | Path,
    classes: Sequence[str],
    cfg: config.Segmentation,
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Write a segmenter.

    Args:
        directory: the folder; replaced if there is one.
        model: from `build_segmenter`.
        backbone: folder of the backbone that it was built on.
        classes: names, in the order of the outputs.
        cfg: size, blocks and channels that it was built with.
        extra: further entries of the `peco` part of config.json.

    Raises:
        PecoError: writing failed.
    """
    built = {"classes": list(classes), "blocks": list(cfg.blocks), "channels": cfg.channels}
    described = artifacts.describe_resized(backbone, cfg.image_size)
    described["peco"] = {**(extra or {}), "kind": KIND, "image_size": cfg.image_size, **built}
    artifacts.save(directory, model.state_dict(), described)


def load(directory: str | Path) -> tuple[UperNet, tuple[str, ...]]:
    """Read a segmenter, in eval mode, and the names of its classes.

    Raises:
        PecoError: the folder is missing, damaged or of another kind.
    """
    built, size = artifacts.parameters(directory, KIND, Parameters), artifacts.input_size(directory)
    backbone: Any = artifacts.backbone_of(directory)
    depth = len(levels(backbone, Path(directory) / artifacts.CONFIG))
    if len(built.blocks) != len(STRIDES) or max(built.blocks) > depth:
        raise PecoError(
            f"{Path(directory) / artifacts.CONFIG}: blocks {list(built.blocks)}; expected {len(STRIDES)} from 1 to "
            f"{depth}: fetch or make the folder again"
        )
    model = UperNet(backbone, size, built.blocks, len(built.classes), built.channels)
    weights = Path(directory) / artifacts.WEIGHTS
    artifacts.fill(model, artifacts.load_tensors(weights), weights)
    return model.eval(), built.classes
