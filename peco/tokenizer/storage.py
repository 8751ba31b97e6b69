"""Folders of trained tokenizers: weights, and the parameters of autoencoder and quantizer."""

from __future__ import annotations

from collections.abc import Mapping
from operator import attrgetter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from peco.core import artifacts, config, schema
from peco.core.errors import PecoError
from peco.core.parsing import shown
from peco.core.tensor_headers import require_equal, require_possible
from peco.tokenizer.model import PerceptualTokenizer

KIND = "tokenizer"
_MOST_PIXELS = 8192  # a side of an image
# Parameters that the shapes of the weights and the meaning of the tokens depend on; the grid follows from them.
_SIZES = (
    "autoencoder.channels",
    "autoencoder.stem_stride",
    "autoencoder.res_blocks",
    "autoencoder.attention",
    "quantizer.codes",
    "quantizer.dim",
    "quantizer.l2_normalize",
)


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


def load_given(wanted: config.Tokenizer) -> dict[str, Tensor]:
    """Weights of the tokenizer folder that `tokenizer.init` names, checked to be those of the wanted tokenizer.

    Raises:
        PecoError: the folder is missing, damaged, of another kind, or holds NaN; grid, image size, codes or another size differ.
    """
    path = Path(wanted.init.path)
    origin = f"tokenizer.init.path: {path}"
    try:
        part = artifacts.section(path, KIND)
        tensors = artifacts.load_tensors(path / artifacts.WEIGHTS)
    except PecoError as error:
        raise PecoError(f"tokenizer.init.path: {error}") from None
    for key in ("image_size", *_SIZES):
        want, found = schema.to_dict(attrgetter(key)(wanted)), _lookup(part, key)
        if found != want:
            raise PecoError(f"{origin}: its {key} is {found}, but tokenizer.{key} is {want}; set it to {found}")
    return tensors


def _lookup(part: Any, key: str) -> Any:
    for name in key.split("."):
        part = part.get(name) if isinstance(part, Mapping) else None
    return part


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
