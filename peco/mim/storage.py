"""Folders of pre-trained backbones: a timm model (`artifacts.save_timm`), mask token and head in a separate file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from peco.core import artifacts
from peco.core.errors import PecoError
from peco.core.parsing import shown
from peco.mim.model import MEAN, STD, MaskedImageModel

HEAD = "mim_head.safetensors"
KIND = "backbone"
_MOST_OUTPUTS = 65536  # codes of the largest codebook


def save(
    directory: str | Path,
    model: MaskedImageModel,
    *,
    target: Literal["tokens", "pixels"] = "tokens",
    arch: str,
    model_args: Mapping[str, Any],
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Write the backbone for timm, and mask token and head next to it.

    Args:
        directory: the folder; replaced if there is one.
        model: the model.
        target: the head's prediction.
        arch, model_args: as returned by `build_backbone`.
        extra: further entries of the `peco` part of config.json.

    Raises:
        PecoError: writing failed.
    """
    artifacts.save_timm(
        directory,
        model.backbone,
        arch=arch,
        model_args=model_args,
        mean=MEAN,
        std=STD,
        extra={**(extra or {}), "kind": KIND, "target": target, "outputs": model.head.out_features},
        extra_files={
            HEAD: {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("backbone.")}
        },
    )


def load(directory: str | Path) -> MaskedImageModel:
    """Read backbone, mask token and head, in eval mode.

    Raises:
        PecoError: the folder is missing, damaged or of another kind.
    """
    outputs = artifacts.section(directory, KIND).get("outputs")
    if type(outputs) is not int or not 1 <= outputs <= _MOST_OUTPUTS:
        raise PecoError(
            f"{directory}/config.json: outputs is {shown(outputs)}; expected the outputs of the head: fetch or make it again"
        )
    model = MaskedImageModel(artifacts.load_timm(directory), outputs)
    path = Path(directory) / HEAD
    backbone = {f"backbone.{name}": tensor for name, tensor in model.backbone.state_dict().items()}
    artifacts.fill(model, {**backbone, **artifacts.load_tensors(path)}, path)
    return model.eval()
