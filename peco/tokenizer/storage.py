"""Folders of trained tokenizers: weights, and the parameters of autoencoder and quantizer."""

from __future__ import annotations

from collections.abc import Mapping
from operator import attrgetter
from pathlib import Path
from typing import Any

from torch import Tensor

from peco.core import artifacts, config, schema, timm_nets
from peco.core.errors import PecoError
from peco.tokenizer.model import PerceptualTokenizer

KIND = "tokenizer"
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
    return int(artifacts.section(directory, KIND)["image_size"])


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
    timm_nets.require_finite(tensors, origin)
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
    part = artifacts.section(directory, KIND)
    try:
        raw = part["autoencoder"]
        autoencoder = config.Autoencoder(**{**raw, "channels": tuple(raw["channels"])})
        quantizer = config.Quantizer(**part["quantizer"])
    except (KeyError, TypeError) as error:
        raise PecoError(
            f"{directory}/config.json: not the parameters of a tokenizer ({error}); fetch or make the folder again"
        ) from None
    tokenizer = PerceptualTokenizer(autoencoder, quantizer)
    weights = Path(directory) / artifacts.WEIGHTS
    artifacts.fill(tokenizer, artifacts.load_tensors(weights), weights)
    return tokenizer.eval()
