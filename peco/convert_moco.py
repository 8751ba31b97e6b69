"""Convert an official MoCo v3 checkpoint (github.com/facebookresearch/moco-v3) to safetensors with timm's names.

    python -m peco.convert_moco vit-b-300ep.pth.tar moco_v3_vit_b.safetensors

Then set `perceptual_net.timm.checkpoint` to the new file and `perceptual_net.timm.model` to a ViT of that size with ImageNet's mean
and std, for ViT-B `vit_base_patch16_224.dino`.
"""

from __future__ import annotations

import argparse
import pickle
import struct
import sys
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from peco.core.errors import PecoError
from peco.core.parsing import reason

# Of `torch.load`: damaged bytes fail in the zip or tar, in the pickle, or where a tensor is made of its parts.
_LOAD_ERRORS = (
    *(pickle.UnpicklingError, tarfile.TarError, struct.error, OSError, EOFError, RuntimeError, ValueError, TypeError),
    *(LookupError, AttributeError, ArithmeticError, AssertionError, MemoryError),
)
_PREFIXES = ("module.base_encoder.", "base_encoder.")


def convert(source: Path, target: Path) -> int:
    """Extract the base encoder, with its position embedding and without its head.

    Returns:
        The number of tensors written.

    Raises:
        PecoError: the source is missing, damaged, holds more than tensors and plain data, or is not a MoCo v3 checkpoint; or the
            target can't be written.
    """
    weights = extract(_load(source), source)
    try:
        safetensors.torch.save_file(weights, target, metadata={"format": "pt"})
    except (OSError, safetensors.SafetensorError) as error:
        raise PecoError(f"{target}: can't be written: {error}") from None
    return len(weights)


def extract(checkpoint: object, source: Path) -> dict[str, Tensor]:
    """Weights of the base encoder by timm's names; `source` is for messages.

    Raises:
        PecoError: it is not a MoCo v3 checkpoint of a vision transformer.
    """
    state = checkpoint.get("state_dict", checkpoint) if isinstance(checkpoint, Mapping) else None
    weights = {}
    for key, value in state.items() if isinstance(state, Mapping) else ():
        prefix = next((p for p in _PREFIXES if str(key).startswith(p)), None)
        if prefix and isinstance(value, Tensor):
            if value.layout is not torch.strided or value.is_quantized or value.is_meta:
                raise PecoError(f"{source}: {key} holds no plain numbers; give the official checkpoint")
            weights[key.removeprefix(prefix)] = value.contiguous().clone()
    weights = {name: value for name, value in weights.items() if not name.startswith("head.")}
    if "patch_embed.proj.weight" not in weights:
        raise PecoError(
            f"{source}: not a MoCo v3 checkpoint of a vision transformer (expected weights named {_PREFIXES[0]}patch_embed.…); "
            "give the pre-training checkpoint of a ViT"
        )
    return weights


def _load(source: Path) -> object:
    try:
        checkpoint: object = torch.load(source, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise PecoError(f"{source}: no such file") from None
    except _LOAD_ERRORS as error:
        # The unpickler's own text is a manual of torch.load.
        unknown = isinstance(error, pickle.UnpicklingError)
        why = "it is damaged, or holds more than tensors and plain data" if unknown else reason(error)[:200]
        raise PecoError(f"{source}: can't be read as a checkpoint ({why}); download it again") from None
    return checkpoint


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; an error is one line on stderr and status 1."""
    parser = argparse.ArgumentParser(
        prog="python -m peco.convert_moco", description="MoCo v3 checkpoint to safetensors"
    )
    parser.add_argument("source", type=Path, help="official checkpoint (.pth.tar)")
    parser.add_argument("target", type=Path, help="file to write (.safetensors)")
    arguments = parser.parse_args(argv)
    try:
        count = convert(arguments.source, arguments.target)
    except PecoError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{arguments.target}: {count} tensors")
    return 0


if __name__ == "__main__":
    sys.exit(main())
