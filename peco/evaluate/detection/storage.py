"""Folders of detectors: all weights of a Mask R-CNN or Faster R-CNN, and how to build it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from peco.core import artifacts, config
from peco.core.schema import Count
from peco.evaluate.detection.model import assemble_detector
from peco.networks.backbones import octaves

KIND = "detector"


@dataclass(frozen=True)
class Parameters:
    """The parameters by which a detector is built on its backbone; see `assemble_detector`."""

    classes: tuple[str, ...]
    channels: Count
    masks: bool


@dataclass(frozen=True)
class Detector:
    """A detector as `model.detect` takes it.

    Attributes:
        model: in eval mode.
        classes: names.
        size: side in pixels of its images.
    """

    model: nn.Module
    classes: tuple[str, ...]
    size: int


def save(
    directory: str | Path,
    model: nn.Module,
    backbone: str | Path,
    classes: Sequence[str],
    cfg: config.Detection,
    *,
    masks: bool,
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Write a detector.

    Args:
        directory: the folder; replaced if there is one.
        model: from `build_detector`.
        backbone: folder of the backbone that it was built on.
        classes: names, in the order of the labels.
        cfg: size and channels that it was built with.
        masks: True if it predicts masks.
        extra: further entries of the `peco` part of config.json.

    Raises:
        PecoError: writing failed.
    """
    built = {"classes": list(classes), "channels": cfg.channels, "masks": masks}
    described = artifacts.describe_resized(backbone, cfg.image_size)
    described["peco"] = {**(extra or {}), "kind": KIND, "image_size": cfg.image_size, **built}
    artifacts.save(directory, model.state_dict(), described)


def load(directory: str | Path) -> Detector:
    """Read a detector.

    Raises:
        PecoError: the folder is missing, damaged or of another kind.
    """
    built, size = artifacts.parameters(directory, KIND, Parameters), artifacts.input_size(directory)
    backbone = artifacts.backbone_of(directory)
    octaves(backbone, Path(directory) / artifacts.CONFIG)
    model = assemble_detector(backbone, len(built.classes), size, built.channels, masks=built.masks)
    weights = Path(directory) / artifacts.WEIGHTS
    artifacts.fill(model, artifacts.load_tensors(weights), weights)
    return Detector(model.eval(), built.classes, size)
