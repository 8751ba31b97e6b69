"""Folders of segmenters: all weights of a `UperNet`, and how to build it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from peco.core import artifacts, config
from peco.core.errors import PecoError
from peco.evaluate.segmentation.model import UperNet

KIND = "segmenter"


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
    part = artifacts.section(directory, KIND)
    try:
        classes, blocks, channels = tuple(part["classes"]), part["blocks"], part["channels"]
    except KeyError as error:
        raise PecoError(f"{directory}/config.json: lacks {error}; fetch or make the folder again") from None
    model = UperNet(artifacts.random_like(directory, seed=0, num_classes=0), blocks, len(classes), channels)
    weights = Path(directory) / artifacts.WEIGHTS
    artifacts.fill(model, artifacts.load_tensors(weights), weights)
    return model.eval(), classes
