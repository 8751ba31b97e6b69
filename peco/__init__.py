"""PeCo (arXiv 2111.12710): masked image modelling on a perceptual codebook."""

import importlib
from pathlib import Path
from typing import Any

__all__ = ["load_backbone", "load_tokenizer"]

# Imported on demand: every module of the package runs this file first, and must not depend on the models for that.


def load_tokenizer(directory: str | Path) -> Any:
    """Read a tokenizer folder: a `peco.tokenizer.model.PerceptualTokenizer` in eval mode.

    Raises:
        peco.core.errors.PecoError: the folder is missing, damaged or of another kind.
    """
    return importlib.import_module("peco.tokenizer.storage").load(directory)


def load_backbone(directory: str | Path, **overrides: Any) -> Any:
    """Read a backbone folder: a timm model in eval mode, without the head of pre-training.

    It warns once, at the first batch, if the values can't be those of normalised images.

    Args:
        directory: the folder, which plain `timm.create_model("local-dir:DIR", pretrained=True)` reads too. Like any timm model it
            takes normalised images: `2 * x - 1` for x in [0, 1], as given by its `pretrained_cfg`.
        overrides: arguments of `timm.create_model`, such as `num_classes`, `img_size`, or `features_only=True` with `out_indices`.

    Raises:
        peco.core.errors.PecoError: the folder is missing, damaged or doesn't fit the arguments.
    """
    model = importlib.import_module("peco.core.artifacts").load_timm(directory, **overrides)
    if not overrides.get("scriptable"):  # TorchScript takes no such hook
        importlib.import_module("peco.core.image_range").warn_of_unnormalized(model)
    return model
