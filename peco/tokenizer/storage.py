"""Folders of trained tokenizers: weights, and the parameters of autoencoder and quantizer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peco.core import artifacts, config, schema
from peco.core.errors import PecoError
from peco.tokenizer.model import PerceptualTokenizer

KIND = "tokenizer"


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
