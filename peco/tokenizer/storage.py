"""Folders of trained tokenizers: weights, and the parameters of autoencoder and quantizer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from peco.core import artifacts, config, schema
from peco.core.errors import PecoError
from peco.core.parsing import shown
from peco.core.tensor_headers import require_equal, require_possible
from peco.tokenizer.model import PerceptualTokenizer

KIND = "tokenizer"
_MOST_PIXELS = 8192  # a side of an image


def save(
    directory: str | Path,
    tokenizer: PerceptualTokenizer,
    autoencoder: config.Autoencoder,
    quantizer: config.Quantizer,
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Write a tokenizer.

    Args:
        directory: the folder; replaced if there is one.
        tokenizer: the tokenizer.
        autoencoder, quantizer: the parameters it was built from.
        extra: further entries of config.json, such as the image size of its training.

    Raises:
        PecoError: writing failed.
    """
    built = {"autoencoder": schema.to_dict(autoencoder), "quantizer": schema.to_dict(quantizer)}
    artifacts.save(directory, tokenizer.state_dict(), {"peco": {**(extra or {}), "kind": KIND, **built}})


def image_size(directory: str | Path) -> int:
    """Side in pixels of a tokenizer's training images.

    Raises:
        PecoError: the folder is missing, damaged or of another kind.
    """
    size: object = artifacts.section(directory, KIND).get("image_size")
    if type(size) is not int or not 0 < size <= _MOST_PIXELS:
        raise PecoError(
            f"{directory}/config.json: image_size is {shown(size)}; expected pixels: fetch or make it again"
        )
    return size


def load(directory: str | Path) -> PerceptualTokenizer:
    """Read a tokenizer, in eval mode.

    Raises:
        PecoError: the folder is missing, damaged, of another kind, or its weights don't fit its parameters.
    """
    part, path = artifacts.section(directory, KIND), Path(directory) / artifacts.CONFIG
    try:
        autoencoder: config.Autoencoder = schema.build(config.Autoencoder, part.get("autoencoder"), "autoencoder")
        quantizer: config.Quantizer = schema.build(config.Quantizer, part.get("quantizer"), "quantizer")
    except PecoError as error:
        why = str(error).removesuffix(f"; {schema.COMPLETE}")
        raise PecoError(f"{path}: not the parameters of a tokenizer ({why}); fetch or make the folder again") from None
    weights, found = Path(directory) / artifacts.WEIGHTS, artifacts.shapes(directory)
    require_possible(schema.to_dict(autoencoder), found, path)
    with torch.device("meta"):  # a wrong size must not fill the memory
        skeleton = PerceptualTokenizer(autoencoder, quantizer)
    require_equal(artifacts.shapes_of(skeleton.state_dict()), found, weights)
    tokenizer = PerceptualTokenizer(autoencoder, quantizer)
    artifacts.fill(tokenizer, artifacts.load_tensors(weights), weights)
    return tokenizer.eval()
